"""Methods of guidance for the loop over scales; see [`Guidance`] for the interface.

Letters: B images, S scales, T = P * P tokens of one scale, V codes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .generation import Guidance, SamplingSettings
from .scheduling_next_scale import NextScaleScheduler


class ClassifierFreeGuidance:
    """Pushes the conditional logits away from the unconditional ones, by a share of
    `guidance_scale` that depends on the scale.

    Args:
        scheduler: Holds the formula, [`NextScaleScheduler.guide`].
        shares: Share of `guidance_scale - 1` at each scale, in [0, 1]; see [`guidance_shares`].
        num_guided_scales: Number of scales, counted from the coarsest, for which unconditional
            logits are computed.
    """

    def __init__(
        self,
        scheduler: NextScaleScheduler,
        shares: Sequence[float],
        num_guided_scales: int,
    ):
        self.scheduler, self.shares = scheduler, tuple(shares)
        self.num_guided_scales = num_guided_scales

    def __call__(
        self,
        conditional: Tensor,
        unconditional: Tensor | None,
        scale: int,
        guidance_scale: float | Tensor,
        memory: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """See [`Guidance`]; keeps no memory."""
        if unconditional is None:
            return conditional, None
        share = self.shares[scale]
        return self.scheduler.guide(conditional, unconditional, share, guidance_scale), None


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


def guidance_shares(settings: SamplingSettings, num_scales: int) -> list[float]:
    """Share of the guidance at each scale, from the schedule and the range of guided scales.

    Returns:
        S numbers in [0, 1]; 0 is no guidance, 1 is `guidance_scale`.
    """
    start, stop = settings.guided_range(num_scales)
    ramp = settings.guidance_schedule == "ramp"
    return [
        (scale / (num_scales - 1) if ramp else 1.0) if start <= scale < stop else 0.0
        for scale in range(num_scales)
    ]


def make_guidance(
    scheduler: NextScaleScheduler,
    settings: SamplingSettings,
    token_map_sizes: Sequence[int],
    num_guided_scales: int,
    device: torch.device | str = "cpu",
) -> Guidance:
    """The guidance of a call.

    Args:
        scheduler: Holds the formula of classifier-free guidance.
        settings: Sampling settings.
        token_map_sizes: Side of each token map.
        num_guided_scales: Number of scales with unconditional logits; 0 is no classifier-free
            guidance.
        device: Where the logits are.
    """
    shares = guidance_shares(settings, len(token_map_sizes))
    guidance: Guidance = ClassifierFreeGuidance(scheduler, shares, num_guided_scales)
    if settings.ssg_scale > 0:
        guidance = ScaledSpatialGuidance(guidance, settings.ssg_scale, token_map_sizes, device)
    return guidance
