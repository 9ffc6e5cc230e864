"""Images on their way to a browser."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from var_hf.demo.files import editor_files, image_file


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (9, 7, 3), dtype=np.uint8))


def same(path, image):
    with Image.open(path) as opened:
        return opened.format == "PNG" and np.array_equal(np.asarray(opened), np.asarray(image))


def test_what_is_written_is_the_image(folder, image):
    path = image_file(image)

    assert Path(path).is_relative_to(folder) and path.endswith(".png")
    assert same(path, image)
    assert image_file(image.rotate(180)) != path


def test_a_file_that_somebody_may_be_reading_is_not_written_again(image):
    path = image_file(image)
    os.utime(path, (0, 0))
    before = os.stat(path)

    assert image_file(image.copy()) == path
    assert os.stat(path).st_ino == before.st_ino
    assert os.stat(path).st_mtime > 0  # yet as young as a new one
    assert len(list(Path(path).parent.iterdir())) == 1


def test_many_who_write_the_same_image_never_show_a_part_of_it(folder):
    """Readers look while it is written; whatever they find is whole."""
    large = Image.effect_noise((256, 256), 90).convert("RGB")
    path = Path(image_file(large))
    whole = path.read_bytes()
    stop, found = threading.Event(), []

    def read():
        while not stop.is_set():
            try:
                found.append(path.read_bytes() == whole)
            except FileNotFoundError:  # taken away below
                continue

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with ThreadPoolExecutor(4) as writers:
            for _ in range(20):
                list(writers.map(image_file, [large] * 4))
                path.unlink()
                list(writers.map(image_file, [large] * 4))
    finally:
        stop.set()
        reader.join()

    assert found and all(found)


def test_an_editor_gets_files(image):
    layer = Image.new("RGBA", image.size, (255, 0, 0, 128))
    value = {"background": image, "layers": [layer], "composite": image.convert("RGBA")}
    files = editor_files(value)

    assert same(files["background"], image) and same(files["layers"][0], layer)
    assert same(files["composite"], value["composite"])
