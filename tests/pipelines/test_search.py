import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import make_pipe, seeded
from torch import nn

from var_hf.generation import generate
from var_hf.pipelines.likelihood import token_log_likelihood
from var_hf.pipelines.search import likelihood_judge

LENGTHS = [1, 4, 9, 25]
SIDE = 10  # of the tiny model's images, in pixels


@pytest.fixture(scope="module")
def pipe():
    return make_pipe()


def each(seeds):
    return [seeded(seed) for seed in seeds]


def recorder(calls, scores=None):
    """A judge that keeps what it gets; by default it prefers the last candidate."""

    def judge(drawn):
        calls.append(drawn)
        count = len(drawn.latents)
        return torch.arange(count) if scores is None else scores(drawn)

    return judge


def brightness(drawn):
    return drawn.images.mean(dim=(1, 2, 3))


def test_one_candidate_is_plain_generation(pipe):
    plain = pipe([3, 5], generator=seeded(0), output_type="pt").images
    calls = []
    searched = pipe(
        [3, 5], candidates=1, judge=recorder(calls), generator=seeded(0), output_type="pt"
    ).images
    assert torch.equal(searched, plain)
    assert not calls


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_best_candidate_of_each_image_is_returned(pipe, guidance_scale):
    """A judge of images: the brightest of what a plain call with all candidates draws."""
    options = {"guidance_scale": guidance_scale, "output_type": "pt"}
    everything = pipe([3] * 4 + [5] * 4, generator=seeded(1), **options).images
    best = [
        4 * i + int(rows.mean(dim=(1, 2, 3)).argmax()) for i, rows in enumerate(everything.split(4))
    ]
    searched = pipe([3, 5], candidates=4, judge=brightness, generator=seeded(1), **options).images
    assert torch.equal(searched, everything[best])


def test_a_judge_gets_candidates_side_by_side(pipe):
    calls = []
    pipe([3, "hen"], candidates=2, judge=recorder(calls), num_images_per_prompt=2)
    (drawn,) = calls
    assert drawn.class_ids.tolist() == [3, 3, 3, 3, 3, 3, 3, 3]
    assert drawn.scale == 3
    assert [tuple(tokens.shape) for tokens in drawn.token_maps] == [(8, n) for n in LENGTHS]
    assert drawn.latents.shape == (8, 6, 5, 5)
    assert drawn.images.shape == (8, 3, SIDE, SIDE)
    assert 0 <= drawn.images.min() < drawn.images.max() <= 1


@torch.no_grad()
@pytest.mark.parametrize(
    "settings", [{}, {"guidance_scale": 1.0}, {"guided_scales": 2}, {"ssg_scale": 0.5}], ids=str
)
def test_copies_go_on_as_if_their_scales_had_been_drawn_in_their_row(pipe, settings):
    """The same scales, read again without a search: keys, values and memory were copied with the
    right row.
    """
    calls = []
    judged = [0, 1, 2]
    search = list(
        pipe.stream(
            [3, 5],
            candidates=4,
            beams=2,
            judged_scales=judged,
            judge=recorder(calls, lambda drawn: -drawn.latents.mean(dim=(1, 2, 3))),
            generator=seeded(2),
            **settings,
        )
    )
    history = calls[-1].history
    checked = []

    class Forced:
        """Draws the tokens of the last call of the judge."""

        def noise(self, shape, generator):
            return ()

        def __call__(self, logits, scale, noise):
            checked.append(logits)
            tokens = calls[-1].token_maps[scale]
            return tokens, pipe.vqvae.quantizer.codes(tokens)

    generation = pipe.start([3] * 4 + [5] * 4, pipe.resolve_settings(**settings), None)
    generation.choice = Forced()
    *_, output = generate(generation)
    torch.testing.assert_close(output.latents, history[-1])
    rows = [
        int((history[-1] == latents).flatten(1).all(1).nonzero()[0])
        for latents in search[-1].latents
    ]
    torch.testing.assert_close(search[-1].logits, checked[-1][rows], rtol=1e-4, atol=1e-4)


def test_beams_share_the_rows(pipe):
    """After a judged scale the two best of four go on, twice each, and differ again after the
    next one.
    """
    calls = []
    outputs = list(
        pipe.stream(
            [3, 5],
            candidates=4,
            beams=2,
            judged_scales=[1],
            judge=recorder(calls),
            generator=seeded(3),
            top_k=0,
            top_p=1.0,
        )
    )
    assert [drawn.scale for drawn in calls] == [1, 3]
    before = calls[0].latents
    rows = [3, 3, 2, 2, 7, 7, 6, 6]  # the recorder prefers the last ones
    assert torch.equal(outputs[1].latents, before[rows])
    assert outputs[1].tokens.shape == (8, 4)
    after = outputs[2].latents
    assert all(not torch.equal(one, two) for one, two in itertools.combinations(after, 2))
    assert outputs[3].latents.shape == (2, 6, 5, 5)
    assert torch.equal(outputs[3].latents, calls[1].latents[[3, 7]])
    assert outputs[3].tokens.shape == (2, 25)
    assert outputs[3].logits.shape == (2, 25, 29)


