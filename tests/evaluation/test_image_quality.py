import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from var_hf.evaluation.image_quality import psnr, ssim


def random_images(seed, count=2):
    return torch.rand(count, 3, 15, 19, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_a_known_error():
    """An error of 0.1 everywhere has the mean square 0.01: 20 dB."""
    images = torch.full((1, 3, 5, 7), 0.4)

    assert psnr(images + 0.1, images).item() == pytest.approx(20.0, abs=1e-4)


def test_psnr_is_per_image():
    references = torch.zeros(2, 3, 4, 4)
    images = references.clone()
    images[0] += 0.5

    assert psnr(images, references).tolist() == [pytest.approx(-20 * math.log10(0.5)), math.inf]


@given(st.integers(0, 1000))
def test_ssim_is_one_only_for_equal_images_and_symmetric(seed):
    x, y = random_images(seed), random_images(seed + 1)

    assert ssim(x, x).tolist() == pytest.approx([1.0, 1.0])
    assert (ssim(x, y) < 1).all()
    torch.testing.assert_close(ssim(x, y), ssim(y, x))


def test_ssim_of_flat_images_is_the_luminance_term():
    x, y = torch.full((1, 3, 12, 12), 0.25), torch.full((1, 3, 12, 12), 0.75)

    expected = (2 * 0.25 * 0.75 + 0.01**2) / (0.25**2 + 0.75**2 + 0.01**2)
    assert ssim(x, y).item() == pytest.approx(expected, rel=1e-6)


def test_ssim_falls_with_noise():
    x = random_images(3, count=1)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))

    values = [ssim(x + level * noise, x).item() for level in (0.01, 0.05, 0.2)]

    assert values == sorted(values, reverse=True)


def test_images_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match="at least 11 x 11 pixels, got 10 x 12"):
        ssim(torch.zeros(1, 3, 10, 12), torch.zeros(1, 3, 10, 12))
