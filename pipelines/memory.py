"""Whether a batch fits into memory, before it is tried."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from var_hf.modeling_var import VARModel

MEMINFO = Path("/proc/meminfo")  # of Linux
# Memory that a control group (a container) may use and uses; a machine's own figures do not show that limit.
CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device) -> float | None:
    """Free memory of a device; `None` where that cannot be told."""
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
    transformer: VARModel,
    vqvae: Mapping[str, Any],
    device: torch.device,
    batch_size: int,
    guided_scales: int,
    held_bytes: int = 0,
) -> None:
    """Raise a ``ValueError`` for a batch that needs more memory than is free.

    Args:
        transformer: The model; its weights are in memory already.
        vqvae: The VQVAE's configuration.
        device: Where it computes.
        batch_size: Images at a time.
        guided_scales: Number of guided scales.
        held_bytes: Memory that an earlier call left to this one and that the device counts as taken.
    """
    available = available_bytes(device)
    if available is None:
        return
    available += held_bytes
    from var_hf.costs import generation_cost, largest_batch

    arguments: dict[str, Any] = {
        "guided_scales": guided_scales,
        "bytes_per_number": transformer.dtype.itemsize,
        "device_type": device.type,
    }
    cost = generation_cost(transformer.config, vqvae, batch_size=batch_size, **arguments)
    if cost.call_bytes > available:
        fits = largest_batch(available, transformer.config, vqvae, **arguments)
        raise ValueError(
            f"Drawing {batch_size} images at a time takes about {cost.call_bytes / 1e9:.3g} GB beside the weights, and "
            f"{device} has {available / 1e9:.3g} GB free. At most {fits} fit: draw fewer at a time."
        )
