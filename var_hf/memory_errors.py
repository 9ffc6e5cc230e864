"""Running out of a device's memory as one clear error."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def memory_errors(what: str, device: torch.device, advice: str) -> Iterator[None]:
    """Turn running out of memory into a `ValueError` that names what did not fit and what to do.

    Args:
        what: Such as ``"8 images at a time"``.
        device: The device that computes.
        advice: Such as ``"Pass a smaller --batch-size"``.

    Raises:
        ValueError: The device's memory did not suffice.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # PyTorch has a class of its own for accelerators, and none for the CPU.
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and (
            "DefaultCPUAllocator: can't allocate memory" not in str(error)
        ):
            raise
        raise ValueError(f"{what} do not fit into the memory of {device}. {advice}.") from error
