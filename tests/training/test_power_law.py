import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from var_hf.training.power_law import fit_power_law, frontier

SIZES = np.geomspace(1.5e-4, 1.8e-2, 7)  # billions of parameters, over two decades


def noisy(law, deviation, seed=0):
    return law * np.exp(np.random.default_rng(seed).normal(0, deviation, len(law)))


@settings(max_examples=25, deadline=None)
@given(
    st.floats(-0.6, -0.1),
    st.floats(0.1, 100.0),
    st.sampled_from([0.0, 0.5, 3.0]),
)
def test_an_exact_law_is_found(exponent, scale, offset):
    values = (scale * SIZES) ** exponent + offset

    law = fit_power_law(SIZES, values, resamples=2)

    np.testing.assert_allclose(law(SIZES), values, rtol=1e-4)
    assert law.exponent == pytest.approx(exponent, abs=5e-3)
    assert law.correlation < -0.999
    assert law(1e-1) == pytest.approx((scale * 1e-1) ** exponent + offset, rel=0.01)


def test_without_an_offset_the_fit_is_a_line_in_logarithms():
    values = noisy((2.0 * SIZES) ** -0.2, 0.02)

    law = fit_power_law(SIZES, values, with_offset=False, resamples=2)

    slope = np.polyfit(np.log(SIZES), np.log(values), 1)[0]
    assert law.exponent == pytest.approx(slope, rel=1e-5)
    assert law.offset == pytest.approx(0, abs=1e-200)


def test_intervals_hold_the_truth_about_as_often_as_they_promise():
    truth = (2.0 * SIZES) ** -0.2

    laws = [
        fit_power_law(SIZES, noisy(truth, 0.01, seed), with_offset=False, resamples=60, seed=seed)
        for seed in range(40)
    ]

    inside = [law.exponent_interval[0] <= -0.2 <= law.exponent_interval[1] for law in laws]
    assert 0.7 <= np.mean(inside) <= 1.0
    assert all(law.exponent_interval[0] < law.exponent_interval[1] for law in laws)


def test_the_same_seed_gives_the_same_intervals():
    values = noisy((2.0 * SIZES) ** -0.2 + 1, 0.01)

    fits = [fit_power_law(SIZES, values, resamples=8, seed=3) for _ in range(2)]

    assert fits[0] == fits[1]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2, 3], [3, 2, 1], "needs at least 4 different x. Got 3"),
        ([1, 1, 2, 2], [3, 2, 1, 1], "needs at least 4 different x. Got 2"),
        ([1, 2, 3, 4], [3, 2, float("nan"), 1], "positive, finite y"),
        ([0, 2, 3, 4], [3, 2, 2, 1], "positive, finite x"),
    ],
)
def test_points_that_make_no_law_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        fit_power_law(x, y)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)

    with pytest.raises(ImportError, match=r"pip install var-hf\[scaling\]"):
        fit_power_law(SIZES, SIZES)


def test_the_frontier_holds_the_points_that_none_beats():
    costs, losses = [4, 1, 2, 2, 3, 5], [3.0, 9.0, 7.0, 5.0, 6.0, 2.0]

    assert frontier(costs, losses) == [1, 3, 0, 5]
