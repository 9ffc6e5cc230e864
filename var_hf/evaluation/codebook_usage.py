"""Codebook usage of a tokenizer at each scale."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: A scale has collapsed if it uses a smaller share of its possible codes.
COLLAPSE_THRESHOLD = 0.05


def count_codes(token_maps: Sequence[Tensor], codebook_size: int) -> Tensor:
    """Count how often each scale uses each code: token maps ``(B, T)`` to ``(S, V)``."""
    return torch.stack(
        [torch.bincount(tokens.flatten(), minlength=codebook_size) for tokens in token_maps]
    )


@dataclass(frozen=True)
class CodebookUsage:
    """Codebook usage per scale.

    Attributes:
        distinct: Number of distinct codes at each scale.
        possible: Upper bound of `distinct`: the codebook size, or the number of tokens if that is
            smaller.
        perplexity: Exponential of the entropy of the codes. It equals `distinct` if all of these
            codes are equally frequent.
    """

    distinct: list[int]
    possible: list[int]
    perplexity: list[float]

    @classmethod
    def from_counts(cls, counts: Tensor) -> "CodebookUsage":
        """Compute the usage from counts ``(S, V)``."""
        seen = counts.sum(dim=1)  # (S,)
        shares = counts.double() / seen.clamp(min=1)[:, None]
        entropy = -torch.xlogy(shares, shares).sum(dim=1)
        return cls(
            distinct=(counts > 0).sum(dim=1).tolist(),
            possible=seen.clamp(max=counts.shape[1]).tolist(),
            perplexity=[round(value, 2) for value in entropy.exp().tolist()],
        )

    @property
    def fractions(self) -> list[float]:
        """Share of the possible codes that each scale uses, in [0, 1]."""
        pairs = zip(self.distinct, self.possible, strict=True)
        return [round(distinct / max(possible, 1), 4) for distinct, possible in pairs]

    def collapsed_scales(self, threshold: float = COLLAPSE_THRESHOLD) -> list[int]:
        """Scales that use less than the share `threshold` of their possible codes."""
        return [scale for scale, fraction in enumerate(self.fractions) if fraction < threshold]

    def describe_collapse(self, token_map_sizes: Sequence[int]) -> str | None:
        """Name the collapsed scales and a remedy in one sentence; ``None`` if there are none."""
        collapsed = self.collapsed_scales()
        if not collapsed:
            return None
        parts = [
            f"scale {scale} ({token_map_sizes[scale]}x{token_map_sizes[scale]}) uses "
            f"{self.distinct[scale]} "
            f"of {self.possible[scale]} codes"
            for scale in collapsed
        ]
        return (
            f"The codebook has collapsed at {len(collapsed)} of {len(self.distinct)} scales: "
            f"{', '.join(parts)}. "
            "Train longer as a plain autoencoder first (autoencoder_steps), revive dead codes more "
            "often (revive_every), or use a smaller codebook."
        )
