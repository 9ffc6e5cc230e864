"""Methods of guidance for the loop over scales; see [`Guidance`] for the interface.

Letters: B images, S scales, T tokens of one scale, V codes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .generation import Guidance
from .sampling_settings import SamplingSettings, guidance_shares
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
        from .spatial_guidance import ScaledSpatialGuidance

        guidance = ScaledSpatialGuidance(guidance, settings.ssg_scale, token_map_sizes, device)
    return guidance
