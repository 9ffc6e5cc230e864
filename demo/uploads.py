"""Pictures that come from visitors: files of an upload, and what was painted over them."""

from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder
from PIL import Image, ImageChops

from var_hf.demo.settings import LONGEST_SIDE, MOST_PIXELS, shown
from var_hf.image_files import open_image


def uploaded_picture(file: Any, what: str = "image") -> Image.Image:
    """The picture in an uploaded file, reduced to what is worked with.

    Args:
        file: What Gradio's clients send for a file: a dict with `path` and perhaps `orig_name`.
        what: Name of the argument, for errors.

    Raises:
        OSError: It is no picture.
        ValueError: It is no uploaded file, or has too many pixels.
    """
    path = file.get("path") if isinstance(file, dict) else None
    if not isinstance(path, str):
        raise ValueError(f"{what} must be an uploaded picture file. Got {shown(file)}.")
    # Only what was uploaded may be read: a path could be that of any file of this machine.
    if not Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
        raise ValueError(f"{what} must be an uploaded picture file, not a path on the server.")
    name = file.get("orig_name") or Path(path).name
    return open_image(path, name=shown(name), most_pixels=MOST_PIXELS, longest_side=LONGEST_SIDE)


def painted_picture(value: dict[str, Any] | None) -> tuple[Image.Image, Image.Image]:
    """Picture and mask of an image editor, both reduced to what is worked with.

    Args:
        value: `background` and `layers` as PIL images with transparency; white in the mask is what
            was painted.

    Raises:
        ValueError: There is no picture, or it has too many pixels.
    """
    background = (value or {}).get("background")
    if value is None or background is None:
        raise ValueError("There is no picture yet. Upload one, or draw one and take it from there.")
    if background.width * background.height > MOST_PIXELS:
        raise ValueError(
            f"The picture has {background.width} x {background.height} pixels; at most"
            f" {MOST_PIXELS / 1e6:g} million are taken. Make it smaller first."
        )
    mask = Image.new("L", background.size)
    for layer in value["layers"]:
        painted = layer.getchannel("A").point(lambda alpha: 255 if alpha > 0 else 0)
        mask = ImageChops.lighter(mask, painted.resize(mask.size))
    return reduced(background), reduced(mask)


def reduced(picture: Image.Image, side: int = LONGEST_SIDE) -> Image.Image:
    """A picture whose longer side is at most `side` pixels."""
    if max(picture.size) <= side:
        return picture
    smaller = picture.copy()
    smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
    return smaller
