"""The five graphs of an exported folder, written from the weights and sizes of a pipeline.

They compute the functions of `VARModel` and `MultiScaleVQVAE`; the tests compare both. Differences
in form: keys and values are inputs and outputs; every token names its own position, so that one
graph serves all scales; and resampling is a product with constant matrices, because ONNX's
operators compute other averages.

Letters as in `var_hf.quantization`, and further: R rows of the transformer (B, or 2B under
guidance), P tokens in the cache, N layers, K = 6N + 3 rows of a condition.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from var_hf.onnx.writer import Writer

State: TypeAlias = Mapping[str, Tensor]
Build: TypeAlias = Callable[[Writer], None]

MAX_LOG_SCALE = math.log(100)  # cap of the learned attention scale; see `modeling_var`


def graph_builders(transformer: Any, vqvae: Any) -> dict[str, tuple[State, Build]]:
    """By name of the graph: the state dict that it reads, and the function that writes it.

    Args:
        transformer: A `VARModel`.
        vqvae: A `MultiScaleVQVAE`.
    """
    ours, theirs = transformer.state_dict(), vqvae.state_dict()
    sizes, config = transformer.config, vqvae.config
    return {
        "condition": (ours, lambda writer: write_condition(writer, sizes)),
        "transformer": (ours, lambda writer: write_transformer(writer, sizes)),
        "latents": (theirs, lambda writer: write_latents(writer, config)),
        "decoder": (theirs, lambda writer: write_decoder(writer, config)),
        "encoder": (theirs, lambda writer: write_encoder(writer, config)),
    }


# Resampling


def area_matrix(token_map_sizes: Sequence[int]) -> NDArray[np.float32]:
    """The averages that shrink latents to the grid of every scale, ``(L, F * F)``."""
    full_size = token_map_sizes[-1]
    pixels = torch.eye(full_size**2).unflatten(1, (1, full_size, full_size))
    rows = [
        functional.interpolate(pixels, size=(size, size), mode="area").flatten(1).T
        for size in token_map_sizes
    ]
    return torch.cat(rows).numpy()


def bicubic_matrix(token_map_sizes: Sequence[int]) -> NDArray[np.float32]:
    """The weights that enlarge the grid of every scale to the latents, ``(L, F * F)``."""
    full_size = token_map_sizes[-1]
    rows = []
    for size in token_map_sizes:
        pixels = torch.eye(size**2).unflatten(1, (1, size, size))
        if size != full_size:
            pixels = functional.interpolate(pixels, size=(full_size,) * 2, mode="bicubic")
        rows.append(pixels.flatten(1))
    return torch.cat(rows).numpy()


# Transformer


def write_condition(writer: Writer, config: Any) -> None:
    """Class ids ``(R,)`` to all that the transformer needs of the class, ``(R, K, C)``.

    Row 0 is the class token. Six rows for each layer and two for the last norm are modulations.
    They depend on the class alone, and their layers hold a third of the weights: one pass for all
    scales reads these once.
    """
    width, layers = config.hidden_size, config.num_hidden_layers
    name = "embeddings.class_embedding.weight"
    labels = writer.input("class_labels", ["rows"], "int64")
    token = writer.op("Gather", writer.table(name, writer.state_dict(name)), labels)  # (R, C)
    active = writer.silu(token)
    parts = [writer.reshape(token, 0, 1, width)]
    if config.share_modulation:
        shared = writer.reshape(writer.linear(active, "shared_modulation"), 0, 6, width)
    for layer in range(layers):
        if config.share_modulation:
            name = f"layers.{layer}.modulation_table"
            table = writer.table(name, writer.state_dict(name)[0])  # (1, 6, C)
            parts.append(writer.op("Add", shared, table))
        else:
            modulation = writer.linear(active, f"layers.{layer}.modulation")
            parts.append(writer.reshape(modulation, 0, 6, width))
    parts.append(writer.reshape(writer.linear(active, "final_norm.modulation"), 0, 2, width))
    condition = writer.op("Concat", *parts, axis=1)
    writer.output(condition, "condition", ["rows", 6 * layers + 3, width])


def write_transformer(writer: Writer, config: Any) -> None:
    """One scale: a condition ``(R, K, C)``, latents ``(R, Z, F, F)``, the positions of the scale's
    tokens ``(T,)``, and keys and values of each layer ``(R, H, P, D)`` to logits ``(R, T, V)`` and
    keys and values ``(R, H, P + T, D)``.
    """
    sizes, width, layers = config.token_map_sizes, config.hidden_size, config.num_hidden_layers
    side, channels = sizes[-1], config.latent_channels
    condition = writer.input("condition", ["rows", 6 * layers + 3, width])
    latents = writer.input("latents", ["rows", channels, side, side])
    positions = writer.input("positions", ["tokens"], "int64")

    # One by one: a shader of WebGPU writes at most ten arrays, so that Split fails there.
    class_token, *modulations = (
        writer.op("Gather", condition, writer.numbers(row), axis=1) for row in range(6 * layers + 3)
    )  # (R, 1, C)
    flat = writer.op("Transpose", writer.reshape(latents, 0, 0, side**2), perm=[0, 2, 1])
    area = writer.op("Gather", writer.constant("area", area_matrix(sizes)), positions)
    grid = writer.op("MatMul", area, flat)  # (R, T, Z)
    is_first = writer.op(
        "Less", positions, writer.constant("num_first", np.array(sizes[0] ** 2, np.int64))
    )
    is_first = writer.op("Unsqueeze", is_first, writer.numbers(0, 2))
    inputs = writer.linear(grid, "embeddings.latent_projection")
    inputs = writer.op("Where", is_first, class_token, inputs)  # (R, T, C)
    places = writer.table("places", _places(writer, sizes))
    x = writer.op("Add", inputs, writer.op("Gather", places, positions))

    present = []
    for layer in range(layers):
        gates, scales, shifts = (modulations[6 * layer + i : 6 * layer + i + 2] for i in (0, 2, 4))
        normed = _modulated_norm(writer, x, config, scales[0], shifts[0])
        attended, cache = _attention(writer, normed, config, layer)
        present += cache
        x = writer.op("Add", x, writer.op("Mul", attended, gates[0]))
        normed = _modulated_norm(writer, x, config, scales[1], shifts[1])
        hidden = writer.gelu(writer.linear(normed, f"layers.{layer}.mlp.fc1"))
        hidden = writer.linear(hidden, f"layers.{layer}.mlp.fc2")
        x = writer.op("Add", x, writer.op("Mul", hidden, gates[1]))
    x = _modulated_norm(writer, x, config, *modulations[6 * layers :])
    writer.output(writer.linear(x, "lm_head"), "logits", ["rows", "tokens", config.vocab_size])
    heads = config.num_attention_heads
    shape = ["rows", heads, "past + tokens", width // heads]
    for name, value in zip(cache_names(layers), present, strict=True):
        writer.output(value, f"present.{name}", shape)


def cache_names(num_layers: int) -> list[str]:
    """The keys and values of all layers, as the inputs and outputs are named."""
    return [f"{layer}.{part}" for layer in range(num_layers) for part in ("key", "value")]


def _places(writer: Writer, sizes: Sequence[int]) -> NDArray[np.float32]:
    """The sum of all that depends on a token's place alone, ``(L, C)``."""
    counts = [size**2 for size in sizes]
    places = writer.state_dict("embeddings.position_embedding")[0]
    places = places + writer.state_dict("embeddings.scale_embedding.weight").repeat(counts, 0)
    places[: counts[0]] += writer.state_dict("embeddings.start_embedding")[0]
    return places


