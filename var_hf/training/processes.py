"""How many processes train together, and which of them this is."""

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """Rank, number of processes and device; connects the processes when it is first called.

    Without `cpu`, accelerate takes each of several processes on a machine without GPUs for the only
    one.
    """
    return PartialState(cpu=not torch.accelerator.is_available())
