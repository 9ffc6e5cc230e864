"""The enlargement of logits by the discrete cosine transform; its use is tested with guidance."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from var_hf.spatial_guidance import cosine_resize_matrix


@given(size=st.integers(1, 16), new_size=st.integers(1, 16), seed=st.integers(0, 2**32))
def test_the_cosine_resize_keeps_constants_and_comes_back(size, new_size, seed):
    signal = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    matrix = cosine_resize_matrix(size, new_size)

    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(new_size), atol=1e-5, rtol=0)
    if new_size >= size:
        back = cosine_resize_matrix(new_size, size) @ (matrix @ signal)
        torch.testing.assert_close(back, signal, atol=1e-4, rtol=1e-4)


def test_the_cosine_resize_is_exact_for_a_cosine():
    def wave(size):
        return torch.cos(torch.pi * 2 * (torch.arange(size) + 0.5) / size)

    torch.testing.assert_close(cosine_resize_matrix(5, 8) @ wave(5), wave(8), atol=1e-6, rtol=0)
    ours = cosine_resize_matrix(3, 3)
    torch.testing.assert_close(ours, torch.eye(3), atol=1e-6, rtol=0)
