"""Compute the layout of the original state dicts: name, dtype and shape of every tensor.

The layout follows from the config values, for the published files and for other training runs
alike. Names and shapes are those of ``models/`` in FoundationVision/VAR. Tests compare them with
every published file.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

Layout = dict[str, tuple[str, tuple[int, ...]]]  # tensor name: dtype, shape

# Buffers that the original code computes. They are not parameters, and all but the codebook usage
# can be rebuilt.
BUFFERS = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias", "ema_vocab_hit_SV")


def leaf(name: str) -> str:
    """Return the last component of a tensor's name."""
    return name.rpartition(".")[2]


def parameter_count(layout: Layout) -> int:
    """Count the parameters in a layout, without buffers."""
    return sum(prod(shape) for name, (_, shape) in layout.items() if leaf(name) not in BUFFERS)


def meta_tensors(layout: Layout) -> dict[str, Tensor]:
    """Return the layout as tensors without storage, for a conversion of shapes alone."""
    return {
        name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for name, (dtype, shape) in layout.items()
    }


def transformer_layout(values: Mapping[str, Any]) -> Layout:
    """Layout of the release's ``VAR`` for the config values of a `VARConfig`."""
    width, inner = values["hidden_size"], values["intermediate_size"]  # C, width of the MLP
    sizes = values["token_map_sizes"]
    num_tokens = sum(size * size for size in sizes)  # L
    shapes: dict[str, tuple[int, ...]] = {
        "pos_start": (1, sizes[0] ** 2, width),
        "pos_1LC": (1, num_tokens, width),
        "lvl_1L": (1, num_tokens),
        "attn_bias_for_masking": (1, 1, num_tokens, num_tokens),
        **_linear("word_embed", values["latent_channels"], width),
        "class_emb.weight": (values["num_classes"] + 1, width),
        "lvl_embed.weight": (len(sizes), width),
    }
    if values["share_modulation"]:
        shapes |= _linear("shared_ada_lin.1", width, 6 * width)
    for index in range(values["num_hidden_layers"]):
        block = f"blocks.{index}"
        if values["share_modulation"]:
            shapes[f"{block}.ada_gss"] = (1, 1, 6, width)
        if values["qk_norm"]:
            shapes[f"{block}.attn.scale_mul_1H11"] = (1, values["num_attention_heads"], 1, 1)
        shapes |= {
            f"{block}.attn.q_bias": (width,),
            f"{block}.attn.v_bias": (width,),
            f"{block}.attn.zero_k_bias": (width,),
            f"{block}.attn.mat_qkv.weight": (3 * width, width),
            **_linear(f"{block}.attn.proj", width, width),
            **_linear(f"{block}.ffn.fc1", width, inner),
            **_linear(f"{block}.ffn.fc2", inner, width),
        }
        if not values["share_modulation"]:
            shapes |= _linear(f"{block}.ada_lin.1", width, 6 * width)
    shapes |= _linear("head_nm.ada_lin.1", width, 2 * width)
    shapes |= _linear("head", width, values["vocab_size"])
    return {
        name: ("int64" if name == "lvl_1L" else "float32", shape) for name, shape in shapes.items()
    }


def vqvae_layout(values: Mapping[str, Any]) -> Layout:
    """Layout of the release's ``VQVAE`` for the config values of a `MultiScaleVQVAE`."""
    latent_channels, num_scales = values["latent_channels"], len(values["token_map_sizes"])
    shapes = dict(_encoder(values)) | dict(_decoder(values))
    shapes["quantize.ema_vocab_hit_SV"] = (num_scales, values["codebook_size"])
    for prefix in refiner_prefixes(values["refiner_sharing"], values["refiner_mix"], num_scales):
        shapes |= _conv(prefix, latent_channels, latent_channels)
    shapes["quantize.embedding.weight"] = (values["codebook_size"], latent_channels)
    shapes |= _conv("quant_conv", latent_channels, latent_channels)
    shapes |= _conv("post_quant_conv", latent_channels, latent_channels)
    return {name: ("float32", shape) for name, shape in shapes.items()}


