"""Quantization of latents to token maps and back, coarse to fine.

The whole package uses these letters for shapes:

    B images     S scales (10)     T tokens of one scale, h * w     L tokens of all scales (680)
    C width      H heads           D width of one head              V codebook entries (4096)
    h, w sides of a token map      Z latent channels (32)           F side of the latents (16)
    P side of the image in pixels (256)
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class UpsampleRefiner(nn.Conv2d):
    """Sharpens an upsampled code map with ``(1 - mix) * x + mix * conv(x)``.

    This is the paper's phi (section 3.2).
    """

    bias: Tensor  # optional in Conv2d, always present here

    def __init__(self, latent_channels: int, mix: float):
        super().__init__(latent_channels, latent_channels, kernel_size=3, padding=1)
        self.mix = mix

    def forward(self, code_map: Tensor) -> Tensor:
        # Latents are float32 for every dtype of the weights, because the sum of ten rounded terms
        # would drift.
        refined = self._conv_forward(code_map, self.weight.float(), self.bias.float())
        return code_map * (1 - self.mix) + refined * self.mix


class MultiScaleQuantizer(nn.Module):
    """Converts latents to token maps, coarse to fine, and back.

    Each scale encodes the *residual*, the difference between the features and the sum of the
    coarser scales. Latents are always float32, even if the weights are in half precision.

    Args:
        codebook_size: Number of codes V.
        latent_channels: Channels Z of codes and latents.
        token_map_sizes: Side of each token map; the last one is the latent side F.
        refiner_of_scale: Index of the refiner that serves each scale; empty if there are no
            refiners.
        refiner_mix: Share of the convolution in a refiner; 0.5 in the release.

    Source: arXiv 2404.02905, algorithms 1 (encode) and 2 (decode).
    """

    def __init__(
        self,
        codebook_size: int,
        latent_channels: int,
        token_map_sizes: Sequence[int],
        refiner_of_scale: Sequence[int],
        refiner_mix: float = 0.5,
    ):
        super().__init__()
        self.token_map_sizes = tuple(token_map_sizes)
        self.refiner_of_scale = tuple(refiner_of_scale)
        self.codebook = nn.Embedding(codebook_size, latent_channels)
        num_refiners = max(self.refiner_of_scale, default=-1) + 1
        self.refiners = nn.ModuleList(
            UpsampleRefiner(latent_channels, refiner_mix) for _ in range(num_refiners)
        )
        # Running count of uses per scale and code, measured in training. It cannot be rebuilt.
        self.register_buffer(
            "codebook_usage", torch.zeros(len(self.token_map_sizes), codebook_size)
        )

    @property
    def num_scales(self) -> int:
        """Number of scales S."""
        return len(self.token_map_sizes)

    @property
    def num_codes(self) -> int:
        """Number of codes V."""
        return self.codebook.num_embeddings

    def nearest_codes(self, vectors: Tensor) -> Tensor:
        """Find the nearest code by squared L2 distance: ``(N, Z)`` to ``(N,)``."""
        codebook = self.codebook.weight.float()
        squares = codebook.square().sum(dim=1)
        distances = vectors.square().sum(dim=1, keepdim=True) + squares  # (N, V)
        distances.addmm_(vectors, codebook.T, alpha=-2, beta=1)
        return distances.argmin(dim=1)

    def codes(self, tokens: Tensor) -> Tensor:
        """Look up the codes of a token map: ``(B, T)`` to ``(B, T, Z)``, float32."""
        return self.codebook(tokens).float()

    def expand(self, codes: Tensor, scale: int) -> Tensor:
        """Compute a scale's addition to the latents: ``(B, T, Z)`` to ``(B, Z, F, F)``."""
        size, full_size = self.token_map_sizes[scale], self.token_map_sizes[-1]
        code_map = codes.transpose(1, 2).unflatten(2, (size, size))  # (B, Z, h, w)
        if size != full_size:
            code_map = functional.interpolate(code_map, size=(full_size, full_size), mode="bicubic")
        code_map = code_map.contiguous()
        return self.refiners[self.refiner_of_scale[scale]](code_map) if self.refiners else code_map

    def shrink(self, latents: Tensor, scale: int) -> Tensor:
        """Average latents ``(B, Z, F, F)`` onto the grid of one scale, ``(B, T, Z)``."""
        size, full_size = self.token_map_sizes[scale], self.token_map_sizes[-1]
        if size != full_size:
            latents = functional.interpolate(latents, size=(size, size), mode="area")
        return latents.flatten(2).transpose(1, 2)

    def empty_latents(self, batch_size: int, device: torch.device) -> Tensor:
        """Return the latents before the first scale: zeros ``(B, Z, F, F)``, float32."""
        side = self.token_map_sizes[-1]
        return torch.zeros(batch_size, self.codebook.embedding_dim, side, side, device=device)

    def encode(self, features: Tensor) -> tuple[list[Tensor], Tensor]:
        """Quantize the encoder's features ``(B, Z, F, F)``.

        Returns:
            The token maps, S tensors ``(B, T)``, and their latents ``(B, Z, F, F)``.
        """
        residual = features.float()
        latents = torch.zeros_like(residual)
        token_maps = []
        for scale, size in enumerate(self.token_map_sizes):
            targets = self.shrink(residual, scale)  # (B, T, Z)
            tokens = self.nearest_codes(targets.flatten(0, 1)).unflatten(
                0, (len(residual), size * size)
            )
            added = self.expand(self.codes(tokens), scale)
            latents = latents + added
            residual = residual - added
            token_maps.append(tokens)
        return token_maps, latents

    def decode(self, token_maps: Sequence[Tensor]) -> Tensor:
        """Compute the latents ``(B, Z, F, F)`` of all token maps, each ``(B, T)``.

        Raises:
            ValueError: The maps do not match the schedule.
        """
        *_, latents = self.latents_by_scale(token_maps)
        return latents

    def latents_by_scale(self, token_maps: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the latents after each scale, S times ``(B, Z, F, F)``.

        Raises:
            ValueError: The maps do not match the schedule.
        """
        self.check_token_maps(token_maps)
        latents = self.empty_latents(len(token_maps[0]), token_maps[0].device)
        for scale, tokens in enumerate(token_maps):
            latents = latents + self.expand(self.codes(tokens), scale)
            yield latents

    def teacher_inputs(self, token_maps: Sequence[Tensor]) -> Tensor:
        """Compute the transformer's inputs for all scales after the first, ``(B, L - T_0, Z)``.

        The input of a scale is the running sum of all coarser scales, averaged onto its grid.
        """
        running = list(self.latents_by_scale(token_maps))[:-1]
        return torch.cat(
            [self.shrink(latents, scale + 1) for scale, latents in enumerate(running)], dim=1
        )

    def split(self, tokens: Tensor) -> list[Tensor]:
        """Split concatenated tokens ``(B, L)`` into one map per scale."""
        return list(tokens.split([size * size for size in self.token_map_sizes], dim=1))

    def check_token_maps(self, token_maps: Sequence[Tensor]) -> None:
        """Raise a ``ValueError`` unless there is one map ``(B, T)`` per scale."""
        expected = [size * size for size in self.token_map_sizes]
        lengths = [
            tokens.shape[-1] if tokens.ndim == 2 else tuple(tokens.shape) for tokens in token_maps
        ]
        if lengths != expected:
            raise ValueError(
                f"Expected one token map (B, T) per scale with T = {expected}, coarse to fine. Got "
                f"T = {lengths}."
            )
