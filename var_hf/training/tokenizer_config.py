"""Settings of `var-hf train-tokenizer`."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from var_hf.schema import check_dataclass, read_settings


@dataclass(frozen=True)
class TokenizerTrainingConfig:
    """Everything that defines a tokenizer training run.

    The recipe of the released tokenizer is unpublished. Defaults marked "vaex" are those of the
    single-scale tokenizer trainer by the same authors (FoundationVision/vaex), the nearest known
    relative; the paper (arXiv 2404.02905) says only that the losses are those of VQGAN.

    Attributes:
        data: Images to learn from; see `var_hf.images.open_images`.
        split: Split or sub-folder of `data`.
        image_column: Column of the images, if `data` is a table.
        validation: Images to measure on, opened like `data`; ``None`` holds some of `data` out.
        validation_split: Split or sub-folder of `validation`.
        validation_images: How many images to measure on at most.
        strict: Stop at an unreadable image instead of skipping it.
        model: Tokenizer to start from: its folder or Hub repository in diffusers form, or the folder
            of a pipeline. ``None`` starts from scratch.
        architecture: Arguments of `MultiScaleVQVAE` when starting from scratch.
        resize_factor: See `ImageTransform`; vaex: 1.125.
        random_crop: Cut at random places.
        horizontal_flip: Mirror half of the images.
        decoder_only: With `model`: train the decoder alone. The tokens of an image stay what they were, so
            transformers and token caches of that tokenizer stay valid.
        steps: Optimisation steps.
        batch_size: Images per step over all processes; vaex: 768.
        gradient_accumulation_steps: Parts in which each process works through its share of a step.
        optimizer: ``"adamw"``, or ``"muon"`` for convolution kernels and AdamW for the rest. Muon is
            for short runs on little hardware: it reached in 90 steps what AdamW reached in 180.
        learning_rate: Peak of the cosine, for the tokenizer and the discriminator; vaex: 3e-4.
        muon_learning_rate: Peak of the cosine for Muon's kernels.
        codebook_learning_rate: Peak of the cosine for the codebook; ``None`` takes `learning_rate`. A
            code moves only when it is used, so a fast encoder runs away from a slow codebook: with
            Muon it needs about ten times `learning_rate`.
        final_learning_rate: Share of the peak that is left at the end; vaex: 0.3.
        warmup_steps: Steps of linear increase to the peak.
        betas: Of AdamW; vaex: (0.5, 0.9).
        weight_decay: Of AdamW, on convolution kernels only; vaex: 0.005.
        max_grad_norm: Gradients are clipped to this norm; vaex: 10.
        ema_decay: Of the averaged weights, which are the result; vaex: 0.9999.
        mixed_precision: ``"no"``, ``"bf16"`` or ``"fp16"``.
        autoencoder_steps: Steps as a plain autoencoder before the codebook is made from what the
            encoder produces and quantisation is switched on. With `model` only if `refit_codebook`.
        refit_codebook: With `model`: replace its codebook by one made from data, for images that are
            unlike those it was made from, or for a codebook that its encoder has left behind.
        codebook_images: Images from which the codebook is made.
        revive_every: Steps after which codes that no scale has used since the last time get new
            work; 0 is never.
        revive_below: Codes used less than this count as unused; see `revive_dead_codes`.
        l1_weight: vaex: 0.2.
        l2_weight: vaex: 1.0.
        codebook_weight: Of the loss that moves codes to features.
        commitment_weight: Of the loss that moves features to codes, relative to `codebook_weight`;
            0.25 in VQ-VAE and VAR.
        perceptual: ``"lpips"``, or the safetensors file of a small classifier whose features are
            compared (`var_hf.evaluation.perceptual.load_perceptual`); ``None`` for none.
        perceptual_weight: vaex: 0.5.
        adversarial_weight: Of the adversarial term, on top of the adaptive weight; vaex: 0.4.
            0 trains without an adversary.
        adversarial_start: Step at which the adversary comes in; vaex: after 22% of the steps.
        discriminator_channels: Width of the discriminator's first layer.
        discriminator_layers: Layers of the discriminator that halve the side.
        seed: Seeds initialisation, order, augmentation and revival.
        log_every: Steps per line of the log.
        evaluate_every: Steps between measurements on the validation images.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: How many of them to keep.
        num_workers: Processes that read images, per training process; 0 reads in the training process.
    """

    data: str
    split: str | None = None
    image_column: str = "image"
    validation: str | None = None
    validation_split: str | None = None
    validation_images: int = 1000
    strict: bool = False
    model: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    resize_factor: float = 1.125
    random_crop: bool = True
    horizontal_flip: bool = False
    decoder_only: bool = False
    steps: int = 100_000
    batch_size: int = 768
    gradient_accumulation_steps: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 3e-4
    muon_learning_rate: float = 2e-3
    codebook_learning_rate: float | None = None
    final_learning_rate: float = 0.3
    warmup_steps: int = 1000
    betas: tuple[float, float] = (0.5, 0.9)
    weight_decay: float = 0.005
    max_grad_norm: float = 10.0
    ema_decay: float = 0.9999
    mixed_precision: str = "no"
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
    seed: int = 0
    log_every: int = 50
    evaluate_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    num_workers: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot be trained with."""
        check_dataclass(type(self), vars(self), "the settings")
        positive = (
            "steps", "batch_size", "gradient_accumulation_steps", "learning_rate",
            "muon_learning_rate", "log_every",
            "evaluate_every", "checkpoint_every", "keep_checkpoints", "validation_images", "max_grad_norm",
        )  # fmt: skip
        not_negative = (
            "warmup_steps", "autoencoder_steps", "codebook_images", "revive_every", "revive_below", "l1_weight", "l2_weight",
            "codebook_weight", "commitment_weight", "perceptual_weight", "adversarial_weight",
            "adversarial_start", "weight_decay", "num_workers",
        )  # fmt: skip
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}.")
        for name in not_negative:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer must be 'adamw' or 'muon', got {self.optimizer!r}.")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}.")
        if self.resize_factor < 1.0:
            raise ValueError(
                f"resize_factor must be at least 1, got {self.resize_factor}: the crop would not fit."
            )
        if self.l1_weight == 0 and self.l2_weight == 0:
            raise ValueError("l1_weight and l2_weight are both 0: nothing would teach the decoder.")
        if self.codebook_learning_rate is not None and self.codebook_learning_rate <= 0:
            raise ValueError(
                f"codebook_learning_rate must be above 0, got {self.codebook_learning_rate}."
            )
        if self.model is not None and self.architecture:
            raise ValueError(
                "Give either model (start from it) or architecture (start from scratch), not both."
            )

        if self.decoder_only and (self.model is None or self.refit_codebook):
            raise ValueError(
                "decoder_only needs a model whose tokens are to stay, and leaves its codebook as it is: "
                "give model, and leave refit_codebook out."
            )

    @classmethod
    def from_json(cls, file: str | Path, **overrides: Any) -> "TokenizerTrainingConfig":
        """Read settings from a recipe file.

        Args:
            file: JSON object of settings.
            **overrides: Settings that win over the file's.

        Raises:
            ValueError: The file is no JSON object or names an unknown setting.
        """
        values = read_settings(file)
        values.update(overrides)
        unknown = sorted(values.keys() - {each.name for each in fields(cls)})
        if unknown:
            raise ValueError(f"{file}: unknown settings {', '.join(unknown)}.")
        check_dataclass(cls, values, file)
        if "betas" in values:
            values["betas"] = tuple(values["betas"])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values."""
        return asdict(self)


#: Settings that may change when a run is continued: they do not touch its result.
FREE_SETTINGS = ("log_every", "checkpoint_every", "keep_checkpoints", "num_workers")
