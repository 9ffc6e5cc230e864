"""The functions behind the buttons, called directly."""

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from var_hf.demo.examples import edit_examples, editor_value
from var_hf.demo.handlers import (
    EXPAND,
    NO_CLASS,
    PAINT,
    UNCHANGED,
    VARY,
    Handlers,
    guidance_words,
    what_to_edit,
)
from var_hf.demo.settings import Settings

# Guidance, top-k, top-p, sampling, temperature, schedule, scaled spatial guidance.
SAMPLING = (2.0, 0, 0.95, "multinomial", 0.7, "constant", 0.25)


@pytest.fixture
def handlers(loader, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "files"))
    return Handlers(loader)


def pixels(shown):
    """Of an image in a gallery: a file and its caption."""
    return np.asarray(Image.open(shown[0]))


def an_image(width=16, height=16):
    return Image.fromarray(
        np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def generate(handlers, class_id=3, num_images=1, fresh=False, seed=5, sampling=SAMPLING):
    return list(handlers.generate(class_id, num_images, fresh, seed, *sampling))


def edit(handlers, editor, mode=PAINT, class_id=NO_CLASS, sides=("Left",), strength=0.5, **changes):
    values = {"crop": False, "amount": 25, "num_images": 1, "fresh": False, "seed": 5} | changes
    return list(
        handlers.edit(
            editor,
            mode,
            class_id,
            values["crop"],
            list(sides),
            values["amount"],
            strength,
            values["num_images"],
            values["fresh"],
            values["seed"],
            *SAMPLING,
        )
    )


def test_an_image_sharpens_scale_by_scale(handlers, studio):
    steps = generate(handlers, num_images=2)

    assert [step[1].count("<img ") for step in steps] == [1, 2, 3, 4]
    assert [step[1].count('class="empty"') for step in steps] == [3, 2, 1, 0]
    assert "scale 1 of 4" in steps[0][2] and "seed 5" in steps[-1][2]
    assert [bool(step[3]) for step in steps] == [False, False, False, True]
    *_, drawn = studio.generate(3, Settings(2, *SAMPLING, seed=5))
    gallery = steps[-1][0]
    assert [caption for _, caption in gallery] == ["pizza, seed 5", "pizza, seed 6"]
    for shown, expected in zip(gallery, drawn.images, strict=True):
        assert np.array_equal(pixels(shown), np.asarray(expected))


def test_a_fresh_seed_is_shown_and_draws_the_same_again(handlers):
    fresh = generate(handlers, fresh=True, seed=None)
    again = generate(handlers, seed=fresh[-1][4])

    assert fresh[0][4] == fresh[-1][4]
    assert np.array_equal(pixels(again[-1][0][0]), pixels(fresh[-1][0][0]))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"class_id": None}, "Choose a class"),
        ({"class_id": 99}, "Class ids lie in [0, 10]"),
        ({"seed": None}, "Enter a seed"),
        ({"seed": -1}, "seed must lie in"),
        ({"num_images": 1000}, "num_images must lie in"),
        ({"sampling": (1e9, 0, 1.0, *SAMPLING[3:])}, "guidance_scale must be a number in"),
        ({"sampling": (2.0, 0, 0.0, *SAMPLING[3:])}, "top_p must be a finite number in (0, 1]"),
    ],
)
def test_bad_values_are_shown_to_the_visitor(handlers, values, line):
    with pytest.raises(gr.Error) as error:
        generate(handlers, **values)

    assert line in error.value.message


def test_messages_carry_no_markup(handlers):
    with pytest.raises(gr.Error) as error:
        generate(handlers, class_id="<img src=x onerror=alert(1)>")

    assert "<" not in error.value.message and "&lt;img" in error.value.message


