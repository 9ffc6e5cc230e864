"""Power laws between the size or the compute of transformers and their loss, and compute frontiers.

The form is that of arXiv 2404.02905, section 5: ``L = (scale * x) ** exponent + floor``, where x is
the number of parameters in billions, or training compute in PFLOP (10^15 operations). The paper
fits straight lines through logarithms, which is a floor of 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]

#: What is fitted, and its name in tables: the mean over all tokens, or over the finest token map.
TARGETS = {
    "loss_finest_scale": "loss, last scale",
    "loss": "loss, all scales",
    "error_finest_scale": "token error rate, last scale",
    "error": "token error rate, all scales",
}
#: What the targets are fitted against: parameters in billions, compute in PFLOP.
VARIABLES = ("parameters", "compute")
#: Scales and exponents of arXiv 2404.02905 (NeurIPS 2024), equations 11 to 16.
PAPER = {
    "parameters": {
        "loss_finest_scale": (2.0, -0.23),
        "loss": (2.5, -0.20),
        "error_finest_scale": (4.9e2, -0.016),
        "error": (6.5e2, -0.010),
    },
    "compute": {
        "loss_finest_scale": (2.2e-5, -0.13),
        "loss": (1.5e-5, -0.16),
        "error_finest_scale": (8.1e-2, -0.0067),
        "error": (4.4e-2, -0.011),
    },
}
#: Points that a law needs: it has three parameters, and one more point shows whether it holds.
FEWEST_POINTS = 4

# Bounds of exponents; a value at the flat one means that nothing falls.
_STEEPEST, _FLATTEST = -4.0, -1e-3
_ROUNDS, _EXPONENTS = 6, 64  # of the search for the exponent


@dataclass(frozen=True)
class PowerLaw:
    """``(scale * x) ** exponent + floor``, which is ``factor * x ** exponent + floor``.

    Attributes:
        factor: Value above the floor at x = 1, above 0.
        exponent: Below 0.
        floor: What remains for unlimited x, at least 0.
    """

    factor: float
    exponent: float
    floor: float = 0.0

    @property
    def scale(self) -> float:
        """The factor on x; one that no float can hold becomes 1e-300 or 1e300."""
        return float(_scales(np.array(self.factor), np.array(self.exponent)))

    def __call__(self, x: ArrayLike) -> Numbers:
        """The value at x."""
        return np.asarray(self.factor * np.asarray(x, float) ** self.exponent + self.floor)


def _scales(factors: Numbers, exponents: Numbers) -> Numbers:
    most = 300 * np.log(10)
    return np.exp(np.clip(np.log(factors) / exponents, -most, most))


def fit_power_law(x: ArrayLike, values: ArrayLike, *, with_floor: bool = True) -> PowerLaw:
    """Fit a power law by least squares of relative errors.

    Args:
        x: Sizes ``(P,)``, above 0, with at least two different ones.
        values: Losses or error rates ``(P,)``, above 0.
        with_floor: Fit a floor of at least 0. ``False`` is the paper's form.

    Raises:
        ValueError: There are fewer points than the form has parameters, or a number is not above 0
            and finite.
    """
    sizes, losses = _checked(x, values, 3 if with_floor else 2)
    factors, exponents, floors = _fit_many(sizes, losses[None], with_floor)
    return PowerLaw(float(factors[0]), float(exponents[0]), float(floors[0]))


def _checked(x: ArrayLike, values: ArrayLike, fewest: int) -> tuple[Numbers, Numbers]:
    sizes, losses = np.asarray(x, float), np.asarray(values, float)
    if sizes.shape != losses.shape or sizes.ndim != 1:
        raise ValueError(
            f"A power law needs one value for each x. Got shapes {sizes.shape} and {losses.shape}."
        )
    if len(np.unique(sizes)) < fewest:
        raise ValueError(
            f"A power law of this form needs at least {fewest} different sizes. Got "
            f"{len(np.unique(sizes))}."
        )
    if not all(np.isfinite(each).all() and (each > 0).all() for each in (sizes, losses)):
        raise ValueError("Sizes and values of a power law must be finite and above 0.")
    return sizes, losses


def _fit_many(x: Numbers, values: Numbers, with_floor: bool) -> tuple[Numbers, Numbers, Numbers]:
    """Fit ``factor * x ** exponent + floor`` to each row of values ``(B, P)``.

    For a given exponent the best factor and floor follow from linear equations. The best exponent
    is found on a grid of logarithms that becomes finer around the best one.
    """
    middle = np.exp(np.log(x).mean())  # centred, so that factors stay in range
    u = x / middle
    rows = np.arange(len(values))
    low = np.full(len(values), np.log(-_FLATTEST))
    high = np.full(len(values), np.log(-_STEEPEST))
    for _ in range(_ROUNDS):
        grid = np.linspace(low, high, _EXPONENTS, axis=1)  # (B, G)
        curves = u ** -np.exp(grid)[..., None]  # (B, G, P)
        factors, floors = _linear_part(curves, values[:, None], with_floor)
        errors = (factors[..., None] * curves + floors[..., None]) / values[:, None] - 1
        best = (errors**2).sum(axis=2).argmin(axis=1)
        step = (high - low) / (_EXPONENTS - 1)
        chosen = grid[rows, best]
        low, high = chosen - step, chosen + step
    exponents = -np.exp(chosen)
    return factors[rows, best] * middle**-exponents, exponents, floors[rows, best]


def _linear_part(curves: Numbers, values: Numbers, with_floor: bool) -> tuple[Numbers, Numbers]:
    """The factor and the floor with the least relative errors, among those of at least 0."""
    a, b = curves / values, 1 / values
    aa, ab, bb = (a * a).sum(axis=-1), (a * b).sum(axis=-1), (b * b).sum(axis=-1)
    sum_a, sum_b = a.sum(axis=-1), b.sum(axis=-1)
    alone = sum_a / aa
    if not with_floor:
        return alone, np.zeros_like(alone)
    determinant = np.maximum(aa * bb - ab**2, 1e-300)
    floors = (aa * sum_b - ab * sum_a) / determinant
    factors = (bb * sum_a - ab * sum_b) / determinant
    possible = (floors > 0) & (factors > 0)
    return np.where(possible, factors, alone), np.where(possible, floors, 0.0)


def correlation(x: ArrayLike, values: ArrayLike, floor: float = 0.0) -> float | None:
    """Pearson correlation of ``log(x)`` and ``log(values - floor)``; the paper's has a floor of 0.

    Returns:
        A number from -1 to 1; ``None`` if a value does not lie above the floor.
    """
    above = np.asarray(values, float) - floor
    if (above <= 0).any():
        return None
    return float(np.corrcoef(np.log(np.asarray(x, float)), np.log(above))[0, 1])


def describe_fit(
    x: ArrayLike,
    values: ArrayLike,
    *,
    at: float | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Fit both forms, with bootstrap intervals, and predict the value of another size.

    The bootstrap draws the relative errors of the fit with replacement, widened by the degrees of
    freedom, puts them on the fitted curve, and fits again. Intervals hold 95% of the draws. That of
    a prediction includes the error of one more point.

    Args:
        x: Sizes ``(P,)``, above 0.
        values: Losses or error rates ``(P,)``, above 0.
        at: Size to predict.
        draws: Number of draws.
        seed: Seeds the draws.

    Returns:
        Under ``"with_floor"`` and ``"without_floor"``: ``scale``, ``factor``, ``exponent``,
        ``floor``, ``correlation``, ``largest_error`` (relative), the ``intervals``, and the
        ``prediction`` with its ``interval``, or ``None``.

    Raises:
        ValueError: There are fewer than `FEWEST_POINTS` sizes, or a number is not above 0.
    """
    sizes, losses = _checked(x, values, FEWEST_POINTS)
    rng = np.random.default_rng(seed)
    described: dict[str, Any] = {}
    for name, with_floor in (("with_floor", True), ("without_floor", False)):
        law = fit_power_law(sizes, losses, with_floor=with_floor)
        fitted = law(sizes)
        errors = np.log(losses / fitted)
        free = max(1, len(sizes) - (3 if with_floor else 2))
        spread = (errors - errors.mean()) * np.sqrt(len(sizes) / free)
        noise = rng.choice(spread, (draws, len(sizes) + 1))
        again = _fit_many(sizes, fitted * np.exp(noise[:, :-1]), with_floor)
        factors, exponents, floors = again
        described[name] = {
            "scale": law.scale,
            "factor": law.factor,
            "exponent": law.exponent,
            "floor": law.floor,
            "correlation": correlation(sizes, losses, law.floor),
            "largest_error": float(np.abs(errors).max()),
            "intervals": {
                "scale": _interval(_scales(factors, exponents)),
                "exponent": _interval(exponents),
                "floor": _interval(floors),
            },
            "prediction": None,
        }
        if at is not None:
            drawn = (factors * at**exponents + floors) * np.exp(noise[:, -1])
            described[name]["prediction"] = {
                "at": float(at),
                "value": float(law(at)),
                "interval": _interval(drawn),
            }
    return described


