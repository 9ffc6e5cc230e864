import pytest
from hypothesis import given
from hypothesis import strategies as st

from var_hf.training.schedules import learning_rate_factor, peak_learning_rate, weight_decay_at


def test_lin0_rises_stays_flat_and_falls_as_in_the_release():
    """Values of `lr_wd_annealing` by hand: 10 steps up, 5% of the other 990 flat, then a line."""
    at = [learning_rate_factor(step, 1001, 10, 0.005, 0.1) for step in range(1001)]

    assert at[0] == 0.005
    assert at[5] == pytest.approx(0.005 + 0.995 * 0.5)
    assert at[10:59] == [1.0] * 49
    assert at[59] == pytest.approx(1.0)
    half_way = (10 + 1000) // 2  # half of what follows the warm-up is left: 0.5 / 0.95
    assert at[half_way] == pytest.approx(0.1 + 0.9 * 0.5 / 0.95)
    assert at[1000] == pytest.approx(0.1)


def test_cosine_is_half_way_down_in_the_middle():
    assert learning_rate_factor(50, 101, 0, 0.005, 0.2, "cosine") == pytest.approx(0.6)
    assert learning_rate_factor(100, 101, 0, 0.005, 0.2, "cosine") == pytest.approx(0.2)


@given(
    num_steps=st.integers(1, 400),
    warmup=st.integers(0, 400),
    final=st.floats(0, 1),
    kind=st.sampled_from(["lin0", "cosine"]),
)
def test_the_factor_never_leaves_its_bounds_and_only_falls_after_the_warm_up(
    num_steps, warmup, final, kind
):
    values = [
        learning_rate_factor(step, num_steps, warmup, 0.005, final, kind)
        for step in range(num_steps)
    ]

    assert all(min(final, 0.005) - 1e-12 <= value <= 1 + 1e-12 for value in values)
    assert values[:warmup] == sorted(values[:warmup])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)


def test_weight_decay_goes_along_a_cosine_from_its_first_to_its_last_value():
    values = [weight_decay_at(step, 101, 0.05, 0.08) for step in range(101)]

    assert values[0] == 0.05
    assert values[50] == pytest.approx(0.065)
    assert values[100] == pytest.approx(0.08)
    assert values == sorted(values)


def test_the_peak_grows_with_the_batch_in_the_release_and_shrinks_with_the_width_in_fine_tuning():
    assert peak_learning_rate(1e-4, 768, 2048) == pytest.approx(3e-4)  # the release's, at any width
    for batch_size, share in ((2, 0.5), (8, 1), (768, 1)):
        at_1024 = peak_learning_rate(1e-4, batch_size, 1024, "width")
        assert at_1024 == pytest.approx(share * 1e-4)
        assert peak_learning_rate(1e-4, batch_size, 256, "width") == pytest.approx(4 * at_1024)
