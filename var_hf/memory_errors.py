"""Turns out-of-memory errors into one clear error."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def memory_errors(what: str, device: torch.device, advice: str) -> Iterator[None]:
    """Turn an out-of-memory error into a `ValueError` with a remedy.

    Args:
        what: Subject of the message, such as ``"8 images at a time"``.
        device: Device of the computation.
        advice: Remedy, such as ``"Pass a smaller --batch-size"``.

    Raises:
        ValueError: The device ran out of memory.
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