def test_an_image_does_not_depend_on_its_batch_mates(pipe):
    """With a generator of its own, from which all its candidates draw."""
    options = {"candidates": 3, "judge": brightness, "judged_scales": [1], "output_type": "pt"}
    together = pipe([3, 5], generator=each([7, 8]), **options).images
    alone = pipe([5], generator=each([8]), **options).images
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-4)


def test_a_compiled_pipeline_searches_as_well(fresh_compiler):
    """Its cache has to stay in place."""
    options = {"candidates": 4, "beams": 2, "judge": brightness, "judged_scales": [1]}
    pipe, latents = make_pipe(), []
    for compiled in (False, True):
        if compiled:
            pipe.compile(backend="eager")
        latents.append(pipe(3, generator=seeded(6), output_type="latent", **options).images)
    torch.testing.assert_close(latents[1], latents[0])


def test_a_callback_and_the_result_see_the_best(pipe):
    shapes = []

    def callback(pipe, scale, timestep, tensors):
        shapes.append(len(tensors["latents"]))
        return {}

    images = pipe([3, 5], candidates=3, judge="likelihood", callback_on_step_end=callback).images
    assert shapes == [6, 6, 6, 2]
    assert len(images) == 2


# Judges


@torch.no_grad()
def test_the_likelihood_is_that_of_log_likelihood(pipe):
    calls = []
    pipe(
        [3, 5, None], candidates=7, judge=recorder(calls), judged_scales=[0, 2], generator=seeded(4)
    )
    assert [drawn.scale for drawn in calls] == [0, 2, 3]
    for drawn in calls:
        missing = LENGTHS[drawn.scale + 1 :]
        maps = drawn.token_maps + [torch.zeros(21, n, dtype=torch.long) for n in missing]
        inputs = pipe.vqvae.quantizer.teacher_inputs(maps)
        per_token = token_log_likelihood(
            pipe, drawn.class_ids.tolist(), torch.cat(maps, dim=1), inputs
        )
        expected = per_token[:, : sum(LENGTHS[: drawn.scale + 1])].sum(dim=1)
        torch.testing.assert_close(likelihood_judge(drawn), expected, rtol=1e-4, atol=1e-3)


class Mean(nn.Module):
    """Class i likes channel i; the images lie in [-1, 1]."""

    def forward(self, images):
        assert images.min() < 0
        return 50 * images.mean(dim=(2, 3))


def test_a_module_is_a_classifier(pipe):
    options = {"generator": seeded(5), "output_type": "pt"}
    everything = pipe([2] * 6, **options).images
    best = (100 * everything.mean(dim=(2, 3))).log_softmax(1)[:, 2].argmax()
    options["generator"] = seeded(5)
    searched = pipe(2, candidates=6, judge=Mean(), **options).images
    assert torch.equal(searched[0], everything[best])


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": 0}, "candidates must be at least 1. Got 0"),
        ({"candidates": -2, "judge": "likelihood"}, "candidates must be at least 1. Got -2"),
        ({}, 'judge must be "likelihood", a classifier or a function.* Got None'),
        ({"judge": "taste"}, "Got 'taste'"),
        ({"judge": "likelihood", "beams": 3}, "beams must divide the 4 candidates.* Got 3"),
        ({"judge": "likelihood", "beams": 0}, "Got 0"),
        ({"judge": "likelihood", "judged_scales": [4]}, r"\[0, 3\]. Got 4"),
        ({"judge": Mean()}, "classifier of 3 classes, and class 5"),
        ({"judge": lambda drawn: torch.zeros(3)}, r"each of 4 candidates, .* Got \(3,\)"),
        ({"judge": lambda drawn: 1.0}, r"Got \(\)"),
        ({"judge": lambda drawn: np.array([1, 2, math.nan, 4])}, "NaN for candidate 2 of 4"),
    ],
)
def test_bad_input_ends_in_one_clear_error(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(5, **{"candidates": 4} | options)


def test_more_candidates_than_memory_are_an_error(pipe, monkeypatch):
    monkeypatch.setattr("var_hf.memory.available_bytes", lambda device: 10e6)
    with pytest.raises(ValueError, match="Drawing 2000 images at a time takes about"):
        pipe([3, 5], candidates=1000, judge="likelihood")


def test_the_search_is_imported_when_it_is_used():
    code = (
        "import sys, var_hf.pipelines.pipeline_var; "
        "assert 'var_hf.pipelines.search' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
