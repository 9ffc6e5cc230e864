"""Fine-tune var-emoji-64 on three new emoji with the documented command, and judge the samples.

    python examples/emoji/measure_fine_tuning.py outputs/fine-tuning
    python examples/emoji/measure_fine_tuning.py outputs/fine-tuning --lora-rank 16

draws 100 images each of a cactus, a ghost and a turtle, and runs `var-hf train` on them. It prints
wall and processor time, and the share of reconstructions and samples that a classifier names, and
writes a grid of samples. Further options are those of `var-hf train`. The classifier
is trained on other drawings of the 40 known and the three new emoji, and takes no part in the
fine-tuning. Data and classifier are made once.
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import draw
import torch
import train_classifier
from judge_images import draw_images, judge, spread, to_pixels

from var_hf import MultiScaleVQVAE, VARPipeline
from var_hf.assets import VAR_EMOJI_64, shipped_model
from var_hf.evaluation.classifier import SmallClassifier, load_classifier, save_classifier
from var_hf.images import ImageDataset, normalize, open_images
from var_hf.pipelines.visualization import image_grid

NEW = {"cactus": "\N{CACTUS}", "ghost": "\N{GHOST}", "turtle": "\N{TURTLE}"}
JUDGE_SEED = 7  # other drawings than those that the model learns
GRID_COLUMNS = 12


def prepare(folder: Path) -> tuple[SmallClassifier, list[str]]:
    """Draw the images, and draw for and train the classifier, as far as that has not been done."""
    known = draw.read_drawing()
    new = dataclasses.replace(known, classes=NEW)
    both = dataclasses.replace(known, classes=known.classes | NEW)
    draw.write_dataset(folder / "drawn", {"train": 100}, drawing=new)
    counts = {"train": 250, "validation": 20, "test": 50}
    draw.write_dataset(folder / "judge", counts, JUDGE_SEED, drawing=both)
    file = folder / "classifier.safetensors"
    if not file.exists():
        save_classifier(*train_classifier.train(folder / "judge"), file)
    return load_classifier(file)


def fine_tune(data: Path, run: Path, options: list[str]) -> dict[str, float]:
    """Run the documented command in a process of its own; return its seconds."""
    command = [
        sys.executable, "-c", "from var_hf.cli import main; main()", "train", "--data", str(data),
        "--model", VAR_EMOJI_64.name, "--new-classes", "-o", str(run), *options,
    ]  # fmt: skip
    start = time.monotonic()
    subprocess.run(command, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall_seconds": round(time.monotonic() - start),
        "processor_seconds": round(used.ru_utime + used.ru_stime),
    }


@torch.no_grad()
def named_reconstructions(
    model: str | Path, images: ImageDataset, classifier: SmallClassifier, class_names: list[str]
) -> dict[str, float]:
    """Share of the new classes' images whose reconstruction the classifier names rightly."""
    vqvae = MultiScaleVQVAE.from_pretrained(model, subfolder="vqvae", dtype=torch.float32)
    rates = {}
    for name in NEW:
        label = class_names.index(name)
        chosen = [n for n, each in enumerate(images.labels or ()) if each == label]
        pixels = normalize(to_pixels([images.read(n) for n in chosen]))
        found = classifier(vqvae.reconstruct(pixels).clamp(-1, 1)).argmax(dim=1)
        rates[name] = round((found == label).float().mean().item(), 3)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder for data, runs and grids")
    parser.add_argument("--run", default="run", help="name of the run in it (%(default)s)")
    parser.add_argument("--count", type=int, default=40, help="samples per class (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (%(default)s)")
    arguments, options = parser.parse_known_args()  # the rest is for `var-hf train`
    folder, run = arguments.folder, arguments.folder / arguments.run
    classifier, names = prepare(folder)
    seconds = fine_tune(folder / "drawn" / "train", run, options)
    pipe = VARPipeline.from_pretrained(run / "pipeline", dtype=torch.float32)
    samples = draw_images(pipe, arguments.count, 20, arguments.seed)
    tests = open_images(folder / "judge", "test")
    report = {
        "options": options,
        "threads": torch.get_num_threads(),
        **seconds,
        "samples_named": judge(samples, classifier, names),
        "spread": {name: round(spread(images), 1) for name, images in samples.items()},
        "reconstructions_named_before": named_reconstructions(
            shipped_model(VAR_EMOJI_64.name), tests, classifier, names
        ),
        "reconstructions_named": named_reconstructions(run / "pipeline", tests, classifier, names),
    }
    shown = [image for images in samples.values() for image in images[:GRID_COLUMNS]]
    image_grid(shown, GRID_COLUMNS).save(folder / f"{arguments.run}.png")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
