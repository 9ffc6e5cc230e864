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

    assert capsys.readouterr().out.splitlines()[-1] == f"100 classes, an image each: {second}"
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        grid = np.asarray(image)
    assert grid.shape == (10 * 150 - 2, 10 * 130 - 2, 3)
    padded = np.pad(grid, ((0, 2), (0, 2), (0, 0)))
    tiles = padded.reshape(10, 150, 10, 130, 3).swapaxes(1, 2).reshape(100, 150, 130, 3)
    images, labels = tiles[:, :128, :128].reshape(100, -1), tiles[:, 128:148, :128].reshape(100, -1)
    assert (images.std(axis=1) > 10).all()  # of 255: none of them is plain
    assert len(np.unique(labels, axis=0)) == 100
