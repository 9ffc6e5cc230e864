"""Guidance: schedules, ranges, and scaled spatial guidance against its formula."""

import dataclasses
import math

import pytest
import torch
from conftest import make_pipe, seeded

from var_hf.guidance import make_guidance
from var_hf.sampling_settings import SamplingSettings, guidance_shares
from var_hf.scheduling_next_scale import NextScaleScheduler

SIZES = (1, 2, 3, 5)
SCALES = len(SIZES)
SETTINGS = SamplingSettings(guidance_scale=3.0, top_k=13, top_p=0.9, sampling="multinomial")


@pytest.fixture
def pipe():
    return make_pipe()


def outputs(pipe, **settings):
    return list(pipe.stream([3, 5], generator=seeded(0), **settings))


def same(one, other):
    return all(
        torch.equal(a.logits, b.logits) and torch.equal(a.tokens, b.tokens)
        for a, b in zip(one, other, strict=True)
    )


# Classifier-free guidance


def test_the_shares_of_the_guidance():
    def shares(**settings):
        return guidance_shares(dataclasses.replace(SETTINGS, **settings), 5)

    assert shares() == [0, 0.25, 0.5, 0.75, 1]
    assert shares(guidance_schedule="constant") == [1, 1, 1, 1, 1]
    assert shares(guided_scales=(1, 3)) == [0, 0.25, 0.5, 0, 0]
    assert shares(guidance_schedule="constant", guided_scales=(1, 3)) == [0, 1, 1, 0, 0]
    assert shares(guided_scales=2) == [0, 0.25, 0, 0, 0]


@pytest.mark.parametrize("everything", [None, SCALES, (0, SCALES), [0, SCALES]])
def test_a_range_of_all_scales_is_no_range(pipe, everything):
    assert same(outputs(pipe, guided_scales=everything), outputs(pipe))


@pytest.mark.parametrize("nothing", [0, (2, 2), (0, 0)])
def test_an_empty_range_is_no_guidance(pipe, nothing):
    assert same(outputs(pipe, guided_scales=nothing), outputs(pipe, guidance_scale=1.0))


def test_constant_guidance_applies_the_same_strength_at_every_scale(pipe):
    drawn = outputs(pipe, guidance_scale=3.0, guidance_schedule="constant")

    inputs = pipe.vqvae.quantizer.teacher_inputs([output.tokens for output in drawn])
    labels = torch.tensor([3, 5, 11, 11])
    with torch.no_grad():
        logits = pipe.transformer(labels, inputs.repeat(2, 1, 1)).logits
    conditional, unconditional = logits.chunk(2)
    expected = 3 * conditional - 2 * unconditional
    got = torch.cat([output.logits for output in drawn], dim=1)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_scales_outside_of_a_range_are_unguided(pipe):
    drawn = outputs(pipe, guidance_scale=4.0, guided_scales=(2, 3))

    inputs = pipe.vqvae.quantizer.teacher_inputs([output.tokens for output in drawn])
    with torch.no_grad():
        alone = pipe.transformer(torch.tensor([3, 5]), inputs).logits
    slices = pipe.transformer.config.token_slices
    close = [
        torch.allclose(output.logits, alone[:, part], atol=1e-4)
        for output, part in zip(drawn, slices, strict=True)
    ]
    assert close == [True, True, False, True]


# Scaled spatial guidance


def test_a_strength_of_zero_is_no_spatial_guidance(pipe):
    assert same(outputs(pipe, ssg_scale=0.0), outputs(pipe))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_spatial_guidance_is_its_formula_and_needs_no_further_pass(pipe, guidance_scale):
    rows = []
    pipe.transformer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    drawn = outputs(pipe, guidance_scale=guidance_scale, ssg_scale=0.5)
    assert rows == [2 if guidance_scale == 1 else 4] * SCALES

    inputs = pipe.vqvae.quantizer.teacher_inputs([output.tokens for output in drawn])
    with torch.no_grad():
        conditional, unconditional = pipe.transformer(
            torch.tensor([3, 5, 11, 11]), inputs.repeat(2, 1, 1)
        ).logits.chunk(2)
    before = None
    for output, part in zip(drawn, pipe.transformer.config.token_slices, strict=True):
        t = (guidance_scale - 1) * output.scale / (SCALES - 1)
        guided = (1 + t) * conditional[:, part] - t * unconditional[:, part]
        expected = guided if before is None else guided + 0.5 * (guided - enlarge(before, output))
        torch.testing.assert_close(output.logits, expected, atol=1e-3, rtol=1e-4)
        before = guided


