"""Measure a model of drawn emoji: reconstructions, generated images, and classification.

    python examples/emoji/measure.py var_hf/assets/var-emoji-64 \
        outputs/emoji/classifier.safetensors outputs/emoji/data --output examples/emoji

writes results.json, the numbers of the model card, and two grids into the output folder:
reconstructions.png (originals above) and samples.png (a row of images per class).
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import make_image_grid
from judge_images import draw_images, judge, real_spread, spread

from var_hf import VARPipeline
from var_hf.evaluation.classifier import load_classifier
from var_hf.evaluation.tokenizer import evaluate_tokenizer
from var_hf.files import new_path, write_json
from var_hf.images import ImageTransform, open_images
from var_hf.model_card import Result

COMMAND = "python examples/emoji/measure.py {model} classifier.safetensors data"
DATA_SET = "drawn-emoji"
IMAGES_SHOWN = 10
BATCH_SIZE = 40
CLASSIFIED_PER_CLASS = 10


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


def generation(
    pipe: VARPipeline, classifier: Path, data: Path, output: Path, per_class: int
) -> list[Result]:
    """Share of images that the classifier recognises, and how far apart those of a class are."""
    by_class = draw_images(pipe, per_class, BATCH_SIZE, seed=0)
    rates = judge(by_class, *load_classifier(classifier))
    shown = [image for images in by_class.values() for image in images[:IMAGES_SHOWN]]
    with new_path(output / "samples.png", replace=True) as temporary:
        make_image_grid(shown, rows=len(by_class), cols=IMAGES_SHOWN).save(temporary)
    worst = min(rates, key=lambda name: rates[name])
    spreads = [spread(images) for images in by_class.values()]
    real = real_spread(str(data), list(by_class), per_class)
    generated = f"{per_class * len(rates):,} generated images, settings as shipped"
    return [
        result("recognised by the classifier", float(np.mean(list(rates.values()))), generated),
        result(f"recognised, worst class ({worst})", rates[worst], generated),
        result("spread within a class in grey levels of 255", float(np.mean(spreads)), generated),
        result("spread of real images in grey levels of 255", real, "test images"),
    ]


def understanding(pipe: VARPipeline, data: Path) -> list[Result]:
    """Share of test images whose class is the likeliest one by Bayes' rule."""
    images = open_images(data, "test")
    assert images.labels is not None and images.class_names is not None
    chosen: list[int] = []
    for label in range(len(images.class_names)):
        numbers = [number for number, other in enumerate(images.labels) if other == label]
        chosen += numbers[:CLASSIFIED_PER_CLASS]
    guesses = pipe.classify([images.read(number) for number in chosen], top=1, batch_size=64)
    right = [
        guess[0]["label"] == images.class_names[images.labels[number]]
        for guess, number in zip(guesses, chosen, strict=True)
    ]
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
    parser.add_argument("--output", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()

    pipe = VARPipeline.from_pretrained(arguments.model, dtype=torch.float32)
    results = [
        *reconstruction(pipe, arguments.data, arguments.output),
        *generation(
            pipe, arguments.classifier, arguments.data, arguments.output, arguments.per_class
        ),
        *understanding(pipe, arguments.data),
    ]
    command = COMMAND.format(model=arguments.model)
    entries = [asdict(replace(entry, command=command)) for entry in results]
    write_json(arguments.output / "results.json", entries)
    for entry in results:
        print(f"{entry.metric}: {entry.value:g} ({entry.dataset})")


if __name__ == "__main__":
    main()
