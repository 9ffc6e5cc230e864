import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from original_release import original_transformer, original_vqvae

from var_hf.configuration_var import TOKEN_MAP_SIZES_256, TOKEN_MAP_SIZES_512
from var_hf.conversion import PUBLISHED_VQVAE, CheckpointError, convert_vqvae, export_vqvae
from var_hf.conversion.layout import meta_tensors

SIZES = (1, 2, 4)


@settings(max_examples=30, deadline=None)
@given(
    vocab=st.integers(1, 9),
    channels=st.integers(1, 5),
    base=st.sampled_from([2, 4]),
    multipliers=st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
    blocks=st.integers(1, 2),
    image_channels=st.integers(1, 3),
    num_scales=st.integers(2, 5),
    share_quant_resi=st.integers(0, 5),
    quant_resi=st.sampled_from([0, 0.5]),
)
def test_convert_then_export_is_the_identity(num_scales, **sizes):
    original = original_vqvae(num_scales=num_scales, **sizes)

    converted, values = convert_vqvae(
        original, token_map_sizes=range(1, num_scales + 1), norm_num_groups=2
    )
    exported = export_vqvae(converted, values)

    assert exported.keys() == original.keys()
    for name, tensor in original.items():
        assert exported[name].dtype == tensor.dtype, name
        assert torch.equal(exported[name], tensor), name


@pytest.mark.parametrize("sizes", [TOKEN_MAP_SIZES_256, TOKEN_MAP_SIZES_512])
def test_the_published_vqvae_converts_and_comes_back_on_the_meta_device(sizes):
    original = meta_tensors(PUBLISHED_VQVAE.layout())

    converted, values = convert_vqvae(original, token_map_sizes=sizes)
    exported = export_vqvae(converted, values)

    expected = {**PUBLISHED_VQVAE.values, "token_map_sizes": sizes}
    assert {name: values[name] for name in expected} == expected
    assert {name: (t.dtype, t.shape) for name, t in exported.items()} == {
        name: (t.dtype, t.shape) for name, t in original.items()
    }


def test_config_is_read_from_the_tensors():
    original = original_vqvae(
        vocab=37, channels=5, base=6, multipliers=(1, 3, 2), blocks=2, image_channels=4
    )

    _, values = convert_vqvae(original, token_map_sizes=SIZES, norm_num_groups=2)

    assert values == {
        "in_channels": 4,
        "base_channels": 6,
        "channel_multipliers": (1, 3, 2),
        "num_res_blocks": 2,
        "latent_channels": 5,
        "codebook_size": 37,
        "token_map_sizes": SIZES,
        "refiner_sharing": 4,
        "refiner_of_scale": (0, 2, 3),
        "refiner_mix": 0.5,
        "norm_num_groups": 2,
        "norm_eps": 1e-6,
        "commitment_weight": 0.25,
    }


@pytest.mark.parametrize(
    ("release", "sharing", "mix", "table"),
    [
        ({"share_quant_resi": 0}, 0, 0.5, (0, 1, 2)),
        ({"share_quant_resi": 1}, 1, 0.5, (0, 0, 0)),
        ({"share_quant_resi": 4}, 4, 0.5, (0, 2, 3)),
        ({"quant_resi": 0}, 4, 0.0, ()),
    ],
)
def test_refiner_sharing_is_read_from_the_names(release, sharing, mix, table):
    _, values = convert_vqvae(original_vqvae(**release), token_map_sizes=SIZES, norm_num_groups=2)

    assert (values["refiner_sharing"], values["refiner_mix"]) == (sharing, mix)
    assert values["refiner_of_scale"] == table


def test_codebook_usage_is_kept(vqvae):
    converted, _ = convert_vqvae(vqvae, token_map_sizes=SIZES, norm_num_groups=2)

    assert torch.equal(converted["quantizer.codebook_usage"], vqvae["quantize.ema_vocab_hit_SV"])


def test_ten_scales_are_those_of_the_release_and_other_schedules_must_be_given():
    ten = original_vqvae(num_scales=10)
    assert convert_vqvae(ten, norm_num_groups=2)[1]["token_map_sizes"] == TOKEN_MAP_SIZES_256

    with pytest.raises(CheckpointError, match="has 3 scales, and no tensor determines their sizes"):
        convert_vqvae(original_vqvae(), norm_num_groups=2)
    with pytest.raises(CheckpointError, match="trained on 10 scales, but token_map_sizes="):
        convert_vqvae(ten, norm_num_groups=2, token_map_sizes=SIZES)


