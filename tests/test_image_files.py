import io
import os
import tracemalloc
import zlib

import numpy as np
import pytest
from image_files import an_image
from PIL import EpsImagePlugin, Image, UnidentifiedImageError

from var_hf.image_files import (
    MOST_PIXELS,
    UnreadableImageError,
    on_ground,
    only_known_formats,
    open_image,
)


def png_of_zeros(width, height):
    """A valid PNG of any size, written line by line: its few bytes unpack to many."""

    def chunk(kind, content):
        body = kind + content
        return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    packer = zlib.compressobj(1)
    lines = b"".join(packer.compress(bytes(1 + width)) for _ in range(height)) + packer.flush()
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def saved(image, image_format, **options):
    file = io.BytesIO()
    image.save(file, image_format, **options)
    file.seek(0)
    return file


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG"])
def test_every_named_format_is_read(image_format):
    options = {"lossless": True} if image_format == "WEBP" else {}

    image = open_image(saved(an_image(3), image_format, **options)).convert("RGB")

    allowed = {"GIF": 60, "JPEG": 60}.get(image_format, 0)  # a palette, and a lossy format
    assert np.abs(np.asarray(image).astype(int) - np.asarray(an_image(3))).max() <= allowed


def test_no_program_is_started_for_postscript_in_the_name_of_an_image(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: started.append(args))
    page = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    (tmp_path / "page.png").write_text(page)

    with pytest.raises(UnreadableImageError, match=r"page\.png cannot be read.* PNG, JPEG"):
        open_image(tmp_path / "page.png")
    assert not started
    with Image.open(tmp_path / "page.png", formats=["EPS"]) as image:
        assert image.format == "EPS"


def test_a_server_can_hold_pillow_to_these_formats(tmp_path, monkeypatch):
    Image.init()
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"

    only_known_formats(most_pixels=1000)

    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(postscript))
    with Image.open(saved(an_image(1), "PNG")) as image:
        assert image.size == (24, 24)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(png_of_zeros(50, 50)))


def test_other_formats_of_pillow_are_refused():
    for image_format in ("PPM", "TGA", "ICO", "PCX", "SGI"):
        with pytest.raises(UnreadableImageError, match="cannot be read as an image"):
            open_image(saved(an_image(1, side=16), image_format), name="other")


def test_a_limit_is_a_limit(tmp_path):
    Image.new("RGB", (10, 5)).save(tmp_path / "a.png")

    assert open_image(tmp_path / "a.png", most_pixels=50).size == (10, 5)
    with pytest.raises(ValueError, match="10 x 5 pixels"):
        open_image(tmp_path / "a.png", most_pixels=49)
    with pytest.raises(FileNotFoundError, match="There is no image my name"):
        open_image(tmp_path / "b.png", name="my name")


@pytest.mark.parametrize("size", [(13_000, 13_000), (1, 10**8), (100_000, 100_000)])
def test_images_near_pillows_limit_and_above_are_refused_before_they_are_unpacked(size, tmp_path):
    """Of the file only the head is there, so nothing could be unpacked."""
    content = png_of_zeros(1, 1)
    head = content[:16] + size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big") + content[24:29]
    check = zlib.crc32(head[12:29]).to_bytes(4, "big")
    (tmp_path / "large.png").write_bytes(head + check + content[33:])

    with pytest.raises(ValueError, match=r"at most 67.1 million are taken\. Make it smaller"):
        open_image(tmp_path / "large.png")


def test_a_large_image_is_reduced_while_it_is_bytes(tmp_path):
    (tmp_path / "large.png").write_bytes(png_of_zeros(6000, 3000))
    tracemalloc.start()

    image = open_image(tmp_path / "large.png", longest_side=500)

    assert image.size == (500, 250)
    assert image.mode == "L"
    assert tracemalloc.get_traced_memory()[1] < 2e6  # no array: Pillow's own memory is bytes
    tracemalloc.stop()


def test_the_limit_lies_below_pillows():
    assert MOST_PIXELS < Image.MAX_IMAGE_PIXELS


def test_a_large_jpeg_is_reduced_as_pillow_reduces_it():
    large = an_image(2, side=640)

    small = open_image(saved(large, "JPEG", quality=95), longest_side=80)

    expected = large.resize((80, 80), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(expected)).mean() < 2


@pytest.mark.parametrize("mode", ["1", "P", "L", "LA", "RGBA", "CMYK", "I;16"])
def test_every_mode_can_be_reduced(mode):
    deep = np.full((90, 120), 40_000, dtype=np.uint16)
    image = Image.fromarray(deep) if mode == "I;16" else an_image(4, side=120).convert(mode)
    image_format = "TIFF" if mode == "CMYK" else "PNG"

    for longest_side in (60, 120):
        read = open_image(saved(image, image_format), longest_side=longest_side)
        assert max(read.size) == longest_side
        assert read.mode in ("L", "LA", "RGB", "RGBA")


def test_an_orientation_holds_for_a_reduced_image():
    image = an_image(4, side=120).crop((0, 0, 120, 60))
    exif = image.getexif()
    exif[0x0112] = 6

    for image_format in ("JPEG", "PNG", "WEBP"):
        file = saved(image, image_format, exif=exif)
        assert open_image(file, longest_side=60).size == (30, 60)
        file.seek(0)
        assert open_image(file).size == (60, 120)


def test_a_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "image.png")

    with pytest.raises(UnreadableImageError, match="is a FIFO; pass a regular file"):
        open_image(tmp_path / "image.png")


def test_a_truncated_image_gives_one_line(tmp_path):
    content = saved(an_image(1, side=60), "PNG").getvalue()
    (tmp_path / "half\n.png").write_bytes(content[: len(content) // 2])

    with pytest.raises(UnreadableImageError, match=r"half\\n.png cannot be read") as caught:
        open_image(tmp_path / "half\n.png")
    assert len(str(caught.value).splitlines()) == 1


def test_transparency_lies_on_the_ground():
    image = Image.new("LA", (2, 1), (200, 255))
    image.putpixel((1, 0), (0, 0))

    assert np.asarray(on_ground(image, "white").convert("L")).tolist() == [[200, 255]]
    assert np.asarray(on_ground(image, "black").convert("L")).tolist() == [[200, 0]]
