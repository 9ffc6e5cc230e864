"""Perceptual distances between images: LPIPS, or the features of a small classifier."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from var_hf.evaluation.classifier import SmallClassifier, load_classifier


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


class ClassifierDistance(nn.Module):
    """LPIPS without learned weights, on the features of a small classifier of one's own data.

    The feature vectors after each activation are scaled to length 1 at every position. The distance
    is the squared difference of these vectors, averaged over positions and then over the maps. A
    lost edge changes it more than a uniform shift of all pixels does.

    Args:
        classifier: Its parameters are frozen.

    Source: Zhang et al., arXiv 1801.03924, equation 1 with all weights 1.
    """

    def __init__(self, classifier: SmallClassifier):
        super().__init__()
        self.classifier = classifier.eval().requires_grad_(False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Two batches ``(B, 3, P, P)`` in [-1, 1] to distances ``(B,)`` in [0, 4]."""
        pairs = zip(self._maps(images), self._maps(others), strict=True)
        differences = [(one - other).square().sum(dim=1).mean(dim=(1, 2)) for one, other in pairs]
        return torch.stack(differences).mean(dim=0)

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps, x = [], images
        for layer in self.classifier:
            x = layer(x)
            if isinstance(layer, nn.GELU):
                # Vectors shorter than eps stay short: their direction is noise.
                maps.append(functional.normalize(x, dim=1, eps=0.01))
        return maps


def load_perceptual(name: str) -> nn.Module:
    """Load a frozen perceptual distance, which compares two batches ``(B, 3, P, P)`` in [-1, 1].

    Args:
        name: ``"lpips"`` for `load_lpips`, or the safetensors file of a small classifier for
            `ClassifierDistance`.

    Raises:
        ValueError: It is neither.
        ImportError: The library is not installed.
    """
    if name == "lpips":
        return load_lpips()
    if not Path(name).is_file():
        raise ValueError(
            f"There is no perceptual network {name!r}: give 'lpips' or the safetensors file of a "
            "small classifier. From Python, pass any module that compares two image batches."
        )
    return ClassifierDistance(load_classifier(name)[0])