def refiner_prefixes(refiner_sharing: int, refiner_mix: float, num_scales: int) -> list[str]:
    """Return the release's prefix of each refiner (its phi): three classes, three schemes."""
    if refiner_mix == 0:
        return []  # the release builds identities instead of convolutions
    if refiner_sharing == 1:
        return ["quantize.quant_resi.qresi"]
    if refiner_sharing == 0:
        return [f"quantize.quant_resi.{index}" for index in range(num_scales)]
    return [f"quantize.quant_resi.qresi_ls.{index}" for index in range(refiner_sharing)]


def _encoder(values: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    widths = [values["base_channels"] * multiplier for multiplier in values["channel_multipliers"]]
    channels, last = values["base_channels"], len(widths) - 1
    yield from _conv("encoder.conv_in", values["in_channels"], channels).items()
    for level, width in enumerate(widths):
        level_prefix = f"encoder.down.{level}"
        for index in range(values["num_res_blocks"]):
            yield from _residual_block(f"{level_prefix}.block.{index}", channels, width)
            channels = width
        if level == last:  # attention only at the coarsest resolution
            for index in range(values["num_res_blocks"]):
                yield from _attention(f"{level_prefix}.attn.{index}", width)
        else:
            yield from _conv(f"{level_prefix}.downsample.conv", width, width).items()
    yield from _middle("encoder.mid", channels)
    yield from _norm("encoder.norm_out", channels).items()
    yield from _conv("encoder.conv_out", channels, values["latent_channels"]).items()


def _decoder(values: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    widths = [values["base_channels"] * multiplier for multiplier in values["channel_multipliers"]]
    channels, last = widths[-1], len(widths) - 1
    yield from _conv("decoder.conv_in", values["latent_channels"], channels).items()
    yield from _middle("decoder.mid", channels)
    for level in reversed(range(len(widths))):  # level 0 is the finest, in both halves
        level_prefix, width = f"decoder.up.{level}", widths[level]
        for index in range(values["num_res_blocks"] + 1):
            yield from _residual_block(f"{level_prefix}.block.{index}", channels, width)
            channels = width
        if level == last:
            for index in range(values["num_res_blocks"] + 1):
                yield from _attention(f"{level_prefix}.attn.{index}", width)
        if level > 0:
            yield from _conv(f"{level_prefix}.upsample.conv", width, width).items()
    yield from _norm("decoder.norm_out", channels).items()
    yield from _conv("decoder.conv_out", channels, values["in_channels"]).items()


def _middle(prefix: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _residual_block(f"{prefix}.block_1", width, width)
    yield from _attention(f"{prefix}.attn_1", width)
    yield from _residual_block(f"{prefix}.block_2", width, width)


def _residual_block(
    prefix: str, channels: int, width: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _norm(f"{prefix}.norm1", channels).items()
    yield from _conv(f"{prefix}.conv1", channels, width).items()
    yield from _norm(f"{prefix}.norm2", width).items()
    yield from _conv(f"{prefix}.conv2", width, width).items()
    if channels != width:
        yield from _conv(f"{prefix}.nin_shortcut", channels, width, kernel_size=1).items()


def _attention(prefix: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _norm(f"{prefix}.norm", width).items()
    yield from _conv(f"{prefix}.qkv", width, 3 * width, kernel_size=1).items()
    yield from _conv(f"{prefix}.proj_out", width, width, kernel_size=1).items()


def _linear(prefix: str, channels: int, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.weight": (width, channels), f"{prefix}.bias": (width,)}


def _conv(
    prefix: str, channels: int, width: int, kernel_size: int = 3
) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.weight": (width, channels, kernel_size, kernel_size),
        f"{prefix}.bias": (width,),
    }


def _norm(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.weight": (width,), f"{prefix}.bias": (width,)}
