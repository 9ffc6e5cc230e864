"""Convert the VQVAE: the release's ``VQVAE`` state dict to ours with its config, and back."""

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from var_hf.configuration_var import TOKEN_MAP_SIZES_256, check_token_map_sizes, refiner_table
from var_hf.conversion.checks import (
    check_layout,
    check_values,
    count_indexed,
    shape_of,
    take_overrides,
)
from var_hf.conversion.errors import CheckpointError
from var_hf.conversion.layout import refiner_prefixes, vqvae_layout

# Config values that no tensor determines, as in the release.
_RELEASE_VALUES = {
    "norm_num_groups": 32,
    "norm_eps": 1e-6,
    "commitment_weight": 0.25,
}
_RELEASE_REFINER_MIX = 0.5
_RELEASE_REFINER_SHARING = 4


def convert_vqvae(
    state_dict: Mapping[str, Tensor],
    *,
    source: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Convert the release's VQVAE to ours.

    Args:
        state_dict: Original names and tensors, for example from `read_original`. Tensors on the
            meta device are converted by shape; their values are not checked.
        source: Name of the input in error messages, for example the file's name.
        overrides: Values of the `MultiScaleVQVAE` config that the tensors do not determine, with
            their defaults: ``token_map_sizes`` (the 256 px schedule, if the file has ten scales),
            ``refiner_mix`` (0.5), ``norm_eps`` (1e-6), ``norm_num_groups`` (32),
            ``commitment_weight`` (0.25). An override of a value that the tensors determine must
            agree with them.

    Returns:
        Our names and tensors, which share memory with the input, and the values for
        `MultiScaleVQVAE`.

    Raises:
        CheckpointError: A tensor is missing, unknown, of a wrong shape, or not finite; the schedule
            cannot be determined; or an override contradicts the tensors.
    """
    what = f"The VQVAE {source}" if source else "The VQVAE's state dict"
    _check_kind(state_dict, what)
    values = _infer_config(state_dict, overrides, what)
    layout = vqvae_layout(values)
    check_layout(state_dict, {name: shape for name, (_, shape) in layout.items()}, what)
    check_values(state_dict, what)
    names = _our_names(layout, values)
    return {names[name]: state_dict[name] for name in layout}, values


def export_vqvae(state_dict: Mapping[str, Tensor], values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert our VQVAE to the release's: the exact inverse of `convert_vqvae`.

    Args:
        state_dict: Our names and tensors. Half-precision weights become float32, the release's only
            precision.
        values: The config's values. Values without an effect on the layout are ignored.

    Returns:
        The release's names and tensors. Unchanged float32 tensors share memory with the input.

    Raises:
        CheckpointError: A tensor is missing, is unknown, or has another shape than in the config;
            or the config assigns refiners to scales in a way that the release cannot express.
    """
    sizes = check_token_map_sizes(values["token_map_sizes"])
    table = _refiner_of_scale(len(sizes), values["refiner_sharing"], values["refiner_mix"])
    if tuple(values["refiner_of_scale"]) != table:
        raise CheckpointError(
            f"The VQVAE to export assigns refiners {tuple(values['refiner_of_scale'])} to its "
            f"scales, but the original code would assign {table}."
        )
    layout = vqvae_layout(values)
    names = _our_names(layout, values)
    check_layout(
        state_dict,
        {names[name]: shape for name, (_, shape) in layout.items()},
        "The VQVAE to export",
    )
    return {name: state_dict[names[name]].float() for name in layout}


def vqvae_shapes(values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return every tensor of a `MultiScaleVQVAE` with its shape, from the values of its config."""
    without = {**values, "refiner_mix": 0}
    layout = vqvae_layout(without)
    names = _our_names(layout, without)
    shapes = {names[name]: shape for name, (_, shape) in layout.items()}
    channels = values["latent_channels"]
    for index in range(max(values["refiner_of_scale"], default=-1) + 1):
        shapes[f"quantizer.refiners.{index}.weight"] = (channels, channels, 3, 3)
        shapes[f"quantizer.refiners.{index}.bias"] = (channels,)
    return shapes


def _our_names(layout: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, str]:
    """Map the release's name to ours, for every tensor of the layout."""
    names = {name: name for name in layout if not name.startswith("quantize.")}
    names["quantize.embedding.weight"] = "quantizer.codebook.weight"
    names["quantize.ema_vocab_hit_SV"] = "quantizer.codebook_usage"
    prefixes = refiner_prefixes(
        values["refiner_sharing"], values["refiner_mix"], len(values["token_map_sizes"])
    )
    for index, prefix in enumerate(prefixes):
        for kind in ("weight", "bias"):
            names[f"{prefix}.{kind}"] = f"quantizer.refiners.{index}.{kind}"
    return names


def _check_kind(state_dict: Mapping[str, Tensor], what: str) -> None:
    if any(name.startswith("quantize.") for name in state_dict):
        return
    if any(name.startswith("blocks.") for name in state_dict) or "pos_start" in state_dict:
        raise CheckpointError(f"{what} is a transformer, not a VQVAE. Were the two files swapped?")
    if any(name.startswith("quantizer.") for name in state_dict):
        raise CheckpointError(
            f"{what} is converted already: its tensors have the names of this package."
        )


def _infer_config(
    state_dict: Mapping[str, Tensor], overrides: Mapping[str, Any], what: str
) -> dict[str, Any]:
    base_channels, in_channels = shape_of(state_dict, "encoder.conv_in.weight", 4, what)[:2]
    codebook_size, latent_channels = shape_of(state_dict, "quantize.embedding.weight", 2, what)
    num_scales = shape_of(state_dict, "quantize.ema_vocab_hit_SV", 2, what)[0]
    num_levels = count_indexed(state_dict, "encoder.down")
    multipliers = []
    for level in range(num_levels):
        width = shape_of(state_dict, f"encoder.down.{level}.block.0.conv1.weight", 4, what)[0]
        if width % base_channels:
            raise CheckpointError(
                f"{what}: resolution level {level} has {width} channels, which is not a multiple "
                f"of the {base_channels} of the first convolution."
            )
        multipliers.append(width // base_channels)
    known: dict[str, Any] = {
        "in_channels": in_channels,
        "base_channels": base_channels,
        "channel_multipliers": tuple(multipliers),
        "num_res_blocks": count_indexed(state_dict, "encoder.down.0.block"),
        "latent_channels": latent_channels,
        "codebook_size": codebook_size,
    }
    groups = overrides.get("norm_num_groups") or _RELEASE_VALUES["norm_num_groups"]
    if any(base_channels * multiplier % groups for multiplier in (1, *multipliers)):
        raise CheckpointError(
            f"{what}: {base_channels} base channels times {tuple(multipliers)} do not all split "
            f"into {groups} groups. Pass norm_num_groups."
        )
    free: dict[str, Any] = dict(_RELEASE_VALUES)
    free["token_map_sizes"] = _token_map_sizes(overrides.get("token_map_sizes"), num_scales, what)
    sharing = _refiner_sharing(state_dict)
    if sharing is None:  # without refiners, the tensors do not determine how they were shared
        known["refiner_mix"] = 0.0
        free["refiner_sharing"] = sharing = (
            overrides.get("refiner_sharing") or _RELEASE_REFINER_SHARING
        )
    else:
        known["refiner_sharing"] = sharing
        free["refiner_mix"] = _RELEASE_REFINER_MIX
        if overrides.get("refiner_mix") == 0:
            raise CheckpointError(
                f"{what}: refiner_mix=0 contradicts the tensors, which hold refiners."
            )
    known["refiner_of_scale"] = _refiner_of_scale(num_scales, sharing, known.get("refiner_mix"))
    return take_overrides(known, free, overrides, what)


def _token_map_sizes(override: Any, num_scales: int, what: str) -> tuple[int, ...]:
    if override is None and num_scales != len(TOKEN_MAP_SIZES_256):
        raise CheckpointError(
            f"{what} has {num_scales} scales, and no tensor determines their sizes. Pass "
            "token_map_sizes, coarse to fine."
        )
    sizes = check_token_map_sizes(TOKEN_MAP_SIZES_256 if override is None else override)
    if len(sizes) != num_scales:
        raise CheckpointError(
            f"{what} was trained on {num_scales} scales, but token_map_sizes={sizes} has "
            f"{len(sizes)}."
        )
    return sizes


def _refiner_of_scale(
    num_scales: int, refiner_sharing: int, refiner_mix: float | None
) -> tuple[int, ...]:
    return () if refiner_mix == 0 else refiner_table(num_scales, refiner_sharing)


def _refiner_sharing(state_dict: Mapping[str, Tensor]) -> int | None:
    """Infer ``share_quant_resi`` from the names.

    The value is 1, n > 1, 0 for one refiner per scale, or None without refiners.
    """
    if any(name.startswith("quantize.quant_resi.qresi.") for name in state_dict):
        return 1
    if number := count_indexed(state_dict, "quantize.quant_resi.qresi_ls"):
        return number
    return 0 if count_indexed(state_dict, "quantize.quant_resi") else None
