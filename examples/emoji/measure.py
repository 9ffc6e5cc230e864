"""Measure a model of drawn emoji: reconstructions, generated images, edits, and classification.

    python examples/emoji/measure.py var_hf/assets/var-emoji-64 \
        outputs/emoji/classifier.safetensors outputs/emoji/data --output examples/emoji

writes results.json, the numbers of the model card, and three grids into the output folder:
reconstructions.png (originals above), samples.webp (the same number of images of every class) and
nearest.webp (generated images above, the training images nearest to them below).
"""

import argparse
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from judge_images import (
    draw_images,
    features_of,
    judge,
    mean_spread,
    numbers_by_class,
    real_images,
    to_pixels,
)
from PIL import Image
from tqdm import tqdm

from var_hf import VARInpaintPipeline, VARPipeline
from var_hf.evaluation.classifier import SmallClassifier, load_classifier
from var_hf.evaluation.features import load_features
from var_hf.evaluation.metrics import frechet_distance, moments
from var_hf.evaluation.tokenizer import evaluate_tokenizer
from var_hf.files import new_path, write_json
from var_hf.images import ImageTransform, open_images
from var_hf.model_card import Result
from var_hf.pipelines.visualization import image_grid

COMMAND = (
    "python examples/emoji/measure.py {model} classifier.safetensors data "
    "--per-class {per_class} --classified-per-class {classified_per_class}"
)
DATA_SET = "drawn-emoji"
IMAGES_SHOWN = 400
NUM_COLUMNS = 20
NEAREST_SHOWN = 12
BATCH_SIZE = 40
EDITED_PER_CLASS = 2

ImagesByClass = dict[str, list[Image.Image]]


def result(metric: str, value: float, measured_on: str) -> Result:
    """A number of the card; the command is filled in when all are written."""
    return Result(metric, round(value, 4), "", measured_on, DATA_SET)


def reconstruction(pipe: VARPipeline, data: Path, output: Path) -> list[Result]:
    """Quality of the tokenizer on the test split."""
    images = open_images(data, "test")
    transform = ImageTransform(pipe.vqvae.image_size)
    values, grid = evaluate_tokenizer(pipe.vqvae, images, transform, len(images))
    with new_path(output / "reconstructions.png", replace=True) as temporary:
        grid.save(temporary)
    measured_on = f"{values['images']:,} test images"
    sizes = pipe.vqvae.config.token_map_sizes
    codes = zip(sizes, values["distinct_codes"], values["possible_codes"], strict=True)
    return [
        result("reconstruction PSNR in dB", values["psnr"], measured_on),
        result("reconstruction SSIM", values["ssim"], measured_on),
        *(
            result(f"share of codes in use at {size} x {size}", used / possible, measured_on)
            for size, used, possible in codes
        ),
    ]


def save_grid(images: list[Image.Image], file: Path, num_columns: int = NUM_COLUMNS) -> None:
    """Write images as one WebP file."""
    with new_path(file, replace=True) as temporary:
        image_grid(images, min(num_columns, len(images))).save(temporary, "WEBP", quality=90)


