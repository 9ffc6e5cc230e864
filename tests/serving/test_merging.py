"""Two generations made one go on as each of them would have alone."""

import pytest
import torch
from conftest import seeded

from var_hf.generation import generate
from var_hf.serving.merging import Member, MixedGuidance, MixedTokens, merge, runs


def started(pipe, class_ids, seeds, **options):
    settings = pipe.resolve_settings(**options)
    generation = pipe.start(class_ids, settings, [seeded(seed) for seed in seeds])
    members = [Member(settings, generation.guidance, generation.choice) for _ in class_ids]
    generation.guidance, generation.choice = MixedGuidance(members), MixedTokens(members)
    return generation, members


@pytest.mark.parametrize("scales", range(4))
@pytest.mark.parametrize("options", [{}, {"guided_scales": 2}, {"ssg_scale": 0.5}])
def test_merged_generations_draw_what_each_draws_alone(pipe, scales, options):
    def drawn(class_ids, seeds, **more):
        generation, _ = started(pipe, class_ids, seeds, **options, **more)
        return [output.latents for output in generate(generation)][-1]

    first, members = started(pipe, [1, 2], [1, 2], **options)
    second, others = started(pipe, [3, 4, 5], [3, 4, 5], top_k=4, **options)
    outputs, others_outputs = generate(first), generate(second)
    for _ in range(scales):
        next(outputs)
        next(others_outputs)
    merge(first, second)
    members += others
    *_, last = outputs

    assert torch.allclose(last.latents[:2], drawn([1, 2], [1, 2]), atol=1e-4)
    assert torch.allclose(last.latents[2:], drawn([3, 4, 5], [3, 4, 5], top_k=4), atol=1e-4)


def test_runs_are_the_stretches_of_equal_settings(pipe):
    members = [
        member
        for options in ({}, {"top_k": 3}, {})
        for member in started(pipe, [0, 1], [0, 1], **options)[1]
    ]
    assert [rows for _, rows in runs(members)] == [slice(0, 2), slice(2, 4), slice(4, 6)]


def test_what_needs_other_rows_shares_no_pass(pipe):
    plain, *others = (
        started(pipe, [0], [0], **options)[1][0]
        for options in (
            {},
            {"guided_scales": 2},
            {"ssg_scale": 0.5},
            {"sampling": "gumbel_softmax"},
        )
    )
    (hotter,) = started(pipe, [0], [0], temperature=2.0, guidance_scale=7.0)[1]
    assert plain.shares_passes_with(hotter)
    assert not any(plain.shares_passes_with(other) for other in others)
