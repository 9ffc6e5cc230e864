"""The eager runner, which computes each scale as it comes, and the interface of all runners.

`var_hf.compiled` holds the compiled runner.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .generation import Run, ScaleInputs, ScaleResult, draw_scale
from .modeling_var import NextScaleCache, VARModel


class Runner(Protocol):
    """Computes scales, and accounts for the memory that it holds between calls."""

    @property
    def held_bytes(self) -> int:
        """Memory of keys and values that the next call takes over or releases."""

    def start(self) -> Run:
        """Begin one call."""


class EagerRunner:
    """Computes each scale by plain PyTorch calls. Holds nothing between calls."""

    held_bytes = 0

    def start(self) -> "EagerRunner":
        """Begin one call; there is no state to keep."""
        return self

    def new_cache(self, transformer: VARModel, rows: int, num_tokens: int) -> NextScaleCache:
        """See [`Run`]."""
        return transformer.new_cache(num_tokens)

    def draw_scale(self, inputs: ScaleInputs) -> ScaleResult:
        """See [`Run`]."""
        result = draw_scale(inputs)
        check_finite([result.finite], inputs.scale, inputs.transformer.dtype)
        return result


def check_finite(finite: Sequence[Tensor], first: int, dtype: torch.dtype) -> None:
    """Raise a ``ValueError`` for the first scale whose logits are not finite.

    Args:
        finite: Bools ``()``, one per scale.
        first: Number of the scale that the first one belongs to.
        dtype: Dtype of the transformer, for the error message.
    """
    if not torch.stack(list(finite)).all():
        scale = first + [bool(one) for one in finite].index(False)
        advice = "Load the pipeline in bfloat16" if dtype == torch.float16 else "Check the weights"
        raise ValueError(
            f"The transformer's logits at scale {scale} are not finite, computed in {dtype}. "
            f"{advice}."
        )
