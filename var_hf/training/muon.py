"""Muon, an optimiser for convolution kernels that learns more from each image than AdamW."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from var_hf.pipelines.loading import has_fast_bfloat16


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonalised momentum: every direction of a kernel is taught equally.

    A kernel ``(out, in, h, w)`` counts as the matrix ``(out, in * h * w)``. The step is scaled so
    that its entries have the size AdamW's would have, hence learning rates carry over.

    Args:
        parameters: Kernels and matrices; biases, norms and codebooks are AdamW's.
        lr: Learning rate.
        momentum: Decay of the running mean of gradients.
        weight_decay: Share of the weights taken off per step, times the learning rate.

    Source: Jordan et al., Muon (2024), with its quintic Newton-Schulz coefficients and 5 rounds;
    the scale 0.2 * sqrt(max(rows, columns)) from arXiv 2502.16982, section 2.2. torch.optim.Muon
    takes matrices only, and no convolution kernels.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; takes no closure."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                look_ahead = parameter.grad.lerp(state["momentum"], group["momentum"])
                matrix = whole(look_ahead).flatten(1)
                direction = orthogonalize(matrix).view(parameter.shape)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                scale = 0.2 * max(matrix.shape) ** 0.5
                parameter.add_(part_of(direction, parameter), alpha=-group["lr"] * scale)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process has a part, gathered in every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that all have, cut as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    # All computed the same from the same, so nothing has to be sent.
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def orthogonalize(matrix: Tensor, rounds: int = 5) -> Tensor:
    """The nearest orthogonal matrix, roughly: singular values between about 0.7 and 1.2.

    Args:
        matrix: ``(M, N)``.
        rounds: Newton-Schulz rounds. They are computed in bfloat16, whose rounding they bear, but
            on a CPU without bfloat16 instructions in float32.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.float() if matrix.is_cpu and not has_fast_bfloat16() else matrix.bfloat16()
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(rounds):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)
