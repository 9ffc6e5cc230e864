"""Power laws fitted to a few points: ``y = (b x) ** a + offset``, with bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
#: Offsets to start the search from, as shares of the smallest y.
_STARTS = (0.0, 0.3, 0.6, 0.9)


@dataclass(frozen=True)
class PowerLaw:
    """``y = (scale * x) ** exponent + offset``, and how well it is known.

    Attributes:
        scale: b, in units of 1 / x, above 0.
        exponent: a, below 0 if y falls.
        offset: What remains for infinite x, in units of y; at least 0.
        correlation: Pearson correlation of ``log x`` and ``log (y - offset)``.
        exponent_interval: Least and greatest exponent of the confidence interval.
        offset_interval: Least and greatest offset of the confidence interval.
    """

    scale: float
    exponent: float
    offset: float
    correlation: float
    exponent_interval: tuple[float, float]
    offset_interval: tuple[float, float]

    def __call__(self, x: ArrayLike) -> Array:
        """The law's y at some x, of the same shape."""
        return (self.scale * np.asarray(x, dtype=np.float64)) ** self.exponent + self.offset


def check_scipy() -> None:
    """Raise an ``ImportError`` with a remedy if scipy is missing, before hours of work."""
    try:
        import scipy  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise ImportError("Power laws need scipy: pip install var-hf[scaling]") from error


def fit_power_law(
    x: Sequence[float],
    y: Sequence[float],
    *,
    with_offset: bool = True,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PowerLaw:
    """Fit a power law by least squares of ``log y``, with intervals by bootstrap of the residuals.

    Args:
        x: Positive values, such as numbers of parameters.
        y: Positive values, such as losses.
        with_offset: Fit the offset; otherwise it is 0, as in the paper.
        resamples: How often residuals are drawn anew for the intervals.
        confidence: Share of the resampled fits inside the intervals.
        seed: Seeds the bootstrap.

    Raises:
        ValueError: There are too few different x, or values that are not positive and finite.
        ImportError: scipy is not installed.

    Source: arXiv 2404.02905, section 4.3, which fits without an offset.
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    for name, values in (("x", xs), ("y", ys)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError(f"A power law needs positive, finite {name}. Got {values.tolist()}.")
    needed = 4 if with_offset else 3
    if len(np.unique(xs)) < needed:
        raise ValueError(
            f"A power law {'with' if with_offset else 'without'} an offset needs at least {needed} "
            f"different x. Got {len(np.unique(xs))}."
        )
    log_x = np.log(xs)
    centre = log_x.mean()
    parameters = _solve(log_x - centre, ys, with_offset)
    predicted = _predict(parameters, log_x - centre)
    # Fitted residuals are smaller than true ones, by the degrees of freedom that the fit took.
    freedom = max(1, len(xs) - (3 if with_offset else 2))
    residuals = (np.log(ys) - np.log(predicted)) * np.sqrt(len(xs) / freedom)
    random = np.random.default_rng(seed)
    fits = np.array(
        [
            _solve(
                log_x - centre, predicted * np.exp(random.choice(residuals, len(xs))), with_offset
            )
            for _ in range(resamples)
        ]
    )
    tail = (1 - confidence) / 2
    exponents, offsets = (np.quantile(fits[:, i], (tail, 1 - tail)).tolist() for i in (1, 2))
    level, exponent, offset = parameters.tolist()
    return PowerLaw(
        scale=float(np.exp(level / exponent - centre)) if exponent else float("nan"),
        exponent=exponent,
        offset=offset,
        correlation=float(np.corrcoef(log_x, np.log(ys - offset))[0, 1]),
        exponent_interval=(exponents[0], exponents[1]),
        offset_interval=(offsets[0], offsets[1]),
    )


def _predict(parameters: Array, log_x: Array) -> Array:
    level, exponent, offset = parameters
    predicted: Array = np.exp(level + exponent * log_x) + offset
    return predicted


def _solve(log_x: Array, y: Array, with_offset: bool) -> Array:
    """Level, exponent and offset: ``y = exp(level + exponent * log_x) + offset``."""
    check_scipy()
    from scipy.optimize import least_squares

    def residuals(parameters: Array) -> Array:
        difference: Array = np.log(_predict(parameters, log_x)) - np.log(y)
        return difference

    # The offset stays below the smallest y, where the logarithm of the rest is defined.
    greatest = y.min() * (1 - 1e-6) if with_offset else 1e-300
    best: Any = None
    for share in _STARTS if with_offset else (0.0,):
        offset = share * greatest
        exponent, level = np.polyfit(log_x, np.log(y - offset), 1)
        found = least_squares(
            residuals,
            (level, exponent, offset),
            bounds=((-np.inf, -np.inf, 0.0), (np.inf, np.inf, greatest)),
            x_scale=(1.0, 0.1, max(y.min(), 1e-12)),
        )
        if best is None or found.cost < best.cost:
            best = found
    solution: Array = best.x
    return solution


def frontier(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Indices of the points that no other point beats with at most the same x, by rising x.

    Args:
        x: Costs.
        y: What is to be small.
    """
    order = sorted(range(len(x)), key=lambda i: (x[i], y[i]))
    kept: list[int] = []
    for index in order:
        if not kept or y[index] < y[kept[-1]]:
            kept.append(index)
    return kept
