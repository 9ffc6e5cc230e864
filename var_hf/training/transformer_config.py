"""Settings of `var-hf train`, and the recipes that come with the package."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Self

from var_hf.schema import ATTENTION, read_settings
from var_hf.training import config as shared
from var_hf.training.config import TrainingConfig

LR_SCHEDULER_TYPES = ("lin0", "cosine")
LR_SCALINGS = ("batch", "width")

#: Arguments of transformers that wrap or cut up the model in ways of their own.
NOT_WITH_SHARD = {"deepspeed", "auto_find_batch_size", "parallelism_config"}


@dataclass(frozen=True, kw_only=True)
class TransformerTrainingConfig(TrainingConfig):
    """Everything that defines a transformer training run.

    Defaults are those of the release's VAR-d16 (FoundationVision/VAR, `utils/arg_util.py`), for
    training from scratch. `from_recipe` takes those of the recipe `fine-tune` or `lora` where a
    `model` is given. `TrainingConfig` describes the settings that are not listed here.

    Attributes:
        label_column: Column of the classes; ``None`` takes ``"label"``.
        tokenizer: The multi-scale VQVAE: its folder or Hub repository, or a pipeline's. ``None``
            takes that of the pipeline in `model`.
        token_map_sizes: Another schedule than the tokenizer's own.
        image_size: Side of the images in pixels, as a check; it follows from the schedule.
        token_cache: Folder of the encoded images; ``None`` puts it into the run folder. Without
            `data`, training uses the finished cache in it.
        validation_cache: The same for the validation images and `validation`.
        copies: Versions of each image in the cache, cropped and mirrored anew; epoch e reads
            version e modulo this.
        encode_batch_size: Images encoded at once.
        new_classes: Give `model` a new class table for the classes of the data; only the null row
            is kept.
        lora_rank: Train adapters of this rank in `LORA_TARGETS` (LoRA, arXiv 2106.09685) instead of
            all weights; 0 is off. Their scale is 1. They are merged into the saved pipeline.
        decoder_steps: Steps that first train the tokenizer's decoder on the images, with the losses
            of `TokenizerTrainingConfig`; all tokens stay as they are. ``None``, the recipes' value,
            is 120 with `new_classes` for a tokenizer of less than 20 million parameters, else 0: a
            small tokenizer knows little but the images that it was trained on. The release's was
            trained with perceptual and adversarial losses, and L1 and L2 alone would blur its
            images.
        decoder_learning_rate: Peak of these steps; ``None`` takes 0.016 divided by the tokenizer's
            `base_channels`.
        freeze: Patterns of parameter names that are not trained, such as ``"layers.[0-7].*"``.
        trained_scales: Learn the tokens of this many scales alone, from the coarsest on; ``None``
            learns all. The finest scales hold most tokens and take most of the time. A further run
            with this `model` and all scales completes it: progressive training, as `pg` of the
            release's trainer.
        num_train_epochs: Passes over the data.
        learning_rate: Peak learning rate; ``None`` computes it from `base_learning_rate`, see
            `peak_learning_rate`.
        base_learning_rate: Peak for a batch of 256 images, or with ``"width"`` for a hidden size of
            1024.
        lr_scaling: How the peak follows from `base_learning_rate`: ``"batch"``, in proportion to
            the batch, as in the release, or ``"width"``, in inverse proportion to the hidden size,
            for fine-tuning.
        class_lr_factor: Multiplies the learning rate of the class table, with `new_classes` alone:
            its rows start anew, all other weights do not.
        lr_scheduler_type: ``"lin0"`` or ``"cosine"``; see `learning_rate_factor`.
        warmup_epochs: ``None`` is a fiftieth of all epochs.
        warmup_start_factor: Share of the peak at the first step.
        final_lr_factor: Share of the peak at the last step.
        weight_decay: AdamW's weight decay at the start, on the parameters that `decayed_parameters`
            names.
        final_weight_decay: At the end, along a cosine.
        optimizer: ``"adamw"``, the release's, or ``"muon"`` for the matrices of attention and MLP
            with AdamW for the rest. Muon learns more from each image. With `shard` it gathers one
            matrix at a time.
        max_grad_norm: Gradients are clipped to this norm; 0 is off.
        gradient_checkpointing: Compute each layer again in the backward pass instead of storing it.
        shard: Keep one part of each weight, gradient and optimizer state in each process (FSDP2)
            instead of all in all (DDP). Losses and result are the same but for rounding.
        torch_compile: Compile the model (`torch.nn.Module.compile`). The first step takes minutes.
        attn_implementation: Attention kernel: ``"sdpa"``, ``"eager"``, ``"flex_attention"``, or
            ``"flash_attention_2"`` and ``"flash_attention_3"`` with their packages. All compute the
            same but for rounding. On a CPU in bf16, ``"eager"`` can be the fastest one.
        sampling: Sampling defaults stored with the pipeline: settings of `NextScaleScheduler`.
        sample_steps: Steps between grids of samples; a value below 1 is a share of all steps, 0
            draws none. Otherwise the last step always draws one.
        trainer: Further arguments of `transformers.TrainingArguments`, such as
            ``{"report_to": "tensorboard"}`` or `deepspeed`.
    """

    label_column: str | None = None
    tokenizer: str | None = None
    token_map_sizes: tuple[int, ...] | None = None
    image_size: int | None = None
    token_cache: str | None = None
    validation_cache: str | None = None
    copies: int = 1
    encode_batch_size: int = 64
    new_classes: bool = False
    lora_rank: int = 0
    decoder_steps: int | None = 0
    decoder_learning_rate: float | None = None
    freeze: tuple[str, ...] = ()
    trained_scales: int | None = None
    num_train_epochs: float = 200
    learning_rate: float | None = None
    base_learning_rate: float = 1e-4
    lr_scaling: str = "batch"
    class_lr_factor: float = 1.0
    lr_scheduler_type: str = "lin0"
    warmup_epochs: float | None = None
    warmup_start_factor: float = 0.005
    final_lr_factor: float = 0.1
    final_weight_decay: float = 0.05
    gradient_checkpointing: bool = False
    shard: bool = False
    torch_compile: bool = False
    attn_implementation: str = "sdpa"
    sampling: dict[str, Any] = field(default_factory=dict)
    sample_steps: float = 1000
    trainer: dict[str, Any] = field(default_factory=dict)

    #: What a run folder of these settings holds, and the recipe of a method of post-training.
    kind: ClassVar[str] = "transformer"
    #: Sampling defaults of the result that differ from those of `model`.
    sampling_changes: ClassVar[Mapping[str, Any]] = {}

    POSITIVE: ClassVar[tuple[str, ...]] = (
        *TrainingConfig.POSITIVE, "copies", "encode_batch_size", "trained_scales",
        "num_train_epochs", "learning_rate",
        "base_learning_rate", "class_lr_factor", "decoder_learning_rate",
    )  # fmt: skip
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = (
        *TrainingConfig.NOT_NEGATIVE, "lora_rank", "warmup_start_factor", "final_lr_factor",
        "final_weight_decay",
        "sample_steps", "decoder_steps",
    )  # fmt: skip
    INTERVALS: ClassVar[tuple[str, ...]] = (*TrainingConfig.INTERVALS, "sample_steps")
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **TrainingConfig.CHOICES,
        "lr_scheduler_type": LR_SCHEDULER_TYPES,
        "lr_scaling": LR_SCALINGS,
        "attn_implementation": ATTENTION,
    }

    def __post_init__(self) -> None:
        """Refuse values that cannot be trained with."""
        super().__post_init__()
        self.check_data()
        if self.data is None and self.decoder_steps:
            raise ValueError("decoder_steps train on images, not on tokens: name them (data).")
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
        self.check_shard()
        if any(name.startswith("torch_compile") for name in self.trainer):  # backend and mode too
            raise ValueError("torch_compile is a setting of its own: take it out of trainer.")
        if self.weight_decay == 0 and self.final_weight_decay > 0:
            raise ValueError(
                "weight_decay is 0: it cannot grow to final_weight_decay. Start above 0."
            )

    def check_shard(self) -> None:
        """Raise a ``ValueError`` for what is not trained with `shard`."""
        if not self.shard:
            return
        if self.mixed_precision == "fp16":
            raise ValueError(
                "shard trains in bf16 or float32: the loss scaling of fp16 has not been tested on "
                'parts of gradients. Set mixed_precision "bf16" or "no".'
            )
        if self.torch_compile:
            raise ValueError("shard trains without torch_compile: leave one out.")
        if unfit := sorted(NOT_WITH_SHARD & self.trainer.keys()):
            raise ValueError(
                f"shard does not go with {', '.join(unfit)} under trainer: leave one out."
            )

    def check_data(self) -> None:
        """Raise a ``ValueError`` unless there is something to train on."""
        if self.data is None and self.token_cache is None:
            raise ValueError("Name the images (data), or a folder with their tokens (token_cache).")

    @classmethod
    def from_recipe(cls, recipe: str | Path | None, **overrides: Any) -> Self:
        """Read settings from a recipe.

        Args:
            recipe: Name of a recipe that comes with the package (`recipe_names`), or a JSON file.
                ``None`` takes `lora` if `model` and `lora_rank` are given, `fine-tune` if `model`
                alone is, else the defaults.
            **overrides: Settings that win over the recipe's.

        Raises:
            ValueError: There is no such recipe, the file is no JSON object, or a setting is
                unknown.
        """
        if recipe is None and overrides.get("model") is not None:
            recipe = "lora" if overrides.get("lora_rank") else "fine-tune"
        values = {} if recipe is None else read_recipe(recipe)
        values.pop("about", None)
        return cls.from_values(values, overrides, "" if recipe is None else str(recipe))


#: Settings that may change when a run is continued: they do not touch its result.
FREE_SETTINGS = (
    *shared.FREE_SETTINGS, "encode_batch_size", "eval_steps", "sample_steps", "torch_compile",
    "attn_implementation",
)  # fmt: skip

#: Settings that name places on this machine, or may.
PLACES = (
    "data", "validation", "tokenizer", "token_cache", "validation_cache", "model", "trainer",
    "reference", "features", "feature_weights",
)  # fmt: skip


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("var_hf.training") / "recipes"
    names = (file.name for file in folder.iterdir())
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def read_recipe(recipe: str | Path) -> dict[str, Any]:
    """A recipe as it was written: settings, and under ``about`` command, hardware and result.

    Raises:
        ValueError: There is no such recipe, or the file is no JSON object.
    """
    if str(recipe) in recipe_names():
        folder = resources.files("var_hf.training") / "recipes"
        with resources.as_file(folder / f"{recipe}.json") as file:
            return read_settings(file)
    if not Path(recipe).is_file():
        raise ValueError(
            f"There is no recipe {str(recipe)!r}: neither a file nor one of "
            f"{', '.join(recipe_names())}."
        )
    return read_settings(recipe)