def _interval(draws: Numbers) -> list[float]:
    return [float(each) for each in np.percentile(draws, (2.5, 97.5))]


def compute_frontier(curves: Sequence[Mapping[str, ArrayLike]], target: str) -> list[list[float]]:
    """The lower envelope of learning curves: points that no curve undercuts with less compute.

    The smallest model is alone at the left end, where a smaller one would be better, and the
    largest at the right end. Those points belong to one learning curve rather than to a frontier,
    and are left out, except for one at either end.

    Args:
        curves: For each model, smallest first, ``compute`` ``(T,)`` and the target ``(T,)`` along
            its training.
        target: One of `TARGETS`.

    Returns:
        Compute, value, and the number of the model, in the order of compute.
    """
    points = sorted(
        (float(compute), float(value), number)
        for number, curve in enumerate(curves)
        for compute, value in zip(
            np.asarray(curve["compute"]).tolist(), np.asarray(curve[target]).tolist(), strict=True
        )
    )
    envelope: list[list[float]] = []
    for compute, value, number in points:
        if not envelope or value < envelope[-1][1]:
            envelope.append([compute, value, number])
    numbers = [int(number) for _, _, number in envelope]
    if not numbers:
        return []
    first = next((i for i, n in enumerate(numbers) if n != numbers[0]), len(numbers))
    last = next((i for i, n in enumerate(reversed(numbers)) if n != numbers[-1]), len(numbers))
    return envelope[max(0, first - 1) : len(envelope) - max(0, last - 1)]


