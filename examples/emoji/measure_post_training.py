"""Post-train var-emoji-64 by Neon, CCA and DDO, and compare it with guidance at one tuning budget.

    python examples/emoji/draw.py data
    python examples/emoji/train_classifier.py data classifier.safetensors
    python examples/emoji/measure_post_training.py data classifier.safetensors outputs

Each method tries four settings. The one with the lowest FID to the validation images is drawn again
from three seeds, after three trainings where the method trains, and judged: share of images that
the classifier recognises, FID to the test images, spread within a class, log-probability of test
images, and cost. Another classifier's features, trained here, choose the settings; the judge takes
part in nothing else. What was measured before is kept: every cell is a JSON file.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import draw
import numpy as np
import torch
import train_classifier
from judge_images import draw_images, features_of, judge, spread

from var_hf import VARPipeline
from var_hf.assets import VAR_EMOJI_64
from var_hf.evaluation.classifier import load_classifier, save_classifier
from var_hf.evaluation.features import load_features
from var_hf.evaluation.metrics import frechet_distance, moments
from var_hf.files import read_json, write_json
from var_hf.images import open_images
from var_hf.training.cca import CCAConfig, train_cca
from var_hf.training.ddo import DDOConfig, train_ddo
from var_hf.training.merging import extrapolate
from var_hf.training.neon import NeonConfig
from var_hf.training.own_samples import draw_samples
from var_hf.training.transformer import train_transformer

REAL_PER_CLASS = 40  # images of the training split that CCA and DDO see
STEPS, BATCH_SIZE = 8, 16  # of CCA and DDO; Neon takes batches of twice the size
SEEDS = (0, 1, 2)
LIKELIHOOD_PER_CLASS = 3
SAMPLING_BATCH = 40
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """One row of the table: settings to try, each a model's and a sampler's."""

    name: str
    tries: Sequence[tuple[Settings, Settings]]
    train: Callable[[Settings, int], VARPipeline] | None = None  # from settings and seed


class Experiment:
    """The data, the two classifiers, and the cells measured so far."""

    def __init__(self, data: Path, classifier: Path, folder: Path):
        self.data, self.folder = data, folder
        self.judge, self.judge_names = load_classifier(classifier)
        chooser = folder / "chooser.safetensors"
        if not chooser.exists():
            save_classifier(*train_classifier.train(data, steps=600, seed=1), chooser)
        self.extractors = {
            "validation": load_features(str(chooser)),
            "test": load_features(str(classifier)),
        }
        self.references = {
            split: moments(features_of([images.read(n) for n in range(len(images))], extractor))
            for split, extractor in self.extractors.items()
            for images in [open_images(data, split)]
        }
        draw.write_dataset(folder / "real", {"train": REAL_PER_CLASS})
        self.models: dict[str, VARPipeline] = {}

    def training(self, rate: float, seed: int, batch_size: int, steps: int) -> dict[str, Any]:
        """Settings that the trainings share."""
        return {
            "model": VAR_EMOJI_64.name,
            "seed": seed,
            "learning_rate": rate,
            "batch_size": batch_size,
            "resize_factor": 1.0,
            "random_crop": False,
            "sample_steps": 0,
            "save_steps": steps,
            "logging_steps": 1,
        }

    def against_real(self, config: type, train: Callable[..., Any]) -> Callable[..., VARPipeline]:
        """A training of CCA or DDO by settings and seed."""

        def run(settings: Settings, seed: int) -> VARPipeline:
            name = f"{config.kind}-{settings['learning_rate']:g}-{seed}"
            common = self.training(settings["learning_rate"], seed, BATCH_SIZE, STEPS) | {
                # Tuning, with seed 0, encodes the images; the seed is part of a cache's identity.
                "data": None if seed else str(self.folder / "real" / "train"),
                "token_cache": str(self.folder / "tokens"),
                "num_train_epochs": STEPS * BATCH_SIZE / (REAL_PER_CLASS * 40),
            }
            if config is DDOConfig:
                common["samples_per_class"] = 5
            result = train(config.from_recipe(None, **common), self.folder / name)
            return load(result["pipeline"])

        return run

    def neon(self, settings: Settings, seed: int) -> VARPipeline:
        """A self-training by seed, and the step of the settings."""
        output, base = self.folder / f"neon-{seed}", load(VAR_EMOJI_64)
        config = NeonConfig.from_recipe(
            None,
            **self.training(2e-4, seed, 2 * BATCH_SIZE, STEPS),
            data="measured here",
            num_train_epochs=1,
        )
        draw_samples(base, output / "samples", range(40), 6, settings={}, seed=seed)
        result = train_transformer(config.of_self_training(output / "samples"), output / "run")
        extrapolate(base, load(result["pipeline"]), settings["weight"])
        return base

    def pipeline(self, method: Method, settings: Settings, seed: int) -> VARPipeline:
        """The model of a try, trained once."""
        if method.train is None:
            settings, seed = {}, 0
        key = json.dumps([method.name if settings else "base", settings, seed])
        if key not in self.models:
            self.models[key] = (
                load(VAR_EMOJI_64) if method.train is None else method.train(settings, seed)
            )
        return self.models[key]

    def cell(
        self, method: Method, number: int, seed: int, per_class: int, split: str
    ) -> dict[str, Any]:
        """Draw the images of one try and measure them, unless that has been done."""
        model_settings, sampling = method.tries[number]
        file = self.folder / "cells" / f"{method.name}-{number}-{split}-{seed}.json"
        if file.exists():
            return read_json(file)
        pipe = self.pipeline(method, model_settings, seed)
        start = time.process_time()
        images = draw_images(pipe, per_class, SAMPLING_BATCH, 10_000 * (1 + seed), **sampling)
        seconds = time.process_time() - start
        everything = [image for each in images.values() for image in each]
        features = features_of(everything, self.extractors[split])
        cell: dict[str, Any] = {
            "settings": {**model_settings, **sampling},
            "images": len(everything),
            "fid": frechet_distance(moments(features), self.references[split]),
        }
        if split == "test":
            rates = judge(images, self.judge, self.judge_names)
            resolved = pipe.resolve_settings(**sampling)
            num_scales = len(pipe.transformer.config.token_map_sizes)
            cell |= {
                "recognised": float(np.mean(list(rates.values()))),
                "worst_class": min(rates.values()),
                "spread": float(np.mean([spread(each) for each in images.values()])),
                "log_likelihood": self.log_likelihood(pipe),
                "passes": num_scales + resolved.num_guided_scales(num_scales),
                "processor_seconds": seconds / len(everything),
            }
        write_json(file, cell)
        return cell

    def log_likelihood(self, pipe: VARPipeline) -> float:
        """Mean log-probability of some test images in nats."""
        images = open_images(self.data, "test")
        assert images.labels is not None
        chosen = [
            number
            for label in range(40)
            for number in np.flatnonzero(np.asarray(images.labels) == label)[:LIKELIHOOD_PER_CLASS]
        ]
        found = pipe.log_likelihood(
            [images.read(int(n)) for n in chosen], [images.labels[n] for n in chosen], batch_size=50
        )
        return found.total.mean().item()


def load(folder: str | Path) -> VARPipeline:
    """A pipeline in float32."""
    pipe = VARPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def methods(experiment: Experiment) -> list[Method]:
    """All rows; each but the first tries four settings."""
    cca = experiment.against_real(CCAConfig, train_cca)
    ddo = experiment.against_real(DDOConfig, train_ddo)
    trained = [
        ({"learning_rate": rate}, {"guidance_scale": scale})
        for rate in (2e-5, 6e-5)
        for scale in (1.0, 1.5)
    ]
    return [
        Method("unguided", [({}, {"guidance_scale": 1.0})]),
        Method("guidance", [({}, {"guidance_scale": scale}) for scale in (1.5, 2.0, 2.5, 3.0)]),
        Method("cca", trained, cca),
        Method(
            "neon",
            [
                ({"weight": weight}, {"guidance_scale": scale})
                for weight in (0.5, 1.5)
                for scale in (1.0, 2.0)
            ],
            experiment.neon,
        ),
        Method("ddo", trained, ddo),
        Method(
            "ssg",
            [({}, {"guidance_scale": 1.0, "ssg_scale": r}) for r in (0.1, 0.2, 0.4, 0.8)],
        ),
        Method(
            "interval",
            [
                ({}, {"guidance_scale": scale, "guided_scales": scales})
                for scale in (2.0, 3.0)
                for scales in ((0, 5), (2, 7))
            ],
        ),
    ]


def measure(experiment: Experiment, per_class_tuning: int, per_class: int) -> list[dict[str, Any]]:
    """All rows of the table: chosen settings, and mean and spread of each number over the seeds."""
    rows = []
    for method in methods(experiment):
        numbered = range(len(method.tries) if len(method.tries) > 1 else 0)
        tuned = [experiment.cell(method, n, 0, per_class_tuning, "validation") for n in numbered]
        best = int(np.argmin([cell["fid"] for cell in tuned])) if tuned else 0
        cells = [experiment.cell(method, best, seed, per_class, "test") for seed in SEEDS]
        numbers = [name for name in cells[0] if name not in ("settings", "images")]
        row = {
            "method": method.name,
            "tried": [{**cell["settings"], "fid": cell["fid"]} for cell in tuned],
            "chosen": cells[0]["settings"],
        }
        for name in numbers:
            values = [cell[name] for cell in cells]
            row[name] = {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}
        rows.append(row)
        write_json(experiment.folder / "results.json", {"rows": rows})
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown: mean and standard deviation over the seeds."""
    columns = ("recognised", "worst_class", "fid", "spread", "log_likelihood", "passes",
               "processor_seconds")  # fmt: skip
    lines = [" | ".join(("method", "chosen", *columns)), " | ".join(["---"] * (2 + len(columns)))]
    for row in rows:
        numbers = [f"{row[name]['mean']:.4g} ± {row[name]['std']:.2g}" for name in columns]
        lines.append(" | ".join((row["method"], json.dumps(row["chosen"]), *numbers)))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Measure, write results.json and print a row per method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder written by draw.py")
    parser.add_argument("classifier", type=Path, help="file written by train_classifier.py")
    parser.add_argument("folder", type=Path, help="folder for runs, cells and results.json")
    parser.add_argument(
        "--tuning-per-class",
        type=int,
        default=3,
        help="images per class for each setting tried (default: %(default)s)",
    )
    parser.add_argument(
        "--per-class",
        type=int,
        default=6,
        help="images per class and seed of the chosen setting (default: %(default)s)",
    )
    arguments = parser.parse_args()
    experiment = Experiment(arguments.data, arguments.classifier, arguments.folder)
    print(table(measure(experiment, arguments.tuning_per_class, arguments.per_class)))


if __name__ == "__main__":
    main()
