"""Distances between sets of images, as functions of their features; everything in float64.

Checked in the tests against closed forms, scipy, scikit-learn and torchmetrics.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Images that the evaluator of ADM takes for one Inception Score; the score is the mean over such blocks.
SCORE_BLOCK = 5000
#: Neighbours that make up the manifold of a set in precision and recall.
NUM_NEIGHBOURS = 3
_ROWS = 4096  # features compared with all others at a time, at most
_LARGEST_PIECE = 2**26  # numbers in one table of distances: half a gigabyte


@dataclass(frozen=True)
class Moments:
    """Mean ``(D,)`` and covariance ``(D, D)`` of features, float64.

    The covariance divides by N - 1, as numpy's does and as all evaluators do.

    Raises:
        ValueError: The shapes do not fit, a number is not finite, or the covariance is not symmetric.
    """

    mean: np.ndarray
    covariance: np.ndarray

    def __post_init__(self) -> None:
        size = self.mean.shape[0] if self.mean.ndim == 1 else -1
        if self.covariance.shape != (size, size):
            raise ValueError(
                f"statistics are a mean (D,) and a covariance (D, D). Got the shapes {self.mean.shape} and "
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
    """Mean and covariance of features that come batch by batch; memory grows with D squared and not with N.

    Batches are merged as in Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample
    variances (1979), which does not cancel where the mean is large against the spread.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Take in features ``(B, D)``."""
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
        """The moments of everything taken in.

        Raises:
            ValueError: There were fewer than two features.
        """
        if self._mean is None or self._scatter is None or self.count < 2:
            raise ValueError(
                f"A covariance needs at least two images. Got {self.count}: give a larger set."
            )
        covariance = self._scatter / (self.count - 1)
        return Moments(self._mean.cpu().numpy(), covariance.cpu().numpy())


def moments(features: Tensor) -> Moments:
    """Mean and covariance of features ``(N, D)``, N at least 2."""
    builder = MomentsBuilder()
    builder.add(features)
    return builder.finish()


def frechet_distance(first: Moments, second: Moments) -> float:
    """Squared Fréchet distance between two Gaussians: FID, where the features are Inception's.

    ``|m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))``. With ``C = F F^T`` the last trace is the sum of the
    singular values of ``F1^T F2``: no root is taken of a product of covariances, which rounding may have made
    indefinite, so that sets of fewer images than features, and a set against itself, come out right.

    Raises:
        ValueError: The two are of different features.

    Source: Heusel et al., arXiv 1706.08500, equation 6; Dowson and Landau (1982) for the Gaussians.
    """
    if len(first) != len(second):
        raise ValueError(
            f"statistics of {len(first)} and of {len(second)} features cannot be compared: they come from "
            "different feature extractors. Compute both with the same one."
        )
    shift = first.mean - second.mean
    roots = _root(first.covariance).T @ _root(second.covariance)
    overlap = np.linalg.svd(roots, compute_uv=False).sum()
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    # Rounding may leave less than nothing of a distance of 0.
    return max(0.0, float(shift @ shift + traces - 2 * overlap))


def _root(covariance: np.ndarray) -> np.ndarray:
    """A matrix F with ``C = F F^T``, for C as good as positive semi-definite."""
    covariance = covariance.astype(np.float64)
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return vectors * np.sqrt(np.maximum(values, 0))


def inception_score(probabilities: Tensor, block: int = SCORE_BLOCK) -> float:
    """``exp`` of the mean KL divergence of each image's classes from those of the whole; mean over blocks.

    Args:
        probabilities: ``(N, C)``, each row sums to 1.
        block: Images of one score. The evaluator of ADM takes 5,000, in the order of the file; a set in the order of
            its classes then scores a fraction of what it should, because each block knows a few classes only.

    Source: Salimans et al., arXiv 1606.03498, section 4.
    """
    scores = []
    for part in probabilities.double().split(block):
        whole = part.mean(dim=0)
        # xlogy: a class of probability 0 adds nothing, where a plain product would give NaN.
        divergence = torch.xlogy(part, part).sum(dim=1) - torch.xlogy(part, whole).sum(dim=1)
        scores.append(divergence.mean().exp())
    return float(torch.stack(scores).mean())


@dataclass(frozen=True)
class Coverage:
    """How two sets cover each other.

    Attributes:
        in_reference: Of each sample, whether it lies on the manifold of the reference, ``(N,)``.
        in_samples: Of each reference image, whether it lies on the manifold of the samples, ``(M,)``.
        nearest: Distance of each sample to the nearest reference image, ``(N,)``.
        reference_nearest: Distance of each reference image to its nearest neighbour in the reference, ``(M,)``.
    """

    in_reference: Tensor
    in_samples: Tensor
    nearest: Tensor
    reference_nearest: Tensor

    @property
    def precision(self) -> float:
        """Share of the samples that lie on the manifold of the reference."""
        return float(self.in_reference.double().mean())

    @property
    def recall(self) -> float:
        """Share of the reference that lies on the manifold of the samples."""
        return float(self.in_samples.double().mean())


def coverage(samples: Tensor, reference: Tensor, neighbours: int = NUM_NEIGHBOURS) -> Coverage:
    """Improved precision and recall.

    The manifold of a set is the union of balls around its members, each as large as the distance to the k-th nearest
    other member.

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
                f"precision and recall need more than {neighbours} images in each set; the {name} have "
                f"{len(features)}."
            )
    # Around the common mean, the norms that the squared distances are made from are small.
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
        distances[own - rows.start, own] = torch.inf  # nobody is a neighbour of itself
        smallest = distances.topk(neighbours, dim=1, largest=False).values
        kth.append(smallest[:, -1])
        nearest.append(smallest[:, 0])
    return torch.cat(kth), torch.cat(nearest)


def _distances(rows: Tensor, columns: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Euclidean distances ``(b, M)`` between some rows and all columns, piece by piece."""
    size = max(1, min(_ROWS, _LARGEST_PIECE // max(1, len(columns))))
    column_norms = columns.square().sum(dim=1)  # (M,)
    for start in range(0, len(rows), size):
        part = slice(start, min(start + size, len(rows)))
        norms = rows[part].square().sum(dim=1, keepdim=True) + column_norms  # (b, M)
        squared = norms - 2 * rows[part] @ columns.T
        # What rounding cannot tell apart is the same: copies of one image are at distance 0.
        squared[squared < 1e-13 * norms] = 0
        yield part, squared.sqrt_()
