"""A codebook that stays alive: made from data, watched per scale, dead codes given new work."""

from collections.abc import Sequence

import torch
from torch import Tensor

from var_hf.evaluation.codebook_usage import CodebookUsage
from var_hf.modeling_vqvae import MultiScaleVQVAE

#: Vectors whose distances to all codes are computed at once.
CHUNK = 16384


def k_means(
    vectors: Tensor,
    num_clusters: int,
    generator: torch.Generator,
    start: Tensor | None = None,
    rounds: int = 10,
) -> Tensor:
    """Centres of `vectors` ``(N, Z)`` by Lloyd's algorithm, ``(V, Z)``.

    A cluster that runs empty moves to the vector that is worst served.

    Args:
        vectors: At least V vectors.
        num_clusters: Number of centres V.
        generator: Picks the vectors to start from.
        start: Centres ``(V, Z)`` to start from instead.
        rounds: How often to assign and average.

    Raises:
        ValueError: There are fewer vectors than clusters.
    """
    if len(vectors) < num_clusters:
        raise ValueError(
            f"{len(vectors)} vectors cannot make a codebook of {num_clusters} codes. "
            "Give more images or a smaller codebook."
        )
    if start is None:
        start = vectors[
            torch.randperm(len(vectors), generator=generator)[:num_clusters].to(vectors.device)
        ]
    centres = start.clone()
    for _ in range(rounds):
        distances, nearest = _nearest(vectors, centres)
        counts = torch.bincount(nearest, minlength=num_clusters)  # (V,)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
        empty = (counts == 0).nonzero().squeeze(1)
        centres[empty] = vectors[distances.topk(len(empty)).indices]
    return centres


def _nearest(vectors: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance to, and index of, the nearest centre of each vector."""
    distances, indices = [], []
    for part in vectors.split(CHUNK):
        squared = (
            part.square().sum(1, keepdim=True) - 2 * part @ centres.T + centres.square().sum(1)
        )
        smallest = squared.min(dim=1)
        distances.append(smallest.values)
        indices.append(smallest.indices)
    return torch.cat(distances), torch.cat(indices)


@torch.no_grad()
def fold_feature_scale(vqvae: MultiScaleVQVAE, features: Tensor) -> float:
    """Give the features unit variance without changing what the autoencoder computes.

    The convolutions before and after the quantizer are linear, so a factor moves from one to the
    other. With it, distances between codes and the weight of the commitment mean the same in every
    run.

    Returns:
        The standard deviation that the features had.
    """
    scale = features.std()
    for parameter in vqvae.quant_conv.parameters():
        parameter.div_(scale)
    vqvae.post_quant_conv.weight.mul_(scale)
    return scale.item()


@torch.no_grad()
def initialize_codebook(
    vqvae: MultiScaleVQVAE, features: Tensor, generator: torch.Generator, passes: int = 3
) -> None:
    """Make the codebook from data: k-means over the residuals of all scales.

    Each scale gives equally many vectors, though the finest has most tokens: otherwise the coarse
    scales, whose collapse is the known trouble of multi-scale codebooks, would hardly be heard.
    What a scale sees depends on how well the coarser ones were described, so after a first pass
    with unquantised residuals the codebook is refined on the ones it leaves itself.

    Args:
        vqvae: Its codebook is replaced.
        features: Encoder features ``(N, Z, F, F)``.
        generator: Picks the vectors.
        passes: How often the residuals are gathered.
    """
    quantizer = vqvae.quantizer
    codebook = None
    for _ in range(passes):
        residual = features.clone()
        pooled = []
        for scale in range(quantizer.num_scales):
            targets = quantizer.shrink(residual, scale)  # (N, T, Z)
            flat = targets.flatten(0, 1)
            chosen = torch.randperm(len(flat), generator=generator)[: len(features)]
            pooled.append(flat[chosen.to(flat.device)])
            codes = (
                targets
                if codebook is None
                # In parts: the distances of a million vectors to thousands of codes are gigabytes.
                else codebook[
                    torch.cat([quantizer.nearest_codes(part) for part in flat.split(CHUNK)])
                ].view_as(targets)
            )
            residual -= quantizer.expand(codes, scale)
        codebook = k_means(
            torch.cat(pooled), quantizer.codebook.num_embeddings, generator, codebook
        )
        quantizer.codebook.weight.copy_(codebook)


@torch.no_grad()
def revive_dead_codes(
    codebook: Tensor,
    counts: Tensor,
    targets: Sequence[Tensor],
    generator: torch.Generator,
    least_use: float = 0.0,
) -> Tensor:
    """Move codes that hardly any scale uses onto vectors the encoder produces now.

    The fewer codes a scale uses, the more of the moved ones it gets: the coarse scales collapse
    first.

    Args:
        codebook: ``(V, Z)``, changed in place.
        counts: Uses of each code per scale, ``(S, V)``.
        targets: What each scale wanted to describe, S tensors ``(N, Z)``.
        generator: Picks the vectors.
        least_use: A code is dead if at every scale it is used less than this, where 1 is its share
            if all codes were used equally; 0 counts only codes that were never used.

    Returns:
        Indices of the codes that moved.
    """
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)  # (S, V)
    highest = shares.amax(dim=0) * len(codebook)  # (V,)
    dead = ((highest < least_use) | (highest == 0)).nonzero().squeeze(1)
    idle = 1 - torch.tensor(CodebookUsage.from_counts(counts).fractions)
    weights = idle.clamp(min=1e-3)  # (S,)
    scales = torch.multinomial(weights, max(1, len(dead)), True, generator=generator).tolist()
    places = torch.rand(len(dead), generator=generator).tolist()
    for code, scale, place in zip(dead.tolist(), scales, places, strict=False):
        codebook[code] = targets[scale][int(place * len(targets[scale]))]
    return dead
