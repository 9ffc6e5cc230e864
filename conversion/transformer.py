"""Convert the transformer: the release's ``VAR`` state dict to ours with its config, and back."""

import math
import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from var_hf.configuration_var import (
    TOKEN_MAP_SIZES_256,
    TOKEN_MAP_SIZES_512,
    VARConfig,
    check_token_map_sizes,
)
from var_hf.conversion.checks import (
    check_layout,
    check_values,
    count_indexed,
    shape_of,
    take_overrides,
)
from var_hf.conversion.errors import CheckpointError
from var_hf.conversion.layout import leaf, transformer_layout
from var_hf.conversion.lookalikes import refuse_lookalikes

# Config values that no tensor determines, as in the release.
_RELEASE_VALUES = {"layer_norm_eps": 1e-6, "class_dropout_prob": 0.1}
_RELEASE_HEAD_DIM = 64  # build_vae_var: hidden size depth x 64, and depth heads

_ROOT_NAMES = {
    "class_emb.weight": "embeddings.class_embedding.weight",
    "pos_start": "embeddings.start_embedding",
    "pos_1LC": "embeddings.position_embedding",
    "lvl_embed.weight": "embeddings.scale_embedding.weight",
    "word_embed.weight": "embeddings.latent_projection.weight",
    "word_embed.bias": "embeddings.latent_projection.bias",
    "shared_ada_lin.1.weight": "shared_modulation.weight",
    "shared_ada_lin.1.bias": "shared_modulation.bias",
    "head_nm.ada_lin.1.weight": "final_norm.modulation.weight",
    "head_nm.ada_lin.1.bias": "final_norm.modulation.bias",
    "head.weight": "lm_head.weight",
    "head.bias": "lm_head.bias",
}
_LAYER_NAMES = {
    "attn.q_bias": "self_attn.q_proj.bias",
    "attn.v_bias": "self_attn.v_proj.bias",
    "attn.scale_mul_1H11": "self_attn.logit_scale",
    "attn.proj.weight": "self_attn.o_proj.weight",
    "attn.proj.bias": "self_attn.o_proj.bias",
    "ffn.fc1.weight": "mlp.fc1.weight",
    "ffn.fc1.bias": "mlp.fc1.bias",
    "ffn.fc2.weight": "mlp.fc2.weight",
    "ffn.fc2.bias": "mlp.fc2.bias",
    "ada_lin.1.weight": "modulation.weight",
    "ada_lin.1.bias": "modulation.bias",
    "ada_gss": "modulation_table",
}
_STACKED = "attn.mat_qkv.weight"  # (3C, C), one matrix in the release, three in ours
_PROJECTIONS = tuple(f"self_attn.{name}_proj.weight" for name in "qkv")
# They follow from the config alone, so they are dropped and rebuilt.
_COMPUTED = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias")


