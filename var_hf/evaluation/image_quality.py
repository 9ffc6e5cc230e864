"""Similarity of images (PSNR and SSIM), and rounding to 8 bits."""

import torch
from torch import Tensor
from torch.nn import functional


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in decibels, ``(B,)``.

    Args:
        images: ``(B, C, H, W)`` in [0, 1].
        references: The same shape.

    Equal images give infinity. The mean over a set is the mean of the images' decibels.
    """
    error = (images.double() - references.double()).square().flatten(1).mean(dim=1)
    return -10 * error.log10()


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Structural similarity of each image, ``(B,)``, at most 1.

    The window is Gaussian with 11 pixels and standard deviation 1.5. The constants are 0.01 and
    0.03. The mean is over channels and over positions where the whole window fits.

    Args:
        images: ``(B, C, H, W)`` in [0, 1] with sides of at least 11.
        references: The same shape.

    Raises:
        ValueError: The images are smaller than the window.

    Source: Wang, Bovik, Sheikh, Simoncelli: Image quality assessment (2004), section III.
    """
    channels, height, width = images.shape[1:]
    if min(height, width) < 11:
        raise ValueError(f"SSIM needs images of at least 11 x 11 pixels, got {height} x {width}.")
    offsets = torch.arange(11, dtype=torch.float64, device=images.device) - 5
    line = torch.exp(-offsets.square() / (2 * 1.5**2))
    line = line / line.sum()
    window = torch.outer(line, line).expand(channels, 1, 11, 11)

    def local_mean(values: Tensor) -> Tensor:
        return functional.conv2d(values, window, groups=channels)

    x, y = images.double(), references.double()
    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x = local_mean(x * x) - mean_x**2
    variance_y = local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return similarity.flatten(1).mean(dim=1)


def to_uint8(images: Tensor) -> Tensor:
    """Round images in [0, 1] to uint8; truncation would darken them by half a level."""
    return (images.clamp(0, 1) * 255).round().byte()