def enlarge(logits, output):
    """The logits on the grid of an output: a sum of cosines, written out."""
    size, new_size = math.isqrt(logits.shape[1]), math.isqrt(output.tokens.shape[1])
    grid = logits.double().unflatten(1, (size, size))

    def wave(frequency, position, count):
        return math.cos(math.pi * frequency * (position + 0.5) / count)

    def along(values, axis):
        coefficients = []
        for frequency in range(size):
            weights = torch.tensor([wave(frequency, j, size) for j in range(size)]).double()
            factor = (1 if frequency == 0 else 2) / size
            coefficients.append(factor * torch.tensordot(values, weights, dims=([axis], [0])))
        new = [
            sum(c * wave(frequency, i, new_size) for frequency, c in enumerate(coefficients))
            for i in range(new_size)
        ]
        return torch.stack(new, dim=axis)

    return along(along(grid, 1), 2).flatten(1, 2).float()


@pytest.mark.usefixtures("fresh_compiler")
def test_the_compiled_pipeline_guides_the_same(pipe):
    settings = {"guided_scales": (1, 3), "guidance_schedule": "constant", "ssg_scale": 0.5}
    expected = outputs(pipe, **settings)
    pipe.compile(backend="eager")
    for one, other in zip(outputs(pipe, **settings), expected, strict=True):
        torch.testing.assert_close(one.logits, other.logits, atol=1e-4, rtol=1e-4)


# Settings


def test_settings_are_stored_with_the_scheduler(pipe, tmp_path):
    settings = {"guidance_schedule": "constant", "guided_scales": (1, 3), "ssg_scale": 0.25}
    expected = outputs(pipe, **settings)
    pipe.scheduler = NextScaleScheduler.from_config(pipe.scheduler.config, **settings)
    assert same(outputs(pipe), expected)

    pipe.save_pretrained(tmp_path)
    loaded = type(pipe).from_pretrained(tmp_path)

    assert same(outputs(loaded), expected)
    assert same(
        outputs(loaded, guidance_schedule="ramp", guided_scales=SCALES, ssg_scale=0.0),
        outputs(make_pipe()),
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_schedule": "linear"}, 'one of "ramp", "constant". Got .linear'),
        ({"ssg_scale": -0.1}, "at least 0"),
        ({"ssg_scale": float("nan")}, "at least 0"),
        ({"guided_scales": (3, 2)}, r"Got \(3, 2\)"),
        ({"guided_scales": (0, SCALES + 1)}, f"from 0 to {SCALES} for this model"),
        ({"guided_scales": (1, 2, 3)}, "a list of 2 values"),
        ({"guided_scales": 1.5}, "a list of 2 values"),
        ({"guided_scales": True}, "a list of 2 values"),
        ({"guided_scales": "12"}, "a list of 2 values"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(pipe, settings, message):
    with pytest.raises(ValueError, match=message):
        pipe.stream(3, **settings)


def test_guidance_is_made_from_settings():
    settings = dataclasses.replace(SETTINGS, ssg_scale=0.5)
    guidance = make_guidance(NextScaleScheduler(), settings, SIZES, SCALES)
    assert guidance.num_guided_scales == SCALES
    logits = torch.rand(1, 1, 7)
    result, memory = guidance(logits, None, 0, 3.0, None)
    assert torch.equal(result, logits)
    assert torch.equal(memory, logits)
