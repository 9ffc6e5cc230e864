"""Settings of `var-hf train`, and the recipes that come with the package."""

import json
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from var_hf.schema import check_dataclass, read_settings

MIXED_PRECISION = ("no", "bf16", "fp16")
LR_SCHEDULER_TYPES = ("lin0", "cosine")
OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True)
class TransformerTrainingConfig:
    """Everything that defines a transformer training run.

    Defaults are those of the release's VAR-d16 (FoundationVision/VAR, `utils/arg_util.py`).

    Attributes:
        data: Images with classes; see `var_hf.images.open_images`. ``None`` trains on the
            finished cache at `token_cache`.
        split: Split or sub-folder of `data`.
        image_column: Column of the images, if `data` is a table.
        label_column: Column of the classes; ``None`` takes ``"label"``.
        validation: Images to measure on, opened like `data`; ``None`` measures on none.
        validation_split: Split or sub-folder of `validation`.
        strict: Stop at an unreadable image instead of leaving it out.
        tokenizer: The multi-scale VQVAE: its folder or Hub repository, or a pipeline's. ``None`` takes
            that of the pipeline in `model`.
        token_map_sizes: Another schedule than the tokenizer's own.
        image_size: Side of the images in pixels, as a check; it follows from the schedule.
        token_cache: Folder of the encoded images; ``None`` puts it into the run folder.
        resize_factor: See `ImageTransform`; 1.125 in the release.
        random_crop: Cut at random places, else from the centre.
        horizontal_flip: Mirror half of the pictures; off in the release.
        copies: Versions of each image in the cache, cut and mirrored anew; epoch e reads version e
            modulo this.
        encode_batch_size: Pictures encoded at once.
        model: Pipeline, or transformer alone, to start from: a folder or Hub repository. ``None``
            starts from scratch.
        architecture: Settings of `VARConfig` when starting from scratch. Number of codes, latent
            channels, schedule and classes follow from tokenizer and data.
        new_classes: Give `model` a new class table for the classes of the data; only the null row is kept.
        lora_rank: Train adapters of this rank in all projections (LoRA, arXiv 2106.09685) instead of
            all weights; 0 is off. Their scale is 1. They are merged into the saved pipeline.
        freeze: Patterns of parameter names that are not trained, such as ``"layers.[0-7].*"``.
        num_train_epochs: Passes over the data.
        global_batch_size: Images per step, over all processes and accumulated parts.
        gradient_accumulation_steps: Parts in which each process works through its share of a step.
        optimizer: ``"adamw"``, the release's, or ``"muon"`` for the matrices of attention and MLP with AdamW for the
            rest. Muon learns more from each image; it needs whole matrices, so not with FSDP or ZeRO-3.
        base_learning_rate: Peak per 256 images of the global batch.
        lr_scheduler_type: ``"lin0"`` or ``"cosine"``; see `learning_rate_factor`.
        warmup_epochs: ``None`` is a fiftieth of all epochs.
        warmup_start_factor: Share of the peak at the first step.
        final_lr_factor: Share of the peak at the last step.
        betas: Of AdamW.
        weight_decay: Of AdamW at the start, on what `decayed_parameters` names.
        final_weight_decay: At the end, along a cosine.
        max_grad_norm: Gradients are clipped to this norm; 0 is off.
        mixed_precision: ``"no"``, ``"bf16"`` or ``"fp16"`` (autocast; weights stay float32).
        gradient_checkpointing: Compute each layer again in the backward pass instead of storing it.
        sampling: Sampling defaults stored with the pipeline: settings of `NextScaleScheduler`.
        seed: Seeds initialisation, order, crops, and what is dropped.
        log_every: Steps per line of the log.
        evaluate_every: Steps between measurements on the validation images.
        sample_every: Steps between grids of samples; 0 draws none.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: How many of them to keep.
        num_workers: Processes that read, per training process; 0 reads in the training process.
        trainer: Further arguments of `transformers.TrainingArguments`, such as
            ``{"report_to": "tensorboard"}``, `fsdp`, `deepspeed` or `torch_compile`.
    """

    data: str | None = None
    split: str | None = None
    image_column: str = "image"
    label_column: str | None = None
    validation: str | None = None
    validation_split: str | None = None
    strict: bool = False
    tokenizer: str | None = None
    token_map_sizes: tuple[int, ...] | None = None
    image_size: int | None = None
    token_cache: str | None = None
    resize_factor: float = 1.125
    random_crop: bool = True
    horizontal_flip: bool = False
    copies: int = 1
    encode_batch_size: int = 64
    model: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    new_classes: bool = False
    lora_rank: int = 0
    freeze: tuple[str, ...] = ()
    num_train_epochs: float = 200
    global_batch_size: int = 768
    gradient_accumulation_steps: int = 1
    optimizer: str = "adamw"
    base_learning_rate: float = 1e-4
    lr_scheduler_type: str = "lin0"
    warmup_epochs: float | None = None
    warmup_start_factor: float = 0.005
    final_lr_factor: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    final_weight_decay: float = 0.05
    max_grad_norm: float = 2.0
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    sampling: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    log_every: int = 50
    evaluate_every: int = 1000
    sample_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    num_workers: int = 0
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse values that cannot be trained with."""
        check_dataclass(type(self), vars(self), "the settings")
        positive = (
            "copies", "encode_batch_size", "num_train_epochs", "global_batch_size", "gradient_accumulation_steps",
            "base_learning_rate", "log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints",
        )  # fmt: skip
        not_negative = (
            "lora_rank", "warmup_start_factor", "final_lr_factor", "weight_decay", "final_weight_decay",
            "max_grad_norm", "sample_every", "num_workers",
        )  # fmt: skip
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0. Got {getattr(self, name)}.")
        for name in not_negative:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative. Got {getattr(self, name)}.")
        if self.resize_factor < 1:
            raise ValueError(
                f"resize_factor must be at least 1, or the crop would not fit. Got {self.resize_factor}."
            )
        for name, allowed in (
            ("mixed_precision", MIXED_PRECISION),
            ("lr_scheduler_type", LR_SCHEDULER_TYPES),
            ("optimizer", OPTIMIZERS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}. Got {getattr(self, name)!r}."
                )
        if self.data is None and self.token_cache is None:
            raise ValueError("Name the images (data), or a folder with their tokens (token_cache).")
        if self.model is not None and self.architecture:
            raise ValueError(
                "Give either model (start from it) or architecture (start from scratch), not both."
            )
        if self.model is None:
            needless = [
                name for name in ("new_classes", "lora_rank", "freeze") if getattr(self, name)
            ]
            if needless:
                raise ValueError(
                    f"{' and '.join(needless)} change a trained model: name one (model)."
                )
            if self.tokenizer is None:
                raise ValueError("Name the tokenizer, or a pipeline to start from (model).")
        if self.lora_rank and self.freeze:
            raise ValueError("lora_rank freezes all other weights already: leave out freeze.")
        if self.lora_rank and self.optimizer == "muon":
            raise ValueError("Muon takes whole matrices, not adapters: use the optimizer adamw.")
        if self.weight_decay == 0 and self.final_weight_decay > 0:
            raise ValueError(
                "weight_decay is 0: it cannot grow to final_weight_decay. Start above 0."
            )

    @classmethod
    def from_recipe(
        cls, recipe: str | Path | None, **overrides: Any
    ) -> "TransformerTrainingConfig":
        """Read settings from a recipe.

        Args:
            recipe: Name of a recipe that comes with the package (`recipe_names`), or a JSON file; ``None`` keeps the
                defaults.
            **overrides: Settings that win over the recipe's.

        Raises:
            ValueError: There is no such recipe, the file is no JSON object, or a setting is unknown.
        """
        values = {} if recipe is None else read_recipe(recipe)
        values.pop("about", None)
        values.update(overrides)
        unknown = sorted(values.keys() - {each.name for each in fields(cls)})
        if unknown:
            raise ValueError(
                f"{'' if recipe is None else f'{recipe}: '}unknown settings {', '.join(unknown)}."
            )
        check_dataclass(cls, values, "the settings" if recipe is None else recipe)
        for name in ("betas", "freeze", "token_map_sizes"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values."""
        return asdict(self)


#: Settings that may change when a run is continued: they do not touch its result.
FREE_SETTINGS = (
    "encode_batch_size", "log_every", "evaluate_every", "sample_every", "checkpoint_every", "keep_checkpoints",
    "num_workers",
)  # fmt: skip

#: Settings that name places on this machine, or may.
PLACES = ("data", "validation", "tokenizer", "token_cache", "model", "trainer")


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("var_hf.training") / "recipes"
    names = (file.name for file in folder.iterdir())
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def read_recipe(recipe: str | Path) -> dict[str, Any]:
    """A recipe as it was written: settings, and under ``about`` command, hardware and published result.

    Raises:
        ValueError: There is no such recipe, or the file is no JSON object.
    """
    if str(recipe) in recipe_names():
        text = (resources.files("var_hf.training") / "recipes" / f"{recipe}.json").read_text(
            "utf-8"
        )
    elif Path(recipe).is_file():
        return read_settings(recipe)
    else:
        raise ValueError(
            f"There is no recipe {str(recipe)!r}: neither a file nor one of {', '.join(recipe_names())}."
        )
    return dict(json.loads(text))
