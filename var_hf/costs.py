"""Costs of a generation by formula: floating-point operations, bytes, and the minimum time;
operations of a classification; and memory of a training.

A multiplication with an addition counts as two operations. For the letters of shapes, see
`quantization.py`. R is the number of rows: B, or 2B with guidance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig

from .budgets import Stage
from .memory import call_memory


@dataclass(frozen=True)
class Device:
    """Speed limits of a device.

    Attributes:
        name: Name in tables.
        flops: Floating-point operations per second of large matrix products.
        bandwidth: Bytes per second of its memory.
    """

    name: str
    flops: float
    bandwidth: float


# Operations: dense bfloat16 as reached by good matrix products. Bandwidth: from the data sheet.
DEVICES = {
    "h100": Device("H100 SXM", 800e12, 3.0e12),
    "a100": Device("A100 80 GB", 280e12, 1.9e12),
    "l4": Device("L4", 100e12, 0.3e12),
}


@dataclass(frozen=True)
class ScaleCost:
    """Cost of one transformer pass, or of the AdaLN layers.

    Attributes:
        size: Side of the token map.
        flops: Operations of linear layers, attention and head, for the whole batch.
        bytes: Minimum number of bytes read from memory: the weights once, and the keys and values.
    """

    size: int
    flops: float
    bytes: float


@dataclass(frozen=True)
class GenerationCost:
    """Cost of one generation of B images.

    Attributes:
        batch_size: Images B.
        scales: One entry per transformer pass.
        modulation: The AdaLN layers, once per generation.
        decoder_flops: Operations of the VQVAE's decoder, for the whole batch.
        transformer_parameters: Number of weights of the transformer.
        decoder_parameters: Number of weights of the decoder.
        weight_bytes: Memory of the weights of both.
        cache_bytes: Memory of keys, values and modulations.
        work_bytes: Memory of the largest intermediate results of a scale or a chunk of images.
        decoder_bytes: Minimum number of bytes that the decoder reads and writes.
    """

    batch_size: int
    scales: tuple[ScaleCost, ...]
    modulation: ScaleCost
    decoder_flops: float
    transformer_parameters: int
    decoder_parameters: int
    weight_bytes: int
    cache_bytes: int
    work_bytes: int
    decoder_bytes: float

    @property
    def flops(self) -> float:
        """Number of all operations."""
        return sum(s.flops for s in (*self.scales, self.modulation)) + self.decoder_flops

    @property
    def call_bytes(self) -> int:
        """Memory of a call in addition to the weights."""
        return self.cache_bytes + self.work_bytes

    def least_seconds(self, device: Device) -> dict[str, float]:
        """Compute the roofline: seconds per part, each limited by arithmetic or memory."""
        transformer = sum(
            max(part.flops / device.flops, part.bytes / device.bandwidth)
            for part in (*self.scales, self.modulation)
        )
        decoder = max(self.decoder_flops / device.flops, self.decoder_bytes / device.bandwidth)
        return {
            "transformer": transformer,
            "decoder": decoder,
            "total": transformer + decoder,
        }


@dataclass(frozen=True)
class TrainingMemory:
    """Memory of one process during a training with AdamW, in bytes.

    Attributes:
        parameters: Weights in float32.
        gradients: Their gradients, and with DDP the buckets that are sent.
        optimizer: AdamW's two moments.
        gathered: With FSDP2 the weights and gradients that are whole for a moment; with bfloat16
            the copies of weights that autocast makes.
        activations: What the forward pass keeps for the backward pass, and the logits.
    """

    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        state = self.parameters + self.gradients + self.optimizer
        return state + self.gathered + self.activations


def layer_parameters(config: PreTrainedConfig) -> int:
    """Count the weights of one layer that every scale uses: attention and MLP."""
    width, inner = config.hidden_size, int(config.intermediate_size)
    heads = config.num_attention_heads if config.qk_norm else 0
    return 4 * width**2 + 3 * width + 2 * width * inner + inner + width + heads


def modulation_parameters(config: PreTrainedConfig) -> int:
    """Count the weights of all modulation layers, which are used once per generation."""
    width, depth = config.hidden_size, config.num_hidden_layers
    layer = 6 * width * (width + 1)
    blocks = layer + depth * 6 * width if config.share_modulation else depth * layer
    return blocks + 2 * width * (width + 1)


def matrix_parameters(config: PreTrainedConfig) -> int:
    """Count the weights of all layers' matrices: attention, MLP and modulation.

    Biases, embeddings and head are left out, as in the counts of scaling laws: 73,728 d^3 for a
    release of depth d (arXiv 2404.02905, equation 8), and 49,152 d^3 with a shared modulation.
    """
    width, depth = config.hidden_size, config.num_hidden_layers
    modulation = 0 if config.share_modulation else 6 * width**2
    return depth * (4 * width**2 + 2 * width * int(config.intermediate_size) + modulation)


def training_flops(config: PreTrainedConfig) -> float:
    """Count the transformer's operations of training on one image.

    The backward pass counts as two forward passes. Attention counts in full, with the pairs that
    the mask leaves out.
    """
    forward = pass_flops(config, 1, config.num_tokens, config.num_tokens)
    return 3 * (forward + modulation_flops(config, 1))


def modulation_flops(config: PreTrainedConfig, rows: int) -> float:
    """Count the operations of all modulation layers for a number of rows."""
    layers = 6 * (1 if config.share_modulation else config.num_hidden_layers) + 2
    return 2 * rows * config.hidden_size**2 * layers


def pass_flops(config: PreTrainedConfig, rows: int, tokens: int, keys: int) -> float:
    """Count the operations of linear layers, attention and head in one pass.

    Args:
        config: The transformer's configuration.
        rows: Number of rows R.
        tokens: Number of tokens of a row that are computed.
        keys: Number of tokens that they attend to.
    """
    width, depth = config.hidden_size, config.num_hidden_layers
    layer = 4 * width**2 + 2 * width * int(config.intermediate_size)
    linear = 2 * rows * tokens * (depth * layer + config.vocab_size * width)
    return linear + 4 * rows * tokens * keys * width * depth


def classification_cost(config: PreTrainedConfig, stages: Sequence[Stage]) -> list[float]:
    """Count the transformer's operations of classifying one image, one number per stage.

    The VQVAE's encoder is not included; it runs once per image, whatever the stages are.

    Args:
        config: The transformer's configuration.
        stages: As from `budgets.resolve_budget`.
    """
    ends = [0] + [tokens.stop for tokens in config.token_slices]
    scales_read = [0] * max(stage.samples for stage in stages)
    costs, rows = [], config.num_classes
    for stage in stages:
        cost = 0.0
        for sample in range(stage.samples):
            start = scales_read[sample]
            stops = range(start + 1, stage.scales + 1) if start else [stage.scales]
            for stop in stops:
                cost += modulation_flops(config, rows)
                cost += pass_flops(config, rows, ends[stop] - ends[start], ends[stop])
                start = stop
            scales_read[sample] = start
        costs.append(cost)
        rows = stage.candidates
    return costs


def transformer_parameters(config: PreTrainedConfig) -> int:
    """Count all weights of the transformer."""
    width = config.hidden_size
    embeddings = width * (
        config.num_classes
        + 1
        + config.token_map_sizes[0] ** 2
        + config.num_tokens
        + config.num_scales
        + config.latent_channels
        + 1
    )
    head = config.vocab_size * (width + 1)
    layers = config.num_hidden_layers * layer_parameters(config)
    return embeddings + layers + modulation_parameters(config) + head


def training_memory(
    config: PreTrainedConfig,
    *,
    images: int,
    processes: int = 1,
    shard: bool = False,
    gradient_checkpointing: bool = False,
    bf16: bool = False,
) -> TrainingMemory:
    """Compute the memory of one process during a training of all weights with AdamW.

    The coefficients of activations are the sizes of what autograd keeps with fused attention
    (tests/test_costs.py counts them). The process itself and its libraries are not included.

    Args:
        config: The transformer's configuration.
        images: Images that a process computes at once.
        processes: Number of processes N.
        shard: Cut the model up (FSDP2) instead of copying it (DDP).
        gradient_checkpointing: Keep the input of each layer alone.
        bf16: Compute in bfloat16 by autocast.
    """
    width, inner = config.hidden_size, int(config.intermediate_size)
    depth, length = config.num_hidden_layers, config.num_tokens
    weights = transformer_parameters(config)
    modulation = 6 * width if config.share_modulation else 6 * width * (width + 1)
    layer = layer_parameters(config) + modulation
    root = weights - depth * layer  # embeddings, final norm and head

    parts = processes if shard else 1
    state = -(-4 * weights // parts)
    gathered = 0
    if shard and processes > 1:
        # Weights of a layer and of the next one, its gradients, and what is sent of them.
        gathered = 16 * layer + 8 * root
    if bf16:
        # Autocast keeps its copies for the backward pass or, without shard, in its cache.
        gathered += 2 * (layer if shard and gradient_checkpointing else weights)
    of_layer = length * ((48 * width + 4 * inner) if bf16 else (60 * width + 8 * inner))
    kept = depth * 4 * length * width + of_layer if gradient_checkpointing else depth * of_layer
    mask = length**2 * (2 if bf16 else 4)
    logits = 3 * 4 * length * config.vocab_size  # themselves, their softmax, their gradients
    return TrainingMemory(
        parameters=state,
        gradients=2 * state if processes > 1 and not shard else state,
        optimizer=2 * state,
        gathered=gathered,
        activations=images * (kept + mask + logits),
    )


def decoder_costs(vqvae: Mapping[str, Any], side: int) -> tuple[float, int, float]:
    """Compute the costs of the convolutions of the VQVAE's decoder.

    Args:
        vqvae: The VQVAE's configuration.
        side: Side F of the latents.

    Returns:
        Operations per image, number of weights, and numbers read and written per image.
    """
    flops, weights, numbers = 0.0, 0, 0.0

    def convolution(inputs: int, outputs: int, kernel: int, side: int) -> None:
        nonlocal flops, weights, numbers
        flops += 2 * kernel**2 * inputs * outputs * side**2
        weights += kernel**2 * inputs * outputs + outputs
        numbers += (inputs + outputs) * side**2

    def block(inputs: int, outputs: int, side: int) -> None:
        nonlocal weights
        weights += 2 * (inputs + outputs)  # two group norms
        convolution(inputs, outputs, 3, side)
        convolution(outputs, outputs, 3, side)
        if inputs != outputs:
            convolution(inputs, outputs, 1, side)

    def attention(channels: int, side: int) -> None:
        nonlocal flops, weights
        weights += 2 * channels
        convolution(channels, 3 * channels, 1, side)
        convolution(channels, channels, 1, side)
        flops += 4 * channels * side**4

    latent, channels = vqvae["latent_channels"], vqvae["base_channels"]
    widths = [channels * multiplier for multiplier in vqvae["channel_multipliers"]]
    convolution(latent, latent, 3, side)  # post_quant_conv
    width = widths[-1]
    convolution(latent, width, 3, side)
    block(width, width, side)
    attention(width, side)
    block(width, width, side)
    for level in reversed(range(len(widths))):
        for _ in range(vqvae["num_res_blocks"] + 1):
            block(width, widths[level], side)
            width = widths[level]
            if level == len(widths) - 1:
                attention(width, side)
        if level > 0:
            side *= 2
            convolution(width, width, 3, side)
    weights += 2 * width
    convolution(width, vqvae["in_channels"], 3, side)
    return flops, weights, numbers


def generation_cost(
    config: PreTrainedConfig,
    vqvae: Mapping[str, Any],
    *,
    batch_size: int = 1,
    guided_scales: int | None = None,
    bytes_per_number: int = 2,
    device_type: str = "cpu",
    scales: Sequence[int] | None = None,
) -> GenerationCost:
    """Compute the cost of generating `batch_size` images.

    Args:
        config: The transformer's configuration.
        vqvae: The VQVAE's configuration.
        batch_size: Images B.
        guided_scales: Number of guided scales from the coarsest; all by default, 0 for no guidance.
        bytes_per_number: Bytes of a weight, key or value: 2 in half precision, 4 in float32.
        device_type: ``"cpu"``, ``"cuda"`` and so on; determines how many images are decoded at a
            time.
        scales: The scales that this transformer predicts, all by default. Its first pass reads
            the scales before them.
    """
    width, depth, codes = config.hidden_size, config.num_hidden_layers, config.vocab_size
    guided_scales = config.num_scales if guided_scales is None else guided_scales
    head = codes * (width + 1)
    weights_per_scale = depth * layer_parameters(config) + head

    scales = range(config.num_scales) if scales is None else scales
    sizes, passes = config.token_map_sizes, []
    for scale in scales:
        rows = batch_size * (2 if scale < guided_scales else 1)
        so_far = sum(size * size for size in sizes[: scale + 1])
        tokens = so_far if scale == scales[0] else sizes[scale] ** 2
        flops = pass_flops(config, rows, tokens, so_far)
        read = weights_per_scale + 2 * rows * so_far * width * depth
        passes.append(ScaleCost(sizes[scale], flops, read * bytes_per_number))

    all_rows = batch_size * (2 if guided_scales > scales[0] else 1)
    side = config.token_map_sizes[-1]
    decoder_flops, decoder_weights, numbers = decoder_costs(vqvae, side)
    cache_bytes, work_bytes = call_memory(
        config, vqvae, batch_size, guided_scales, bytes_per_number, device_type, scales
    )
    weights = transformer_parameters(config) + decoder_weights
    return GenerationCost(
        batch_size=batch_size,
        scales=tuple(passes),
        modulation=ScaleCost(
            1,
            modulation_flops(config, all_rows),
            modulation_parameters(config) * bytes_per_number,
        ),
        decoder_flops=batch_size * decoder_flops,
        transformer_parameters=transformer_parameters(config),
        decoder_parameters=decoder_weights,
        weight_bytes=weights * bytes_per_number,
        cache_bytes=cache_bytes,
        work_bytes=work_bytes,
        decoder_bytes=(decoder_weights + batch_size * numbers) * bytes_per_number,
    )


def joint_cost(costs: Sequence[GenerationCost]) -> GenerationCost:
    """Add the costs of transformers that draw the scales of one generation and share a decoder."""
    first = costs[0]
    weights = [cost.transformer_parameters for cost in costs]
    bytes_per_number = first.weight_bytes // (weights[0] + first.decoder_parameters)
    return replace(
        first,
        scales=tuple(scale for cost in costs for scale in cost.scales),
        modulation=ScaleCost(
            1,
            sum(cost.modulation.flops for cost in costs),
            sum(cost.modulation.bytes for cost in costs),
        ),
        transformer_parameters=sum(weights),
        weight_bytes=first.weight_bytes + sum(weights[1:]) * bytes_per_number,
        cache_bytes=sum(cost.cache_bytes for cost in costs),
        work_bytes=max(cost.work_bytes for cost in costs),
    )
