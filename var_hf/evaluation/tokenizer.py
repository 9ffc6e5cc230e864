"""How good a tokenizer is: reconstruction quality and codebook usage on a set of images."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from var_hf.evaluation.codebook_usage import CodebookUsage, count_codes
from var_hf.evaluation.image_quality import psnr, ssim
from var_hf.images import ImageDataset, ImageTransform, TrainingSamples, normalize
from var_hf.modeling_vqvae import MultiScaleVQVAE

BATCH_SIZE = 50
GRID_COLUMNS = 12


@torch.no_grad()
def evaluate_tokenizer(
    vqvae: MultiScaleVQVAE,
    images: ImageDataset,
    transform: ImageTransform,
    max_images: int,
    quantized: bool = True,
) -> tuple[dict[str, Any], Image.Image]:
    """Measure reconstructions.

    Args:
        vqvae: The tokenizer, on its device.
        images: What to measure on; evenly spread over the list if there are more than `max_images`.
        transform: Brings the images to the tokenizer's size.
        max_images: How many images to use at most.
        quantized: With the quantizer; without it the plain autoencoder is measured.

    Returns:
        Values for the log (``psnr`` in decibels and ``ssim``, means over the images; ``l1`` in the
        units of [-1, 1]; per scale the number of distinct codes, how many were possible, and the
        perplexity) and a grid, originals above their reconstructions.
    """
    count = min(max_images, len(images))
    chosen = np.linspace(0, len(images) - 1, count).round().astype(int).tolist()
    quantizer = vqvae.quantizer
    counts = torch.zeros(quantizer.num_scales, quantizer.codebook.num_embeddings, dtype=torch.int64)
    decibels, similarities, errors = [], [], []
    shown = set(np.linspace(0, count - 1, min(GRID_COLUMNS, count)).round().astype(int).tolist())
    pairs, position = [], 0
    for batch in _batches(images, transform, chosen, vqvae):
        features = vqvae.quant_conv(vqvae.encoder(batch)).float()
        token_maps, latents = quantizer.encode(features)
        sample = vqvae.decode_latents(latents if quantized else features).sample.float()
        counts += count_codes([tokens.cpu() for tokens in token_maps], counts.shape[1])
        originals, copies = (batch + 1) / 2, (sample + 1) / 2
        decibels.append(psnr(copies, originals))
        similarities.append(ssim(copies, originals))
        errors.append((sample - batch).abs().flatten(1).mean(dim=1))
        pairs += [
            (originals[row], copies[row]) for row in range(len(batch)) if position + row in shown
        ]
        position += len(batch)
    usage = CodebookUsage.from_counts(counts)
    values = {
        "images": count,
        "quantized": quantized,
        "psnr": round(torch.cat(decibels).mean().item(), 3),
        "ssim": round(torch.cat(similarities).mean().item(), 4),
        "l1": round(torch.cat(errors).mean().item(), 5),
        "distinct_codes": usage.distinct,
        "possible_codes": usage.possible,
        "perplexity": usage.perplexity,
    }
    return values, image_grid([[pair[row] for pair in pairs] for row in range(2)])


def _batches(
    images: ImageDataset, transform: ImageTransform, chosen: Sequence[int], vqvae: MultiScaleVQVAE
) -> Iterator[Tensor]:
    samples = TrainingSamples(images, transform)
    for start in range(0, len(chosen), BATCH_SIZE):
        pixels = [samples[0, index].pixels for index in chosen[start : start + BATCH_SIZE]]
        yield normalize(torch.stack(pixels).to(vqvae.device))


def image_grid(rows: Sequence[Sequence[Tensor]], gap: int = 2) -> Image.Image:
    """A picture of rows of images ``(3, P, P)`` in [0, 1], on white."""
    side = rows[0][0].shape[-1]
    height, width = len(rows) * (side + gap) + gap, len(rows[0]) * (side + gap) + gap
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            top, left = row * (side + gap) + gap, column * (side + gap) + gap
            pixels = (image.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            canvas[top : top + side, left : left + side] = pixels
    return Image.fromarray(canvas)
