import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "docs/images/draw_ten_minutes.py"


def pixels(file):
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


@pytest.mark.slow
def test_the_images_are_what_their_script_draws(tmp_path):
    """If not: python docs/images/draw_ten_minutes.py."""
    script = runpy.run_path(str(SCRIPT))
    script["main"](tmp_path)

    committed = sorted(file.name for file in script["OUTPUT"].glob("*.png"))
    assert sorted(file.name for file in tmp_path.iterdir()) == committed
    for name in committed:
        drawn, shown = pixels(tmp_path / name), pixels(script["OUTPUT"] / name)
        assert drawn.shape == shown.shape, name
        # Other machines round differently, then a token comes out as another one, and fonts differ
        # too.
        assert abs(drawn - shown).mean() < 15, name
    assert (pixels(tmp_path / "mask.png") == pixels(script["OUTPUT"] / "mask.png")).all()
