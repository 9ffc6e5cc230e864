"""Scaled spatial guidance: see [`ScaledSpatialGuidance`].

Letters: B images, T = P * P tokens of one scale, V codes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .generation import Guidance


class ScaledSpatialGuidance:
    """Pushes the logits of each scale away from those of the scale before, enlarged to its grid.

    With l the logits after classifier-free guidance and p the enlarged logits of the scale before,
    the result is ``l + ssg_scale * (l - p)``. It strengthens the detail that a scale adds. The
    coarsest scale has nothing before it and stays as it is.

    Args:
        inner: The guidance that computes l.
        ssg_scale: Strength; the same at every scale.
        token_map_sizes: Side P of each token map.
        device: Where the logits are.

    Source: arXiv 2602.05534 (ICLR 2026), whose authors have published no code. The formula is the
    paper's. The enlargement pads the discrete cosine transform with zeros.
    """

    def __init__(
        self,
        inner: Guidance,
        ssg_scale: float,
        token_map_sizes: Sequence[int],
        device: torch.device | str = "cpu",
    ):
        self.inner, self.ssg_scale = inner, ssg_scale
        self.token_map_sizes = tuple(token_map_sizes)
        self.num_guided_scales = inner.num_guided_scales
        pairs = zip(self.token_map_sizes, self.token_map_sizes[1:], strict=False)
        resizing = (cosine_resize_matrix(one, other).to(device) for one, other in pairs)
        self.matrices = [None, *resizing]

    def __call__(
        self,
        conditional: Tensor,
        unconditional: Tensor | None,
        scale: int,
        guidance_scale: float | Tensor,
        memory: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """See [`Guidance`]; keeps the logits of the scale before, without its own change."""
        logits, _ = self.inner(conditional, unconditional, scale, guidance_scale, None)
        matrix = self.matrices[scale]
        if memory is None or matrix is None:
            return logits, logits
        before = self.token_map_sizes[scale - 1]
        grid = memory.unflatten(1, (before, before))  # (B, P, P, V)
        prior = torch.einsum("ij,kl,bjlv->bikv", matrix, matrix, grid).flatten(1, 2)
        return logits + self.ssg_scale * (logits - prior), logits


def cosine_resize_matrix(size: int, new_size: int) -> Tensor:
    """The matrix ``(new_size, size)`` that resizes a signal by its discrete cosine transform.

    Frequencies that `size` samples lack are zero, and those that `new_size` samples cannot hold are
    dropped. Constants are kept, and equal sizes give the identity.
    """
    kept = min(size, new_size)
    analysis, synthesis = _cosines(size)[:kept], _cosines(new_size)[:kept]
    return (math.sqrt(new_size / size) * synthesis.T @ analysis).float()


def _cosines(size: int) -> Tensor:
    """The orthonormal DCT-II: one row per frequency, float64."""
    positions = torch.arange(size, dtype=torch.float64) + 0.5
    frequencies = torch.arange(size, dtype=torch.float64)[:, None]
    rows = torch.cos(torch.pi / size * frequencies * positions) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows
