import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from var_hf.demo.settings import LARGEST_SEED, MOST_IMAGES, Settings, number, shown, whole_number

ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.lists(st.integers(), max_size=3)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
)


@given(st.lists(ANYTHING, min_size=9, max_size=9))
def test_whatever_comes_is_settings_or_one_line(values):
    try:
        settings = Settings(*values)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 200
        return
    assert 1 <= settings.num_images <= MOST_IMAGES
    assert settings.seed is None or 0 <= settings.seed <= LARGEST_SEED
    assert settings.guidance_scale is None or 0 <= settings.guidance_scale <= 100
    assert settings.top_p is None or 0 <= settings.top_p <= 1
    assert settings.temperature is None or 0.01 <= settings.temperature <= 100


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"num_images": 9}, "num_images must lie in [1, 8]. Got 9."),
        ({"num_images": -(10**30)}, "num_images must lie in [1, 8]"),
        ({"num_images": 1.5}, "num_images must be a whole number. Got 1.5."),
        ({"num_images": True}, "num_images must be a whole number. Got True."),
        ({"num_images": "2"}, "num_images must be a whole number. Got '2'."),
        ({"guidance_scale": 1e308}, "guidance_scale must be a number in [0, 100]."),
        ({"guidance_scale": math.nan}, "guidance_scale must be a number in [0, 100]. Got nan."),
        ({"top_k": -1}, "top_k must lie in [0, "),
        ({"top_p": -0.1}, "top_p must be a number in [0, 1]. Got -0.1."),
        ({"sampling": "yes"}, "sampling must be multinomial or gumbel_softmax. Got 'yes'."),
        ({"temperature": 0}, "temperature must be a number in [0.01, 100]. Got 0."),
        ({"temperature": math.inf}, "temperature must be a number in [0.01, 100]. Got inf."),
        ({"guidance_schedule": "linear"}, "must be ramp or constant. Got 'linear'."),
        ({"ssg_scale": -1}, "ssg_scale must be a number in [0, 10]. Got -1."),
        ({"seed": 2**64}, "seed must lie in [0, "),
        ({"seed": math.inf}, "seed must be a whole number. Got inf."),
    ],
)
def test_bad_settings_are_named(values, line):
    with pytest.raises(ValueError) as error:
        Settings(**values)

    assert line in str(error.value)


def test_whole_numbers_that_json_made_floats_are_taken():
    settings = Settings(num_images=2.0, top_k=900.0, seed=5.0)

    assert (settings.num_images, settings.top_k, settings.seed) == (2, 900, 5)
    assert list(settings.seeds) == [5, 6]
    assert all(isinstance(one, int) for one in (settings.num_images, settings.top_k, settings.seed))


def test_a_fresh_seed_is_drawn_once_and_kept():
    settings = Settings().with_seed()

    assert settings.with_seed() == settings
    assert Settings().with_seed().seed != Settings().with_seed().seed


def test_only_what_was_asked_for_overrides_the_checkpoint():
    assert Settings().arguments() == {}
    assert Settings(sampling="multinomial").arguments() == {"sampling": "multinomial"}
    assert Settings(sampling="gumbel_softmax", top_k=0).arguments() == {
        "top_k": 0,
        "sampling": "gumbel_softmax",
    }


def test_errors_repeat_a_value_in_one_short_line():
    assert shown("a\nb") == "'a\\nb'"
    assert len(shown("x" * 10_000)) == 60
    with pytest.raises(ValueError, match="top must be a whole number"):
        whole_number("top", None, 1, 2)
    with pytest.raises(ValueError, match="strength must be a number"):
        number("strength", [], 0, 1)
