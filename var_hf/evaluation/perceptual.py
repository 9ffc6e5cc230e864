"""Perceptual distance between images: LPIPS, if its library is installed."""

from importlib.util import find_spec

from torch import nn


def has_lpips() -> bool:
    """Check whether the library is installed."""
    return find_spec("lpips") is not None


def load_lpips() -> nn.Module:
    """Load the LPIPS distance on VGG features.

    The network maps two batches ``(B, 3, P, P)`` in [-1, 1] to ``(B, 1, 1, 1)``. The library
    downloads the VGG weights at its first use.

    Raises:
        ImportError: The library is not installed.

    Source: Zhang et al., arXiv 1801.03924.
    """
    try:
        import lpips  # type: ignore[import-not-found]
    except ImportError as error:
        raise ImportError(
            "The perceptual distance 'lpips' needs the lpips library and its weights: pip install "
            "lpips"
        ) from error
    network: nn.Module = lpips.LPIPS(net="vgg", verbose=False)
    return network.eval().requires_grad_(False)