def _modulated_norm(writer: Writer, x: str, config: Any, scale: str, shift: str) -> str:
    ones = writer.constant("ones", np.ones(config.hidden_size, np.float32))
    normed = writer.op("LayerNormalization", x, ones, epsilon=config.layer_norm_eps)
    scaled = writer.op("Mul", normed, writer.op("Add", scale, writer.number(1.0)))
    return writer.op("Add", scaled, shift)


def _attention(writer: Writer, x: str, config: Any, layer: int) -> tuple[str, list[str]]:
    """Attention over this scale and the cache, and the keys and values of both."""
    name = f"layers.{layer}.self_attn"
    heads = config.num_attention_heads
    head_dim = config.hidden_size // heads
    query, key, value = (
        writer.op(
            "Transpose",
            writer.reshape(writer.linear(x, f"{name}.{part}_proj"), 0, 0, heads, head_dim),
            perm=[0, 2, 1, 3],
        )
        for part in "qkv"
    )  # (R, H, T, D)
    if config.qk_norm:
        log_scale = np.minimum(writer.state_dict(f"{name}.logit_scale"), MAX_LOG_SCALE)
        scale = writer.constant(f"{name}.scale", np.exp(log_scale))  # (1, H, 1, 1)
        query, key = _unit(writer, query), _unit(writer, key)
    else:
        scale = writer.number(0.25 / math.sqrt(head_dim))
    query = writer.op("Mul", query, scale)
    cache = []
    for part, states in (("key", key), ("value", value)):
        past = writer.input(f"past.{layer}.{part}", ["rows", heads, "past", head_dim])
        cache.append(writer.op("Concat", past, states, axis=2))
    scores = writer.op("MatMul", query, writer.op("Transpose", cache[0], perm=[0, 1, 3, 2]))
    mixed = writer.op("MatMul", writer.op("Softmax", scores, axis=-1), cache[1])
    mixed = writer.op("Transpose", mixed, perm=[0, 2, 1, 3])
    return writer.linear(writer.reshape(mixed, 0, 0, config.hidden_size), f"{name}.o_proj"), cache


