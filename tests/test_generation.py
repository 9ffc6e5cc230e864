"""The loop and its three interfaces: which transformer, which guidance, which tokens."""

import dataclasses

import pytest
import torch
from conftest import BATCH, make_pipe, make_transformer, seeded

from var_hf.compiled import CompiledRunner
from var_hf.generation import (
    Controls,
    Generation,
    SamplingSettings,
    ScheduledTokens,
    generate,
)
from var_hf.guidance import make_guidance
from var_hf.runner import EagerRunner

SETTINGS = SamplingSettings(guidance_scale=3.0, top_k=13, top_p=0.9, sampling="multinomial")


def begin(pipe, *, settings=SETTINGS, transformers=None, guidance=None, runner=None, seed=0):
    """A generation of two classes, with other parts where they are given."""
    quantizer = pipe.vqvae.quantizer
    ramp = make_guidance(pipe.scheduler, settings, quantizer.token_map_sizes, quantizer.num_scales)
    return Generation(
        transformers=transformers or (lambda scale: pipe.transformer),
        guidance=guidance or ramp,
        choice=ScheduledTokens(pipe.scheduler, quantizer, settings),
        quantizer=quantizer,
        run=(runner or EagerRunner()).start(),
        controls=Controls(settings.guidance_scale),
        class_ids=torch.tensor([3, 5]),
        null_class=pipe.transformer.config.num_classes,
        history=[quantizer.empty_latents(BATCH, torch.device("cpu"))],
        generator=seeded(seed),
    )


def tokens(generation):
    return [output.tokens for output in generate(generation)]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def refiner():
    """Another model for the same tokens, of another depth."""
    return make_transformer(num_hidden_layers=2)


def test_the_pipeline_draws_what_the_loop_draws(pipe):
    expected = [o.tokens for o in pipe.stream([3, 5], generator=seeded(0))]
    assert equal(tokens(begin(pipe)), expected)


@pytest.mark.parametrize("draft_scales", [0, 4])
def test_a_schedule_that_names_one_transformer_is_that_transformer(pipe, refiner, draft_scales):
    def schedule(scale):
        return pipe.transformer if scale < draft_scales else refiner

    alone = make_pipe(transformer=refiner) if draft_scales == 0 else pipe
    assert equal(tokens(begin(pipe, transformers=schedule)), tokens(begin(alone)))


@pytest.mark.parametrize("draft_scales", [1, 2, 3])
def test_a_transformer_that_takes_over_has_read_all_scales(pipe, refiner, draft_scales):
    """Its logits are those of a teacher-forced pass over the tokens that the first one drew."""
    generation = begin(
        pipe, transformers=lambda scale: pipe.transformer if scale < draft_scales else refiner
    )

    outputs = list(generate(generation))

    drafted = tokens(begin(pipe))[:draft_scales]
    assert equal([output.tokens for output in outputs[:draft_scales]], drafted)
    quantizer = pipe.vqvae.quantizer
    inputs = quantizer.teacher_inputs([output.tokens for output in outputs])
    labels = torch.tensor([3, 5, 11, 11])
    logits = refiner(labels, inputs.repeat(2, 1, 1)).logits
    for output in outputs[draft_scales:]:
        part = refiner.config.token_slices[output.scale]
        conditional, unconditional = logits[:, part].chunk(2)
        guided = pipe.scheduler.guide(conditional, unconditional, output.scale / 3, 3.0)
        torch.testing.assert_close(output.logits, guided, atol=1e-4, rtol=1e-4)


class Remembers:
    """Guidance that keeps the conditional logits of the scale before."""

    def __init__(self, num_guided_scales):
        self.num_guided_scales = num_guided_scales
        self.seen = []

    def __call__(self, conditional, unconditional, scale, guidance_scale, memory):
        self.seen.append((scale, memory))
        return conditional, conditional


def test_guidance_gets_what_it_kept_at_the_scale_before(pipe):
    guidance = Remembers(num_guided_scales=3)
    outputs = list(generate(begin(pipe, guidance=guidance)))

    assert [scale for scale, _ in guidance.seen] == [0, 1, 2, 3]  # guided or not
    assert guidance.seen[0][1] is None
    for (_, memory), output in zip(guidance.seen[1:], outputs[:3], strict=True):
        assert torch.equal(memory, output.logits)


def test_without_guided_scales_half_of_the_rows_are_computed(pipe):
    rows = []
    pipe.transformer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    tokens(begin(pipe, guidance=Remembers(num_guided_scales=2)))
    assert rows == [4, 4, 2, 2]


def test_a_callback_changes_guidance_and_latents_between_two_scales(pipe):
    generation = begin(pipe)
    for output in generate(generation):
        if output.scale == 1:
            generation.controls.guidance_scale = 1.0
            generation.latents = torch.zeros_like(generation.latents)
        last = output
    assert not equal([last.tokens], tokens(begin(pipe))[-1:])
    assert len(generation.history) == 5


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_runner_counts_the_memory_that_it_holds(pipe):
    runner = CompiledRunner("eager", None)
    assert runner.held_bytes == 0

    next(generate(begin(pipe, runner=runner)))

    config = pipe.transformer.config
    numbers = 2 * BATCH * config.num_tokens * config.hidden_size * config.num_hidden_layers
    assert runner.held_bytes == 2 * numbers * 4  # keys and values, float32


def test_settings_say_how_many_scales_are_guided():
    assert SETTINGS.num_guided_scales(10) == 10
    assert dataclasses.replace(SETTINGS, guided_scales=3).num_guided_scales(10) == 3
    assert dataclasses.replace(SETTINGS, guided_scales=(2, 5)).num_guided_scales(10) == 5
    assert dataclasses.replace(SETTINGS, guided_scales=(5, 5)).num_guided_scales(10) == 0
    assert dataclasses.replace(SETTINGS, guidance_scale=1.0).num_guided_scales(10) == 0
