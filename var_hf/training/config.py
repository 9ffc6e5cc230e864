"""Settings that both trainings share, and the one way from a file to settings."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, ClassVar, Self

from var_hf.schema import check_dataclass
from var_hf.text import listed, printable

MIXED_PRECISION = ("no", "bf16", "fp16")
OPTIMIZERS = ("adamw", "muon")

#: Names that settings had before, in recipes and run folders that were written then.
OLD_NAMES = {
    "global_batch_size": "batch_size", "steps": "max_steps", "log_every": "logging_steps",
    "evaluate_every": "eval_steps", "sample_every": "sample_steps",
    "checkpoint_every": "save_steps",
    "keep_checkpoints": "save_total_limit", "num_workers": "dataloader_num_workers",
}  # fmt: skip

#: Settings that may change when a run is continued: they do not touch its result.
FREE_SETTINGS = ("logging_steps", "save_steps", "save_total_limit", "dataloader_num_workers")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What the trainings of transformer and tokenizer have in common.

    Attributes:
        data: Images to learn from; see `var_hf.images.open_images`.
        split: Split or sub-folder of `data`.
        image_column: Column of the images, if `data` is a table.
        validation: Images to measure on, opened like `data`.
        validation_split: Split or sub-folder of `validation`.
        strict: Stop at an unreadable image instead of leaving it out.
        model: Model to start from (fine-tuning): a folder, a Hub repository, or the name of a
            shipped model (`var_hf.assets`). ``None`` starts from scratch.
        architecture: Settings of the model when starting from scratch.
        resize_factor: See `ImageTransform`; 1.125 in the release.
        random_crop: Crop at random places, else from the centre.
        horizontal_flip: Mirror half of the images; off in the release.
        batch_size: Images per step, over all processes and gradient accumulation steps.
        gradient_accumulation_steps: Parts of a step that each process computes one after another.
        optimizer: ``"adamw"`` or ``"muon"``.
        betas: AdamW's decay rates of the first and second moment.
        weight_decay: AdamW's weight decay.
        max_grad_norm: Gradients are clipped to this norm.
        mixed_precision: ``"no"``, ``"bf16"`` or ``"fp16"`` (autocast; weights stay float32).
        seed: Seeds initialisation, order, crops, and dropout.
        logging_steps: Steps per line of the log. A value below 1 is a share of all steps, here and
            in `eval_steps` and `save_steps`.
        eval_steps: Steps between measurements on the validation images.
        save_steps: Steps between checkpoints. The last step always writes one.
        save_total_limit: Checkpoints to keep.
        dataloader_num_workers: Data-loading workers per process; 0 loads in the training process.
    """

    data: str | None = None
    split: str | None = None
    image_column: str = "image"
    validation: str | None = None
    validation_split: str | None = None
    strict: bool = False
    model: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    resize_factor: float = 1.125
    random_crop: bool = True
    horizontal_flip: bool = False
    batch_size: int = 768
    gradient_accumulation_steps: int = 1
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    max_grad_norm: float = 2.0
    mixed_precision: str = "no"
    seed: int = 0
    logging_steps: float = 50
    eval_steps: float = 1000
    save_steps: float = 1000
    save_total_limit: int = 2
    dataloader_num_workers: int = 0

    #: Settings that must be above 0, must not be negative, or must be one of a few values.
    POSITIVE: ClassVar[tuple[str, ...]] = (
        "batch_size", "gradient_accumulation_steps", "logging_steps", "eval_steps", "save_steps",
        "save_total_limit",
    )  # fmt: skip
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = (
        "weight_decay", "max_grad_norm", "seed", "dataloader_num_workers",
    )  # fmt: skip
    #: Settings in steps; a value below 1 is a share of all steps.
    INTERVALS: ClassVar[tuple[str, ...]] = ("logging_steps", "eval_steps", "save_steps")
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "mixed_precision": MIXED_PRECISION,
        "optimizer": OPTIMIZERS,
    }

    def __post_init__(self) -> None:
        """Refuse values of the wrong type or out of range.

        Raises:
            ValueError: The message names the setting, its value, and what is allowed.
        """
        check_dataclass(type(self), vars(self), "the settings")
        for name in self.POSITIVE:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0. Got {value}.")
        for name in self.NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must not be negative. Got {value}.")
        for name in self.INTERVALS:
            value = getattr(self, name)
            if value > 1 and value != int(value):
                raise ValueError(
                    f"{name} must be a whole number of steps, or a share of all steps below 1. Got "
                    f"{value}."
                )
        for name, allowed in self.CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}. Got {getattr(self, name)!r}."
                )
        if self.resize_factor < 1:
            raise ValueError(
                "resize_factor must be at least 1, or the crop would not fit. Got "
                f"{self.resize_factor}."
            )
        if self.model is not None and self.architecture:
            raise ValueError(
                "Give either model (start from it) or architecture (start from scratch), not both."
            )

    @classmethod
    def from_values(
        cls, values: Mapping[str, Any], overrides: Mapping[str, Any], source: str = ""
    ) -> Self:
        """Settings from JSON values, such as a recipe's; names of before are read too.

        Args:
            values: Settings by name.
            overrides: Settings that win over these.
            source: Where `values` come from, to begin messages with.

        Raises:
            ValueError: A setting is unknown or has a value that it cannot have.
        """
        values = with_current_names(values) | with_current_names(overrides)
        start = f"{printable(source)}: " if source else ""
        unknown = sorted(values.keys() - {each.name for each in fields(cls)})
        if unknown:
            raise ValueError(f"{start}unknown settings {listed(unknown)}.")
        check_dataclass(cls, values, source or "the settings")
        as_tuples: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**as_tuples)

    @classmethod
    def complete(cls, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of an older run under today's names, with defaults for what was added since."""
        defaults = {
            each.name: each.default if each.default_factory is MISSING else each.default_factory()
            for each in fields(cls)
        }
        return defaults | with_current_names(stored)

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values."""
        return asdict(self)


def steps_between(interval: float, num_steps: int) -> int:
    """An interval in steps.

    A value below 1 is a share of all steps, as in transformers' ``TrainingArguments``.
    """
    return math.ceil(interval * num_steps) if interval < 1 else int(interval)


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under the names of today; see `OLD_NAMES`."""
    return {OLD_NAMES.get(name, name): value for name, value in values.items()}
