import base64
import html
import io
import re

import numpy as np
from PIL import Image

from var_hf.demo.film import FilmFrame, data_uri, facts_line, film, mark, ranking

EVIL = '"><img src=x onerror=alert(1)>'


def test_whatever_comes_from_outside_is_escaped():
    frames = [FilmFrame(Image.new("RGB", (2, 2)), EVIL, EVIL, EVIL), FilmFrame(None, EVIL)]
    for page in (film(frames, EVIL), facts_line(EVIL, EVIL), ranking([(EVIL, -1.0, 0.5)])):
        assert "<img src=x" not in page
        assert "&lt;img src=x" in page


def test_neighbours_in_a_line_do_not_run_together():
    """As text, which is what is copied and read out."""

    def text(page):
        return html.unescape(re.sub("<.*?>", "", page))

    assert text(facts_line("seed 12", "34 tokens")) == "seed 12 \u00b7 34 tokens"
    assert text(ranking([("class 5", -12.0, 0.5)])) == "class 5 \u221212.0 nats 50.0%"


def test_every_scale_has_its_place_from_the_start():
    page = film([FilmFrame(Image.new("RGB", (2, 2)), "1"), FilmFrame(None, "2")], "scales")

    assert page.count("<li>") == 2
    assert page.count("<img ") == page.count('class="empty"') == 1


def test_small_images_lose_nothing_and_large_ones_are_reduced():
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))

    def back(image):
        encoded = data_uri(image).removeprefix("data:image/png;base64,")
        return Image.open(io.BytesIO(base64.b64decode(encoded)))

    assert np.array_equal(np.asarray(back(small)), np.asarray(small))
    assert back(Image.new("RGB", (512, 256))).size == (192, 96)


def test_ranking_says_little_chances_as_such():
    page = ranking([("pizza", -489.04, 0.9999), ("<fox>", -1516.3, 1e-9)])

    assert "\u2212489.0 nats" in page and "\u22121,516.3 nats" in page
    assert "100.0%" in page and "&lt; 0.1%" in page


def test_the_mark_grows_finer():
    assert mark().count("<rect") == 1 + 4 + 16 + 64
    assert set(re.findall(r'fill="(.*?)"', mark())) > {"#2c124a"}
