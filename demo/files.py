"""Image files for the browser. Each is written once, and complete before it can be read."""

import io
import os
from pathlib import Path
from typing import Any

from gradio.processing_utils import hash_bytes
from gradio.utils import get_upload_folder
from PIL import Image

from var_hf.files import new_path


def image_file(image: Image.Image) -> str:
    """Write a PNG among Gradio's files, which it serves and later deletes, and return its path.

    Gradio names a file by its content and overwrites existing files. Coarse images of two visitors
    are often the same, so one visitor could read a file that is being written for the other.
    """
    content = io.BytesIO()
    image.save(content, "PNG")
    folder = Path(get_upload_folder()).resolve() / hash_bytes(content.getvalue())
    path = folder / "image.png"
    try:
        os.utime(path)  # keeps Gradio from deleting the file before it is read
    except FileNotFoundError:
        with new_path(path, replace=True, durable=False) as temporary:
            temporary.write_bytes(content.getbuffer())
    return str(path)


def editor_files(value: dict[str, Any]) -> dict[str, Any]:
    """Replace the images in an image editor's value by files."""
    return {
        "background": image_file(value["background"]),
        "layers": [image_file(layer) for layer in value["layers"]],
        "composite": image_file(value["composite"]),
    }
