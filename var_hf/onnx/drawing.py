"""From logits to tokens in float64: guidance, temperature, top-k, top-p, and one draw per token.

The order of every operation is fixed (docs/onnx.md), so that another language gives the same tokens
for the same logits. The rules are those of `NextScaleScheduler`.

Letters: B images, T tokens of one scale, V codes.
"""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Tokens = NDArray[np.int64]


def guide(
    conditional: NDArray[np.float32], unconditional: NDArray[np.float32], strength: float
) -> Numbers:
    """Guided logits ``(B, T, V)``: ``(1 + t) * c - t * u`` with the `strength` t.

    Source: arXiv 2207.12598.
    """
    return (1 + strength) * conditional.astype(np.float64) - strength * unconditional.astype(
        np.float64
    )


def weights(logits: Numbers, top_k: int, top_p: float) -> Numbers:
    """Weights ``(T, V)`` of the codes, in proportion to their probabilities; 0 for those left out.

    First top-k, then top-p. Ties with the smallest logit that is kept stay, and the largest always
    stays.

    Args:
        logits: ``(T, V)``.
        top_k: Number of codes to keep; 0 is all.
        top_p: Probability that the kept codes reach together, in (0, 1]; 1.0 is all.
    """
    num_codes = logits.shape[-1]
    largest = logits.max(-1, keepdims=True)
    smallest_kept = np.full_like(largest, -np.inf)
    if 0 < top_k < num_codes:
        smallest_kept = np.partition(logits, num_codes - top_k)[:, num_codes - top_k, None]
    every = np.exp(logits - largest)
    if top_p < 1:
        ascending = np.sort(logits)
        kept = ascending >= smallest_kept
        sums = np.where(kept, np.exp(ascending - largest), 0).cumsum(-1)
        stays = kept & (sums > (1 - top_p) * sums[:, -1:])
        stays[:, -1] = True
        smallest_kept = np.where(stays, ascending, np.inf).min(-1, keepdims=True)
    return np.where(logits >= smallest_kept, every, 0)


def draw(weights: Numbers, uniform: Numbers) -> Tokens:
    """Tokens ``(T,)``: the first code at which the running sum of weights exceeds its share.

    Args:
        weights: ``(T, V)``; none is negative, and one at least is positive.
        uniform: Random numbers in [0, 1), ``(T,)``.
    """
    sums = weights.cumsum(-1)
    return (sums <= uniform[:, None] * sums[:, -1:]).sum(-1)
