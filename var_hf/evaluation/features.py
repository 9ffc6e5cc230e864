"""Feature extractors that compare images, by name or file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from var_hf.evaluation.classifier import SHIPPED, classifier_file, load_classifier
from var_hf.evaluation.inception import WEIGHTS_URL, load_inception
from var_hf.images import normalize
from var_hf.provenance import sha256

INCEPTION = "inception"


@dataclass(frozen=True)
class Features:
    """Features of a batch of images.

    Attributes:
        pooled: One vector per image ``(B, D)``, for FID, precision and recall.
        spatial: Spatial features ``(B, E)``, for sFID.
        probabilities: Probabilities of the extractor's classes ``(B, C)``, float64, for the
            Inception Score.
    """

    pooled: Tensor
    spatial: Tensor
    probabilities: Tensor


@dataclass(frozen=True)
class FeatureExtractor:
    """A network that computes features of images.

    Attributes:
        name: Name in results.
        sha256: Digest of the weights.
        compute: Maps uint8 ``(B, 3, P, P)`` on the device to pooled features, spatial features and
            logits.
        device: Device of the computation.
        class_names: Names of its classes, if known.
        domain: Short description of its training data, for reports.
    """

    name: str
    sha256: str
    compute: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    device: torch.device
    class_names: Sequence[str] | None
    domain: str

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Features:
        """Compute the features of uint8 images ``(B, 3, P, P)``."""
        pooled, spatial, logits = self.compute(pixels.to(self.device))
        # All evaluators round to float32. Probabilities are float64, because their logarithms are
        # summed.
        return Features(pooled.float(), spatial.float(), logits.double().softmax(dim=1))

    def describe(self) -> dict[str, str]:
        """Name and digest, for results."""
        return {"name": self.name, "sha256": self.sha256}


def load_features(
    name: str, weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """Load a feature extractor.

    Args:
        name: ``"inception"``, the network that defines FID; ``"emoji"`` or ``"emoji-128"``, small
            classifiers of emoji in the package; or a safetensors file of such a classifier.
        weights: File of Inception's weights, which do not ship with the package.
        device: Device of the computation.

    Raises:
        ValueError: The extractor does not exist, or the weights do not belong to it.
        FileNotFoundError: A file is missing.
    """
    device = torch.device(device)
    if name == INCEPTION:
        if weights is None:
            raise ValueError(
                "The published Inception weights do not ship with this package. Fetch them (95 MB) "
                "from "
                f"{WEIGHTS_URL} and name the file (--weights)."
            )
        inception = load_inception(weights).to(device)
        return FeatureExtractor(
            name, sha256(weights), inception, device, None, "ImageNet photographs"
        )
    if weights is not None:
        raise ValueError(f"Only {INCEPTION} takes weights of its own; leave them out for {name}.")
    file = classifier_file(name)
    if not file.is_file():
        raise ValueError(
            f"There is no feature extractor {name!r}. Give {INCEPTION}, {', '.join(SHIPPED)}, or "
            f"the safetensors file "
            "of a small classifier."
        )
    classifier, class_names = load_classifier(file)
    classifier.to(device)
    return FeatureExtractor(
        name=name if name in SHIPPED else file.name,
        sha256=sha256(file),
        compute=lambda pixels: classifier.features(normalize(pixels)),
        device=device,
        class_names=class_names,
        domain=f"{len(class_names)} classes of its own training data",
    )