def convert_transformer(
    state_dict: Mapping[str, Tensor],
    *,
    source: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Convert the release's transformer to ours.

    Args:
        state_dict: Original names and tensors, for example from `read_original`. Tensors on the
            meta device are converted by shape; their values are not checked.
        source: Name of the input in error messages, for example the file's name.
        overrides: Values of `VARConfig` that the tensors do not determine: ``num_attention_heads``
            of a checkpoint without q/k norm (default: one per 64 channels), ``layer_norm_eps``
            (default 1e-6), ``class_dropout_prob`` (default 0.1) and values for training only. An
            override of a value that the tensors determine must agree with them.

    Returns:
        Our names and tensors, which share memory with the input, and the values for `VARConfig`.

    Raises:
        CheckpointError: A tensor is missing, unknown, of a wrong shape, or not finite; a stored
            mask, level table or key bias contradicts the config; or an override contradicts the
            tensors.
    """
    what = f"The transformer {source}" if source else "The transformer's state dict"
    _check_kind(state_dict, what)
    refuse_lookalikes(state_dict, what)
    values = _infer_config(state_dict, overrides, what)
    layout = transformer_layout(values)
    check_layout(state_dict, {name: shape for name, (_, shape) in layout.items()}, what)
    _check_computed(state_dict, values["token_map_sizes"], what)
    check_values({name: state_dict[name] for name in layout if leaf(name) not in _COMPUTED}, what)

    converted: dict[str, Tensor] = {}
    for name in layout:
        if leaf(name) in _COMPUTED:
            continue
        if name.endswith(_STACKED):
            converted |= zip(_projections(name), state_dict[name].chunk(3), strict=True)
        else:
            converted[_our_name(name)] = state_dict[name]
    return converted, values


def transformer_shapes(values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return every tensor of a `VARModel` with its shape, from the values of its config."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (_, shape) in transformer_layout(values).items():
        if leaf(name) in _COMPUTED:
            continue
        if name.endswith(_STACKED):
            shapes |= dict.fromkeys(_projections(name), (shape[0] // 3, *shape[1:]))
        else:
            shapes[_our_name(name)] = shape
    return shapes


def export_transformer(
    state_dict: Mapping[str, Tensor], values: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Convert our transformer to the release's: the exact inverse of `convert_transformer`.

    Args:
        state_dict: Our names and tensors. Half-precision weights become float32, the release's only
            precision.
        values: The config's values, for example ``config.to_dict()``. Values without an effect on
            the layout are ignored.

    Returns:
        The release's names and tensors, with its stored buffers. Unchanged float32 tensors share
        memory with the input.

    Raises:
        CheckpointError: A tensor is missing, is unknown, or has another shape than in the config.
    """
    layout = transformer_layout(values)
    sizes = check_token_map_sizes(values["token_map_sizes"])
    check_layout(state_dict, transformer_shapes(values), "The transformer to export")
    device = next(iter(state_dict.values())).device
    exported: dict[str, Tensor] = {}
    for name, (_, shape) in layout.items():
        if name == "lvl_1L":
            exported[name] = _scale_ids(sizes, device)
        elif name == "attn_bias_for_masking":
            exported[name] = _mask(sizes, device)
        elif leaf(name) == "zero_k_bias":
            exported[name] = torch.zeros(shape, device=device)
        elif name.endswith(_STACKED):
            exported[name] = torch.cat(
                [state_dict[ours_name].float() for ours_name in _projections(name)]
            )
        else:
            exported[name] = state_dict[_our_name(name)].float()
    return exported


def _our_name(name: str) -> str:
    if not (found := re.fullmatch(r"blocks\.(\d+)\.(.+)", name)):
        return _ROOT_NAMES[name]
    return f"layers.{found[1]}.{_LAYER_NAMES[found[2]]}"


def _projections(name: str) -> tuple[str, ...]:
    index = name.split(".")[1]
    return tuple(f"layers.{index}.{projection}" for projection in _PROJECTIONS)


def _check_kind(state_dict: Mapping[str, Tensor], what: str) -> None:
    if any(name.startswith("blocks.") for name in state_dict) or "pos_start" in state_dict:
        return
    if any(name.startswith(("encoder.", "quantize.")) for name in state_dict):
        raise CheckpointError(f"{what} is a VQVAE, not a transformer. Were the two files swapped?")
    if any(name.startswith(("layers.", "embeddings.")) for name in state_dict):
        raise CheckpointError(
            f"{what} is converted already: its tensors have the names of this package."
        )


def _infer_config(
    state_dict: Mapping[str, Tensor], overrides: Mapping[str, Any], what: str
) -> dict[str, Any]:
    num_rows, width = shape_of(state_dict, "class_emb.weight", 2, what)
    known: dict[str, Any] = {
        "vocab_size": shape_of(state_dict, "head.weight", 2, what)[0],
        "latent_channels": shape_of(state_dict, "word_embed.weight", 2, what)[1],
        "hidden_size": width,
        "num_hidden_layers": count_indexed(state_dict, "blocks"),
        "intermediate_size": shape_of(state_dict, "blocks.0.ffn.fc1.weight", 2, what)[0],
        "token_map_sizes": _token_map_sizes(state_dict, overrides.get("token_map_sizes"), what),
        "num_classes": num_rows - 1,  # the last row is the null class
        "share_modulation": any(name.startswith("shared_ada_lin.") for name in state_dict),
        "qk_norm": any(name.endswith(".scale_mul_1H11") for name in state_dict),
    }
    if known["qk_norm"]:
        known["num_attention_heads"] = shape_of(
            state_dict, "blocks.0.attn.scale_mul_1H11", 4, what
        )[1]
        free = {}
    else:
        free = {
            "num_attention_heads": overrides.get("num_attention_heads")
            or width // _RELEASE_HEAD_DIM
        }
        if free["num_attention_heads"] < 1 or width % free["num_attention_heads"]:
            raise CheckpointError(
                f"{what} has no q/k norm, so its tensors do not determine the number of heads, and "
                f"{width} channels do not split into "
                f"{free['num_attention_heads'] or f'heads of {_RELEASE_HEAD_DIM}'}. Pass "
                "num_attention_heads."
            )
    # All other config values concern training. `VARConfig` has the release's defaults for them.
    others = frozenset(VARConfig.__annotations__)
    return take_overrides(known, free | _RELEASE_VALUES, overrides, what, others)


def _token_map_sizes(state_dict: Mapping[str, Tensor], override: Any, what: str) -> tuple[int, ...]:
    num_scales = shape_of(state_dict, "lvl_embed.weight", 2, what)[0]
    num_tokens = shape_of(state_dict, "lvl_1L", 2, what)[1]
    scale_ids = state_dict["lvl_1L"]
    if scale_ids.is_meta:
        candidates = [TOKEN_MAP_SIZES_256, TOKEN_MAP_SIZES_512] if override is None else [override]
        for sizes in map(tuple, candidates):
            if len(sizes) == num_scales and sum(size * size for size in sizes) == num_tokens:
                return sizes
        raise CheckpointError(
            f"{what} has no values from which to read the schedule, and {num_tokens} tokens on "
            f"{num_scales} scales do not match {' or '.join(map(str, candidates))}. Pass "
            "token_map_sizes."
        )
    counts = torch.bincount(
        scale_ids.flatten().long().clamp(0, num_scales), minlength=num_scales
    ).tolist()
    sizes = tuple(math.isqrt(count) for count in counts)
    if len(sizes) != num_scales or not torch.equal(
        scale_ids.long(), _scale_ids(sizes, scale_ids.device)
    ):
        raise CheckpointError(
            f"{what}: the level ids 'lvl_1L' do not match {num_scales} square token maps, coarse "
            f"to fine (tokens per level: {counts})."
        )
    try:
        return check_token_map_sizes(sizes)
    except ValueError as error:
        raise CheckpointError(f"{what}: {error}") from error


def _scale_ids(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """The release's ``lvl_1L`` ``(1, L)``: the scale of each token."""
    counts = torch.tensor([size * size for size in sizes])
    ids = torch.repeat_interleave(torch.arange(len(sizes)), counts)
    return ids[None].to(device)


def _mask(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """The release's ``attn_bias_for_masking`` ``(1, 1, L, L)``: -inf at keys of finer scales."""
    ids = _scale_ids(sizes, torch.device("cpu"))[0]
    mask = torch.zeros(len(ids), len(ids)).masked_fill_(ids[:, None] < ids[None, :], -torch.inf)
    return mask[None, None].to(device)


def _check_computed(state_dict: Mapping[str, Tensor], sizes: tuple[int, ...], what: str) -> None:
    """Check that the dropped tensors equal those that we would rebuild: else the model differs."""
    mask = state_dict["attn_bias_for_masking"]
    if not mask.is_meta and not torch.equal(mask.float(), _mask(sizes, mask.device)):
        raise CheckpointError(
            f"{what}: 'attn_bias_for_masking' is not the scale-causal mask of {sizes}."
        )
    for name, tensor in state_dict.items():
        if leaf(name) == "zero_k_bias" and not tensor.is_meta and tensor.count_nonzero():
            raise CheckpointError(f"{what}: {name!r} is not zero; keys have no bias in VAR.")
