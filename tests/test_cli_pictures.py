"""The commands that read pictures, and the pictures after every scale."""

import json

import numpy as np
import pytest
from conftest import make_pipe, quiet, seeded
from PIL import Image

from var_hf import VARImg2ImgPipeline, VARInpaintPipeline

SIDE = 10  # of the tiny model's pictures, in pixels


@pytest.fixture
def picture(tmp_path):
    """The file of a picture, and the picture."""
    array = np.random.default_rng(3).integers(0, 256, (14, 21, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    image.save(tmp_path / "in.png")
    return tmp_path / "in.png", image


@pytest.fixture
def mask(tmp_path):
    image = Image.new("L", (21, 14))
    image.paste(255, (0, 0, 11, 14))
    image.save(tmp_path / "mask.png")
    return tmp_path / "mask.png", image


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


# edit


def test_edit_draws_what_the_pipeline_draws(var_hf, pipe_folder, picture, mask):
    code, out, err = var_hf(
        *("edit", picture[0], "--mask", mask[0], "--label", "hen", "-m", pipe_folder),
        *("-o", "out.png", "--seed", 7, "--cfg", 1, "--top-p", 0.8),
    )
    assert (code, out) == (0, "out.png\n")
    assert "seed 7" in err
    pipe = quiet(VARInpaintPipeline.from_pipe(make_pipe()))
    arguments = {"guidance_scale": 2.0, "top_p": 0.8, "generator": [seeded(7)]}
    expected = pipe(picture[1], mask[1], "hen", **arguments).images[0]
    assert np.array_equal(pixels("out.png"), np.asarray(expected))


def test_edit_options_reach_the_pipeline(var_hf, pipe_folder, picture, mask):
    code, out, _ = var_hf(
        *("edit", picture[0], "--mask", mask[0], "-m", pipe_folder, "--seed", 7, "--json"),
        *("--expand", "3,0,4,1", "--redraw-coarsest", "--no-paste-back", "--mask-crop", 5, "-n", 2),
    )
    assert code == 0
    result = json.loads(out)
    assert result["class_id"] is None
    assert [entry["seed"] for entry in result["images"]] == [7, 8]
    pipe = quiet(VARInpaintPipeline.from_pipe(make_pipe()))
    expected = pipe(
        picture[1],
        mask[1],
        expand=(3, 0, 4, 1),
        keep_coarsest=False,
        paste_back=False,
        padding_mask_crop=5,
        num_images_per_prompt=2,
        generator=[seeded(7), seeded(8)],
    ).images
    grid = pixels("out.png")
    assert grid.shape == (15, 2 * 28 + 1, 3)
    assert np.array_equal(grid[:, :28], np.asarray(expected[0]))
    assert np.array_equal(grid[:, 29:], np.asarray(expected[1]))
    with Image.open("out.png") as image:
        assert json.loads(image.info["var-hf"])["expand"] == [3, 0, 4, 1]


def test_edit_by_strength_draws_variations(var_hf, pipe_folder, picture):
    code, out, _ = var_hf(
        *("edit", picture[0], "--strength", 0.5, "-l", 3, "-m", pipe_folder, "--seed", 1)
    )
    assert (code, out) == (0, "out.png\n")
    pipe = quiet(VARImg2ImgPipeline.from_pipe(make_pipe()))
    expected = pipe(picture[1], 3, strength=0.5, generator=[seeded(1)]).images[0]
    assert np.array_equal(pixels("out.png"), np.asarray(expected))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to redraw"),
        (["--mask", "missing.png"], "no image missing.png"),
        (["--mask", "broken.png"], "broken.png cannot be read as an image"),
        (["--mask", "small.png"], "21 x 14"),
        (["--mask", "red.png"], "colours"),
        (["--expand", "1,2,3"], "--expand takes four numbers"),
        (["--expand", "1,2,3,-4"], "--expand takes four numbers"),
        (["--strength", "1.5"], "strength must lie in"),
        (["--strength", "0.5", "--expand", "1,0,0,0"], "leave --mask"),
        (["--expand", "1,0,0,0", "--label", "hne"], "hen"),
        (["--expand", "1,0,0,0", "-o", "out.jpg"], ".png file"),
    ],
)
def test_bad_edits_are_refused(fails, pipe_folder, tmp_path, picture, arguments, message):
    (tmp_path / "broken.png").write_bytes(picture[0].read_bytes()[:60])
    Image.new("L", (20, 14)).save(tmp_path / "small.png")
    Image.new("RGB", (21, 14), "red").save(tmp_path / "red.png")
    assert message in fails("edit", picture[0], "-m", pipe_folder, *arguments)


