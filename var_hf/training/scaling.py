"""Scaling laws: transformers of several sizes on the same tokens, and what their losses predict."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from var_hf.configuration_var import VARConfig
from var_hf.costs import matrix_parameters, training_flops, transformer_parameters
from var_hf.evaluation.report import check_matplotlib
from var_hf.evaluation.scaling_laws import (
    FEWEST_POINTS,
    TARGETS,
    describe_fit,
    describe_frontier,
)
from var_hf.evaluation.scaling_report import REPORT_NAME, write_scaling_report
from var_hf.files import read_json, write_json
from var_hf.processes import process_state
from var_hf.training import config as shared
from var_hf.training.run_folder import LOG_NAME, RunFolder, read_log
from var_hf.training.tokenizer import DivergedError
from var_hf.training.transformer import (
    load_tokenizer,
    open_source,
    open_tokens,
    train_transformer,
)
from var_hf.training.transformer_config import TransformerTrainingConfig
from var_hf.training.transformer_trainer import check_batch

logger = logging.getLogger(__name__)

#: Written into the folder of a size whose training diverged.
DIVERGED_NAME = "diverged.json"
#: Settings of training that do not belong to models of several sizes from scratch.
NOT_FOR_SCALING = (
    "model", "new_classes", "lora_rank", "freeze", "decoder_steps", "decoder_learning_rate",
    "trained_scales",
)  # fmt: skip
#: Settings that may change when a ladder is continued: they touch none of its models.
FREE_SETTINGS = (*shared.FREE_SETTINGS, "encode_batch_size", "sample_steps", "bootstrap")
#: Names of the measured values in a run's log, and whether the value is an accuracy.
_LOGGED = {
    "loss_finest_scale": ("loss_finest_scale", False),
    "loss": ("loss", False),
    "error_finest_scale": ("accuracy_finest_scale", True),
    "error": ("accuracy", True),
}
#: A loss that ends this much above its minimum is reported as overfitting.
_OVERFITTING = 1.01


@dataclass(frozen=True, kw_only=True)
class ScalingConfig(TransformerTrainingConfig):
    """Settings of a ladder; `TransformerTrainingConfig` describes those of each training.

    Width, layers and heads come from `sizes`; `architecture` holds what all sizes share. The recipe
    `scaling` holds the defaults that differ from those of training.

    Attributes:
        sizes: The models to fit the laws to, each as ``"WIDTHxLAYERSxHEADS"``, such as
            ``"384x6x6"`` for the smallest of the paper, whose depth d has the size
            ``64d x d x d``. At least four.
        held_out: The model whose loss is predicted first, and trained last. ``None`` trains none.
        bootstrap: Draws of the bootstrap that gives the intervals.
    """

    sizes: tuple[str, ...] = ()
    held_out: str | None = None
    bootstrap: int = 1000

    kind: ClassVar[str] = "scaling"
    POSITIVE: ClassVar[tuple[str, ...]] = (*TransformerTrainingConfig.POSITIVE, "bootstrap")

    def __post_init__(self) -> None:
        """Refuse a ladder that no law can be fitted to, and settings of fine-tuning."""
        given = [name for name in NOT_FOR_SCALING if getattr(self, name)]
        if given:
            raise ValueError(
                f"All sizes are trained from scratch: leave out {' and '.join(given)}."
            )
        if self.tokenizer is None:
            raise ValueError("Name the tokenizer that all sizes share (tokenizer).")
        if self.validation is None and self.validation_cache is None:
            raise ValueError(
                "Scaling laws are those of the loss on held-out images: name them (validation)."
            )
        super().__post_init__()
        taken = sorted({*self.architecture} & {*_SIZE_SETTINGS})
        if taken:
            raise ValueError(f"architecture: {taken[0]} follows from sizes. Leave it out.")
        sizes = [model_config(size, self.architecture) for size in self.sizes]
        parameters = {matrix_parameters(size) for size in sizes}
        if len(parameters) < FEWEST_POINTS:
            raise ValueError(
                f"A law needs at least {FEWEST_POINTS} sizes with different numbers of parameters. "
                f"Got {len(parameters)} ({', '.join(self.sizes) or 'none'}). The paper has twelve; "
                "seven over a factor of a hundred give useful intervals."
            )
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"sizes holds one twice: {', '.join(self.sizes)}.")
        if self.held_out is not None:
            model_config(self.held_out, self.architecture)
            if self.held_out in self.sizes:
                raise ValueError(
                    f"held_out is predicted from the other sizes: {self.held_out} cannot be one of "
                    "them."
                )

    @classmethod
    def from_recipe(cls, recipe: str | Path | None = None, **overrides: Any) -> Self:
        """Read settings from a recipe; ``None`` is `scaling`.

        Raises:
            ValueError: See `TransformerTrainingConfig.from_recipe`.
        """
        return super().from_recipe(cls.kind if recipe is None else recipe, **overrides)

    def of_size(
        self, size: str, tokens: Path, validation_tokens: Path
    ) -> TransformerTrainingConfig:
        """Settings of the training of one size on tokens that all share."""
        values = {each.name: getattr(self, each.name) for each in fields(TransformerTrainingConfig)}
        images = ("data", "split", "validation", "validation_split")
        return TransformerTrainingConfig(
            **values
            | dict.fromkeys(images)
            | {
                "architecture": {**self.architecture, **parse_size(size)},
                "token_cache": str(tokens),
                "validation_cache": str(validation_tokens),
            }
        )


_SIZE_SETTINGS = ("hidden_size", "num_hidden_layers", "num_attention_heads")


def parse_size(size: str) -> dict[str, int]:
    """Width, layers and heads of ``"WIDTHxLAYERSxHEADS"``, as settings of `VARConfig`.

    Raises:
        ValueError: It has another form.
    """
    if not re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5}){2}", size):
        raise ValueError(f"A size is written WIDTHxLAYERSxHEADS, such as 384x6x6. Got {size!r}.")
    return dict(zip(_SIZE_SETTINGS, map(int, size.split("x")), strict=True))


def model_config(size: str, architecture: Mapping[str, Any]) -> VARConfig:
    """Configuration of one size, with `architecture` for all that is not a matter of size.

    Raises:
        ValueError: The size cannot be built, such as one whose heads do not divide its width.
    """
    settings = parse_size(size)
    try:
        return VARConfig(**{**architecture, **settings})
    except ValueError as error:
        raise ValueError(f"Size {size}: {error}") from error


def train_ladder(config: ScalingConfig, output: str | Path) -> dict[str, Any]:
    """Train all sizes, fit the laws, predict the held-out size, and train it.

    Started under `accelerate launch`, each training runs on all processes. The sizes are trained in
    the order of their parameters, the held-out one last. What is finished is not repeated. The
    report is written anew after each training, and holds the prediction before the held-out size is
    trained.

        output/
            config.json                      the settings of the ladder
            tokens/, tokens-validation/      the encoded images, which all sizes share
            384x6x6/                         a run folder for each size, see `train_transformer`
            scaling.json                     what was measured and fitted
            parameters.png, compute.png      the two figures of the paper
            report.html                      all of it on one page

    Args:
        config: The settings.
        output: The folder.

    Returns:
        The content of ``scaling.json``, and the path of the ``report``.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError, OSError: See `train_transformer`.
    """
    check_matplotlib("The report of a ladder consists of them.")
    output = Path(output)
    check_batch(config)
    with process_state().main_process_first():
        folder = RunFolder(
            output,
            {"kind": config.kind, **config.to_dict()},
            free=FREE_SETTINGS,
            complete=config.complete,
        )
    try:
        tokens, validation_tokens = _encode(config, output)
        waiting = sorted(
            config.sizes,
            key=lambda size: matrix_parameters(model_config(size, config.architecture)),
        )
        if config.held_out is not None:
            waiting.append(config.held_out)
        measured: list[dict[str, Any]] = []
        left_out: list[dict[str, str]] = []
        result: dict[str, Any] = {}
        while waiting:
            size = waiting.pop(0)
            logger.info("size %s, %d more to train", size, len(waiting))
            found = _train_size(config.of_size(size, tokens, validation_tokens), output / size)
            if isinstance(found, str):
                logger.warning("%s is left out: %s", size, found)
                left_out.append({"size": size, "reason": found})
            else:
                measured.append({"size": size, **found})
            result = summarise(config, measured, left_out, waiting)
            if process_state().is_main_process:
                write_scaling_report(output, result)
            process_state().wait_for_everyone()
    finally:
        folder.close()
    return {"report": str(output / REPORT_NAME), **result}


def _encode(config: ScalingConfig, output: Path) -> tuple[Path, Path]:
    """The folders of the tokens of training and validation images, made if they are missing."""
    vqvae = load_tokenizer(config, None)
    folders = (
        Path(config.token_cache or output / "tokens"),
        Path(config.validation_cache or output / "tokens-validation"),
    )
    for folder, validation in zip(folders, (False, True), strict=True):
        images = open_source(config, validation=validation)
        open_tokens(config, images, vqvae, folder, validation=validation)
    return folders


def _train_size(config: TransformerTrainingConfig, folder: Path) -> dict[str, Any] | str:
    """Train one size as far as it is not trained; what was measured, or why it does not count."""
    marker = folder / DIVERGED_NAME
    if marker.exists():
        return str(read_json(marker).get("reason"))
    try:
        trained = train_transformer(config, folder)
    except DivergedError as error:
        reason = f"its training diverged. {error}"
        if process_state().is_main_process:
            write_json(marker, {"reason": reason})
        process_state().wait_for_everyone()
        return reason
    return measure_run(folder, trained["steps"], config.batch_size)


def measure_run(folder: Path, steps: int, batch_size: int) -> dict[str, Any] | str:
    """Parameters, compute and the curves of a finished run; or the reason why it does not count.

    Args:
        folder: The run folder.
        steps: Steps of the run.
        batch_size: Images per step.

    Returns:
        ``parameters`` (see `matrix_parameters`), ``all_parameters``, ``flops_per_image``, the four
        `TARGETS` after the last step, and ``curve``: ``images``, ``compute`` in PFLOP and the
        targets at each measurement. Error rates are shares from 0 to 1.
    """
    config = VARConfig.from_pretrained(folder / "pipeline" / "transformer")
    flops = training_flops(config)
    curve: dict[str, list[float]] = {name: [] for name in ("images", "compute", *TARGETS)}
    for entry in read_log(folder / LOG_NAME):
        if "evaluation" in entry and entry["step"] <= steps:
            curve["images"].append(entry["step"] * batch_size)
            curve["compute"].append(entry["step"] * batch_size * flops / 1e15)
            for target, (name, is_accuracy) in _LOGGED.items():
                value = entry["evaluation"][name]
                curve[target].append(1 - value if is_accuracy else value)
    if not curve["images"] or curve["images"][-1] != steps * batch_size:
        return (
            f"{folder / LOG_NAME} holds no measurement after the last step, {steps}. Delete "
            f"{folder} to train this size anew."
        )
    last = {target: curve[target][-1] for target in TARGETS}
    guess = math.log(config.vocab_size)
    if not all(math.isfinite(value) for value in last.values()) or last["loss"] >= guess:
        return (
            f"its training diverged. Its last loss is {last['loss']:.3f}, and a guess costs "
            f"{guess:.3f}. Lower the learning rate in a new ladder."
        )
    return {
        "parameters": matrix_parameters(config),
        "all_parameters": transformer_parameters(config),
        "flops_per_image": flops,
        "tokens_per_image": config.num_tokens,
        **last,
        "curve": curve,
    }


def summarise(
    config: ScalingConfig,
    measured: Sequence[Mapping[str, Any]],
    left_out: Sequence[Mapping[str, str]],
    waiting: Sequence[str],
) -> dict[str, Any]:
    """Fit the laws to what is measured: the content of ``scaling.json``.

    Args:
        config: The settings.
        measured: One entry of `measure_run` for each size, with its ``size``.
        left_out: ``size`` and ``reason`` of those that do not count.
        waiting: Sizes that are not trained yet.
    """
    fitted = [rung for rung in measured if rung["size"] != config.held_out]
    result: dict[str, Any] = {
        "sizes": fitted,
        "left_out": list(left_out),
        "waiting": list(waiting),
        "batch_size": config.batch_size,
        "seed": config.seed,
        "bootstrap": config.bootstrap,
        "parameters": None,
        "compute": None,
        "held_out": None,
        "warnings": [f"{each['size']} is left out: {each['reason']}" for each in left_out],
    }
    for rung in measured:
        lowest = min(rung["curve"]["loss"])
        if rung["loss"] > _OVERFITTING * lowest:
            result["warnings"].append(
                f"{rung['size']} overfits: its loss rose from {lowest:.3f} to {rung['loss']:.3f}. "
                "The laws are those of sufficient data: take fewer epochs, or more images."
            )
    if len({rung["parameters"] for rung in fitted}) < FEWEST_POINTS:
        return result
    held_out: dict[str, Any] | None = None
    if config.held_out is not None:
        model = model_config(config.held_out, config.architecture)
        held_out = {"size": config.held_out, "parameters": matrix_parameters(model)}
    sizes = [rung["parameters"] / 1e9 for rung in fitted]
    draws, seed = config.bootstrap, config.seed
    result["parameters"] = {
        target: describe_fit(
            sizes,
            [rung[target] for rung in fitted],
            at=None if held_out is None else held_out["parameters"] / 1e9,
            draws=draws,
            seed=seed,
        )
        for target in TARGETS
    }
    curves = [rung["curve"] for rung in fitted]
    result["compute"] = {
        target: describe_frontier(curves, target, draws=draws, seed=seed) for target in TARGETS
    }
    if held_out is not None:
        trained = next((rung for rung in measured if rung["size"] == config.held_out), None)
        result["held_out"] = held_out | {"measured": None, "relative_errors": None}
        if trained is not None:
            predicted = {
                target: result["parameters"][target]["with_floor"]["prediction"]["value"]
                for target in TARGETS
            }
            result["held_out"] |= {
                "measured": trained,
                "relative_errors": {
                    target: predicted[target] / trained[target] - 1 for target in TARGETS
                },
            }
    return result
