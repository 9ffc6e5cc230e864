import runpy
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES = Path(__file__).parents[2] / "docs/images"


def test_the_picture_of_the_scales_is_what_its_script_draws(tmp_path):
    runpy.run_path(str(IMAGES / "draw_scales.py"))["main"](tmp_path / "scales.png")

    drawn, committed = (
        np.asarray(Image.open(folder / "scales.png")).astype(int) for folder in (tmp_path, IMAGES)
    )
    assert drawn.shape == committed.shape
    assert (drawn == committed).mean() > 0.99  # the text may differ between versions of Pillow