def test_a_file_that_is_no_picture_is_refused(fails, pipe_folder, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    for command in (["edit", "--strength", 0.5], ["classify"]):
        line = fails(*command, tmp_path / "notes.txt", "-m", pipe_folder)
        assert "notes.txt cannot be read as an image" in line


# classify


def test_classify_prints_what_the_pipeline_finds(var_hf, pipe_folder, picture):
    other = picture[0].with_name("other.jpg")
    Image.new("RGB", (40, 30), "teal").save(other)
    arguments = ("classify", picture[0], other, "-m", pipe_folder, "--top", 2, "--batch-size", 4)

    code, out, _ = var_hf(*arguments, "--json")
    assert code == 0
    result = json.loads(out)
    with Image.open(other) as image:
        expected = make_pipe().classify([picture[1], image], top=2, batch_size=4)
    assert [entry["classes"] for entry in result["images"]] == expected

    code, out, _ = var_hf(*arguments)
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[0] for line in lines] == [str(picture[0])] * 2 + [str(other)] * 2
    assert float(lines[0][1]) == pytest.approx(expected[0][0]["score"], abs=1e-4)


# generate --scales


def test_generate_writes_the_scales_as_a_strip_and_as_an_animation(var_hf, pipe_folder):
    arguments = ("generate", 3, 1, "-m", pipe_folder, "--seed", 5)
    code, out, _ = var_hf(*arguments, "--scales", "scales.png", "--scales", "scales.webp")
    assert code == 0
    assert out.splitlines() == ["out.png", "scales.png", "scales.webp"]
    strip = pixels("scales.png")
    assert strip.shape == (2 * SIDE + 1, 4 * SIDE + 3, 3)
    stream = quiet(make_pipe()).stream([3, 1], generator=[seeded(5), seeded(6)], preview=True)
    for scale, output in enumerate(stream):
        left = scale * (SIDE + 1)
        for row, image in enumerate(output.image):
            top = row * (SIDE + 1)
            tile = strip[top : top + SIDE, left : left + SIDE]
            assert np.array_equal(tile, np.asarray(image))
    grid = pixels("out.png")
    assert np.array_equal(grid[:, :SIDE], strip[:SIDE, -SIDE:])
    with Image.open("scales.webp") as animation:
        assert animation.n_frames == 4
        animation.seek(3)
        assert np.array_equal(animation.convert("RGB"), grid)


def test_the_images_do_not_depend_on_showing_their_scales(var_hf, pipe_folder):
    arguments = ("generate", 3, "-m", pipe_folder, "--seed", 5, "-n", 3, "--batch-size", 2)
    var_hf(*arguments, "-o", "plain.png")
    var_hf(*arguments, "-o", "shown.png", "--scales", "scales.gif")
    assert np.array_equal(pixels("plain.png"), pixels("shown.png"))


@pytest.mark.parametrize("path", ["scales.jpg", "scales"])
def test_scales_of_another_kind_are_refused(fails, pipe_folder, path):
    line = fails("generate", 3, "-m", pipe_folder, "--scales", path)
    assert "--scales takes a .png, .gif or .webp file" in line
