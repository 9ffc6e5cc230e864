"""Scaling laws: a ladder of transformers on the same tokens, and the power laws of their losses.

    output/
        tokens/                     the encoded images, shared by all sizes
        runs/4x160/                 the run of each size; see `train_transformer`
        scaling.json, report.md     what was measured and fitted; see `scaling_report`
        parameters.png, compute.png

Source: arXiv 2404.02905, section 4.3.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from var_hf.configuration_var import VARConfig
from var_hf.modeling_var import VARModel
from var_hf.training.power_law import PowerLaw, fit_power_law, frontier
from var_hf.training.processes import process_state
from var_hf.training.scaling_report import write_report
from var_hf.training.tokenizer import DivergedError
from var_hf.training.transformer import train_transformer
from var_hf.training.transformer_config import TransformerTrainingConfig

logger = logging.getLogger(__name__)

#: Layers x width; 0.15 to 18 million parameters.
DEFAULT_SIZES = ("2x64", "2x96", "3x128", "4x160", "6x192", "6x256", "8x352")
DEFAULT_HELD_OUT = "5x224"
#: Width of an attention head, as in the release; smaller where the width is no multiple of it.
HEAD_WIDTH = 64
#: What is fitted: the loss per token and the token error, over all scales and at the finest.
QUANTITIES = ("loss", "loss_finest_scale", "error", "error_finest_scale")


@dataclass(frozen=True)
class Size:
    """Depth and width of a transformer."""

    layers: int
    width: int

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Read ``"4x160"``: four layers of width 160.

        Raises:
            ValueError: It is no size, or the width is no multiple of 8.
        """
        layers, times, width = text.partition("x")
        if not (times and layers.isdecimal() and width.isdecimal() and int(layers) and int(width)):
            raise ValueError(f"A size is LAYERSxWIDTH, such as 4x160. Got {text!r}.")
        if int(width) % 8:
            raise ValueError(f"The width must be a multiple of 8. Got {text!r}.")
        return cls(int(layers), int(width))

    def __str__(self) -> str:
        return f"{self.layers}x{self.width}"

    def architecture(self) -> dict[str, int]:
        """Settings of `VARConfig`."""
        return {
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.width // math.gcd(self.width, HEAD_WIDTH),
        }


@dataclass(frozen=True)
class Point:
    """A measurement on the validation images.

    Attributes:
        tokens: Training tokens seen.
        compute: Training cost in PFLOP: ``6 * parameters * tokens``.
        loss, loss_finest_scale: Cross-entropy per token in nats.
        error, error_finest_scale: Share of the tokens that are not the likeliest one.
    """

    tokens: int
    compute: float
    loss: float
    loss_finest_scale: float
    error: float
    error_finest_scale: float


@dataclass(frozen=True)
class Rung:
    """One size of the ladder.

    Attributes:
        size: Such as ``"4x160"``.
        parameters: Of all layers, without embeddings and head, as the paper counts; 0 if it failed.
        points: Measurements in training; the last one is the result.
        failure: Why the size is left out of the fits, ``None`` if it is not.
    """

    size: str
    parameters: int
    points: tuple[Point, ...]
    failure: str | None = None


def check_sizes(sizes: Sequence[str], held_out: str | None) -> list[Size]:
    """The sizes of a ladder, small to large.

    Raises:
        ValueError: There are too few, one is given twice, or the held-out one is among them.
    """
    ladder = [Size.parse(size) for size in sizes]
    if len(set(ladder)) < len(ladder):
        raise ValueError(f"A size is given twice: {', '.join(sizes)}. Give each once.")
    if len(ladder) < 4:
        raise ValueError(
            f"A ladder needs at least 4 sizes: a power law has three parameters. "
            f"Got {len(ladder)} ({', '.join(sizes)})."
        )
    if held_out is not None and Size.parse(held_out) in ladder:
        raise ValueError(f"The held-out size {held_out} is in the ladder. Choose another one.")
    return sorted(ladder, key=lambda size: size.layers * size.width**2)


def count_parameters(config: VARConfig) -> int:
    """Parameters of all layers: attention, MLP and AdaLN."""
    with torch.device("meta"):
        layers = VARModel(config).layers
    return sum(parameter.numel() for parameter in layers.parameters())


