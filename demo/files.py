"""Image files for the browser. Each is written once, and completely before anybody can read it."""

import io
import os
from pathlib import Path
from typing import Any

from gradio.processing_utils import hash_bytes
from gradio.utils import get_upload_folder
from PIL import Image

from var_hf.files import new_path


def picture_file(picture: Image.Image) -> str:
    """Path of a PNG among Gradio's files, which are served, and deleted when they are old.

    Gradio names a file by its content, and writes over it what is there already. Coarse pictures of
    two visitors are often the same: one would then read a file that is being written for the other.
    """
    content = io.BytesIO()
    picture.save(content, "PNG")
    folder = Path(get_upload_folder()).resolve() / hash_bytes(content.getvalue())
    path = folder / "image.png"
    try:
        os.utime(path)  # as new, so that it is not deleted under the one who is about to read it
    except FileNotFoundError:
        with new_path(path, replace=True, durable=False) as temporary:
            temporary.write_bytes(content.getbuffer())
    return str(path)


def editor_files(value: dict[str, Any]) -> dict[str, Any]:
    """The value of an image editor with files instead of pictures."""
    return {
        "background": picture_file(value["background"]),
        "layers": [picture_file(layer) for layer in value["layers"]],
        "composite": picture_file(value["composite"]),
    }
