"""Images from visitors: uploaded files and painted masks."""

from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder
from PIL import Image, ImageChops

from var_hf.demo.settings import LONGEST_SIDE, MOST_PIXELS, shown
from var_hf.image_files import open_image


def uploaded_image(file: Any, what: str = "image") -> Image.Image:
    """Open an uploaded image file, reduced to the largest size in use.

    Args:
        file: The message of Gradio's clients for a file: a dict with `path` and optional
            `orig_name`.
        what: Name of the argument for error messages.

    Raises:
        OSError: The file is not an image.
        ValueError: The file was not uploaded, or has too many pixels.
    """
    path = file.get("path") if isinstance(file, dict) else None
    if not isinstance(path, str):
        raise ValueError(f"{what} must be an uploaded image file. Got {shown(file)}.")
    # Only uploaded files may be read, because a caller could pass the path of any file.
    if not Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
        raise ValueError(f"{what} must be an uploaded image file, not a path on the server.")
    name = file.get("orig_name") or Path(path).name
    return open_image(path, name=shown(name), most_pixels=MOST_PIXELS, longest_side=LONGEST_SIDE)


def painted_image(value: dict[str, Any] | None) -> tuple[Image.Image, Image.Image]:
    """Return image and mask of an image editor, reduced to the largest size in use.

    Args:
        value: `background` and `layers` as PIL images with transparency. Painted pixels are white
            in the mask.

    Raises:
        ValueError: There is no image, or it has too many pixels.
    """
    background = (value or {}).get("background")
    if value is None or background is None:
        raise ValueError("There is no image yet. Upload one, or take one from Generate.")
    if background.width * background.height > MOST_PIXELS:
        raise ValueError(
            f"The image has {background.width} x {background.height} pixels. The limit is "
            f"{MOST_PIXELS / 1e6:g} million. Reduce it first."
        )
    mask = Image.new("L", background.size)
    for layer in value["layers"]:
        painted = layer.getchannel("A").point(lambda alpha: 255 if alpha > 0 else 0)
        mask = ImageChops.lighter(mask, painted.resize(mask.size))
    return reduced(background), reduced(mask)


def reduced(image: Image.Image, side: int = LONGEST_SIDE) -> Image.Image:
    """Reduce an image so that its longer side has at most `side` pixels."""
    if max(image.size) <= side:
        return image
    smaller = image.copy()
    smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
    return smaller
