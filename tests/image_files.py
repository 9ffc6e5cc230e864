"""Image folders for tests: small, real, and each image another."""

from pathlib import Path

import numpy as np
from PIL import Image


def an_image(number: int, side: int = 24) -> Image.Image:
    """A smooth coloured image with a disc; `number` decides colours and place."""
    random = np.random.default_rng(number)
    rows, columns = np.mgrid[0:side, 0:side] / side
    colours = random.uniform(0, 255, size=(2, 3))
    pixels = colours[0] * rows[..., None] + colours[1] * (1 - rows[..., None])
    centre, radius = random.uniform(0.3, 0.7, size=2), random.uniform(0.15, 0.35)
    disc = np.hypot(rows - centre[0], columns - centre[1]) < radius
    pixels[disc] = random.uniform(0, 255, size=3)
    return Image.fromarray(pixels.astype(np.uint8))


def write_image_folder(
    folder: Path, classes: tuple[str, ...] = ("circle", "dot"), count: int = 7, side: int = 24
) -> Path:
    """`count` images per class, in sub-folders named after the classes."""
    for class_id, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            an_image(100 * class_id + index, side).save(folder / name / f"{index:03d}.png")
    return folder
