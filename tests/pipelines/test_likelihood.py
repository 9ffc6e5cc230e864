import math

import numpy as np
import pytest
import torch
from conftest import make_pipe, quiet, seeded
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from var_hf import VARPipeline
from var_hf.pipelines.likelihood import VARLikelihoodOutput, overlap

SIDE = 10  # of the tiny model's images, in pixels
LENGTHS = [1, 4, 9, 25]


@pytest.fixture(scope="module")
def pipe():
    return make_pipe()


def some_images(count=3, height=SIDE, width=SIDE):
    return torch.rand(count, 3, height, width, generator=seeded(3))


@pytest.mark.parametrize("name", ["teacher_forced_logits", "teacher_forced_logits_unconditional"])
def test_log_likelihood_is_the_sum_of_the_releases_log_softmax(golden, name):
    """Also of its loss per scale: that is the mean over tokens and images."""
    pipe = quiet(VARPipeline.from_original(golden.var_file, golden.vae_file))
    tokens = golden.data["tokens"].long()
    log_probabilities = golden.data[name].double().log_softmax(-1)
    expected = log_probabilities.gather(2, tokens[..., None])[..., 0]

    conditional = name == "teacher_forced_logits"
    labels = golden.data["class_labels"].tolist() if conditional else None
    output = pipe.log_likelihood(golden.data["image"] / 2 + 0.5, labels)

    per_token = torch.cat(output.per_token, dim=1).double()
    torch.testing.assert_close(per_token, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(output.total, expected.sum(1), rtol=0, atol=1e-2)
    torch.testing.assert_close(output.per_scale.sum(1), output.total)
    if conditional:
        counts = torch.tensor([tokens.shape[1] for tokens in output.per_token])
        losses = torch.tensor(golden.meta["training_step"]["loss_per_scale"]).double()
        torch.testing.assert_close(-output.per_scale.mean(0) / counts, losses, rtol=0, atol=1e-4)


def test_a_likelihood_has_one_number_per_token(pipe):
    output = pipe.log_likelihood(some_images(), [3, None, "hen"])
    assert [tuple(tokens.shape) for tokens in output.per_token] == [(3, n) for n in LENGTHS]
    assert output.per_scale.shape == (3, 4)
    assert output.total.shape == (3,)
    assert (torch.cat(output.per_token, dim=1) < 0).all()


@torch.no_grad()
def test_probabilities_of_all_first_tokens_add_up_to_one(pipe):
    """The coarsest map has one token: try every code in its place."""
    logits = pipe.transformer(torch.tensor([3])).logits[0, 0]
    token = pipe.vqvae.encode(some_images(1) * 2 - 1).token_maps[0].item()
    likelihood = pipe.log_likelihood(some_images(1), 3).per_token[0].item()
    rest = logits.exp().sum() - logits[token].exp()
    assert math.exp(likelihood) + float(rest / logits.exp().sum()) == pytest.approx(1, abs=1e-6)


def test_batches_change_nothing(pipe):
    images = some_images(5)
    at_once = pipe.log_likelihood(images, [1, 2, 3, None, 4]).total
    in_twos = pipe.log_likelihood(images, [1, 2, 3, None, 4], batch_size=2).total
    torch.testing.assert_close(in_twos, at_once)
    one_label = pipe.log_likelihood(images, 3, batch_size=2).total
    assert one_label[2] == pytest.approx(at_once[2].item())


def test_images_are_cut_to_their_central_square(pipe):
    wide = torch.rand(3, 10, 30, generator=seeded(1))
    cut = wide[:, :, 10:20]
    assert pipe.log_likelihood(wide, 3).total == pipe.log_likelihood(cut, 3).total
    tall = wide.mT
    assert pipe.log_likelihood(tall, 3).total == pipe.log_likelihood(cut.mT, 3).total


def test_any_kind_of_image_is_read(pipe):
    images = [Image.new("RGBA", (13, 40)), np.zeros((5, 5, 3)), torch.ones(3, 1, 1)]
    assert pipe.log_likelihood(images).total.shape == (3,)


# Surprise


@given(fine=st.integers(1, 40), coarse=st.integers(1, 40))
def test_overlap_shares_each_cell_out_completely(fine, coarse):
    shares = overlap(fine, coarse)
    assert shares.shape == (fine, coarse)
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(0), torch.ones(coarse, dtype=torch.float64))
    torch.testing.assert_close(
        shares.sum(1), torch.full((fine,), coarse / fine, dtype=torch.float64)
    )


@given(seed=st.integers(0, 99))
def test_no_surprise_is_lost(seed):
    generator = seeded(seed)
    maps = [-torch.rand(2, length, generator=generator) for length in LENGTHS]
    output = VARLikelihoodOutput(maps)
    surprise = output.surprise()
    assert surprise.shape == (2, 5, 5)
    torch.testing.assert_close(surprise.sum((1, 2)), -output.total)


def test_surprise_lies_where_its_token_lies():
    maps = [torch.zeros(1, length) for length in LENGTHS]
    maps[1][0, 1] = -4.0  # the upper right quarter
    surprise = VARLikelihoodOutput(maps).surprise()[0]
    quarter = torch.tensor([1, 1, 0.5, 0, 0], dtype=torch.float64) / 2.5
    torch.testing.assert_close(surprise, 4.0 * torch.outer(quarter, quarter.flip(0)))


def test_surprise_of_one_scale_is_that_of_its_tokens():
    maps = [-torch.rand(2, length, generator=seeded(5)) for length in LENGTHS]
    output = VARLikelihoodOutput(maps)
    finest = -maps[3].double().view(2, 5, 5)
    torch.testing.assert_close(output.surprise(scale=3), finest)
    coarsest = -maps[0].double()[:, :, None].expand(2, 5, 5)
    torch.testing.assert_close(output.surprise(scale=0), coarsest)


def test_surprise_maps_are_bright_where_the_numbers_are_high(pipe):
    images = some_images(2)
    maps = pipe.surprise_maps(images, [3, None])
    surprise = pipe.log_likelihood(images, [3, None]).surprise().numpy()
    assert [image.size for image in maps] == [(SIDE, SIDE)] * 2
    assert [image.mode for image in maps] == ["RGB"] * 2
    brightness = np.stack([np.asarray(image).sum(-1)[::2, ::2] for image in maps])
    assert np.argmax(brightness) == np.argmax(surprise)
    assert np.argmin(brightness) == np.argmin(surprise)
    by_surprise = brightness.ravel()[surprise.ravel().argsort()].astype(int)
    assert (np.diff(by_surprise) >= -2).all()  # up to rounding of the three channels


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pipe: pipe.log_likelihood(some_images(3), [1, 2]), "2 class_labels for 3 images"),
        (lambda pipe: pipe.log_likelihood(some_images(1), [1, 2]), "2 class_labels for 1 images"),
        (lambda pipe: pipe.log_likelihood(some_images(1), 11), "Got 11"),
        (lambda pipe: pipe.log_likelihood(some_images(1), 3, batch_size=0), "batch_size"),
        (lambda pipe: pipe.log_likelihood([]), "empty list"),
        (lambda pipe: pipe.surprise_maps(some_images(1), scale=4), r"\[0, 3\]. Got 4"),
    ],
)
def test_bad_input_ends_in_one_clear_error(pipe, call, message):
    with pytest.raises(ValueError, match=message):
        call(pipe)
