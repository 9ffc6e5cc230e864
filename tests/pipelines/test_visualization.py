import numpy as np
import pytest
import torch
from conftest import make_pipe, seeded
from PIL import Image

from var_hf.pipelines.visualization import image_grid, save_animation, scale_strip


@pytest.fixture(scope="module")
def previews():
    """S lists of B images."""
    stream = make_pipe().stream([3, 7], generator=seeded(0), preview=True)
    return [output.image for output in stream]


def test_a_strip_has_a_row_per_image_and_a_column_per_scale(previews):
    strip = np.asarray(scale_strip(previews))
    assert strip.shape == (2 * 11 - 1, 4 * 11 - 1, 3)
    for scale, images in enumerate(previews):
        for row, image in enumerate(images):
            tile = strip[11 * row : 11 * row + 10, 11 * scale : 11 * scale + 10]
            assert np.array_equal(tile, image)
    assert (strip[10] == 255).all()
    assert (strip[:, 10] == 255).all()


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".GIF"])
def test_an_animation_shows_every_scale_and_repeats(tmp_path, suffix):
    frames = [Image.new("RGB", (12, 9), (60 * i, 0, 200)) for i in range(4)]
    path = tmp_path / f"scales{suffix}"
    save_animation(frames, path)
    with Image.open(path) as animation:
        assert animation.n_frames == 4
        assert animation.info["loop"] == 0
        for i, frame in enumerate(frames):
            animation.seek(i)
            assert animation.convert("RGB").getpixel((5, 5)) == frame.getpixel((5, 5))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_webp_has_no_loss(tmp_path):
    noise = torch.randint(0, 256, (2, 9, 12, 3), generator=seeded(0), dtype=torch.uint8).numpy()
    save_animation([Image.fromarray(frame) for frame in noise], tmp_path / "x.webp")
    with Image.open(tmp_path / "x.webp") as animation:
        for i, frame in enumerate(noise):
            animation.seek(i)
            assert np.array_equal(animation.convert("RGB"), frame)


def test_an_animation_replaces_a_file(tmp_path, previews):
    path = tmp_path / "scales.gif"
    path.write_bytes(b"old")
    save_animation([image_grid(images, 2) for images in previews], path)
    with Image.open(path) as animation:
        assert animation.size == (21, 10)


@pytest.mark.parametrize(
    ("frames", "name", "message"),
    [
        ([], "x.gif", "at least one frame"),
        ([Image.new("RGB", (2, 2))], "x.png", r"\.gif or a \.webp"),
        ([Image.new("RGB", (2, 2))], "x", r"\.gif or a \.webp"),
    ],
)
def test_bad_animations_are_refused_and_leave_nothing(tmp_path, frames, name, message):
    with pytest.raises(ValueError, match=message):
        save_animation(frames, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
