"""Estimates the memory of a call and checks before the call that it is available."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from .modeling_var import VARModel
from .modeling_vqvae import decoded_at_a_time

MEMINFO = Path("/proc/meminfo")  # of Linux
# Memory that a control group (a container) may use and uses; a machine's own figures do not show
# that limit.
CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device) -> float | None:
    """Return the free memory of a device; `None` if it is unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu" or not MEMINFO.exists():
        return None
    found = re.search(r"^MemAvailable: +(\d+) kB$", MEMINFO.read_text(), re.MULTILINE)
    if found is None:
        return None
    available = 1024.0 * int(found[1])
    try:
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return available
    return min(available, limit - used)


def check_memory(
    uses: Sequence[tuple[VARModel, Sequence[int]]],
    vqvae: Mapping[str, Any],
    device: torch.device,
    batch_size: int,
    guided_scales: int,
    held_bytes: int = 0,
) -> None:
    """Raise a ``ValueError`` for a batch that needs more memory than is free.

    Args:
        uses: The models of the call, whose weights are already in memory, each with the scales that
            it predicts.
        vqvae: The VQVAE's configuration.
        device: Device of the computation.
        batch_size: Images at a time.
        guided_scales: Number of guided scales.
        held_bytes: Memory of an earlier call that this call reuses. The device counts it as used.
    """
    available = available_bytes(device)
    if available is None:
        return
    available += held_bytes

    def needed(batch_size: int) -> int:
        parts = [
            call_memory(
                transformer.config,
                vqvae,
                batch_size,
                guided_scales,
                transformer.dtype.itemsize,
                device.type,
                scales,
            )
            for transformer, scales in uses
        ]
        return sum(cache for cache, _ in parts) + max(work for _, work in parts)

    if needed(batch_size) > available:
        fits = largest_batch(lambda count: needed(count) <= available)
        raise ValueError(
            f"Drawing {batch_size} images at a time takes about {needed(batch_size) / 1e9:.3g} GB "
            f"beside the weights, and "
            f"{device} has {available / 1e9:.3g} GB free. At most {fits} fit: draw fewer at a time."
        )


def call_memory(
    config: PreTrainedConfig,
    vqvae: Mapping[str, Any],
    batch_size: int,
    guided_scales: int,
    bytes_per_number: int,
    device_type: str,
    scales: Sequence[int] | None = None,
) -> tuple[int, int]:
    """Estimate the bytes that a call needs in addition to the weights.

    Args:
        config: The transformer's configuration.
        vqvae: The VQVAE's configuration.
        batch_size: Images B.
        guided_scales: Number of guided scales.
        bytes_per_number: Size of weights, keys and values: 2 in half precision, 4 in float32.
        device_type: Decides how many images are decoded at a time.
        scales: The scales that the transformer predicts, all by default. It reads earlier ones in
            its first pass.

    Returns:
        Memory of keys, values and modulations; and of the largest intermediate results, while one
        scale or a chunk of images is computed.
    """
    width, depth, codes = config.hidden_size, config.num_hidden_layers, config.vocab_size
    scales = range(config.num_scales) if scales is None else scales
    tokens = [size**2 for size in config.token_map_sizes]
    all_rows = batch_size * (2 if guided_scales > scales[0] else 1)
    modulations = all_rows * width * (6 * depth + 2) * 4  # float32
    read = sum(tokens[: scales[-1] + 1])
    cache = 2 * all_rows * read * width * depth * bytes_per_number + modulations

    side, last = config.token_map_sizes[-1], config.token_map_sizes[-1] ** 2
    image_size = side * 2 ** (len(vqvae["channel_multipliers"]) - 1)
    rows = batch_size * (2 if guided_scales == config.num_scales else 1)
    # While the tokens of the last scale are drawn: the rows' logits, and the results of guidance,
    # filter and draw.
    of_sampling = 4 * last * codes * (rows + 4 * batch_size)
    per_token = (4 * width + int(config.intermediate_size)) * 4
    of_mlp = rows * last * per_token
    if scales[0] > 0:
        of_mlp = max(of_mlp, all_rows * sum(tokens[: scales[0] + 1]) * (per_token + 4 * codes))
    at_a_time = min(batch_size, decoded_at_a_time(device_type, image_size))
    widest = vqvae["base_channels"] * vqvae["channel_multipliers"][0] * image_size**2
    of_decoder = 4 * at_a_time * widest * bytes_per_number + batch_size * 3 * image_size**2 * 4 * 2
    return cache, max(of_sampling, of_mlp, of_decoder)


def largest_batch(fits: Callable[[int], bool]) -> int:
    """Return the largest number of images for which `fits` is true, from 0 to 2**20."""
    most, too_many = 0, 1
    while too_many <= 2**20 and fits(too_many):
        most, too_many = too_many, 2 * too_many
    while too_many - most > 1:
        middle = (most + too_many) // 2
        if fits(middle):
            most = middle
        else:
            too_many = middle
    return most
