"""Distances between sets of images, computed in float64 from their features.

The tests compare them with closed forms, scipy, scikit-learn and torchmetrics.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Images per block in ADM's evaluator; the Inception Score is the mean over the blocks.
SCORE_BLOCK = 5000
#: Nearest neighbours that define the manifold of a set in precision and recall.
NUM_NEIGHBOURS = 3
_ROWS = 4096  # most rows of one table of distances
_LARGEST_PIECE = 2**26  # most numbers in one table of distances: half a gigabyte


@dataclass(frozen=True)
class Moments:
    """Mean ``(D,)`` and covariance ``(D, D)`` of features, float64.

    The covariance divides by N - 1, as in numpy and in all evaluators.

    Raises:
        ValueError: The shapes do not match, a number is not finite, or the covariance is not
            symmetric.
    """

    mean: np.ndarray
    covariance: np.ndarray

    def __post_init__(self) -> None:
        size = self.mean.shape[0] if self.mean.ndim == 1 else -1
        if self.covariance.shape != (size, size):
            raise ValueError(
                f"statistics are a mean (D,) and a covariance (D, D). Got the shapes "
                f"{self.mean.shape} and "
                f"{self.covariance.shape}."
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise ValueError("statistics hold NaN or infinity: they were not computed from images.")
        scale = np.abs(self.covariance).max(initial=0)
        # Published statistics are float32 or float64 and not always symmetric to the last bit.
        if np.abs(self.covariance - self.covariance.T).max(initial=0) > 1e-4 * scale:
            raise ValueError("the covariance of these statistics is not symmetric.")

    def __len__(self) -> int:
        return len(self.mean)


class MomentsBuilder:
    """Accumulates mean and covariance batch by batch, in memory that depends on D only.

    Batches are merged as in Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for
    computing sample variances (1979). This avoids cancellation if the mean is large relative to the
    standard deviation.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Add features ``(B, D)``."""
        features = features.double()
        count, mean = len(features), features.mean(dim=0)
        centred = features - mean
        scatter = centred.T @ centred
        if self._mean is None or self._scatter is None:
            self.count, self._mean, self._scatter = count, mean, scatter
            return
        total = self.count + count
        step = mean - self._mean
        self._scatter += scatter + torch.outer(step, step) * (self.count * count / total)
        self._mean += step * (count / total)
        self.count = total

    def finish(self) -> Moments:
        """Return the moments of all added features.

        Raises:
            ValueError: Fewer than two features were added.
        """
        if self._mean is None or self._scatter is None or self.count < 2:
            raise ValueError(
                f"A covariance needs at least two images. Got {self.count}: give a larger set."
            )
        covariance = self._scatter / (self.count - 1)
        return Moments(self._mean.cpu().numpy(), covariance.cpu().numpy())


def moments(features: Tensor) -> Moments:
    """Compute mean and covariance of features ``(N, D)``, N at least 2."""
    builder = MomentsBuilder()
    builder.add(features)
    return builder.finish()


def frechet_distance(first: Moments, second: Moments) -> float:
    """Squared Fréchet distance between two Gaussians; FID if the features are Inception's.

    ``|m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))``. With ``C = F F^T``, the last trace is
    the sum of the singular values of ``F1^T F2``. This avoids the root of a product of covariances,
    which rounding may make indefinite. The result is correct even for fewer images than features
    and for a set against itself.

    Raises:
        ValueError: The numbers of features differ.

    Source: Heusel et al., arXiv 1706.08500, equation 6; Dowson and Landau (1982) for the Gaussians.
    """
    if len(first) != len(second):
        raise ValueError(
            f"statistics of {len(first)} and of {len(second)} features cannot be compared: they "
            f"come from "
            "different feature extractors. Compute both with the same one."
        )
    shift = first.mean - second.mean
    roots = _root(first.covariance).T @ _root(second.covariance)
    overlap = np.linalg.svd(roots, compute_uv=False).sum()
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    # Rounding can make a distance of 0 negative.
    return max(0.0, float(shift @ shift + traces - 2 * overlap))


def _root(covariance: np.ndarray) -> np.ndarray:
    """Compute F with ``C = F F^T`` for C that is positive semi-definite up to rounding."""
    covariance = covariance.astype(np.float64)
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return vectors * np.sqrt(np.maximum(values, 0))


def inception_score(probabilities: Tensor, block: int = SCORE_BLOCK) -> float:
    """Inception Score, as the mean over blocks.

    The score of a block is ``exp`` of the mean KL divergence between the class probabilities of an
    image and their mean over the block.

    Args:
        probabilities: ``(N, C)``, each row sums to 1.
        block: Images per block. ADM's evaluator uses 5,000 in the order of the file. If the file is
            sorted by class, each block contains few classes, and the score is much too low.

    Source: Salimans et al., arXiv 1606.03498, section 4.
    """
    scores = []
    for part in probabilities.double().split(block):
        whole = part.mean(dim=0)
        # For a class of probability 0, xlogy gives 0; a plain product would give NaN.
        divergence = torch.xlogy(part, part).sum(dim=1) - torch.xlogy(part, whole).sum(dim=1)
        scores.append(divergence.mean().exp())
    return float(torch.stack(scores).mean())


@dataclass(frozen=True)
class Coverage:
    """Mutual coverage of samples and reference.

    Attributes:
        in_reference: Whether each sample is on the manifold of the reference, ``(N,)``.
        in_samples: Whether each reference image is on the manifold of the samples, ``(M,)``.
        nearest: Distance of each sample to the nearest reference image, ``(N,)``.
        reference_nearest: Distance of each reference image to its nearest neighbour in the
            reference, ``(M,)``.
    """

    in_reference: Tensor
    in_samples: Tensor
    nearest: Tensor
    reference_nearest: Tensor

    @property
    def precision(self) -> float:
        """Share of the samples on the manifold of the reference."""
        return float(self.in_reference.double().mean())

    @property
    def recall(self) -> float:
        """Share of the reference on the manifold of the samples."""
        return float(self.in_samples.double().mean())


def coverage(samples: Tensor, reference: Tensor, neighbours: int = NUM_NEIGHBOURS) -> Coverage:
    """Improved precision and recall.

    The manifold of a set is the union of balls around its members. The radius of a ball is the
    distance to the k-th nearest other member.

    Args:
        samples: Features ``(N, D)``, N above k.
        reference: Features ``(M, D)``, M above k.
        neighbours: k.

    Raises:
        ValueError: A set has too few images.

    Source: Kynkäänniemi et al., arXiv 1904.06991, section 2; k = 3 as there.
    """
    for name, features in (("samples", samples), ("reference", reference)):
        if len(features) <= neighbours:
            raise ValueError(
                f"precision and recall need more than {neighbours} images in each set; the {name} "
                f"have "
                f"{len(features)}."
            )
    # Centring keeps the norms small from which the squared distances are computed.
    centre = reference.double().mean(dim=0)
    samples, reference = samples.double() - centre, reference.double() - centre
    sample_radii, _ = _radii(samples, neighbours)
    reference_radii, reference_nearest = _radii(reference, neighbours)
    in_reference, nearest = [], []
    in_samples = torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    for rows, distances in _distances(samples, reference):
        in_reference.append((distances <= reference_radii).any(dim=1))
        in_samples |= (distances <= sample_radii[rows, None]).any(dim=0)
        nearest.append(distances.amin(dim=1))
    return Coverage(
        in_reference=torch.cat(in_reference),
        in_samples=in_samples,
        nearest=torch.cat(nearest),
        reference_nearest=reference_nearest,
    )


def _radii(features: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Distance of each row to its k-th nearest other row and to the nearest one, ``(N,)`` each."""
    kth, nearest = [], []
    for rows, distances in _distances(features, features):
        own = torch.arange(rows.start, rows.stop, device=features.device)
        distances[own - rows.start, own] = torch.inf  # a row is not its own neighbour
        smallest = distances.topk(neighbours, dim=1, largest=False).values
        kth.append(smallest[:, -1])
        nearest.append(smallest[:, 0])
    return torch.cat(kth), torch.cat(nearest)


def _distances(rows: Tensor, columns: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield Euclidean distances ``(b, M)`` between a slice of the rows and all columns."""
    size = max(1, min(_ROWS, _LARGEST_PIECE // max(1, len(columns))))
    column_norms = columns.square().sum(dim=1)  # (M,)
    for start in range(0, len(rows), size):
        part = slice(start, min(start + size, len(rows)))
        norms = rows[part].square().sum(dim=1, keepdim=True) + column_norms  # (b, M)
        squared = norms - 2 * rows[part] @ columns.T
        # Distances within the rounding error are 0, so copies of an image are at distance 0.
        squared[squared < 1e-13 * norms] = 0
        yield part, squared.sqrt_()