def generation(
    by_class: ImagesByClass, real: ImagesByClass, classifier: Path, data: Path, output: Path
) -> list[Result]:
    """Share of images that the classifier recognises, their distance to the `real` ones of the
    test split, and how far apart those of a class are.
    """
    per_class = len(next(iter(by_class.values())))
    rates = judge(by_class, *load_classifier(classifier))
    shown = max(1, IMAGES_SHOWN // len(by_class))
    save_grid(
        [image for images in by_class.values() for image in images[:shown]],
        output / "samples.webp",
    )
    worst = min(rates, key=lambda name: rates[name])
    extractor = load_features(str(classifier))
    drawn, tested, trained = (
        moments(features_of(list(chain.from_iterable(images.values())), extractor))
        for images in (by_class, real, real_images(data, "train", list(by_class), per_class))
    )
    generated = f"{per_class * len(rates):,} generated images, settings as shipped"
    tests = f"{sum(map(len, real.values())):,} test images"
    return [
        result("recognised by the classifier", float(np.mean(list(rates.values()))), generated),
        result(f"recognised, worst class ({worst})", rates[worst], generated),
        result("feature distance to the test images", frechet_distance(drawn, tested), generated),
        result(
            "feature distance of as many training images to the test images",
            frechet_distance(trained, tested),
            tests,
        ),
        result("spread within a class in grey levels of 255", mean_spread(by_class), generated),
        result("spread of real images in grey levels of 255", mean_spread(real), tests),
    ]


def memorisation(
    by_class: ImagesByClass, real: ImagesByClass, data: Path, output: Path
) -> list[Result]:
    """Difference between images and the nearest training images of their class. A model that
    repeats training images is nearer to them than the test images are.
    """
    train = open_images(data, "train")
    pairs: list[tuple[Image.Image, Image.Image]] = []
    differences: dict[str, list[float]] = {"generated": [], "real": []}
    for name, numbers in tqdm(numbers_by_class(train).items(), unit="class"):
        known = to_pixels([train.read(number) for number in numbers]).flatten(1).float()
        for kind, images in (("generated", by_class[name]), ("real", real[name])):
            pixels = to_pixels(images).flatten(1).float()
            nearest = torch.cdist(pixels, known).min(dim=1)
            differences[kind] += (nearest.values / known.shape[1] ** 0.5).tolist()
            if kind == "generated" and len(pairs) < NEAREST_SHOWN:
                pairs.append((images[0], train.read(numbers[int(nearest.indices[0])])))
    shown, nearest_to_them = zip(*pairs, strict=True)
    save_grid([*shown, *nearest_to_them], output / "nearest.webp", num_columns=len(pairs))
    return [
        result(
            f"difference between {kind} images and the nearest training image of their class, "
            "median, in grey levels of 255",
            float(np.median(values)),
            f"{len(values):,} images against {len(train):,}",
        )
        for kind, values in differences.items()
    ]


def editing(
    pipe: VARPipeline, real: ImagesByClass, classifier: SmallClassifier, class_names: list[str]
) -> list[Result]:
    """Share of edits that the classifier recognises: the right half redrawn as its own class, and
    the middle as the next class.
    """
    inpaint = VARInpaintPipeline.from_pipe(pipe)
    inpaint.set_progress_bar_config(disable=True)
    size = pipe.vqvae.image_size
    half, middle = Image.new("L", (size, size)), Image.new("L", (size, size))
    half.paste(255, (size // 2, 0, size, size))
    middle.paste(255, (size // 8, size // 8, size - size // 8, size - size // 8))
    names = list(real)
    following = names[1:] + names[:1]
    found = []
    for metric, mask, targets in (
        ("right half redrawn, recognised", half, names),
        ("middle redrawn as another class, recognised as it", middle, following),
    ):
        edited: ImagesByClass = {}
        for number, (name, target) in enumerate(
            tqdm(list(zip(names, targets, strict=True)), unit="class")
        ):
            images = real[name][:EDITED_PER_CLASS]
            generators = [
                torch.Generator().manual_seed(number * EDITED_PER_CLASS + i)
                for i in range(len(images))
            ]
            labels = [target] * len(images)
            edited[target] = inpaint(images, mask, labels, generator=generators).images
        rates = judge(edited, classifier, class_names)
        measured_on = f"{sum(map(len, edited.values())):,} edits of test images"
        found.append(result(metric, float(np.mean(list(rates.values()))), measured_on))
    return found


def understanding(pipe: VARPipeline, real: ImagesByClass, per_class: int) -> list[Result]:
    """Share of test images whose class is the likeliest one by Bayes' rule."""
    chosen = [(name, image) for name, images in real.items() for image in images[:per_class]]
    pipe.set_progress_bar_config(disable=False)  # draw_images hides that of every batch
    guesses = pipe.classify([image for _, image in chosen], top=1, batch_size=64)
    right = [guess[0]["label"] == name for guess, (name, _) in zip(guesses, chosen, strict=True)]
    measured_on = f"{len(right)} test images"
    return [result("classified by likelihood", float(np.mean(right)), measured_on)]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="pipeline folder")
    parser.add_argument("classifier", type=Path, help="file written by train_classifier.py")
    parser.add_argument("data", type=Path, help="folder written by draw.py")
    parser.add_argument(
        "--per-class",
        type=int,
        default=50,
        help="images generated per class (default: %(default)s)",
    )
    parser.add_argument(
        "--classified-per-class",
        type=int,
        default=10,
        help="test images per class, each of which is a pass per class (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()

    classifier, data, output = arguments.classifier, arguments.data, arguments.output
    pipe = VARPipeline.from_pretrained(arguments.model, dtype=torch.float32)
    by_class = draw_images(pipe, arguments.per_class, BATCH_SIZE, seed=0)
    real = real_images(data, "test", list(by_class))
    results = [
        *reconstruction(pipe, data, output),
        *generation(by_class, real, classifier, data, output),
        *memorisation(by_class, real, data, output),
        *editing(pipe, real, *load_classifier(classifier)),
        *understanding(pipe, real, arguments.classified_per_class),
    ]
    command = COMMAND.format(**vars(arguments))
    entries = [asdict(replace(entry, command=command)) for entry in results]
    write_json(output / "results.json", entries)
    for entry in results:
        print(f"{entry.metric}: {entry.value:g} ({entry.dataset})")


if __name__ == "__main__":
    main()
