import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from original_release import original_transformer, original_vqvae

from var_hf.configuration_var import VARConfig
from var_hf.conversion import (
    PUBLISHED_TRANSFORMERS,
    CheckpointError,
    convert_transformer,
    export_transformer,
)
from var_hf.conversion.layout import meta_tensors


def assert_same_tensors(found, expected):
    """Key for key, shape for shape, type for type and bit for bit."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


schedules = st.lists(st.integers(1, 6), min_size=2, max_size=4, unique=True).map(sorted).map(tuple)


@settings(max_examples=40, deadline=None)
@given(
    depth=st.integers(1, 3),
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 4),
    inner=st.integers(1, 9),
    vocab=st.integers(1, 9),
    channels=st.integers(1, 5),
    sizes=schedules,
    classes=st.integers(1, 5),
    shared=st.booleans(),
    qk_norm=st.booleans(),
)
def test_convert_then_export_is_the_identity(heads, head_dim, **sizes):
    original = original_transformer(width=heads * head_dim, heads=heads, **sizes)

    converted, values = convert_transformer(original, num_attention_heads=heads)

    assert values["token_map_sizes"] == sizes["sizes"]
    assert_same_tensors(export_transformer(converted, values), original)


@pytest.mark.parametrize("size", PUBLISHED_TRANSFORMERS)
def test_every_published_transformer_converts_and_comes_back_on_the_meta_device(size):
    file = PUBLISHED_TRANSFORMERS[size]  # its layout is that of the file: test_layout.py
    original = meta_tensors(file.layout())

    converted, values = convert_transformer(original)
    exported = export_transformer(converted, values)

    assert {name: values[name] for name in file.values} == dict(file.values)
    assert {name: (t.dtype, t.shape) for name, t in exported.items()} == {
        name: (t.dtype, t.shape) for name, t in original.items()
    }


def test_config_is_read_from_the_tensors():
    original = original_transformer(
        depth=3,
        width=24,
        heads=4,
        inner=29,
        vocab=37,
        channels=5,
        sizes=(2, 3, 5),
        classes=11,
        shared=True,
    )

    _, values = convert_transformer(original)

    assert values == {
        "vocab_size": 37,
        "latent_channels": 5,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 29,
        "token_map_sizes": (2, 3, 5),
        "num_classes": 11,
        "share_modulation": True,
        "qk_norm": True,
        "layer_norm_eps": 1e-6,
        "class_dropout_prob": 0.1,
    }
    VARConfig(**values)


def test_query_key_and_value_weights_are_the_thirds_of_the_stacked_matrix(transformer):
    converted, _ = convert_transformer(transformer)

    stacked = transformer["blocks.1.attn.mat_qkv.weight"]  # (3C, C)
    for index, name in enumerate("qkv"):
        third = stacked[24 * index : 24 * (index + 1)]
        assert torch.equal(converted[f"layers.1.self_attn.{name}_proj.weight"], third)
    assert "layers.1.self_attn.k_proj.bias" not in converted


def test_heads_without_qk_norm_follow_the_release_or_the_override():
    wide = original_transformer(width=128, heads=2, qk_norm=False)
    assert convert_transformer(wide)[1]["num_attention_heads"] == 2
    assert convert_transformer(wide, num_attention_heads=8)[1]["num_attention_heads"] == 8

    narrow = original_transformer(width=24, qk_norm=False)
    with pytest.raises(CheckpointError, match="Pass num_attention_heads"):
        convert_transformer(narrow)
    with pytest.raises(CheckpointError, match="24 channels do not split into 7"):
        convert_transformer(narrow, num_attention_heads=7)


def test_overrides_replace_what_tensors_cannot_tell_and_nothing_else(transformer):
    _, values = convert_transformer(
        transformer,
        layer_norm_eps=1e-5,
        drop_path_rate=0.2,
        num_classes=7,
        token_map_sizes=[1, 2, 4],
    )
    assert values["layer_norm_eps"] == 1e-5
    assert values["drop_path_rate"] == 0.2

    with pytest.raises(
        CheckpointError, match="num_classes=8 contradicts the tensors, which have 7"
    ):
        convert_transformer(transformer, num_classes=8)
    with pytest.raises(CheckpointError, match="token_map_sizes"):
        convert_transformer(transformer, token_map_sizes=(1, 2, 5))
    with pytest.raises(ValueError, match="Unknown override depth"):
        convert_transformer(transformer, depth=2)


def test_half_precision_weights_are_exported_as_float32(transformer):
    converted, values = convert_transformer(transformer)
    half = {name: tensor.half() for name, tensor in converted.items()}

    exported = export_transformer(half, values)

    assert {t.dtype for name, t in exported.items() if name != "lvl_1L"} == {torch.float32}
    assert torch.equal(exported["pos_1LC"], transformer["pos_1LC"].half().float())


def test_schedule_without_values_needs_to_be_known_or_given(transformer):
    on_meta = {name: tensor.to("meta") for name, tensor in transformer.items()}

    with pytest.raises(CheckpointError, match="Pass token_map_sizes"):
        convert_transformer(on_meta)
    assert convert_transformer(on_meta, token_map_sizes=(1, 2, 4))[1]["token_map_sizes"] == (
        1,
        2,
        4,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sd: sd.pop("pos_1LC"), r"lacks 1 tensor: pos_1LC"),
        (lambda sd: sd.pop("class_emb.weight"), r"lacks the tensor 'class_emb.weight'"),
        (lambda sd: sd.pop("blocks.1.attn.q_bias"), r"lacks 1 tensor: blocks\.1\.attn\.q_bias"),
        (lambda sd: sd.update(extra=torch.ones(2)), r"unknown 1 tensor: extra"),
        (
            lambda sd: sd.update({"blocks.9999999999.attn.q_bias": torch.ones(24)}),
            r"unknown 1 tensor: blocks\.9999999999",
        ),
        (
            lambda sd: sd.update({"blocks.0.attn.proj.weight": torch.ones(24, 23)}),
            r"wrong shape in 1 tensor: blocks\.0\.attn\.proj\.weight \(24, 23\) \(expected \(24, "
            r"24\)\)",
        ),
        (lambda sd: sd.update({"head.weight": torch.ones(37)}), r"'head.weight' has shape \(37,\)"),
        (
            lambda sd: sd.update({"head.bias": torch.ones(37, dtype=torch.int8)}),
            r"wrong dtype \(expected 16 to 64 bit floats\) in 1 tensor: head\.bias \(int8\)",
        ),
        (
            lambda sd: sd["pos_start"].fill_(torch.nan),
            r"NaN or infinite weights in 1 tensor: pos_start",
        ),
        (
            lambda sd: sd["head.bias"][3:4].fill_(-torch.inf),
            r"infinite weights in 1 tensor: head\.bias",
        ),
        (lambda sd: sd["blocks.1.attn.zero_k_bias"][5:6].fill_(1), r"zero_k_bias' is not zero"),
        (
            lambda sd: sd["attn_bias_for_masking"][0, 0, 0, 1:2].fill_(0),
            r"not the scale-causal mask",
        ),
        (lambda sd: sd["lvl_1L"][0, :2].fill_(0), r"tokens per level: \[2, 3, 16\]"),
        (lambda sd: sd["lvl_1L"].fill_(10**12), r"level ids 'lvl_1L'"),
    ],
)
def test_a_wrong_tensor_is_one_error_that_names_it(transformer, change, message):
    change(transformer)

    with pytest.raises(CheckpointError, match=message) as caught:
        convert_transformer(transformer, source="some/var_d16.pth")
    assert "some/var_d16.pth" in str(caught.value)


def test_a_vqvae_in_the_place_of_the_transformer_is_said_to_be_one():
    with pytest.raises(
        CheckpointError, match=r"is a VQVAE, not a transformer\. Were the two files swapped"
    ):
        convert_transformer(original_vqvae())


def test_a_converted_state_dict_is_said_to_be_one(transformer):
    converted, _ = convert_transformer(transformer)

    with pytest.raises(CheckpointError, match="is converted already"):
        convert_transformer(converted)


def test_export_refuses_tensors_that_the_config_does_not_have(transformer):
    converted, values = convert_transformer(transformer)
    converted["layers.0.self_attn.k_proj.bias"] = torch.ones(24)
    del converted["lm_head.bias"]

    with pytest.raises(CheckpointError, match=r"lacks 1 tensor: lm_head\.bias; .*k_proj\.bias"):
        export_transformer(converted, values)
