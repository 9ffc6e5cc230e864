"""Picture files of unknown origin, read with one clear error. Needs Pillow alone, so that bad files fail early."""

from __future__ import annotations

import os
import warnings

from PIL import Image, UnidentifiedImageError


def open_picture(
    path: str | os.PathLike[str], name: str | None = None, most_pixels: int | None = None
) -> Image.Image:
    """Read a picture file as a whole.

    Args:
        path: The file.
        name: What errors call it; the path by default.
        most_pixels: Refuse pictures with more pixels than that, before they are unpacked.

    Raises:
        OSError: There is no such file, or it is no picture that Pillow can read.
        ValueError: The picture has too many pixels.
    """
    name = str(path) if name is None else name
    try:
        with warnings.catch_warnings():
            if most_pixels is not None:  # our own limit speaks instead of Pillow's
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                width, height = picture.size
                if most_pixels is None or width * height <= most_pixels:
                    picture.load()
                    return picture
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no picture {name}.") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
        raise OSError(f"{name} cannot be read as a picture{reason}") from error
    raise ValueError(
        f"{name} has {width} x {height} pixels, {width * height / 1e6:.1f} million; at most {most_pixels / 1e6:g} "
        "million are taken. Make it smaller first."
    )