def describe_frontier(
    curves: Sequence[Mapping[str, ArrayLike]], target: str, *, draws: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Fit the paper's form to a compute frontier; the bootstrap draws whole learning curves.

    Args:
        curves, target: See `compute_frontier`.
        draws: Number of draws.
        seed: Seeds the draws.

    Returns:
        ``points`` of the frontier and, where they are enough, ``scale``, ``factor``,
        ``exponent``, ``correlation`` and ``intervals``; else the ``reason`` why nothing is fitted.
    """
    points = compute_frontier(curves, target)
    described: dict[str, Any] = {"points": points, "reason": None}
    models = len({number for _, _, number in points})
    if len(points) < FEWEST_POINTS or models < 3:
        return described | {
            "reason": f"the frontier has {len(points)} points of {models} models; a law needs "
            f"{FEWEST_POINTS} points of 3"
        }
    compute, values, _ = np.array(points).T
    law = fit_power_law(compute, values, with_floor=False)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        chosen = [curves[number] for number in np.unique(rng.integers(0, len(curves), len(curves)))]
        found = compute_frontier(chosen, target)
        if len(found) >= FEWEST_POINTS:
            again = fit_power_law(*np.array(found).T[:2], with_floor=False)
            drawn.append((again.scale, again.exponent))
    intervals: dict[str, list[float]] | None = None
    if len(drawn) >= draws / 2:
        scales, exponents = np.array(drawn).T
        intervals = {"scale": _interval(scales), "exponent": _interval(exponents)}
    return described | {
        "scale": law.scale,
        "factor": law.factor,
        "exponent": law.exponent,
        "correlation": correlation(compute, values),
        "intervals": intervals,
    }
