"""The functions of the API, called directly."""

import inspect

import gradio as gr
import numpy as np
import pytest
from conftest import seeded
from PIL import Image

from var_hf.demo.api import API, streamed


@pytest.fixture
def upload(tmp_path, monkeypatch):
    """Puts an image where Gradio puts uploads."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))

    def put(name, image):
        image.save(tmp_path / name)
        return {"path": str(tmp_path / name), "orig_name": name}

    return put


@pytest.fixture
def image():
    pixels = np.random.default_rng(5).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def same(file, expected):
    return np.array_equal(np.asarray(Image.open(file["path"])), np.asarray(expected))


def size(file):
    with Image.open(file["path"]) as opened:
        return opened.size


def test_a_part_is_redrawn(loader, studio, upload, image):
    mask = Image.linear_gradient("L").resize((12, 8)).point(lambda value: 255 * (value > 128))
    *_, (files, info) = API(loader).edit(
        upload("image.png", image), upload("mask.png", mask), "fox", num_images=2, seed=3
    )

    expected = studio.inpaint(
        image, mask, 7, num_images_per_prompt=2, generator=[seeded(3), seeded(4)]
    ).images
    assert all(same(file, one) for file, one in zip(files, expected, strict=True))
    assert (info["class_id"], info["class_name"], info["seeds"]) == (7, "fox", [3, 4])


def test_an_image_is_extended_and_varied(loader, upload, image):
    file = upload("image.png", image)
    *_, (extended, _) = API(loader).edit(file, expand=[2, 0, 0, 1])
    *_, (varied, info) = API(loader).edit(file, strength=0)

    assert size(extended[0]) == (14, 9)
    assert size(varied[0]) == (12, 8)
    assert info["class_id"] is None and info["class_name"] is None


def test_classes_come_a_few_at_a_time(loader, studio, upload, image):
    answers = list(API(loader).classify(upload("image.png", image), top=2))

    assert [len(answer) for answer in answers] == [2, 2]
    expected = studio.pipe.classify(image, top=2)[0]
    assert [one["class_id"] for one in answers[-1]] == [one["class_id"] for one in expected]


def test_errors_are_said_as_they_are(loader):
    """An answer to a program is no HTML: nothing is escaped."""
    with pytest.raises(gr.Error) as error:
        next(API(loader).generate("<script>"))

    assert "There is no class '<script>'" in error.value.message


def test_a_stream_has_the_signature_of_its_result(loader):

    signature = inspect.signature(streamed(API(loader).generate))
    assert next(iter(signature.parameters)) == "class_labels"
    assert signature.return_annotation.__origin__ is tuple
