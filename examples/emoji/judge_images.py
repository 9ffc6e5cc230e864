"""Draw images of every class with a trained pipeline and let the classifier judge them.

    python examples/emoji/judge_images.py outputs/emoji/transformer/pipeline
    outputs/emoji/classifier.safetensors \
        --data outputs/emoji/data --grid grid.png

prints how many images the classifier names rightly, in all and for the worst classes, and how far
apart the images of a class are, beside the same for real ones: a model that has learnt one
image by heart has no spread. With --data it also prints their feature distance to the test images.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import make_image_grid
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from var_hf import VARPipeline
from var_hf.evaluation.classifier import SmallClassifier, load_classifier
from var_hf.evaluation.features import FeatureExtractor, load_features
from var_hf.evaluation.metrics import frechet_distance, moments
from var_hf.images import ImageDataset, normalize, open_images

SEEDS = (0, 1, 2)


def draw_images(
    pipe: VARPipeline, count: int, batch_size: int, seed: int, **settings: Any
) -> dict[str, list[Image.Image]]:
    """`count` images of every class, each from a seed of its own."""
    pipe.set_progress_bar_config(disable=True)
    names = [pipe.id2label[class_id] for class_id in range(len(pipe.id2label))]
    jobs = [(class_id, i) for class_id in range(len(names)) for i in range(count)]
    by_class: dict[str, list[Image.Image]] = {name: [] for name in names}
    with tqdm(total=len(jobs), unit="image") as bar:
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            generators = [
                torch.Generator().manual_seed(seed + class_id * count + i) for class_id, i in batch
            ]
            labels = [class_id for class_id, _ in batch]
            for (class_id, _), image in zip(
                batch, pipe(labels, generator=generators, **settings).images, strict=True
            ):
                by_class[names[class_id]].append(image)
            bar.update(len(batch))
    return by_class


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Images as uint8 ``(N, 3, P, P)``."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def spread(images: list[Image.Image]) -> float:
    """Compute the RMS difference between two images of a class, in grey levels of 255."""
    variance = to_pixels(images).double().var(dim=0)  # two independent draws differ by twice this
    return float((2 * variance.mean()).sqrt())


def features_of(images: Sequence[Image.Image], extractor: FeatureExtractor) -> Tensor:
    """The features ``(N, D)`` of N images, a hundred at a time."""
    parts = (images[start : start + 100] for start in range(0, len(images), 100))
    return torch.cat([extractor(to_pixels(part)).pooled for part in parts])


@torch.no_grad()
def judge(
    by_class: dict[str, list[Image.Image]], classifier: SmallClassifier, class_names: list[str]
) -> dict[str, float]:
    """Share of each class's images that the classifier names rightly.

    Raises:
        ValueError: The images are of classes that the classifier does not know.
    """
    unknown = sorted(by_class.keys() - set(class_names))
    if unknown:
        raise ValueError(f"The classifier does not know {', '.join(unknown)}.")
    rates = {}
    for name, images in by_class.items():
        found = classifier(normalize(to_pixels(images))).argmax(dim=1)
        rates[name] = (found == class_names.index(name)).float().mean().item()
    return rates


class Judging:
    """A classifier and the real test images, to measure pipelines against."""

    def __init__(self, classifier: Path, data: Path):
        self.classifier = load_classifier(classifier)
        self.extractor = load_features(str(classifier))
        test = open_images(data, "test")
        self.real = moments(features_of([test.read(n) for n in range(len(test))], self.extractor))

    def distance(self, by_class: dict[str, list[Image.Image]]) -> float:
        """Frechet distance to the test images; it falls with the number of images."""
        images = [image for images in by_class.values() for image in images]
        return frechet_distance(moments(features_of(images, self.extractor)), self.real)

    def measure(
        self, pipe: VARPipeline, count: int, batch_size: int
    ) -> tuple[dict[str, dict[str, float]], list[Image.Image]]:
        """Mean and deviation over three seeds of every quality, and one image of each class.

        The qualities are the share of recognised images, that of the worst class, the Frechet
        distance to the test images, the spread within a class, and processor seconds per image.
        """
        rows = []
        shown: list[Image.Image] = []
        for seed in SEEDS:
            start = time.process_time()
            by_class = draw_images(pipe, count, batch_size, 10_000 * (1 + seed))
            seconds = time.process_time() - start
            everything = [image for images in by_class.values() for image in images]
            rates = judge(by_class, *self.classifier)
            rows.append(
                {
                    "recognised": float(np.mean(list(rates.values()))),
                    "worst_class": min(rates.values()),
                    "fid": self.distance(by_class),
                    "spread": mean_spread(by_class),
                    "processor_seconds": seconds / len(everything),
                }
            )
            shown = shown or [images[0] for images in by_class.values()]
        summary = {
            name: {
                "mean": float(np.mean([row[name] for row in rows])),
                "std": float(np.std([row[name] for row in rows], ddof=1)),
            }
            for name in rows[0]
        }
        return summary, shown


def numbers_by_class(images: ImageDataset, per_class: int | None = None) -> dict[str, list[int]]:
    """Positions of the first images of every class; `None` gives all."""
    assert images.labels is not None and images.class_names is not None
    by_class: dict[str, list[int]] = {name: [] for name in images.class_names}
    for number, label in enumerate(images.labels):
        by_class[images.class_names[label]].append(number)
    return {name: numbers[:per_class] for name, numbers in by_class.items()}


def real_images(
    data: str | Path, split: str, names: list[str], per_class: int | None = None
) -> dict[str, list[Image.Image]]:
    """The first images of every class of a split, whose classes have to be `names`."""
    images = open_images(data, split)
    assert images.class_names == names
    return {
        name: [images.read(number) for number in numbers]
        for name, numbers in numbers_by_class(images, per_class).items()
    }


def mean_spread(by_class: dict[str, list[Image.Image]]) -> float:
    """Mean `spread` over the classes."""
    return float(np.mean([spread(images) for images in by_class.values()]))


def main() -> None:
    """Draw, judge, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pipeline", help="pipeline folder")
    parser.add_argument("classifier", type=Path, help="file written by train_classifier.py")
    parser.add_argument("--count", type=int, default=50, help="images per class (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--guidance-scale", type=float, help="default: as shipped")
    parser.add_argument("--top-k", type=int, help="default: as shipped")
    parser.add_argument("--top-p", type=float, help="default: as shipped")
    parser.add_argument(
        "--temperature", type=float, nargs="+", help="one number, or one for each scale"
    )
    parser.add_argument("--data", help="folder written by draw.py, for spread and feature distance")
    parser.add_argument("--grid", type=Path, help="PNG of one row per class to write")
    arguments = parser.parse_args()
    temperature = arguments.temperature
    pipe = VARPipeline.from_pretrained(arguments.pipeline, dtype=torch.float32)
    by_class = draw_images(
        pipe,
        arguments.count,
        arguments.batch_size,
        arguments.seed,
        guidance_scale=arguments.guidance_scale,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        temperature=temperature[0] if temperature and len(temperature) == 1 else temperature,
    )
    rates = judge(by_class, *load_classifier(arguments.classifier))
    report = {
        "images": arguments.count * len(rates),
        "recognised": float(np.mean(list(rates.values()))),
        "worst": dict(sorted(rates.items(), key=lambda item: item[1])[:5]),
        "spread": mean_spread(by_class),
    }
    if arguments.data is not None:
        real = real_images(arguments.data, "test", list(by_class), arguments.count)
        report["spread_of_real_images"] = mean_spread(real)
        judging = Judging(arguments.classifier, Path(arguments.data))
        report["feature_distance"] = judging.distance(by_class)
    if arguments.grid is not None:
        columns = min(10, arguments.count)
        shown = [image for images in by_class.values() for image in images[:columns]]
        make_image_grid(shown, rows=len(by_class), cols=columns).save(arguments.grid)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
