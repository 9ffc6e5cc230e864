"""Likelihoods of given images under the model, and maps of surprise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache

from var_hf.labels import Labels
from var_hf.pipelines.image_processing import ImageInput, cover, encode, read_images

if TYPE_CHECKING:
    from var_hf.pipelines.pipeline_var import VARPipeline

# From no surprise to the greatest: dark blue, violet, orange, pale yellow.
HEAT_COLOURS = ((8, 8, 48), (122, 28, 109), (237, 105, 37), (252, 255, 180))


@dataclass
class VARLikelihoodOutput:
    """Log-probabilities of the tokens of B images, in nats.

    Attributes:
        per_token: The log-probability of each token given all coarser scales and the class, S maps
            ``(B, T)``, float32, on the CPU.
    """

    per_token: list[Tensor]

    @property
    def per_scale(self) -> Tensor:
        """The log-probability of each token map, ``(B, S)``, float64."""
        return torch.stack([tokens.double().sum(dim=1) for tokens in self.per_token], dim=1)

    @property
    def total(self) -> Tensor:
        """The log-probability of the whole image, ``(B,)``, float64."""
        return self.per_scale.sum(dim=1)

    def surprise(self, scale: int | None = None) -> Tensor:
        """The surprise in each region: nats per token of the finest map, ``(B, F, F)``, float64.

        Each token's surprise, minus its log-probability, is spread evenly over its area; the sum is
        `-total`.

        Args:
            scale: Restrict the surprise to this scale, in [0, S). The surprise of its tokens is
                then repeated over their areas, in nats per token, instead of spread.

        Raises:
            ValueError: There is no such scale.
        """
        full_size = math.isqrt(self.per_token[-1].shape[1])
        if scale is None:
            maps = [self._spread(tokens, full_size) for tokens in self.per_token]
            return torch.stack(maps).sum(dim=0)
        if not 0 <= scale < len(self.per_token):
            raise ValueError(f"scale must lie in [0, {len(self.per_token) - 1}]. Got {scale}.")
        tokens = self.per_token[scale]
        return self._spread(tokens, full_size) * (full_size**2 / tokens.shape[1])

    @staticmethod
    def _spread(tokens: Tensor, full_size: int) -> Tensor:
        """Log-probabilities ``(B, T)`` as surprise on the finest grid, ``(B, F, F)``; keeps the
        sum.
        """
        size = math.isqrt(tokens.shape[1])
        shares = overlap(full_size, size)  # (F, h)
        surprise = -tokens.double().unflatten(1, (size, size))
        return shares @ surprise @ shares.T


@torch.no_grad()
def log_likelihood(
    pipe: "VARPipeline", images: ImageInput, class_labels: Labels = None, *, batch_size: int = 16
) -> VARLikelihoodOutput:
    """Exact log-probability of images' tokens under the model, teacher-forced and without guidance.

    It is the probability of the *token maps*. Pixel details that the tokens do not represent are
    not counted. Weights in half precision round it.

    Args:
        pipe: The pipeline, whose progress bar and device are used.
        images: As in [`VARInpaintPipeline`]; cut to the central square and resized to the model's.
        class_labels: One per image, or one for all; `None` is the null class.
        batch_size: Number of images per forward pass.

    Returns:
        The log-probabilities per token, per scale and in total, in nats.

    Raises:
        ValueError: An image cannot be read, a class is unknown, or the number of labels fits
            neither one nor the number of images.
    """
    tensors = read_images(images)
    class_ids = pipe.resolve_labels(class_labels)
    check_batch_size(batch_size)
    if len(class_ids) not in (1, len(tensors)):
        raise ValueError(
            f"Got {len(class_ids)} class_labels for {len(tensors)} images. "
            "Pass one label per image, or one for all."
        )
    class_ids = class_ids * (len(tensors) // len(class_ids))
    parts = []
    for start in range(0, len(tensors), batch_size):
        tokens, inputs = teacher_forcing(pipe, tensors[start : start + batch_size])
        parts.append(token_log_likelihood(pipe, class_ids[start:][:batch_size], tokens, inputs))
    pipe.maybe_free_model_hooks()
    return VARLikelihoodOutput(pipe.vqvae.quantizer.split(torch.cat(parts)))


def surprise_maps(
    pipe: "VARPipeline",
    images: ImageInput,
    class_labels: Labels = None,
    *,
    scale: int | None = None,
) -> list[Image.Image]:
    """Heat maps of the surprise, P pixels a side. Dark regions are likely under the model.

    The colours run from the least to the greatest surprise among the images of one call.

    Args:
        pipe: The pipeline.
        images, class_labels: As in [`log_likelihood`], whose output's `surprise` has the numbers.
        scale: Restrict the maps to this scale; by default they sum all scales.

    Raises:
        ValueError: As in [`log_likelihood`], or there is no such scale.
    """
    surprise = log_likelihood(pipe, images, class_labels).surprise(scale)
    spread = (surprise.max() - surprise.min()).clamp_min(torch.finfo(torch.float64).tiny)
    heat = ((surprise - surprise.min()) / spread).numpy()  # (B, F, F)
    stops = np.linspace(0, 1, len(HEAT_COLOURS))
    colours = np.stack(
        [np.interp(heat, stops, channel) for channel in np.transpose(HEAT_COLOURS)], axis=-1
    )
    size = (pipe.vqvae.image_size, pipe.vqvae.image_size)
    return [
        Image.fromarray(pixels.round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        for pixels in colours
    ]


def teacher_forcing(pipe: "VARPipeline", tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens ``(B, L)`` of images and the inputs for teacher forcing, ``(B, L - T_0, Z)``."""
    squares = torch.stack([cover(tensor, pipe.vqvae.image_size) for tensor in tensors])
    token_maps = encode(pipe.vqvae, squares)
    return torch.cat(token_maps, dim=1), pipe.vqvae.quantizer.teacher_inputs(token_maps)


def token_log_likelihood(
    pipe: "VARPipeline",
    class_ids: Sequence[int],
    tokens: Tensor,
    latent_inputs: Tensor | None,
    past_key_values: Cache | None = None,
) -> Tensor:
    """Log-probability of each token, ``(B, L)``, float32, on the CPU, because not every device adds
    in float64.

    Args:
        pipe: The pipeline.
        class_ids: B ids.
        tokens: Those of all scales ``(B, L)``, or of the scales after the cached ones.
        latent_inputs, past_key_values: As in [`VARModel.forward`].
    """
    device = pipe._execution_device
    labels = torch.tensor(class_ids, device=device)
    if latent_inputs is not None:
        latent_inputs = latent_inputs.to(device)
    logits = pipe.transformer(
        labels, latent_inputs, past_key_values=past_key_values
    ).logits  # (B, L, V)
    surprise = functional.cross_entropy(
        logits.flatten(0, 1), tokens.flatten().to(device), reduction="none"
    )
    return -surprise.view(tokens.shape).cpu()


def overlap(fine: int, coarse: int) -> Tensor:
    """The share of each of `coarse` cells that lies in each of `fine` cells of the same line,
    ``(fine, coarse)``, float64.
    """
    edges = torch.arange(fine + 1, dtype=torch.float64) * (coarse / fine)
    starts = torch.arange(coarse, dtype=torch.float64)
    upto = (edges[:, None] - starts).clamp(
        0, 1
    )  # how much of each coarse cell lies before each edge
    return upto.diff(dim=0)


def check_batch_size(batch_size: int) -> None:
    """Raise a ``ValueError`` for fewer than one at a time."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1. Got {batch_size}.")