def train_ladder(
    config: TransformerTrainingConfig,
    sizes: Sequence[str],
    held_out: str | None,
    output: str | Path,
) -> dict[str, Any]:
    """Train every size on the same tokens, fit the laws and write the report.

    Under `accelerate launch` every size is trained on all processes. The same call continues an
    interrupted ladder.

    Args:
        config: Settings of every run; `architecture` must not give depth, width or heads.
        sizes: Sizes of the ladder, at least four, such as ``"4x160"``.
        held_out: A further size, whose loss is predicted and then measured; ``None`` for none.
        output: The folder described at the top of this module.

    Returns:
        What `summarize` returns.

    Raises:
        ValueError: Sizes and settings do not fit, or too few sizes are left for a fit.
    """
    ladder = check_sizes(sizes, held_out)
    taken = sorted(config.architecture.keys() & ladder[0].architecture().keys())
    if taken or config.model is not None:
        raise ValueError(
            f"The ladder sets depth and width itself: leave out {', '.join(taken) or 'model'}."
        )
    if config.validation is None:
        raise ValueError("A ladder is measured on unseen images: name them (validation).")
    output = Path(output)
    rungs = [_train(config, size, output) for size in ladder]
    last = None if held_out is None else _train(config, Size.parse(held_out), output)
    result = summarize(rungs, last)
    if process_state().is_main_process:
        write_report(output, result)
    process_state().wait_for_everyone()
    return result


def _train(config: TransformerTrainingConfig, size: Size, output: Path) -> Rung:
    run = output / "runs" / str(size)
    settings = replace(
        config,
        architecture={**config.architecture, **size.architecture()},
        token_cache=config.token_cache or str(output / "tokens"),
        sample_every=0,
    )
    logger.info("size %s", size)
    try:
        train_transformer(settings, run)
    except DivergedError as error:
        failure = f"{size} is left out of the fits, because its training diverged: {error}"
        logger.warning("%s", failure)
        return Rung(str(size), 0, (), failure)
    return read_rung(run, str(size))


def read_rung(run: Path, size: str) -> Rung:
    """The measurements in the folder of a finished run."""
    batch = json.loads((run / "config.json").read_text("utf-8"))["global_batch_size"]
    model = VARConfig.from_pretrained(run / "pipeline" / "transformer")
    parameters = count_parameters(model)
    tokens_per_step = batch * sum(side**2 for side in model.token_map_sizes)
    lines = (run / "log.jsonl").read_text("utf-8").splitlines()
    points = []
    for entry in filter(lambda entry: "evaluation" in entry, map(json.loads, lines)):
        values, tokens = entry["evaluation"], entry["step"] * tokens_per_step
        points.append(
            Point(
                tokens=tokens,
                compute=6 * parameters * tokens / 1e15,
                loss=values["loss"],
                loss_finest_scale=values["loss_finest_scale"],
                error=1 - values["accuracy"],
                error_finest_scale=1 - values["accuracy_finest_scale"],
            )
        )
    return Rung(size, parameters, tuple(points))


def summarize(rungs: Sequence[Rung], held_out: Rung | None) -> dict[str, Any]:
    """Fit all laws.

    Args:
        rungs: The ladder.
        held_out: The size that is predicted.

    Returns:
        JSON values: the rungs; ``left_out``, a sentence for each size that diverged; for every
        quantity of `QUANTITIES` its law of parameters (in billions) and of compute (in PFLOP),
        and its prediction for the held-out size.

    Raises:
        ValueError: Fewer than four sizes did not diverge, or they saw different numbers of tokens.
    """
    good = [rung for rung in rungs if rung.failure is None]
    left_out = [rung.failure for rung in rungs if rung.failure is not None]
    if len(good) < 4:
        raise ValueError(
            f"Only {len(good)} sizes can be fitted, and a power law needs 4. {' '.join(left_out)}"
        )
    seen = {rung.points[-1].tokens for rung in good}
    if len(seen) > 1:
        raise ValueError(f"The sizes saw different numbers of tokens: {sorted(seen)}.")
    sizes = [rung.parameters / 1e9 for rung in good]
    points = [point for rung in good for point in rung.points if point.compute > 0]
    costs = [point.compute for point in points]
    laws: dict[str, Any] = {}
    for name in QUANTITIES:
        law = fit_power_law(sizes, [getattr(rung.points[-1], name) for rung in good])
        values = [getattr(point, name) for point in points]
        best = frontier(costs, values)
        laws[name] = {
            "parameters": asdict(law),
            "compute": _compute_law([costs[i] for i in best], [values[i] for i in best]),
            "frontier": [(costs[i], values[i]) for i in best],
            "held_out": _check(law, held_out, name),
        }
    return {
        "tokens": seen.pop(),
        "rungs": [asdict(rung) for rung in rungs],
        "held_out": None if held_out is None else asdict(held_out),
        "left_out": left_out,
        "laws": laws,
    }


def _compute_law(costs: list[float], values: list[float]) -> dict[str, Any] | None:
    """The law of the frontier; ``None`` if it has too few points."""
    return asdict(fit_power_law(costs, values)) if len(costs) >= 4 else None


def _check(law: PowerLaw, rung: Rung | None, name: str) -> dict[str, float] | None:
    if rung is None or rung.failure is not None:
        return None
    predicted = float(law(rung.parameters / 1e9))
    measured = getattr(rung.points[-1], name)
    return {
        "predicted": predicted,
        "measured": measured,
        "relative_error": predicted / measured - 1,
    }
