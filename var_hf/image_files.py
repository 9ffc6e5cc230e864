"""Opens image files of unknown origin. No other module of the package opens image files.

Only the formats in `FORMATS` are tried. Without this limit, Pillow passes a file that contains
PostScript to Ghostscript, whatever the name of the file. The module imports only Pillow and numpy,
so bad files fail before the heavy libraries are loaded.
"""

import logging
import os
import warnings
from contextlib import ExitStack
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from var_hf.text import printable
from var_hf.untrusted import open_regular

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
#: Larger images are refused before they are unpacked: 8192 x 8192. Pillow itself warns above 89
#: million pixels.
MOST_PIXELS = 2**26
#: Larger images are reduced to this side in pixels, while they are still bytes.
LONGEST_SIDE = 4096

# Keeps Pillow's log off the terminal where a program sets up no logging; the errors here speak.
_NO_OUTPUT = logging.NullHandler()
_EIGHT_BIT_MODES = ("L", "LA", "RGB", "RGBA")
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # as PIL reads PNG and TIFF


class UnreadableImageError(OSError):
    """An image cannot be decoded; the message names it."""


def open_image(
    file: str | os.PathLike[str] | IO[bytes],
    name: str | None = None,
    *,
    most_pixels: int = MOST_PIXELS,
    longest_side: int = LONGEST_SIDE,
) -> Image.Image:
    """Read an image file: upright, eight bits per channel, reduced if it is large.

    Args:
        file: Path, or an open file.
        name: Name in error messages; the path by default.
        most_pixels: Images with more pixels are refused before they are unpacked.
        longest_side: Larger images are reduced to this longer side in pixels (Lanczos).

    Returns:
        An image of the mode L, LA, RGB or RGBA; the first frame of an animation.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableImageError: The file is no image in one of the `FORMATS`, is damaged, holds floats
            of unknown range, or may not be read. It is an OSError.
        ValueError: The image has too many pixels.
    """
    if name is None:
        name = str(file) if isinstance(file, str | os.PathLike) else "the image"
    name = printable(name)
    logging.getLogger("PIL").addHandler(_NO_OUTPUT)
    try:
        with ExitStack() as stack, warnings.catch_warnings():
            # Pillow warns about size, EXIF data and padding. The checks below replace these.
            warnings.simplefilter("ignore")
            if isinstance(file, str | os.PathLike):
                file = stack.enter_context(open_regular(file))
            image = stack.enter_context(Image.open(file, formats=FORMATS))
            width, height = image.size
            if width * height <= most_pixels:
                return _reduced(image, longest_side)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no image {name}.") from None
    except UnidentifiedImageError as error:
        raise UnreadableImageError(
            f"{name} cannot be read as an image. The formats {', '.join(FORMATS)} are read."
        ) from error
    except Image.DecompressionBombError as error:
        raise ValueError(_too_large(f"{name} has", most_pixels, "too many pixels")) from error
    # PIL reports broken files with many types: struct.error and SyntaxError among them.
    except Exception as error:
        reason = printable(" ".join(str(error).split()) or type(error).__name__)
        raise UnreadableImageError(f"{name} cannot be read as an image: {reason}") from error
    size = f"{width} x {height} pixels, {width * height / 1e6:.1f} million"
    raise ValueError(_too_large(f"{name} has", most_pixels, size))


def only_known_formats(most_pixels: int) -> None:
    """Limit Pillow in this process to the `FORMATS` and to a number of pixels.

    For servers whose libraries open uploaded files with Pillow. The limit cannot be undone.

    Args:
        most_pixels: Pillow warns above this number and refuses more than twice as many.
    """
    Image.init()
    Image.ID[:] = [name for name in Image.ID if name in FORMATS]
    Image.MAX_IMAGE_PIXELS = most_pixels


def _too_large(subject: str, most_pixels: int, size: str) -> str:
    limit = f"at most {most_pixels / 1e6:.3g} million are taken"
    return f"{subject} {size}; {limit}. Make it smaller first."


def _reduced(image: Image.Image, longest_side: int) -> Image.Image:
    if max(image.size) <= longest_side:
        return eight_bits(ImageOps.exif_transpose(image))
    # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is still large enough.
    image.draft(None, (2 * longest_side, 2 * longest_side))
    small = eight_bits(image)
    small.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    return ImageOps.exif_transpose(small)


def eight_bits(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to L, LA, RGB or RGBA; 16 bits are scaled to 8.

    Raises:
        ValueError: The pixels are floats, whose range is unknown.
    """
    if image.mode == "F":
        raise ValueError("its pixels are 32-bit floats of unknown range; save it with 8 or 16 bits")
    if image.mode in _SIXTEEN_BIT_MODES:
        grey = np.asarray(image).clip(0, 65535).astype(np.uint32)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8))  # 65535 / 255 = 257
    if image.has_transparency_data and image.mode != "LA":
        return image.convert("RGBA")
    if image.mode not in _EIGHT_BIT_MODES:
        return image.convert("L" if image.mode == "1" else "RGB")
    image.load()
    return image.copy() if hasattr(image, "fp") else image  # an ImageFile closes with its file


def on_ground(image: Image.Image, ground: str) -> Image.Image:
    """Turn an image upright and put it on a colour; the result is L or RGB.

    Args:
        image: An image of any mode.
        ground: Name of the colour behind transparent parts.

    Raises:
        ValueError: See `eight_bits`.
    """
    image = eight_bits(ImageOps.exif_transpose(image))
    if image.mode not in ("LA", "RGBA"):
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, ground), image).convert("RGB")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any PIL image to upright 8-bit RGB.

    The EXIF orientation is applied, 16 bits are scaled to 8, transparent images are put on white,
    and palettes, CMYK and grey are converted.

    Raises:
        ValueError: The pixels are floats, whose range is unknown.
    """
    return on_ground(image, "white").convert("RGB")
