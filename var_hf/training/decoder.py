"""The tokenizer's decoder learns the images of a fine-tuning before the transformer does."""

import logging
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast

from var_hf.modeling_vqvae import MultiScaleVQVAE
from var_hf.processes import process_state
from var_hf.training.loading import load_vqvae
from var_hf.training.tokenizer import train_tokenizer
from var_hf.training.tokenizer_config import TokenizerTrainingConfig
from var_hf.training.transformer_config import TransformerTrainingConfig

logger = logging.getLogger(__name__)

#: Parameters below which a tokenizer is small, and the steps that its decoder gets by default. The
#: release's tokenizer has 109 million, that of var-emoji-64 3.9 million.
SMALL_TOKENIZER, DEFAULT_STEPS = 20_000_000, 120
#: Peak learning rate times `base_channels`; 1e-3 for var-emoji-64, whose decoder it was tried on.
PEAK_PER_WIDTH = 0.016
#: Held-out images that are measured before and after.
MEASURED_IMAGES = 64


def num_decoder_steps(config: TransformerTrainingConfig, vqvae: MultiScaleVQVAE) -> int:
    """Number of steps that train the decoder; see `TransformerTrainingConfig.decoder_steps`."""
    if config.decoder_steps is not None:
        return config.decoder_steps
    is_small = vqvae.num_parameters() < SMALL_TOKENIZER
    return DEFAULT_STEPS if config.new_classes and config.data and is_small else 0


def tune_decoder(
    config: TransformerTrainingConfig, vqvae: MultiScaleVQVAE, folder: Path
) -> dict[str, Any] | None:
    """Train the decoder of a tokenizer on the images of a fine-tuning, or continue to.

    Encoder and codebook stay as they are, and with them the tokens of every image.

    Args:
        config: The settings of the fine-tuning.
        vqvae: The tokenizer, in float32; gets the trained decoder.
        folder: Run folder of this training; the same call continues an interrupted one.

    Returns:
        For card and provenance: ``steps``, and ``psnr_before`` and ``psnr_after``, in decibels, of
        held-out images. ``None`` if the settings leave the decoder as it is.

    Raises:
        ValueError, DivergedError, OSError: See `train_tokenizer`.
    """
    steps = num_decoder_steps(config, vqvae)
    if steps == 0:
        return None
    logger.info("training the tokenizer's decoder first, for %d steps", steps)
    result = train_tokenizer(decoder_config(config, vqvae, steps), folder, start=vqvae)
    if process_state().is_main_process:  # the machines of others may not have the folder
        vqvae.load_state_dict(load_vqvae(result["tokenizer"]).state_dict())
    vqvae.load_state_dict(broadcast(vqvae.state_dict()))
    return {
        "steps": steps,
        "psnr_before": result["psnr_at_start"],
        "psnr_after": result["psnr"],
    }


def decoder_config(
    config: TransformerTrainingConfig, vqvae: MultiScaleVQVAE, steps: int
) -> TokenizerTrainingConfig:
    """The settings of the decoder's training, from those of the fine-tuning."""
    shared = (
        "data", "split", "image_column", "validation", "validation_split", "strict",
        "resize_factor",
        "random_crop", "horizontal_flip", "batch_size", "gradient_accumulation_steps",
        "mixed_precision", "seed", "logging_steps", "save_steps", "save_total_limit",
        "dataloader_num_workers",
    )  # fmt: skip
    peak = config.decoder_learning_rate or PEAK_PER_WIDTH / vqvae.config.base_channels
    return TokenizerTrainingConfig(
        **{name: getattr(config, name) for name in shared},
        model=config.tokenizer or config.model,
        decoder_only=True,
        max_steps=steps,
        learning_rate=peak,
        final_learning_rate=0.05,
        warmup_steps=min(5, steps),
        betas=(0.9, 0.95),
        weight_decay=0.0,
        eval_steps=steps,
        validation_images=MEASURED_IMAGES,
    )