def test_overrides_replace_what_tensors_cannot_tell_and_nothing_else(vqvae):
    given = {"token_map_sizes": SIZES, "norm_num_groups": 2}
    _, values = convert_vqvae(vqvae, refiner_mix=0.4, norm_eps=1e-5, codebook_size=37, **given)
    assert (values["refiner_mix"], values["norm_eps"]) == (0.4, 1e-5)

    with pytest.raises(
        CheckpointError, match="codebook_size=38 contradicts the tensors, which have 37"
    ):
        convert_vqvae(vqvae, codebook_size=38, **given)
    with pytest.raises(CheckpointError, match="refiner_mix=0 contradicts"):
        convert_vqvae(vqvae, refiner_mix=0, **given)
    with pytest.raises(CheckpointError, match="refiner_sharing=1 contradicts"):
        convert_vqvae(vqvae, refiner_sharing=1, **given)
    with pytest.raises(CheckpointError, match="Pass norm_num_groups"):
        convert_vqvae(vqvae, token_map_sizes=SIZES)
    with pytest.raises(ValueError, match="Unknown override ch"):
        convert_vqvae(vqvae, ch=4, **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sd: sd.pop("quant_conv.bias"), r"lacks 1 tensor: quant_conv\.bias"),
        (
            lambda sd: sd.pop("encoder.conv_in.weight"),
            r"lacks the tensor 'encoder\.conv_in\.weight'",
        ),
        (
            lambda sd: sd.pop("quantize.quant_resi.qresi_ls.1.bias"),
            r"lacks 1 tensor: quantize\.quant_resi\.qresi_ls\.1\.bias",
        ),
        (lambda sd: sd.update(extra=torch.ones(2)), r"unknown 1 tensor: extra"),
        (
            lambda sd: sd.update({"quant_conv.weight": torch.ones(5, 5, 1, 1)}),
            r"wrong shape in 1 tensor: quant_conv\.weight \(5, 5, 1, 1\)",
        ),
        (
            lambda sd: sd.update({"encoder.down.1.block.0.conv1.weight": torch.ones(9, 4, 3, 3)}),
            r"level 1 has 9 channels, which is not a multiple of the 4",
        ),
        (
            lambda sd: sd["decoder.conv_out.bias"].fill_(torch.nan),
            r"NaN or infinite weights in 1 tensor: decoder\.conv_out\.bias",
        ),
        (
            lambda sd: sd["quantize.ema_vocab_hit_SV"][0, :1].fill_(torch.inf),
            r"infinite weights in 1 tensor: quantize\.ema_vocab_hit_SV",
        ),
    ],
)
def test_a_wrong_tensor_is_one_error_that_names_it(vqvae, change, message):
    change(vqvae)

    with pytest.raises(CheckpointError, match=message) as caught:
        convert_vqvae(vqvae, source="some/vae.pth", token_map_sizes=SIZES, norm_num_groups=2)
    assert "some/vae.pth" in str(caught.value)


def test_a_transformer_in_the_place_of_the_vqvae_is_said_to_be_one():
    with pytest.raises(
        CheckpointError, match=r"is a transformer, not a VQVAE\. Were the two files swapped"
    ):
        convert_vqvae(original_transformer())


def test_a_converted_state_dict_is_said_to_be_one(vqvae):
    converted, _ = convert_vqvae(vqvae, token_map_sizes=SIZES, norm_num_groups=2)

    with pytest.raises(CheckpointError, match="is converted already"):
        convert_vqvae(converted)


def test_export_refuses_refiners_assigned_in_another_way(vqvae):
    converted, values = convert_vqvae(vqvae, token_map_sizes=SIZES, norm_num_groups=2)

    with pytest.raises(CheckpointError, match=r"assigns refiners \(0, 1, 3\)"):
        export_vqvae(converted, {**values, "refiner_of_scale": (0, 1, 3)})


def test_half_precision_weights_are_exported_as_float32(vqvae):
    converted, values = convert_vqvae(vqvae, token_map_sizes=SIZES, norm_num_groups=2)

    exported = export_vqvae({name: t.bfloat16() for name, t in converted.items()}, values)

    assert {tensor.dtype for tensor in exported.values()} == {torch.float32}
