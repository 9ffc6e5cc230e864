import pytest
import torch
from conftest import seeded

from var_hf.training import muon
from var_hf.training.muon import Muon, orthogonalize


@pytest.mark.parametrize("is_fast_in_half", [True, False])
@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (31, 31)])
def test_directions_are_about_equally_strong_whatever_the_processor(
    shape, is_fast_in_half, monkeypatch
):
    monkeypatch.setattr(muon, "has_fast_bfloat16", lambda: is_fast_in_half)
    matrix = torch.randn(shape, generator=seeded(1))
    matrix[:, 0] *= 5  # one direction dominates

    direction = orthogonalize(matrix)

    assert direction.dtype == torch.float32 and direction.shape == shape
    strengths = torch.linalg.svdvals(direction)
    assert strengths[:-3].min() > 0.5 and strengths.max() < 1.3
    # The same singular vectors: the product with the matrix is symmetric.
    product = direction @ matrix.T
    torch.testing.assert_close(product, product.T, rtol=0, atol=0.03 * product.abs().max().item())


def test_without_bfloat16_instructions_the_rounds_are_float32(monkeypatch):
    """bfloat16 is emulated there, many times slower."""
    dtypes = []

    class Recorder(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.Tensor.matmul or function is torch.Tensor.__matmul__:
                dtypes.append(args[0].dtype)
            return function(*args, **(kwargs or {}))

    matrix = torch.randn(5, 7, generator=seeded(2))
    for is_fast_in_half in (False, True):
        monkeypatch.setattr(muon, "has_fast_bfloat16", lambda fast=is_fast_in_half: fast)
        with Recorder():
            orthogonalize(matrix)

    assert dtypes == [torch.float32] * 15 + [torch.bfloat16] * 15


def test_a_convolution_kernel_moves_as_its_matrix_does():
    kernel = torch.nn.Parameter(torch.randn(6, 5, 3, 3, generator=seeded(3)))
    matrix = torch.nn.Parameter(kernel.detach().flatten(1).clone())
    gradient = torch.randn(6, 5, 3, 3, generator=seeded(4))
    kernel.grad, matrix.grad = gradient, gradient.flatten(1)
    start = matrix.detach().clone()

    Muon([kernel, matrix], lr=0.1, weight_decay=0.5).step()

    assert torch.equal(kernel.flatten(1), matrix)
    moved = matrix.detach() - start * (1 - 0.1 * 0.5)
    # 0.2 * sqrt(45) times a direction of strengths about 1, times the rate
    assert torch.linalg.svdvals(moved).mean().item() == pytest.approx(0.1 * 0.2 * 45**0.5, rel=0.3)
