"""Grids of images, and animations of the scales."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from var_hf.files import new_path

FRAME_DURATION = 400  # milliseconds a scale is shown
LAST_DURATION = 2000  # milliseconds the finished image is shown
ANIMATION_SUFFIXES = (".gif", ".webp")


def image_grid(images: Sequence[Image.Image], num_columns: int) -> Image.Image:
    """Arrange images of one size in a grid, with white gaps of 1/64 of their width."""
    width, height = images[0].size
    gap = max(1, width // 64)
    num_rows = math.ceil(len(images) / num_columns)
    grid = Image.new(
        "RGB",
        (num_columns * (width + gap) - gap, num_rows * (height + gap) - gap),
        "white",
    )
    for index, image in enumerate(images):
        row, column = divmod(index, num_columns)
        grid.paste(image, (column * (width + gap), row * (height + gap)))
    return grid


def scale_strip(previews: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """One row per image, one column per scale.

    Args:
        previews: The `image` of each output of `pipe.stream(..., preview=True)`: S lists of B
            images of one size.
    """
    by_image = zip(*previews, strict=True)
    return image_grid([image for row in by_image for image in row], num_columns=len(previews))


def save_animation(frames: Sequence[Image.Image], path: str | os.PathLike[str]) -> None:
    """Write frames of one size as a GIF or WebP that repeats forever; the last frame is shown
    longer.

    A GIF has 256 colours per frame, a WebP is written without loss. A file that exists is replaced
    once the new one is complete.

    Raises:
        ValueError: There are no frames, or `path` ends in neither `.gif` nor `.webp`.
        OSError: Writing failed.
    """
    if Path(path).suffix.lower() not in ANIMATION_SUFFIXES:
        raise ValueError(f"An animation is a .gif or a .webp file. Got {path}.")
    if not frames:
        raise ValueError("An animation needs at least one frame. Got none.")
    durations = [FRAME_DURATION] * (len(frames) - 1) + [LAST_DURATION]
    with new_path(path, replace=True) as temporary:
        frames[0].save(
            temporary,
            save_all=True,
            append_images=frames[1:],
            duration=durations,
            loop=0,
            lossless=True,  # an option of WebP, which GIF ignores
        )
