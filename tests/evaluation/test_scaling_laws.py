"""Power laws: exact on exact data, equal to scipy's on noisy data, and their intervals cover."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from var_hf.evaluation.scaling_laws import (
    PAPER,
    TARGETS,
    PowerLaw,
    compute_frontier,
    correlation,
    describe_fit,
    describe_frontier,
    fit_power_law,
)

SIZES = np.geomspace(9e-6, 1e-3, 7)


@given(
    exponent=st.floats(-1.5, -0.02),
    scale=st.floats(0.01, 1000),
    floor=st.floats(0, 5),
)
def test_an_exact_law_is_found(exponent, scale, floor):
    values = (scale * SIZES) ** exponent + floor

    law = fit_power_law(SIZES, values)

    assert np.allclose(law(SIZES), values, rtol=1e-5)
    # A law that is nearly straight between two sizes has many floors that fit.
    if exponent < -0.1 and floor < 100 * (values[-1] - floor):
        assert law.exponent == pytest.approx(exponent, rel=0.02)
        assert law.floor == pytest.approx(floor, abs=0.02 * values[0])


def test_the_papers_laws_are_found_from_its_sizes():
    sizes = 73728 * np.array([6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 30]) ** 3 / 1e9

    for scale, exponent in PAPER["parameters"].values():
        law = fit_power_law(sizes, (scale * sizes) ** exponent, with_floor=False)
        assert (law.scale, law.exponent) == pytest.approx((scale, exponent), rel=1e-5)
        assert law.floor == 0
        values = law(sizes)
        assert correlation(sizes, values) == pytest.approx(-1)
    assert set(PAPER["parameters"]) == set(PAPER["compute"]) == set(TARGETS)


def test_a_noisy_law_is_that_of_scipy():
    rng = np.random.default_rng(0)
    values = ((2 * SIZES) ** -0.3 + 1.7) * np.exp(rng.normal(0, 0.003, len(SIZES)))

    law = fit_power_law(SIZES, values)

    expected, _ = curve_fit(
        lambda x, factor, exponent, floor: factor * x**exponent + floor,
        SIZES, values, p0=(1, -0.3, 1), sigma=values, maxfev=20000, xtol=1e-12, ftol=1e-12,
    )  # fmt: skip
    assert (law.factor, law.exponent, law.floor) == pytest.approx(tuple(expected), rel=1e-4)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    truth = PowerLaw(factor=0.8, exponent=-0.2, floor=0.0)
    covered = {"exponent": 0, "prediction": 0}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        values = truth(SIZES) * np.exp(rng.normal(0, 0.01, len(SIZES)))
        new = float(truth(2e-3) * np.exp(rng.normal(0, 0.01)))
        fit = describe_fit(SIZES, values, at=2e-3, draws=100, seed=seed)["without_floor"]
        low, high = fit["intervals"]["exponent"]
        covered["exponent"] += low <= truth.exponent <= high
        low, high = fit["prediction"]["interval"]
        covered["prediction"] += low <= new <= high

    assert covered["exponent"] >= 31
    assert covered["prediction"] >= 31


def test_a_description_predicts_and_repeats():
    values = (2 * SIZES) ** -0.3 + 1.7

    first, again = (describe_fit(SIZES, values, at=5e-3, draws=20, seed=3) for _ in range(2))

    assert first == again
    fit = first["with_floor"]
    assert fit["prediction"]["value"] == pytest.approx((2 * 5e-3) ** -0.3 + 1.7, rel=1e-5)
    assert fit["correlation"] == pytest.approx(-1, abs=1e-6)
    assert fit["largest_error"] < 1e-6
    assert first["without_floor"]["largest_error"] > 1e-3
    assert describe_fit(SIZES, values, draws=5)["with_floor"]["prediction"] is None


def test_losses_that_do_not_fall_with_the_size_give_a_flat_law():
    law = fit_power_law(SIZES, np.linspace(3.0, 3.2, len(SIZES)))

    assert np.allclose(law(SIZES), 3.1, atol=0.03)
    assert law.exponent > -0.0011
    assert np.isfinite(law.scale)


@pytest.mark.parametrize(
    ("sizes", "values", "message"),
    [
        ((1.0, 2.0), (3.0, 2.0), "at least 3 different sizes. Got 2"),
        ((1.0, 1.0, 1.0), (3.0, 2.0, 2.5), "at least 3 different sizes. Got 1"),
        ((1.0, 2.0, 3.0), (3.0, np.nan, 2.0), "finite and above 0"),
        ((1.0, 2.0, 0.0), (3.0, 2.5, 2.0), "finite and above 0"),
        ((1.0, 2.0, 3.0), (3.0, 2.5), "one value for each x"),
    ],
)
def test_what_cannot_be_fitted_is_refused(sizes, values, message):
    with pytest.raises(ValueError, match=message):
        fit_power_law(sizes, values)


def test_a_correlation_above_a_floor_needs_values_above_it():
    assert correlation((1, 2, 3), (3, 2, 1), floor=1.0) is None


def curves(count=5, steps=9):
    """Learning curves that touch ``5 * compute ** -0.1``, each at a compute of its own."""
    found = []
    for number in range(count):
        compute = np.geomspace(1, 100, steps) * 4.0**number
        best = 20 * 4.0**number
        values = 5 * compute**-0.1 * (1 + 0.3 * np.log(compute / best) ** 2)
        found.append({"compute": compute, "loss": values})
    return found


def test_a_frontier_is_undercut_by_no_curve():
    models = curves()

    points = compute_frontier(models, "loss")

    everything = [
        (c, v) for model in models for c, v in zip(model["compute"], model["loss"], strict=True)
    ]
    for compute, value, number in points:
        assert not any(c <= compute and v < value for c, v in everything)
        assert (compute, value) in set(everything)
        assert value in models[int(number)]["loss"]
    numbers = [int(number) for _, _, number in points]
    # One point of the smallest and of the largest model, and several between.
    assert (numbers.count(0), numbers.count(4)) == (1, 1)
    assert numbers == sorted(numbers)


def test_the_law_of_a_frontier_is_that_of_its_points():
    described = describe_frontier(curves(), "loss", draws=20)

    assert described["reason"] is None
    assert described["exponent"] == pytest.approx(-0.1, abs=0.03)
    low, high = described["intervals"]["exponent"]
    assert low < -0.1 < high
    assert described["correlation"] < -0.98


def test_a_frontier_of_few_models_is_not_fitted():
    described = describe_frontier(curves(count=2), "loss")

    assert described["reason"].endswith("points of 2 models; a law needs 4 points of 3")
    assert "exponent" not in described
    assert compute_frontier([], "loss") == []
