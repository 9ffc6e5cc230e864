"""The code that the page shows is run, and draws what the page showed."""

import numpy as np
import pytest
from PIL import Image

from var_hf.demo import snippets
from var_hf.demo.facts import ModelFacts
from var_hf.demo.orders import Edit
from var_hf.demo.settings import Settings
from var_hf.demo.studio import Studio
from var_hf.pipelines.loading import load_pipeline


def last(drawn):
    *_, finished = drawn
    return finished


def run(code, folder, monkeypatch):
    monkeypatch.chdir(folder)
    namespace = {}
    exec(compile(code, "snippet", "exec"), namespace)
    return namespace["images"]


def same(images, others):
    return all(
        np.array_equal(np.asarray(one), np.asarray(other))
        for one, other in zip(images, others, strict=True)
    )


@pytest.mark.parametrize(
    ("class_id", "settings"),
    [
        (0, Settings(seed=8)),  # several names
        (
            1,
            Settings(
                3,
                guidance_scale=1.5,
                top_k=0,
                top_p=0.9,
                sampling="gumbel_softmax",
                temperature=0.8,
                seed=0,
            ),
        ),  # not its own
        (10, Settings(sampling="multinomial", seed=1)),  # none
    ],
)
def test_the_code_of_a_generation_draws_it_again(studio, settings, class_id, tmp_path, monkeypatch):
    drawn = last(studio.generate(class_id, settings))

    code = snippets.generate_code(studio, drawn)
    assert same(run(code, tmp_path, monkeypatch), drawn.images)


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"mask": True}, None),
        (
            {"mask": True, "padding_mask_crop": 2},
            2,
        ),  # a name of two classes: the code says the number
        ({"expand": (2, 0, 3, 1)}, "fox"),
        ({"strength": 0.5}, "fox"),
    ],
)
def test_the_code_of_an_edit_repeats_it(studio, changes, label, tmp_path, monkeypatch):
    image = Image.effect_noise((20, 14), 90).convert("RGB")
    mask = Image.new("L", image.size)
    mask.paste(255, (3, 2, 15, 12))
    image.save(tmp_path / "image.png")
    mask.save(tmp_path / "mask.png")
    edit = Edit(image, **(changes | ({"mask": mask} if "mask" in changes else {})))
    drawn = last(studio.edit(edit, label, Settings(num_images=2, seed=5)))

    code = snippets.edit_code(studio, edit, drawn)
    assert same(run(code, tmp_path, monkeypatch), drawn.images)


def test_the_shipped_model_is_found_on_every_machine(tmp_path, monkeypatch):
    """The code names no folder of the machine that drew the image."""
    facts = ModelFacts.read()
    shipped = Studio(load_pipeline(facts.source, "float32", "cpu"), facts)
    drawn = last(shipped.generate("fox", Settings(seed=1)))

    code = snippets.generate_code(shipped, drawn)
    assert facts.source not in code
    assert "from_pretrained(VAR_EMOJI_128, dtype=torch.float32)" in code
    assert same(run(code, tmp_path, monkeypatch), drawn.images)


def test_the_code_says_another_number_format(facts, tmp_path, monkeypatch):
    half = Studio(load_pipeline(facts.source, "bfloat16", "cpu"), facts)
    drawn = last(half.generate(3, Settings(seed=1)))

    code = snippets.generate_code(half, drawn)
    assert "dtype=torch.bfloat16" in code
    assert same(run(code, tmp_path, monkeypatch), drawn.images)
