import pytest
from hypothesis import given
from hypothesis import strategies as st

from var_hf.budgets import PRESETS, Stage, parse_budget, resolve_budget


@given(
    name=st.sampled_from([None, *PRESETS]),
    num_classes=st.integers(1, 2000),
    num_scales=st.integers(1, 14),
)
def test_presets_suit_every_model(name, num_classes, num_scales):
    """They stand the check that a list of stages has to stand, except a last stage that drops none
    of one to five classes.
    """
    stages = resolve_budget(name, num_classes, num_scales)
    assert stages[-1].scales == num_scales
    assert resolve_budget(stages, num_classes, num_scales) == stages


@pytest.mark.parametrize(
    ("name", "num_classes", "stages"),
    [
        (None, 100, [(100, 10, 1)]),
        (None, 101, [(20, 3, 1), (10, 4, 1), (5, 10, 1)]),
        ("full", 1000, [(1000, 10, 1)]),
        ("fast", 1000, [(200, 3, 1), (100, 4, 1), (50, 5, 1), (10, 6, 1), (5, 10, 1)]),
        ("fast", 40, [(20, 3, 1), (10, 4, 1), (5, 10, 1)]),
        ("fast", 12, [(10, 4, 1), (5, 10, 1)]),
        ("fast", 4, [(4, 10, 1)]),
        ("a-varc", 1000, [(10, 6, 1), (3, 10, 1), (1, 10, 3)]),
        ("a-varc", 7, [(3, 10, 1), (1, 10, 3)]),
        ("a-varc", 1, [(1, 10, 3)]),
    ],
)
def test_presets(name, num_classes, stages):
    assert list(resolve_budget(name, num_classes, 10)) == stages


def test_stages_are_written_with_colons():
    assert parse_budget("a-varc") == "a-varc"
    assert parse_budget("10:6,3:10,1:10:3") == [(10, 6), (3, 10), (1, 10, 3)]
    assert resolve_budget(parse_budget("5:2"), 40, 7) == (Stage(5, 2),)


@pytest.mark.parametrize("text", ["", "slow", "10", "10:6,", "10:6:1:1", "10:-6", "10:6.5"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="CANDIDATES:SCALES"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("slow", "one of full, fast, a-varc, or a list of stages. Got 'slow'"),
        ([], r"list of stages .*Got \[\]"),
        (7, "list of stages .*Got 7"),
        ([7], "list of stages"),
        ([(7,)], "list of stages"),
        ([(7, 1, 1, 1)], "list of stages"),
        ([(7, 1.0)], "list of stages"),
        ([(True, 1)], "list of stages"),
        (["7:1"], "list of stages"),
        ([(41, 7)], "Stage 0 of the budget must keep 1 to 40 classes.* Got 41 candidates"),
        ([(0, 7)], "Stage 0 .* Got 0 candidates"),
        ([(5, 3), (5, 7)], "Stage 1 of the budget must keep 1 to 4 classes.* Got 5 candidates"),
        ([(5, 3), (6, 7)], "Stage 1 .* Got 6 candidates"),
        ([(5, 8)], "Stage 0 of the budget must read 1 to 7 scales.* Got 8 scales"),
        ([(5, 0)], "Got 0 scales"),
        ([(5, 4), (3, 3)], "Stage 1 of the budget must read 4 to 7 scales.* Got 3 scales"),
        ([(5, 4, 0)], "Stage 0 .* at least 1 samples.* Got 0 samples"),
        ([(5, 4, 3), (3, 7, 2)], "Stage 1 .* at least 3 samples.* Got 2 samples"),
    ],
)
def test_a_wrong_budget_ends_in_one_clear_error(budget, message):
    with pytest.raises(ValueError, match=message):
        resolve_budget(budget, 40, 7)
