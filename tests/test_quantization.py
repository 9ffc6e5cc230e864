import pytest
import torch
from conftest import BATCH, TOKEN_MAP_SIZES, VQVAE, fill, seeded
from hypothesis import given
from hypothesis import strategies as st

from var_hf import MultiScaleQuantizer

CODES, CHANNELS, SIDE = VQVAE["codebook_size"], VQVAE["latent_channels"], TOKEN_MAP_SIZES[-1]


def make_quantizer(**changes) -> MultiScaleQuantizer:
    arguments = {
        "codebook_size": CODES,
        "latent_channels": CHANNELS,
        "token_map_sizes": TOKEN_MAP_SIZES,
        "refiner_of_scale": (0, 1, 1, 2),
    }
    return fill(MultiScaleQuantizer(**arguments | changes)).requires_grad_(False)


def features(batch=BATCH, seed=0):
    return torch.randn(batch, CHANNELS, SIDE, SIDE, generator=seeded(seed))


def random_token_maps(batch=BATCH, seed=0):
    generator = seeded(seed)
    return [torch.randint(CODES, (batch, size**2), generator=generator) for size in TOKEN_MAP_SIZES]


def test_encoding_gives_one_token_map_per_scale_and_the_latents_they_stand_for():
    quantizer = make_quantizer()

    token_maps, latents = quantizer.encode(features())

    assert [tuple(tokens.shape) for tokens in token_maps] == [
        (BATCH, size**2) for size in TOKEN_MAP_SIZES
    ]
    assert latents.shape == (BATCH, CHANNELS, SIDE, SIDE)
    torch.testing.assert_close(quantizer.decode(token_maps), latents)


def test_the_nearest_code_is_the_one_at_the_least_distance():
    quantizer = make_quantizer()
    vectors = torch.randn(37, CHANNELS, generator=seeded(1))

    nearest = quantizer.nearest_codes(vectors)

    distances = torch.cdist(vectors.double(), quantizer.codebook.weight.double())
    assert torch.equal(nearest, distances.argmin(1))


def test_every_code_is_its_own_nearest():
    quantizer = make_quantizer()

    assert torch.equal(quantizer.nearest_codes(quantizer.codebook.weight), torch.arange(CODES))


def test_each_scale_describes_what_the_coarser_ones_left():
    """Without refiners, the finest scale is quantised position by position, without averaging."""
    quantizer = make_quantizer(refiner_of_scale=())
    wanted = features()

    token_maps, _ = quantizer.encode(wanted)

    *_, before_last, _last = quantizer.latents_by_scale(token_maps)
    residual = (wanted - before_last).flatten(2).transpose(1, 2).flatten(0, 1)
    assert torch.equal(token_maps[-1].flatten(), quantizer.nearest_codes(residual))


def test_more_scales_lose_less():
    """With a codebook fine enough to follow the residual; a code of wrong size could overshoot."""
    quantizer = make_quantizer(codebook_size=4001, refiner_of_scale=())
    quantizer.codebook.weight.mul_(torch.linspace(0.01, 1.2, 4001)[:, None])
    wanted = features()

    token_maps, _ = quantizer.encode(wanted)

    losses = [
        (wanted - latents).square().mean().item()
        for latents in quantizer.latents_by_scale(token_maps)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 2


@given(st.permutations(range(5)), st.integers(0, 99))
def test_images_of_a_batch_do_not_touch_one_another(order, seed):
    quantizer = make_quantizer()
    batch = features(5, seed)

    token_maps, _ = quantizer.encode(batch)
    shuffled, _ = quantizer.encode(batch[order])

    for tokens, other in zip(token_maps, shuffled, strict=True):
        assert torch.equal(tokens[order], other)


def test_teacher_inputs_are_the_running_sum_on_the_next_grid():
    quantizer = make_quantizer()
    token_maps = random_token_maps()

    inputs = quantizer.teacher_inputs(token_maps)

    running = list(quantizer.latents_by_scale(token_maps))
    expected = [quantizer.shrink(latents, i + 1) for i, latents in enumerate(running[:-1])]
    assert inputs.shape == (BATCH, sum(size**2 for size in TOKEN_MAP_SIZES[1:]), CHANNELS)
    assert torch.equal(inputs, torch.cat(expected, dim=1))


@given(scale=st.integers(0, 2), row=st.integers(0, 4), column=st.integers(0, 4))
def test_teacher_inputs_do_not_see_their_own_scale_or_finer_ones(scale, row, column):
    quantizer = make_quantizer()
    token_maps = random_token_maps()
    inputs = quantizer.split(
        torch.cat([token_maps[0], quantizer.teacher_inputs(token_maps)[..., 0]], 1)
    )

    token_maps[scale + 1][:, (row * 5 + column) % TOKEN_MAP_SIZES[scale + 1] ** 2] += 1
    token_maps[scale + 1] %= CODES
    changed = quantizer.split(
        torch.cat([token_maps[0], quantizer.teacher_inputs(token_maps)[..., 0]], 1)
    )

    for coarse in range(scale + 2):
        assert torch.equal(inputs[coarse], changed[coarse])
    if scale + 2 < len(TOKEN_MAP_SIZES):
        assert not torch.equal(inputs[scale + 2], changed[scale + 2])


def test_a_shrunk_constant_stays_that_constant():
    quantizer = make_quantizer()
    constant = torch.full((BATCH, CHANNELS, SIDE, SIDE), 2.5)

    for scale, size in enumerate(TOKEN_MAP_SIZES):
        shrunk = quantizer.shrink(constant, scale)
        torch.testing.assert_close(shrunk, torch.full((BATCH, size**2, CHANNELS), 2.5))


def test_split_undoes_concatenation():
    quantizer = make_quantizer()
    token_maps = random_token_maps()

    again = quantizer.split(torch.cat(token_maps, dim=1))

    assert all(torch.equal(a, b) for a, b in zip(token_maps, again, strict=True))


def test_half_precision_weights_still_give_float32_latents():
    quantizer = make_quantizer().to(torch.bfloat16)

    token_maps, latents = quantizer.encode(features().to(torch.bfloat16))

    assert latents.dtype == quantizer.decode(token_maps).dtype == torch.float32
    assert quantizer.teacher_inputs(token_maps).dtype == torch.float32


@pytest.mark.parametrize(
    "spoil",
    [
        lambda maps: maps[:-1],
        lambda maps: maps[::-1],
        lambda maps: [*maps, maps[-1]],
        lambda maps: [*maps[:-1], maps[-1].unflatten(1, (SIDE, SIDE))],
    ],
    ids=["one too few", "fine to coarse", "one too many", "a square map"],
)
def test_token_maps_that_do_not_fit_the_schedule_are_refused(spoil):
    quantizer = make_quantizer()
    token_maps = spoil(random_token_maps())

    for method in (quantizer.decode, quantizer.teacher_inputs):
        with pytest.raises(
            ValueError, match=r"one token map \(B, T\) per scale with T = \[1, 4, 9, 25\]"
        ):
            method(token_maps)
