import runpy
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples/first_picture.py"


def test_it_draws_a_picture_per_class_and_scale_and_says_that_it_is_noise(
    monkeypatch, capsys, tmp_path
):
    first, second = tmp_path / "new" / "first.png", tmp_path / "second.png"
    for output in (first, second):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--output", str(output)])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    last_line = capsys.readouterr().out.splitlines()[-1]
    assert last_line == f"The weights are untrained, so the picture is noise: {second}"
    assert first.read_bytes() == second.read_bytes()
    grid = np.asarray(Image.open(first))
    assert grid.shape == (3 * 256, 4 * 256, 3)
    panels = grid.reshape(3, 256, 4, 256, 3).swapaxes(1, 2).reshape(12, -1)
    assert len(np.unique(panels, axis=0)) == 12
    assert (panels.std(axis=1) > 10).all()  # of 255: none of them is plain
