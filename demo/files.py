"""Pictures on their way to a browser: each is written once, and whole before anybody can read it."""

import io
import os
import tempfile
from pathlib import Path
from typing import Any

from gradio.processing_utils import hash_bytes
from gradio.utils import get_upload_folder
from PIL import Image


def picture_file(picture: Image.Image) -> str:
    """Path of a PNG among Gradio's files, which are served, and deleted when they are old.

    Gradio names a file by its content, and writes over it what is there already. Coarse pictures of two visitors are
    often the same: one would then read a file that is being written for the other.
    """
    content = io.BytesIO()
    picture.save(content, "PNG")
    folder = Path(get_upload_folder()).resolve() / hash_bytes(content.getvalue())
    path = folder / "image.png"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.utime(path)  # as new, so that it is not deleted under the one who is about to read it
    except FileNotFoundError:
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(content.getbuffer())
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    return str(path)


def editor_files(value: dict[str, Any]) -> dict[str, Any]:
    """The value of an image editor with files instead of pictures."""
    return {
        "background": picture_file(value["background"]),
        "layers": [picture_file(layer) for layer in value["layers"]],
        "composite": picture_file(value["composite"]),
    }