def _unit(writer: Writer, states: str) -> str:
    """Vectors of length 1, as `torch.nn.functional.normalize` computes them."""
    length = writer.op("ReduceL2", states, writer.numbers(-1), keepdims=1)
    return writer.op("Div", states, writer.op("Max", length, writer.number(1e-12)))


# Quantizer


def write_latents(writer: Writer, config: Any) -> None:
    """Latents ``(B, Z, F, F)``, the tokens ``(B, T)`` of a scale and their positions ``(T,)`` to
    the latents after this scale.
    """
    channels, side = config.latent_channels, config.token_map_sizes[-1]
    shape = ["rows", channels, side, side]
    latents = writer.input("latents", shape)
    tokens = writer.input("tokens", ["rows", "tokens"], "int64")
    positions = writer.input("positions", ["tokens"], "int64")
    writer.output(_add_tokens(writer, config, latents, tokens, positions), "new_latents", shape)


def _add_tokens(writer: Writer, config: Any, latents: str, tokens: str, positions: str) -> str:
    """`MultiScaleQuantizer.expand`, added to the latents."""
    sizes = config.token_map_sizes
    codes = writer.op("Gather", _codebook(writer), tokens)  # (B, T, Z)
    bicubic = writer.op("Gather", writer.constant("bicubic", bicubic_matrix(sizes)), positions)
    code_map = writer.op("MatMul", writer.op("Transpose", codes, perm=[0, 2, 1]), bicubic)
    code_map = writer.reshape(code_map, 0, 0, sizes[-1], sizes[-1])
    if config.refiner_mix:
        table = np.repeat(np.array(config.refiner_of_scale, np.int64), [size**2 for size in sizes])
        first = writer.constant("first", np.array(0, np.int64))
        place = writer.op("Gather", positions, first)
        refiner = writer.op("Gather", writer.constant("refiner_of_token", table), place)
        weight, bias = (
            writer.op("Gather", _refiners(writer, int(max(table)) + 1, part), refiner)
            for part in ("weight", "bias")
        )
        refined = writer.op("Conv", code_map, weight, bias, pads=[1, 1, 1, 1])
        code_map = writer.op(
            "Add",
            writer.op("Mul", code_map, writer.number(1 - config.refiner_mix)),
            writer.op("Mul", refined, writer.number(config.refiner_mix)),
        )
    return writer.op("Add", latents, code_map)


def _codebook(writer: Writer) -> str:
    name = "quantizer.codebook.weight"
    return writer.constant(name, writer.state_dict(name))


def _refiners(writer: Writer, count: int, part: str) -> str:
    arrays = [writer.state_dict(f"quantizer.refiners.{i}.{part}") for i in range(count)]
    return writer.constant(f"quantizer.refiners.{part}", np.stack(arrays))


# Pixels


