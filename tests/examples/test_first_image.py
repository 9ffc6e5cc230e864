import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples/first_image.py"


@pytest.fixture
def draw(monkeypatch, capsys):
    """Runs the script; returns its last line."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out.splitlines()[-1]

    return run


def test_the_same_image_comes_again_and_the_folder_is_made(draw, tmp_path):
    first, second = tmp_path / "new" / "first.png", tmp_path / "second.png"

    for output in (first, second):
        said = draw("--model", "var-emoji-64", "--output", output)
        assert said == f"40 classes, an image each: {output}"

    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_it_draws_a_labelled_image_per_class(draw, tmp_path):
    file = tmp_path / "first.png"

    assert draw("--output", file) == f"100 classes, an image each: {file}"

    with Image.open(file) as image:
        grid = np.asarray(image)
    assert grid.shape == (10 * 150 - 2, 10 * 130 - 2, 3)
    padded = np.pad(grid, ((0, 2), (0, 2), (0, 0)))
    tiles = padded.reshape(10, 150, 10, 130, 3).swapaxes(1, 2).reshape(100, 150, 130, 3)
    images, labels = tiles[:, :128, :128].reshape(100, -1), tiles[:, 128:148, :128].reshape(100, -1)
    assert (images.std(axis=1) > 10).all()  # of 255: none of them is plain
    assert len(np.unique(labels, axis=0)) == 100
