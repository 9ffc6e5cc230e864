"""Let var-emoji-64 name the classes of images that it has not seen, by Bayes' rule.

    python examples/emoji/classify_images.py --count 10
    python examples/emoji/classify_images.py --count 2 --budget fast --corrupt

prints, as JSON, the share of drawn test images (`--count` of each of the 40 classes) whose class
is the likeliest one, and what was taken for what. With `--budget`, it classifies the images by
this budget and by the full search, and prints both, how often both give the same answer, and the
transformer's operations. `--corrupt` repeats that with noise, blur and occlusion.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from draw import draw, read_drawing
from PIL import Image, ImageFilter

from var_hf import VARPipeline
from var_hf.assets import VAR_EMOJI_64
from var_hf.budgets import parse_budget, resolve_budget
from var_hf.costs import classification_cost

NOISE = 0.1  # standard deviation, of values in [0, 1]
BLUR = 1.5  # standard deviation in pixels
OCCLUDED = 24  # side of the grey square in pixels


def add_noise(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Add Gaussian noise to each value."""
    values = np.asarray(image) / 255
    noisy = (values + random.normal(0, NOISE, values.shape)).clip(0, 1)
    return Image.fromarray((255 * noisy).round().astype(np.uint8))


def blur(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Blur with a Gaussian kernel."""
    return image.filter(ImageFilter.GaussianBlur(BLUR))


def occlude(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Cover a square within the middle three quarters, where the emoji is, with grey."""
    margin = image.width // 8
    left, top = map(int, random.integers(margin, image.width - margin - OCCLUDED, 2))
    occluded = image.copy()
    occluded.paste((128, 128, 128), (left, top, left + OCCLUDED, top + OCCLUDED))
    return occluded


CORRUPTIONS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "clean": lambda image, random: image,
    "noise": add_noise,
    "blur": blur,
    "occlusion": occlude,
}


def find(
    pipe: VARPipeline, images: list[Image.Image], names: list[str], **options: Any
) -> tuple[list[str], dict[str, Any]]:
    """The name found for each image, and a report."""
    start = time.perf_counter()
    guesses = pipe.classify(images, top=1, generator=torch.Generator().manual_seed(0), **options)
    seconds = time.perf_counter() - start
    found = [row[0]["label"] for row in guesses]
    pairs = list(zip(names, found, strict=True))
    mistakes = Counter((name, guess) for name, guess in pairs if name != guess)
    return found, {
        "accuracy": sum(name == guess for name, guess in pairs) / len(pairs),
        "mistakes": [{"is": a, "taken_for": b, "times": n} for (a, b), n in mistakes.most_common()],
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument(
        "--model", default=VAR_EMOJI_64, help="pipeline folder (default: %(default)s)"
    )
    parser.add_argument("--count", type=int, default=10, help="images per class (default: 10)")
    parser.add_argument("--batch-size", type=int, default=64, help="pairs at a time (default: 64)")
    parser.add_argument("--budget", help="also classify by this budget, as in var-hf classify")
    parser.add_argument("--corrupt", action="store_true", help="also with noise, blur, occlusion")
    arguments = parser.parse_args()

    pipe = VARPipeline.from_pretrained(arguments.model, dtype=torch.float32)
    names = [name for name in read_drawing().classes for _ in range(arguments.count)]
    drawn = [draw(name, i % arguments.count, split="test") for i, name in enumerate(names)]
    budgets: dict[str, Any] = {"full": "full"}
    if arguments.budget is not None:
        budgets[arguments.budget] = parse_budget(arguments.budget)
    config = pipe.transformer.config
    operations = {
        name: sum(
            classification_cost(
                config, resolve_budget(budget, config.num_classes, config.num_scales)
            )
        )
        for name, budget in budgets.items()
    }
    result: dict[str, Any] = {
        "model": str(arguments.model),
        "images": len(names),
        "operations_per_image": operations,
    }
    for kind in CORRUPTIONS if arguments.corrupt else ["clean"]:
        corrupt = CORRUPTIONS[kind]
        images = [
            corrupt(image.convert("RGB"), np.random.default_rng(i)) for i, image in enumerate(drawn)
        ]
        result[kind] = {}
        answers = []
        for name, budget in budgets.items():
            found, result[kind][name] = find(
                pipe, images, names, batch_size=arguments.batch_size, budget=budget
            )
            answers.append(found)
        same = [len(set(one)) == 1 for one in zip(*answers, strict=True)]
        result[kind]["same_answer"] = sum(same) / len(same)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
