"""Evaluation of a tokenizer: reconstruction quality, codebook usage and rFID."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from var_hf.evaluation.codebook_usage import CodebookUsage, count_codes
from var_hf.evaluation.features import FeatureExtractor
from var_hf.evaluation.image_quality import psnr, ssim, to_uint8
from var_hf.evaluation.metrics import Moments, MomentsBuilder, frechet_distance
from var_hf.evaluation.perceptual import has_lpips, load_lpips
from var_hf.images import ImageDataset, ImageTransform, TrainingSamples, normalize
from var_hf.modeling_vqvae import MultiScaleVQVAE

BATCH_SIZE = 50
GRID_COLUMNS = 12
#: Receives every batch: originals and reconstructions ``(B, 3, P, P)`` in [-1, 1].
Watcher = Callable[[Tensor, Tensor], None]


@torch.no_grad()
def evaluate_tokenizer(
    vqvae: MultiScaleVQVAE,
    images: ImageDataset,
    transform: ImageTransform,
    max_images: int,
    quantized: bool = True,
    watchers: Sequence[Watcher] = (),
) -> tuple[dict[str, Any], Image.Image]:
    """Measure the quality of reconstructions.

    Args:
        vqvae: The tokenizer, on its device.
        images: The data set; if it has more than `max_images`, an evenly spaced selection is used.
        transform: Resizes the images to the tokenizer's size.
        max_images: Largest number of images to use.
        quantized: Whether to use the quantizer. If not, the plain autoencoder is measured.
        watchers: Called with every batch of originals and reconstructions ``(B, 3, P, P)`` in
            [-1, 1].

    Returns:
        Values for the log and a grid of originals above their reconstructions. The values are
        ``psnr`` in decibels and ``ssim``, as means over the images; ``l1`` in the units of [-1, 1];
        and per scale ``distinct_codes``, ``possible_codes`` and ``perplexity``.
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
        for watcher in watchers:
            watcher(batch, sample)
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
    return values, tensor_grid([[pair[row] for pair in pairs] for row in range(2)])


def measure_tokenizer(
    vqvae: MultiScaleVQVAE,
    images: ImageDataset,
    extractor: FeatureExtractor | None = None,
    max_images: int | None = None,
    resize_factor: float = 1.0,
) -> tuple[dict[str, Any], Image.Image]:
    """Compute all metrics of a tokenizer.

    Args:
        vqvae: The tokenizer, on its device.
        images: The data set. The next image replaces an unreadable one, which is logged.
        extractor: Feature extractor for rFID; ``None`` skips rFID.
        max_images: Number of images, evenly spaced; ``None`` uses all.
        resize_factor: Size of the shorter side before the centre crop, as a multiple of the
            tokenizer's image size.

    Returns:
        The values of `evaluate_tokenizer` with ``lpips``, ``rfid`` and ``rsfid``, which are
        ``None`` if not measured; and the grid.

    Raises:
        UnreadableImageError: No image can be read.
    """
    transform = ImageTransform(vqvae.image_size, resize_factor)
    distance = None if extractor is None else ReconstructionDistance(extractor)
    perceptual = PerceptualDistance(load_lpips().to(vqvae.device)) if has_lpips() else None
    watchers = [watcher for watcher in (distance, perceptual) if watcher is not None]
    values, grid = evaluate_tokenizer(
        vqvae.eval(), images, transform, max_images or len(images), watchers=watchers
    )
    values |= {
        "lpips": None if perceptual is None else perceptual.mean(),
        "rfid": None,
        "rsfid": None,
        "token_map_sizes": list(vqvae.quantizer.token_map_sizes),
        "data_sha256": images.fingerprint,
        "features": None if extractor is None else extractor.describe(),
    }
    return values | ({} if distance is None else distance.distances()), grid


class ReconstructionDistance:
    """Accumulates rFID and rsFID, the Fréchet distances between originals and reconstructions.

    Args:
        extractor: The feature extractor.
    """

    def __init__(self, extractor: FeatureExtractor):
        self.extractor = extractor
        self._builders = {
            (side, kind): MomentsBuilder()
            for side in ("original", "copy")
            for kind in ("pooled", "spatial")
        }

    def __call__(self, originals: Tensor, copies: Tensor) -> None:
        """Take in a batch."""
        for side, images in (("original", originals), ("copy", copies)):
            # Features of stored images, which have 256 levels.
            features = self.extractor(to_uint8((images + 1) / 2))
            self._builders[side, "pooled"].add(features.pooled)
            self._builders[side, "spatial"].add(features.spatial)

    def moments(self) -> dict[str, Moments]:
        """Return mean and covariance of the reconstructions, by kind of features."""
        return {kind: self._builders["copy", kind].finish() for kind in ("pooled", "spatial")}

    def distances(self) -> dict[str, float]:
        """Compute ``rfid`` and ``rsfid``."""
        copies = self.moments()
        return {
            name: frechet_distance(copies[kind], self._builders["original", kind].finish())
            for name, kind in (("rfid", "pooled"), ("rsfid", "spatial"))
        }


class PerceptualDistance:
    """Accumulates the mean of a perceptual distance.

    Args:
        network: Maps two batches ``(B, 3, P, P)`` in [-1, 1] to one number per pair.
    """

    def __init__(self, network: nn.Module):
        self.network = network
        self._values: list[Tensor] = []

    def __call__(self, originals: Tensor, copies: Tensor) -> None:
        """Take in a batch."""
        distances = self.network(copies.clamp(-1, 1), originals)
        self._values.append(distances.double().flatten().cpu())

    def mean(self) -> float:
        """Return the mean over all images."""
        return float(torch.cat(self._values).mean())


def _batches(
    images: ImageDataset, transform: ImageTransform, chosen: Sequence[int], vqvae: MultiScaleVQVAE
) -> Iterator[Tensor]:
    samples = TrainingSamples(images, transform)
    starts = range(0, len(chosen), BATCH_SIZE)
    for start in tqdm(starts, unit="batch", desc="reconstruct", leave=False, delay=5):
        pixels = [samples[0, index].pixels for index in chosen[start : start + BATCH_SIZE]]
        yield normalize(torch.stack(pixels).to(vqvae.device))


def tensor_grid(rows: Sequence[Sequence[Tensor]], gap: int = 2) -> Image.Image:
    """Arrange rows of images ``(3, P, P)`` in [0, 1] in one image on white."""
    side = rows[0][0].shape[-1]
    height, width = len(rows) * (side + gap) + gap, len(rows[0]) * (side + gap) + gap
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            top, left = row * (side + gap) + gap, column * (side + gap) + gap
            pixels = (image.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            canvas[top : top + side, left : left + side] = pixels
    return Image.fromarray(canvas)
