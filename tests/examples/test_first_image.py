import runpy
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples/first_image.py"


def test_it_draws_a_labelled_image_per_class(monkeypatch, capsys, tmp_path):
    first, second = tmp_path / "new" / "first.png", tmp_path / "second.png"
    for output in (first, second):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--output", str(output)])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    assert capsys.readouterr().out.splitlines()[-1] == f"40 classes, an image each: {second}"
    assert first.read_bytes() == second.read_bytes()
    grid = np.asarray(Image.open(first))
    assert grid.shape == (5 * 133 - 1, 8 * 113 - 1, 3)
    padded = np.pad(grid, ((0, 1), (0, 1), (0, 0)))
    tiles = padded.reshape(5, 133, 8, 113, 3).swapaxes(1, 2).reshape(40, 133, 113, 3)
    images, labels = tiles[:, :112, :112].reshape(40, -1), tiles[:, 112:132, :112].reshape(40, -1)
    assert (images.std(axis=1) > 10).all()  # of 255: none of them is plain
    assert len(np.unique(labels, axis=0)) == 40
