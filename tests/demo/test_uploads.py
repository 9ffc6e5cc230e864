import os
import zlib

import numpy as np
import pytest
from PIL import Image

from var_hf.demo.settings import LONGEST_SIDE
from var_hf.demo.uploads import painted_image, reduced, uploaded_image


@pytest.fixture
def upload(tmp_path, monkeypatch):
    """The folder that Gradio puts uploads into, and what it says about a file in it."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    (tmp_path / "uploads").mkdir()

    def put(name, content):
        path = tmp_path / "uploads" / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path)
        return {"path": str(path), "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    return put


def png_of_zeros(width, height):
    """A valid PNG of any size, written line by line: its few bytes unpack to many."""

    def chunk(kind, content):
        body = kind + content
        return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    packer = zlib.compressobj(9)
    line = b"\0" + bytes(width)
    content = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
    )


def test_an_image_comes_as_it_is(upload):
    image = Image.fromarray(np.arange(90, dtype=np.uint8).reshape(6, 5, 3))

    assert np.array_equal(np.asarray(uploaded_image(upload("a.png", image))), np.asarray(image))


def test_large_images_are_reduced_and_small_ones_kept():
    assert reduced(Image.new("RGB", (4000, 1000))).size == (LONGEST_SIDE, LONGEST_SIDE // 4)
    small = Image.new("RGB", (7, 5))
    assert reduced(small) is small


def test_50_million_pixels_are_refused_before_they_are_unpacked(upload):
    file = upload("huge.png", png_of_zeros(10_000, 5_000))

    assert os.path.getsize(file["path"]) < 100_000
    with pytest.raises(
        ValueError, match=r"'huge.png' has 10000 x 5000 pixels, 50.0 million; at most 25"
    ):
        uploaded_image(file)


def test_a_bomb_beyond_pillows_own_limit_is_refused_in_the_same_words(upload):
    file = upload("bomb.png", png_of_zeros(20_000, 20_000))

    with pytest.raises((ValueError, OSError), match=r"bomb\.png"):
        uploaded_image(file)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.png", b"this is a text\n"),
        ("empty.png", b""),
        ("cut.png", png_of_zeros(50, 50)[:40]),
        ("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    ],
)
def test_what_is_no_image(upload, name, content):
    with pytest.raises(OSError, match=f"'{name}' cannot be read as an image"):
        uploaded_image(upload(name, content))


@pytest.mark.parametrize(
    "file",
    [
        "/etc/passwd",
        {"path": "/etc/passwd"},
        {"path": __file__, "meta": {"_type": "gradio.FileData"}},
        {"path": "../../etc/passwd"},
        {"path": 7},
        {"url": "file:///etc/passwd"},
        None,
        [],
    ],
)
def test_a_path_in_place_of_an_image(upload, file):
    with pytest.raises(ValueError, match="image must be an uploaded image file"):
        uploaded_image(file)


def test_a_link_out_of_the_folder_is_not_followed(upload, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (3, 3)).save(secret)
    link = tmp_path / "uploads" / "link.png"
    link.symlink_to(secret)

    with pytest.raises(ValueError, match="not a path on the server"):
        uploaded_image({"path": str(link)})


def test_a_name_with_markup_stays_one_short_line(upload):
    file = upload("x.png", b"no") | {"orig_name": "<img src=x>\n" * 50}

    with pytest.raises(OSError) as error:
        uploaded_image(file)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


# The image editor


def layer(size, box, alpha=255):
    image = Image.new("RGBA", size)
    image.paste((237, 105, 37, alpha), box)
    return image


def test_the_mask_is_what_was_painted_on_any_layer():
    layers = [layer((8, 6), (0, 0, 2, 6)), layer((8, 6), (6, 0, 8, 6), alpha=3)]
    image, mask = painted_image(
        {"background": Image.new("RGBA", (8, 6), "white"), "layers": layers, "composite": None}
    )

    expected = np.zeros((6, 8), dtype=np.uint8)
    expected[:, :2] = expected[:, 6:] = 255
    assert image.size == (8, 6)
    assert np.array_equal(np.asarray(mask), expected)


def test_image_and_mask_are_reduced_alike():
    size = (3 * LONGEST_SIDE, LONGEST_SIDE)
    image, mask = painted_image(
        {"background": Image.new("RGBA", size), "layers": [layer(size, (0, 0, 900, 900))]}
    )

    assert image.size == mask.size == (LONGEST_SIDE, round(LONGEST_SIDE / 3))


@pytest.mark.parametrize("value", [None, {"background": None, "layers": [], "composite": None}])
def test_an_empty_editor(value):
    with pytest.raises(ValueError, match="There is no image yet"):
        painted_image(value)


def test_too_large_an_image_in_the_editor():
    huge = Image.new("1", (10_000, 5_000))

    with pytest.raises(ValueError, match=r"10000 x 5000 pixels\. The limit is 25 million"):
        painted_image({"background": huge, "layers": []})