def write_decoder(writer: Writer, config: Any) -> None:
    """Latents ``(B, Z, F, F)`` to images ``(B, 3, P, P)`` in [-1, 1]."""
    side, levels = config.token_map_sizes[-1], len(config.channel_multipliers)
    x = writer.input("latents", ["rows", config.latent_channels, side, side])
    x = writer.conv(writer.conv(x, "post_quant_conv"), "decoder.conv_in")
    x = _middle(writer, x, config, "decoder.mid", side)
    for level in reversed(range(levels)):
        name = f"decoder.up.{level}"
        x = _level(writer, x, config, name, config.num_res_blocks + 1, level == levels - 1, side)
        if level > 0:
            scales = writer.constant("scales", np.array([1, 1, 2, 2], np.float32))
            x = writer.op(
                "Resize",
                x,
                "",
                scales,
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
            x, side = writer.conv(x, f"{name}.upsample.conv"), 2 * side
    x = _project_out(writer, x, config, "decoder", side)
    x = writer.op("Clip", x, writer.number(-1.0), writer.number(1.0))
    writer.output(x, "images", ["rows", config.in_channels, side, side])


def write_encoder(writer: Writer, config: Any) -> None:
    """Images ``(B, 3, P, P)`` in [-1, 1] to the tokens of all scales, ``(B, L)``."""
    sizes, levels = config.token_map_sizes, len(config.channel_multipliers)
    side = sizes[-1] * 2 ** (levels - 1)
    x = writer.input("images", ["rows", config.in_channels, side, side])
    x = writer.conv(x, "encoder.conv_in")
    for level in range(levels):
        name = f"encoder.down.{level}"
        x = _level(writer, x, config, name, config.num_res_blocks, level == levels - 1, side)
        if level < levels - 1:
            # Padding at the right and bottom only.
            x = writer.conv(x, f"{name}.downsample.conv", stride=2, pads=[0, 0, 1, 1])
            side //= 2
    x = _middle(writer, x, config, "encoder.mid", side)
    features = writer.conv(_project_out(writer, x, config, "encoder", side), "quant_conv")
    writer.output(
        _tokens(writer, config, features), "tokens", ["rows", sum(s**2 for s in sizes)], "int64"
    )


def _tokens(writer: Writer, config: Any, features: str) -> str:
    """The tokens of features ``(B, Z, F, F)``: algorithm 1 of arXiv 2404.02905."""
    codebook = writer.state_dict("quantizer.codebook.weight")
    area = writer.constant("area", area_matrix(config.token_map_sizes))
    # The square of the vector itself is the same for all codes.
    squares = writer.constant("squares", np.square(codebook).sum(1))
    doubled = writer.constant("doubled", 2 * codebook.T)
    latents, maps, start = writer.op("Sub", features, features), [], 0
    for size in config.token_map_sizes:
        positions = writer.constant(f"positions:{size}", np.arange(start, start + size**2))
        residual = writer.op("Sub", features, latents)
        flat = writer.reshape(residual, 0, 0, config.token_map_sizes[-1] ** 2)
        targets = writer.op(
            "MatMul",
            writer.op("Gather", area, positions),
            writer.op("Transpose", flat, perm=[0, 2, 1]),
        )  # (B, T, Z)
        distances = writer.op("Sub", squares, writer.op("MatMul", targets, doubled))
        tokens = writer.op("ArgMin", distances, axis=-1, keepdims=0)
        latents = _add_tokens(writer, config, latents, tokens, positions)
        maps.append(tokens)
        start += size**2
    return writer.op("Concat", *maps, axis=1)


def _level(
    writer: Writer, x: str, config: Any, name: str, blocks: int, attention: bool, side: int
) -> str:
    for block in range(blocks):
        x = _resnet_block(writer, x, config, f"{name}.block.{block}", side)
        if attention:
            x = _spatial_attention(writer, x, config, f"{name}.attn.{block}", side)
    return x


def _middle(writer: Writer, x: str, config: Any, name: str, side: int) -> str:
    x = _resnet_block(writer, x, config, f"{name}.block_1", side)
    x = _spatial_attention(writer, x, config, f"{name}.attn_1", side)
    return _resnet_block(writer, x, config, f"{name}.block_2", side)


def _project_out(writer: Writer, x: str, config: Any, name: str, side: int) -> str:
    x = writer.silu(_group_norm(writer, x, config, f"{name}.norm_out", side))
    return writer.conv(x, f"{name}.conv_out")


def _group_norm(writer: Writer, x: str, config: Any, name: str, side: int) -> str:
    return writer.group_norm(x, name, config.norm_num_groups, config.norm_eps, side)


def _resnet_block(writer: Writer, x: str, config: Any, name: str, side: int) -> str:
    inner = x
    for part in (1, 2):
        inner = writer.silu(_group_norm(writer, inner, config, f"{name}.norm{part}", side))
        inner = writer.conv(inner, f"{name}.conv{part}")
    if writer.has(f"{name}.nin_shortcut.weight"):
        x = writer.conv(x, f"{name}.nin_shortcut")
    return writer.op("Add", inner, x)


def _spatial_attention(writer: Writer, x: str, config: Any, name: str, side: int) -> str:
    joint = writer.conv(_group_norm(writer, x, config, f"{name}.norm", side), f"{name}.qkv")
    query, key, value = writer.ops(
        "Split", 3, writer.reshape(joint, 0, 0, side**2), axis=1, num_outputs=3
    )  # (B, C, F * F)
    channels = len(writer.state_dict(f"{name}.norm.weight"))
    query = writer.op("Mul", query, writer.number(channels**-0.5))
    scores = writer.op("MatMul", writer.op("Transpose", query, perm=[0, 2, 1]), key)
    weights = writer.op("Softmax", scores, axis=-1)
    mixed = writer.op("MatMul", value, writer.op("Transpose", weights, perm=[0, 2, 1]))
    mixed = writer.conv(writer.reshape(mixed, 0, channels, side, side), f"{name}.proj_out")
    return writer.op("Add", x, mixed)
