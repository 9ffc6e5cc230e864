"""What a tokenizer's training starts from: weights, parameter groups."""

import math

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather
from torch import Tensor, nn
from torch.utils.data import DataLoader

from var_hf.images import ImageDataset, TrainingSamples, collate, normalize
from var_hf.modeling_vqvae import MultiScaleVQVAE
from var_hf.training.muon import Muon
from var_hf.training.order import StepSampler
from var_hf.training.tokenizer_config import TokenizerTrainingConfig

PIXEL_KERNELS = ("encoder.conv_in.weight", "decoder.conv_out.weight")


def initialize_convolutions(vqvae: MultiScaleVQVAE) -> None:
    """Draw all convolutions so that every layer passes on the variance it is given.

    Normal weights with gain 1 (variance 1 / fan-in), no biases; the last convolution of each
    residual branch gets half, so that depth does not blow up the sum. Refiners start as the
    identity: the codes then hold all information, and the codebook can be made from data. As a
    plain autoencoder of 64 px images this learnt several times faster than PyTorch's default.
    """
    for name, module in vqvae.named_modules():
        if isinstance(module, nn.Conv2d):
            gain = 0.5 if name.rsplit(".", 1)[-1] in ("conv2", "proj_out") else 1.0
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=gain / math.sqrt(fan_in))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for refiner in vqvae.quantizer.refiners.parameters():
        if refiner.ndim > 1:
            nn.init.dirac_(refiner)
    nn.init.normal_(vqvae.quantizer.codebook.weight)


def make_optimizers(
    vqvae: MultiScaleVQVAE, config: TokenizerTrainingConfig
) -> dict[str, torch.optim.Optimizer]:
    """The optimisers of all trained parameters, by name; each group holds its peak rate.

    Weight decay is for convolution kernels, not for biases, norms, and the codebook, whose length
    is data. Muon takes the kernels between features; pixels go in and out by AdamW.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    inner: list[nn.Parameter] = []
    codebook = vqvae.quantizer.codebook.weight
    for name, parameter in vqvae.named_parameters():
        if parameter is codebook or not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or name.startswith("quantizer."):
            free.append(parameter)
        elif config.optimizer == "adamw" or name in PIXEL_KERNELS:
            decayed.append(parameter)
        else:
            inner.append(parameter)
    peak, decay = config.learning_rate, config.weight_decay
    groups = [
        {"params": decayed, "weight_decay": decay, "peak": peak},
        {"params": free, "weight_decay": 0.0, "peak": peak},
    ]
    if codebook.requires_grad:
        of_codebook = config.codebook_learning_rate or peak
        groups.append({"params": [codebook], "weight_decay": 0.0, "peak": of_codebook})
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(groups, lr=peak, betas=config.betas)
    }
    if inner:
        muon = Muon(inner, lr=config.muon_learning_rate, weight_decay=decay)
        muon.param_groups[0]["peak"] = config.muon_learning_rate
        optimizers["muon"] = muon
    return optimizers


def hold_out(images: ImageDataset, count: int, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """Split off up to `count` images, at most one in twenty, at random: ``(rest, held out)``.

    Raises:
        ValueError: There is only one image.
    """
    if len(images) < 2:
        raise ValueError(
            f"{images.names[0]} is the only image: nothing would be left to measure on. "
            "Give more images, or name others for the measurement (validation)."
        )
    order = np.random.default_rng([seed, len(images)]).permutation(len(images)).tolist()
    count = min(count, max(1, len(images) // 20))
    return images.select(sorted(order[count:])), images.select(sorted(order[:count]))


@torch.no_grad()
def update_codebook_usage(vqvae: MultiScaleVQVAE, counts: Tensor, decay: float = 0.99) -> None:
    """Update the running mean of the uses of each code, in the tokenizer's own buffer."""
    usage = vqvae.quantizer.get_buffer("codebook_usage")
    usage.lerp_(counts.to(usage.dtype), 1 - decay)


@torch.no_grad()
def gather_features(
    vqvae: MultiScaleVQVAE,
    samples: TrainingSamples,
    count: int,
    batch_size: int,
    seed: int,
    accelerator: Accelerator,
) -> Tensor:
    """Encoder features ``(N, Z, F, F)`` of at least `count` images, the same on all processes."""
    sampler = StepSampler(
        len(samples), batch_size, 0, math.ceil(count / batch_size), seed,
        accelerator.process_index, accelerator.num_processes, samples.images.blocks,
    )  # fmt: skip
    features = []
    for pixels, _, _ in DataLoader(samples, batch_sampler=sampler, collate_fn=collate):
        images = normalize(pixels.to(accelerator.device))
        features.append(gather(vqvae.quant_conv(vqvae.encoder(images)).float()))
    return torch.cat(features)
