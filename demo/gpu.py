"""Hugging Face's ZeroGPU: a Space borrows a GPU while a function runs."""

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
SECONDS = 60  # the maximum time for which a function may hold the GPU


def is_zero_gpu() -> bool:
    """Check whether this is a ZeroGPU Space, which must import `spaces` before it uses CUDA."""
    return (
        bool(os.environ.get("SPACES_ZERO_GPU")) and importlib.util.find_spec("spaces") is not None
    )


def on_gpu(function: Function) -> Function:
    """Run a function on ZeroGPU's GPU if `spaces` is installed. Otherwise return it unchanged."""
    if importlib.util.find_spec("spaces") is None:
        return function
    return importlib.import_module("spaces").GPU(duration=SECONDS)(function)
