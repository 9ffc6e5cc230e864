"""8-bit computation on a CPU: linear layers whose weights and inputs are rounded to integers.

Weights are rounded once, inputs at each call. A weight row (one output channel) and an input row
(one token) have a step size each, so that a token's result does not depend on the other tokens of a
batch. oneDNN sums the products of integers exactly (`torch.ops.onednn.qlinear_pointwise`).
"""

import functools
from collections.abc import Iterable
from typing import Any, cast

import torch
from diffusers.utils.logging import get_logger
from torch import Tensor, nn
from torch.nn import functional

from .modeling_var import INT8_NOT_SAVED, VARDecoderLayer, VARLinear, VARModel

WEIGHT_LEVELS = 127
"""Weights become integers in [-127, 127]."""


class Int8Linear(VARLinear):
    """A linear layer that computes in 8 bits, on a CPU and without gradients.

    The integer weights exist only in oneDNN's layout, which cannot be saved.

    Args:
        layer: The layer to round; it is not changed.
        levels: Inputs become integers in [-levels, levels]; see [`input_levels`].
    """

    def __init__(self, layer: nn.Linear, levels: int):
        nn.Module.__init__(self)  # there are no weights to allocate
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.levels = levels
        weight = layer.weight.detach().float()
        # No buffers: `.to(dtype)` must not round the step sizes.
        self.steps = _steps(weight, WEIGHT_LEVELS).squeeze(1)
        self.packed = _pack((weight / self.steps[:, None]).round().to(torch.int8))
        self.zero_points = torch.zeros(self.out_features, dtype=torch.int64)
        bias = cast("Tensor | None", layer.bias)
        self.bias_values = None if bias is None else bias.detach().float()

    def forward(self, input: Tensor, gelu: bool = False) -> Tensor:
        if input.requires_grad:
            raise ValueError("A model in int8 has no gradients. Load it again to train it.")
        if input.device.type != "cpu":
            raise ValueError(
                f"A model in int8 computes on the CPU alone, and its input is on {input.device}. "
                "Load it again for another device."
            )
        rows = input.float()
        steps = _steps(rows, self.levels)
        # oneDNN wants them unsigned: `levels` is the zero point, added modulo 256.
        integers = (rows / steps).round_().to(torch.int8).add_(self.levels).view(torch.uint8)
        output = _multiply(integers, self.levels, self.packed, self.steps, self.zero_points)
        output = output.mul_(steps)
        if self.bias_values is not None:
            output = output.add_(self.bias_values)
        if gelu:
            output = functional.gelu(output, approximate="tanh")
        return output.to(input.dtype)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(INT8_NOT_SAVED)

    def extra_repr(self) -> str:
        """Describe the layer as `print(model)` shows it."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def convert_where_possible(models: Iterable[VARModel], device: torch.device) -> None:
    """Convert the models that are not in int8 yet; warn where `device` has no 8-bit product.

    Raises:
        ValueError: The weights are quantized already.
    """
    levels = input_levels() if device.type == "cpu" else None
    for model in models:
        if levels is None:
            get_logger(__name__).warning(
                f"int8 needs an x86 CPU with oneDNN, and this model computes on {device}. "
                f"It stays in {model.dtype}."
            )
        elif not model.is_int8:
            convert_to_int8(model, levels)


def convert_to_int8(model: VARModel, levels: int) -> None:
    """Replace the linear layers of all blocks by 8-bit ones.

    Embeddings, the last norm's modulation and the head stay as they are.

    Args:
        model: The transformer, on the CPU. An adapter on its layers stays as it is.
        levels: As in [`Int8Linear`].

    Raises:
        ValueError: The weights are quantized already.
    """
    found = [
        (parent, name, layer)
        for block in model.modules()
        if isinstance(block, VARDecoderLayer)
        for parent in block.modules()
        for name, layer in parent.named_children()
        if type(layer) is VARLinear
    ]
    for _, name, layer in found:
        if type(layer.weight) is not nn.Parameter:
            raise ValueError(
                f"The weights of {name} are quantized already ({type(layer.weight).__name__}). "
                "Load the model without quantization_config for enable_int8()."
            )
    for parent, name, layer in found:
        setattr(parent, name, Int8Linear(layer, levels))
    model.is_int8 = True


def int8_tensors(model: VARModel) -> dict[str, Tensor]:
    """Tensors that identify the weights of a model in int8, by name.

    They are its parameters and, for each 8-bit layer, the step sizes: the largest magnitude of each
    row of weights.
    """
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    for name, module in model.named_modules():
        if isinstance(module, Int8Linear):
            tensors[f"{name}.steps"] = module.steps
            if module.bias_values is not None:
                tensors[f"{name}.bias"] = module.bias_values
    return tensors


@functools.cache
def input_levels() -> int | None:
    """Largest integer for inputs whose products with weights this machine sums exactly.

    127 where the processor sums four products of 8-bit integers in 32 bits (VNNI, AMX). Older
    processors sum two of them in 16 bits, which 127 overflows and 63 does not. `None` if oneDNN has
    no 8-bit product here. It is found by trying the largest values.
    """
    weights = torch.tensor([[WEIGHT_LEVELS], [-WEIGHT_LEVELS]], dtype=torch.int8).repeat(32, 64)
    for levels in (127, 63):
        signs = torch.where(torch.arange(64)[:, None] % 3 == 0, -1, 1)
        integers = (signs * levels + levels).to(torch.uint8).repeat(1, 64)
        expected = (integers.double() - levels) @ weights.double().T
        count = len(weights)
        try:
            found = _multiply(
                integers, levels, _pack(weights), torch.ones(count), torch.zeros(count).long()
            )
        except (AttributeError, NotImplementedError, RuntimeError):
            return None
        if torch.equal(found.double(), expected):
            return levels
    return None


def _steps(rows: Tensor, levels: int) -> Tensor:
    """Step size of each row ``(..., 1)``: its largest magnitude becomes `levels`."""
    # Ten times as fast as the norm.
    largest = torch.maximum(rows.amax(dim=-1, keepdim=True), -rows.amin(dim=-1, keepdim=True))
    return largest.div_(levels).clamp_min_(torch.finfo(torch.float32).tiny)


def _pack(weight: Tensor) -> Tensor:
    """Integer weights ``(N, K)`` in oneDNN's layout."""
    return torch.ops.onednn.qlinear_prepack(weight, None)


def _multiply(
    integers: Tensor, zero_point: int, packed: Tensor, steps: Tensor, zero_points: Tensor
) -> Tensor:
    """Product of ``(..., K)`` with packed weights, times their steps: ``(..., N)``, float32."""
    return torch.ops.onednn.qlinear_pointwise(
        integers, 1.0, zero_point, packed, steps, zero_points, None, 1.0, 0, torch.float32, "none",
        [], "",
    )  # fmt: skip
