"""Settings of `var-hf train-tokenizer`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from var_hf.schema import read_settings
from var_hf.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class TokenizerTrainingConfig(TrainingConfig):
    """Everything that defines a tokenizer training run.

    The recipe of the released tokenizer is unpublished. Defaults marked "vaex" are those of the
    single-scale tokenizer trainer by the same authors (FoundationVision/vaex), the nearest known
    relative; the paper (arXiv 2404.02905) says only that the losses are those of VQGAN.
    `TrainingConfig` describes the settings that are not listed here.

    Attributes:
        data: Images to learn from; required.
        validation: Images to measure on, opened like `data`; ``None`` holds some of `data` out.
        validation_images: How many images to measure on at most.
        model: Tokenizer to start from: its folder or Hub repository in diffusers form, or the
            folder of a pipeline. ``None`` starts from scratch.
        architecture: Arguments of `MultiScaleVQVAE` when starting from scratch.
        resize_factor: See `ImageTransform`; vaex: 1.125.
        decoder_only: With `model`: train the decoder alone. The tokens of an image stay what they
            were, so transformers and token caches of that tokenizer stay valid.
        max_steps: Optimisation steps.
        batch_size: Images per step over all processes; vaex: 768.
        optimizer: ``"adamw"``, or ``"muon"`` for convolution kernels and AdamW for the rest. Muon
            is for short runs on little hardware: it reached in 90 steps what AdamW reached in 180.
        learning_rate: Peak of the cosine, for the tokenizer and the discriminator; vaex: 3e-4.
        muon_learning_rate: Peak of the cosine for Muon's kernels.
        codebook_learning_rate: Peak of the cosine for the codebook; ``None`` takes `learning_rate`.
            A code moves only when it is used, so a fast encoder runs away from a slow codebook:
            with Muon it needs about ten times `learning_rate`.
        final_learning_rate: Share of the peak that is left at the end; vaex: 0.3.
        warmup_steps: Steps of linear increase to the peak.
        betas: AdamW's decay rates of the first and second moment; vaex: (0.5, 0.9).
        weight_decay: AdamW's weight decay, on convolution kernels only; vaex: 0.005.
        max_grad_norm: Gradients are clipped to this norm; vaex: 10.
        ema_decay: Decay of the averaged weights, which are the result; vaex: 0.9999.
        autoencoder_steps: Steps as a plain autoencoder before the codebook is made from what the
            encoder produces and quantisation is switched on. With `model` only if `refit_codebook`.
        refit_codebook: With `model`: replace its codebook by one made from data, for images that
            are unlike those it was made from, or for a codebook that its encoder has left behind.
        codebook_images: Images from which the codebook is made.
        revive_every: Steps after which codes that no scale has used since the last time get new
            work; 0 is never.
        revive_below: Codes used less than this count as unused; see `revive_dead_codes`.
        l1_weight: vaex: 0.2.
        l2_weight: vaex: 1.0.
        codebook_weight: Weight of the loss that moves codes to features.
        commitment_weight: Weight of the loss that moves features to codes, relative to
            `codebook_weight`; 0.25 in VQ-VAE and VAR.
        perceptual: ``"lpips"``, or the safetensors file of a small classifier whose features are
            compared (`var_hf.evaluation.perceptual.load_perceptual`); ``None`` for none.
        perceptual_weight: vaex: 0.5.
        adversarial_weight: Weight of the adversarial term, on top of the adaptive weight; vaex:
            0.4. 0 trains without an adversary.
        adversarial_start: Step at which the adversary comes in; vaex: after 22% of the steps.
        discriminator_channels: Width of the discriminator's first layer.
        discriminator_layers: Layers of the discriminator that halve the side.
        seed: Seeds initialisation, order, augmentation and revival.
    """

    data: str = ""
    validation_images: int = 1000
    decoder_only: bool = False
    max_steps: int = 100_000
    learning_rate: float = 3e-4
    muon_learning_rate: float = 2e-3
    codebook_learning_rate: float | None = None
    final_learning_rate: float = 0.3
    warmup_steps: int = 1000
    betas: tuple[float, float] = (0.5, 0.9)
    weight_decay: float = 0.005
    max_grad_norm: float = 10.0
    ema_decay: float = 0.9999
    autoencoder_steps: int = 2000
    refit_codebook: bool = False
    codebook_images: int = 4096
    revive_every: int = 100
    revive_below: float = 0.0
    l1_weight: float = 0.2
    l2_weight: float = 1.0
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    perceptual: str | None = None
    perceptual_weight: float = 0.5
    adversarial_weight: float = 0.0
    adversarial_start: int = 22_000
    discriminator_channels: int = 64
    discriminator_layers: int = 3

    POSITIVE: ClassVar[tuple[str, ...]] = (
        *TrainingConfig.POSITIVE, "max_steps", "learning_rate", "muon_learning_rate",
        "codebook_learning_rate",
        "validation_images", "max_grad_norm",
    )  # fmt: skip
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = (
        *TrainingConfig.NOT_NEGATIVE, "warmup_steps", "autoencoder_steps", "codebook_images",
        "revive_every",
        "revive_below", "l1_weight", "l2_weight", "codebook_weight", "commitment_weight",
        "perceptual_weight",
        "adversarial_weight", "adversarial_start",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse values that cannot be trained with."""
        super().__post_init__()
        if not self.data:
            raise ValueError("Name the images to learn from (data).")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie in [0, 1). Got {self.ema_decay}.")
        if self.l1_weight == 0 and self.l2_weight == 0:
            raise ValueError("l1_weight and l2_weight are both 0: nothing would teach the decoder.")
        if self.decoder_only and (self.model is None or self.refit_codebook):
            raise ValueError(
                "decoder_only needs a model whose tokens are to stay, and leaves its codebook as "
                "it is: give model, and leave refit_codebook out."
            )

    @classmethod
    def from_recipe(cls, recipe: str | Path | None, **overrides: Any) -> "TokenizerTrainingConfig":
        """Read settings from a recipe file.

        Args:
            recipe: JSON object of settings; ``None`` takes the defaults.
            **overrides: Settings that win over the file's.

        Raises:
            ValueError: The file is no JSON object, or a setting is unknown or has a value that it
                cannot have.
            OSError: The file cannot be read.
        """
        values = {} if recipe is None else read_settings(recipe)
        values.pop("about", None)
        return cls.from_values(values, overrides, "" if recipe is None else str(recipe))
