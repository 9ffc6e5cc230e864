"""Tensors of other models, by the names and shapes of their authors' code; small, but of the real
structure.
"""

import pytest
import torch

from var_hf.conversion import CheckpointError, convert_transformer
from var_hf.conversion.lookalikes import refuse_lookalikes


def as_car_alone(state_dict):
    return {
        "car_control_convs.conv_in.weight": torch.zeros(64, 3, 3, 3),
        "car_var_conv.weight": torch.zeros(24, 24, 3, 3),
        "car_blocks.0.attn.mat_qkv.weight": torch.zeros(72, 24),
        "car_skip_norm.0.weight": torch.zeros(48),
    }


def as_hmar(state_dict):
    heads = {f"{name}_head.weight": state_dict["head.weight"] for name in ("ns", "mask")}
    return {name: t for name, t in state_dict.items() if not name.startswith("head.")} | heads


def as_var_clip(state_dict):
    rest = {name: t for name, t in state_dict.items() if name != "class_emb.weight"}
    return rest | {"cond_proj.weight": torch.zeros(24, 768), "noise.weight": torch.zeros(1, 768)}


def as_m_var(state_dict):
    return state_dict | {"blocks.0.mamba.A_log": torch.zeros(3)}


def as_flexvar(state_dict):
    rest = {n: t for n, t in state_dict.items() if n not in ("lvl_embed.weight", "lvl_1L")}
    return rest | {"pos_1LC": torch.zeros(1, 24, 32, 32)}


def hide(state_dict, how):
    """The checkpoint with a mask in which a query sees the scales that `how` allows."""
    scales = state_dict["lvl_1L"][0]
    seen = how(scales[:, None], scales[None, :])
    mask = torch.zeros(len(scales), len(scales)).masked_fill(~seen, -torch.inf)
    return state_dict | {"attn_bias_for_masking": mask[None, None]}


def as_mvar(state_dict):
    return hide(state_dict, lambda query, key: (key == query) | (key == query - 1))


def as_mvar_of_one_scale(state_dict):
    return hide(state_dict, lambda query, key: key == query)


@pytest.mark.parametrize(
    ("disguise", "words"),
    [
        (
            as_car_alone,
            "is not a VAR model but the control branch of CAR alone: it adds a condition",
        ),
        (as_hmar, "is not a VAR model but HMAR: it predicts masked tokens within a scale"),
        (as_var_clip, "is not a VAR model but VAR-CLIP: its condition is the CLIP embedding"),
        (as_m_var, "is not a VAR model but M-VAR: its blocks have a Mamba layer"),
        (as_flexvar, "is not a VAR model but FlexVAR: it predicts latents instead of residuals"),
        (as_mvar, "is not a VAR model but MVAR, or another model with its attention"),
        (as_mvar_of_one_scale, "is not a VAR model but MVAR, or another model with its attention"),
    ],
)
def test_a_checkpoint_of_another_model_is_named(transformer, disguise, words):
    with pytest.raises(CheckpointError, match="The transformer x.pth " + words):
        convert_transformer(disguise(transformer), source="x.pth")


def test_a_var_is_none_of_them(transformer):
    refuse_lookalikes(transformer, "It")


def test_a_mask_that_is_no_ones_is_left_to_the_check_of_the_mask(transformer):
    shuffled = hide(transformer, lambda query, key: key >= query)

    refuse_lookalikes(shuffled, "It")
    with pytest.raises(CheckpointError, match="is not the scale-causal mask"):
        convert_transformer(shuffled)
