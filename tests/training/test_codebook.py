import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from var_hf import MultiScaleVQVAE
from var_hf.evaluation.codebook_usage import CodebookUsage, count_codes
from var_hf.training.codebook import (
    fold_feature_scale,
    initialize_codebook,
    k_means,
    revive_dead_codes,
)
from var_hf.training.tokenizer_setup import initialize_convolutions


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def vqvae():
    torch.manual_seed(0)
    model = MultiScaleVQVAE(
        base_channels=8,
        channel_multipliers=(1, 2, 3),
        num_res_blocks=1,
        latent_channels=5,
        codebook_size=13,
        token_map_sizes=(1, 2, 3, 6),
        norm_num_groups=4,
    )
    initialize_convolutions(model)
    return model


def random_features(count=40, seed=1):
    """Features whose means differ from image to image, so that every scale has something to say."""
    random = generator(seed)
    level = torch.randn(count, 5, 1, 1, generator=random) * 2
    return level + torch.randn(count, 5, 6, 6, generator=random)


def quantization_error(vqvae, features):
    _, latents = vqvae.quantizer.encode(features)
    return (latents - features).square().mean().item()


# ---------------------------------------------------------------- k-means


def test_k_means_finds_separate_clusters():
    centres = torch.tensor([[0.0, 0.0, 9.0], [9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [9.0, 9.0, 9.0]])
    vectors = (centres[:, None] + 0.1 * torch.randn(4, 25, 3, generator=generator())).flatten(0, 1)

    found = k_means(vectors, 4, generator(), rounds=20)

    distances = torch.cdist(centres, found)
    assert (distances.min(dim=1).values < 0.1).all()


def test_no_cluster_stays_empty():
    """Started with all centres in one place, all but one would never be anybody's nearest."""
    vectors = torch.randn(60, 3, generator=generator(2))

    found = k_means(vectors, 7, generator(), start=torch.zeros(7, 3), rounds=10)

    nearest = torch.cdist(vectors, found).argmin(dim=1)
    assert len(nearest.unique()) == 7


@given(st.integers(0, 50))
def test_k_means_never_gets_worse(seed):
    vectors = torch.randn(50, 4, generator=generator(seed))

    errors = [
        torch.cdist(vectors, k_means(vectors, 6, generator(seed), rounds=rounds))
        .min(dim=1)
        .values.square()
        .sum()
        .item()
        for rounds in (1, 3, 9)
    ]

    assert errors[0] >= errors[1] - 1e-4
    assert errors[1] >= errors[2] - 1e-4


def test_too_few_vectors_are_refused():
    with pytest.raises(ValueError, match="5 vectors cannot make a codebook of 6 codes"):
        k_means(torch.zeros(5, 3), 6, generator())


# ---------------------------------------------------------------- initialisation


@torch.no_grad()
def test_folding_the_scale_changes_no_image(vqvae):
    images = torch.randn(2, 3, 24, 24, generator=generator())
    features = vqvae.quant_conv(vqvae.encoder(images))
    before = vqvae.decoder(vqvae.post_quant_conv(features))

    deviation = fold_feature_scale(vqvae, features)

    folded = vqvae.quant_conv(vqvae.encoder(images))
    assert_close(folded, features / deviation)
    assert folded.std().item() == pytest.approx(1.0, abs=1e-5)
    assert_close(vqvae.decoder(vqvae.post_quant_conv(folded)), before, rtol=1e-4, atol=1e-5)


def test_a_codebook_from_data_describes_data_better(vqvae):
    features = random_features()
    drawn = quantization_error(vqvae, features)

    initialize_codebook(vqvae, features, generator())

    assert quantization_error(vqvae, features) < 0.5 * drawn
    assert quantization_error(vqvae, random_features(seed=9)) < 0.7 * drawn


def test_every_scale_has_a_share_in_the_codebook(vqvae):
    features = random_features(count=200)

    initialize_codebook(vqvae, features, generator())

    token_maps, _ = vqvae.quantizer.encode(features)
    usage = CodebookUsage.from_counts(count_codes(token_maps, 13))
    assert min(usage.distinct) >= 4
    assert usage.collapsed_scales() == []


def test_the_same_features_make_the_same_codebook(vqvae):
    features = random_features()

    initialize_codebook(vqvae, features, generator(3))
    first = vqvae.quantizer.codebook.weight.clone()
    initialize_codebook(vqvae, features, generator(3))

    assert torch.equal(vqvae.quantizer.codebook.weight, first)


# ---------------------------------------------------------------- usage and collapse


def test_usage_counts_codes_per_scale():
    token_maps = [torch.tensor([[3], [3]]), torch.tensor([[0, 1, 1, 4], [4, 4, 0, 0]])]

    counts = count_codes(token_maps, 6)
    usage = CodebookUsage.from_counts(counts)

    assert counts.tolist() == [[0, 0, 0, 2, 0, 0], [3, 2, 0, 0, 3, 0]]
    assert usage.distinct == [1, 3]
    assert usage.possible == [2, 6]
    assert usage.fractions == [0.5, 0.5]
    assert usage.perplexity[0] == 1.0
    assert 2.5 < usage.perplexity[1] < 3.0


@given(codes=st.integers(1, 30), uses=st.integers(1, 5))
def test_codes_used_equally_often_have_their_number_as_perplexity(codes, uses):
    usage = CodebookUsage.from_counts(torch.full((1, codes), uses))

    assert usage.perplexity[0] == pytest.approx(codes, abs=0.01)


def test_a_collapsed_scale_is_named_with_numbers_and_a_cure():
    counts = torch.ones(3, 100, dtype=torch.int64)
    counts[0, 4:] = 0
    counts[0, 0] = 500

    message = CodebookUsage.from_counts(counts).describe_collapse((1, 2, 4))

    assert "collapsed at 1 of 3 scales: scale 0 (1x1) uses 4 of 100 codes" in message
    assert "autoencoder_steps" in message


def test_few_tokens_are_no_collapse():
    """Ten images can show ten codes at the coarsest scale, however large the codebook is."""
    counts = torch.zeros(2, 4096, dtype=torch.int64)
    counts[0, :9] = 1
    counts[1, :3000] = 1

    assert CodebookUsage.from_counts(counts).describe_collapse((1, 2)) is None


# ---------------------------------------------------------------- revival


def test_dead_codes_move_to_vectors_of_all_scales_and_live_ones_stay():
    codebook = torch.zeros(50, 3)
    counts = torch.zeros(2, 50, dtype=torch.int64)
    counts[0, 0] = counts[1, 1] = 4
    targets = [torch.full((6, 3), 1.0), torch.full((90, 3), 2.0)]

    moved = revive_dead_codes(codebook, counts, targets, generator())

    assert moved.tolist() == list(range(2, 50))
    assert codebook[:2].abs().sum() == 0
    values = codebook[2:, 0]
    # A fair coin between the scales, though the second has fifteen times the vectors.
    assert 12 <= (values == 1.0).sum() <= 36
    assert set(values.tolist()) == {1.0, 2.0}


def test_the_scale_that_uses_fewest_codes_gets_most_of_the_moved_ones():
    codebook = torch.zeros(60, 3)
    counts = torch.zeros(2, 60, dtype=torch.int64)
    counts[0, 0] = 50  # one code of fifty possible
    counts[1, 1:25] = 1  # all that were possible
    targets = [torch.full((6, 3), 1.0), torch.full((90, 3), 2.0)]

    revive_dead_codes(codebook, counts, targets, generator())

    assert (codebook[25:, 0] == 1.0).float().mean() > 0.9


def test_hardly_used_codes_count_as_dead_only_if_no_scale_needs_them():
    counts = torch.tensor([[1, 0, 0, 0], [3, 1, 500, 496]])  # a quarter of a scale is the mean

    moved = revive_dead_codes(
        torch.zeros(4, 3), counts, [torch.ones(5, 3)] * 2, generator(), least_use=0.1
    )

    assert moved.tolist() == [1]


def test_a_living_codebook_is_left_alone():
    codebook = torch.randn(4, 3, generator=generator())
    before = codebook.clone()

    moved = revive_dead_codes(codebook, torch.ones(2, 4), [torch.zeros(5, 3)] * 2, generator())

    assert len(moved) == 0
    assert torch.equal(codebook, before)
