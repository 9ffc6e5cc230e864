"""The dtype of each weight when a model is held in half precision."""

from math import isfinite

import torch
from torch import nn


def stored_dtype(model: nn.Module, name: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a parameter or buffer in a model that is loaded as `dtype`.

    `from_pretrained(dtype=...)` keeps the modules and parameters that a model class lists in
    float32.

    Args:
        model: A `VARModel` or `MultiScaleVQVAE`.
        name: Full name of the parameter or buffer.
        dtype: Dtype of the other weights.
    """
    # transformers' name of the list, and diffusers'.
    lists = ("_keep_in_fp32_modules_strict", "_keep_in_fp32_modules")
    kept = {part for attribute in lists for part in getattr(model, attribute, None) or ()}
    return dtype if kept.isdisjoint(name.split(".")) else torch.float32


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast a model in place, tensor by tensor, as `from_pretrained(dtype=...)` loads it.

    Raises:
        ValueError: A weight is too large for `dtype`.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        target = stored_dtype(model, name, dtype)
        if tensor.dtype == target or not tensor.is_floating_point():
            continue
        tensor.data = tensor.data.to(target)
        if not all(isfinite(end) for end in tensor.data.aminmax()):
            kind = str(target).removeprefix("torch.")
            raise ValueError(
                f"{name} holds weights too large for {kind}. Convert to another dtype."
            )
