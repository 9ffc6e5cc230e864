import json

import pytest
from conftest import TRANSFORMER
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from var_hf import VARConfig
from var_hf.configuration_var import (
    TOKEN_MAP_SIZES_256,
    TOKEN_MAP_SIZES_512,
    check_token_map_sizes,
    refiner_table,
)

schedules = st.lists(st.integers(1, 40), min_size=2, max_size=12, unique=True).map(sorted)


def test_the_defaults_are_the_published_d16():
    config = VARConfig()

    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (
        1024,
        16,
        16,
    )
    assert config.intermediate_size == 4096
    assert config.token_map_sizes == TOKEN_MAP_SIZES_256
    assert (config.num_tokens, config.num_scales) == (680, 10)
    assert config.drop_path_rate == pytest.approx(1 / 15)
    assert VARConfig(token_map_sizes=TOKEN_MAP_SIZES_512).num_tokens == 2240


def test_a_saved_config_comes_back_through_autoconfig(tmp_path):
    config = VARConfig(**TRANSFORMER, share_modulation=True, qk_norm=False)
    config.save_pretrained(tmp_path)

    loaded = AutoConfig.from_pretrained(tmp_path)

    assert isinstance(loaded, VARConfig)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert isinstance(loaded.token_map_sizes, tuple)
    assert (
        json.loads((tmp_path / "config.json").read_text())["model_type"] == "visual_autoregressive"
    )


@given(schedules)
def test_token_slices_follow_one_another_and_cover_all_tokens(sizes):
    config = VARConfig(token_map_sizes=sizes)

    ends = [tokens.stop for tokens in config.token_slices]
    assert [tokens.start for tokens in config.token_slices] == [0, *ends[:-1]]
    assert [tokens.stop - tokens.start for tokens in config.token_slices] == [s * s for s in sizes]
    assert config.num_tokens == ends[-1] == sum(s * s for s in sizes)


@pytest.mark.parametrize("sizes", [(), (4,), (1, 1), (2, 1), (0, 1), (-1, 3)])
def test_a_schedule_that_does_not_grow_is_refused(sizes):
    with pytest.raises(ValueError, match="at least two increasing positive sides") as error:
        check_token_map_sizes(sizes)
    assert str(sizes) in str(error.value)
    with pytest.raises(ValueError, match=r"at least two increasing|must be a list of 2 to 64"):
        VARConfig(token_map_sizes=sizes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 100, "num_attention_heads": 7}, "multiple of num_attention_heads"),
        ({"class_dropout_prob": 1.0}, r"class_dropout_prob must be a finite number in \[0, 1\)"),
        ({"drop_path_rate": -0.1}, r"drop_path_rate must be a finite number in \[0, 1\)"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        VARConfig(**values)


def test_a_value_of_a_wrong_type_is_refused():
    with pytest.raises(Exception, match="num_hidden_layers"):
        VARConfig(num_hidden_layers="three")


def test_the_refiners_of_the_release():
    assert refiner_table(10, 4) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
    assert refiner_table(10, 1) == (0,) * 10


@given(num_scales=st.integers(2, 20), refiner_sharing=st.integers(0, 20))
def test_refiners_are_handed_out_in_order_from_the_first_to_the_last(num_scales, refiner_sharing):
    table = refiner_table(num_scales, refiner_sharing)

    assert len(table) == num_scales
    assert list(table) == sorted(table)
    assert table[0] == 0
    assert table[-1] == (refiner_sharing or num_scales) - 1


@given(num_scales=st.integers(2, 20))
def test_refiner_sharing_0_gives_every_scale_its_own(num_scales):
    assert refiner_table(num_scales, 0) == tuple(range(num_scales))