def test_a_part_is_redrawn_and_the_rest_stays(handlers):
    source = an_image()
    editor = editor_value(source, (0.5, 0, 1, 1))
    steps = edit(handlers, editor, class_id=7)

    before, after = pixels(steps[0][0][0]), pixels(steps[-1][1][0])
    assert before.shape == after.shape == np.asarray(editor["background"]).shape
    far = before.shape[1] // 4  # beyond the seam, which is a token wide
    assert np.array_equal(before[:, :far], after[:, :far])
    assert not np.array_equal(before[:, far * 3 :], after[:, far * 3 :])
    assert [step[0] is UNCHANGED for step in steps] == [False, True, True, True]
    assert 'Image.open("mask.png")' in steps[-1][3]


@pytest.mark.parametrize(("mode", "size"), [(EXPAND, (640, 512)), (VARY, (512, 512))])
def test_the_other_ways_to_edit(handlers, mode, size):
    steps = edit(handlers, editor_value(an_image()), mode=mode)

    assert pixels(steps[-1][1][0]).shape == (size[1], size[0], 3)


@pytest.mark.parametrize(
    ("editor", "values", "line"),
    [
        (None, {}, "There is no image yet"),
        ({"background": None, "layers": [], "composite": None}, {}, "There is no image yet"),
        (editor_value(an_image()), {}, "Nothing is painted"),
        (editor_value(an_image()), {"mode": EXPAND, "sides": ()}, "Choose at least one side"),
        (editor_value(an_image()), {"mode": VARY, "strength": 7}, "strength must lie in [0, 1]"),
        (editor_value(an_image(), (0, 0, 1, 1)), {"class_id": 99}, "Class ids lie in [0, 10]"),
    ],
)
def test_edits_that_cannot_be(handlers, editor, values, line):
    with pytest.raises(gr.Error) as error:
        edit(handlers, editor, **values)

    assert line in error.value.message


def test_sides_are_extended_by_their_share():
    source, mask = an_image(40, 20), Image.new("L", (40, 20))

    def extended(sides, amount):
        return what_to_edit(source, mask, EXPAND, False, sides, amount, 0.5).expand

    assert extended(["Left", "Bottom"], 25) == (10, 0, 0, 5)
    assert extended(["Top", "Right"], 100) == (0, 20, 40, 0)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_examples_fit_the_model_and_run(handlers, facts, number):
    example = edit_examples(facts)[number]
    files, mode, class_id, sides, strength = handlers.prepare(example)()
    editor = {  # as the page's editor sends it back
        "background": Image.open(files["background"]).convert("RGBA"),
        "layers": [Image.open(layer) for layer in files["layers"]],
    }

    steps = edit(handlers, editor, mode, class_id, sides=sides, strength=strength)
    assert steps[-1][1]


def test_looking_inside_shows_the_parts_first_and_then_the_classes(handlers, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    an_image().save(tmp_path / "image.png")
    file = {"path": str(tmp_path / "image.png"), "orig_name": "image.png"}

    steps = list(handlers.look_inside(file, 3, True))
    assert len(steps) == 3  # parts; 8 and 11 classes
    assert steps[0][0].count("<img ") == steps[0][1].count("<img ") == 4
    assert steps[0][1].count(" nats") >= 4
    assert [step[2] is UNCHANGED for step in steps] == [False, True, True]
    assert "given pizza" in steps[0][4] and "11 of 11 classes" in steps[-1][4]
    assert steps[-1][5].count("<li>") == 5
    assert len(list(handlers.look_inside(file, NO_CLASS, False))) == 1


def test_looking_inside_nothing(handlers):
    with pytest.raises(gr.Error, match="There is no image yet"):
        list(handlers.look_inside(None, NO_CLASS, True))


def test_guidance_is_said_in_words_and_in_both_conventions():
    assert guidance_words(1).startswith("off") and guidance_words(1).endswith("cfg 0")
    assert guidance_words(2.5) == "balanced \u00b7 the original\u2019s cfg 1.5"
    assert guidance_words(10).startswith("extreme")
