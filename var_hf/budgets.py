"""Budgets of a classification by likelihood: stages that each read more of fewer classes.

Source of the scheme: A-VARC, arXiv 2510.12060.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

MANY_CLASSES = 100  # with more, the full search is not the default


class Stage(NamedTuple):
    """One stage: read scales under each class that is left, and keep the likeliest classes.

    Attributes:
        candidates: Number of classes that are kept. The last stage's number bounds the result.
        scales: Number of scales that are read, from the coarsest. Those that an earlier stage read
            are not read again.
        samples: Number of samples over which the log-likelihood is averaged: the image itself, and
            copies of it with noise on the encoder's features.
    """

    candidates: int
    scales: int
    samples: int = 1


Budget: TypeAlias = str | Sequence[Sequence[int]] | None  # a Stage is a sequence of numbers

PRESETS = ("full", "fast", "a-varc")
# Of "fast": share of the classes that is kept, their least number, and the scales that are read.
FAST = ((0.2, 20, 3), (0.1, 10, 4), (0.05, 10, 5), (0.01, 10, 6))


def resolve_budget(budget: Budget, num_classes: int, num_scales: int) -> tuple[Stage, ...]:
    """Return the stages of a budget for a model.

    Args:
        budget: Name of a preset: `"full"` reads all scales under each class, `"fast"` drops classes
            scale by scale, `"a-varc"` is the published scheme. Or stages, or tuples `(candidates,
            scales)` or `(candidates, scales, samples)`. `None` is `"full"` up to 100 classes and
            `"fast"` beyond.
        num_classes: Number of classes of the model.
        num_scales: Number of scales S of the model.

    Raises:
        ValueError: The budget is none of these, a number is out of range, the candidates do not
            decrease, or the scales or samples do.
    """
    if budget is None:
        budget = "fast" if num_classes > MANY_CLASSES else "full"
    if isinstance(budget, str):
        if budget not in PRESETS:
            raise ValueError(
                f"budget must be one of {', '.join(PRESETS)}, or a list of stages. Got {budget!r}."
            )
        return _fitted(_preset(budget, num_classes, num_scales), num_classes, num_scales)
    stages = _as_stages(budget)
    most, scales, samples = num_classes + 1, 1, 1
    for number, stage in enumerate(stages):
        where = f"Stage {number} of the budget"
        if not 1 <= stage.candidates < most:
            raise ValueError(
                f"{where} must keep 1 to {most - 1} classes: at most all {num_classes}, and fewer "
                f"than the stage before. Got {stage.candidates} candidates."
            )
        if not scales <= stage.scales <= num_scales:
            raise ValueError(
                f"{where} must read {scales} to {num_scales} scales: no fewer than the stage "
                f"before, and at most all. Got {stage.scales} scales."
            )
        if stage.samples < samples:
            raise ValueError(
                f"{where} must average over at least {samples} samples: no fewer than the stage "
                f"before. Got {stage.samples} samples."
            )
        most, scales, samples = stage
    return stages


def parse_budget(text: str) -> str | list[tuple[int, ...]]:
    """Parse the name of a preset, or stages such as `"10:6,3:10,1:10:3"`.

    Raises:
        ValueError: It is neither.
    """
    if text in PRESETS:
        return text
    parts = [stage.split(":") for stage in text.split(",")]
    if not all(len(part) in (2, 3) and all(map(str.isdecimal, part)) for part in parts):
        raise ValueError(
            f"--budget takes one of {', '.join(PRESETS)}, or stages CANDIDATES:SCALES[:SAMPLES] "
            f"with commas between them, such as 10:6,3:10,1:10:3. Got {text}."
        )
    return [tuple(map(int, part)) for part in parts]


def _as_stages(budget: object) -> tuple[Stage, ...]:
    """Check the types of a list of stages."""
    entries = list(budget) if isinstance(budget, Sequence) else []
    if not entries or not all(
        isinstance(entry, Sequence)
        and len(entry) in (2, 3)
        and all(type(number) is int for number in entry)
        for entry in entries
    ):
        raise ValueError(
            "budget must be a list of stages (candidates, scales) or (candidates, scales, "
            f"samples), or one of {', '.join(PRESETS)}. Got {budget!r}."
        )
    return tuple(Stage(*entry) for entry in entries)


def _preset(name: str, num_classes: int, num_scales: int) -> list[Stage]:
    """Return the stages of a preset, which may ask for more classes or scales than there are."""
    if name == "full":
        return [Stage(num_classes, num_scales)]
    if name == "fast":
        first = [
            Stage(max(least, int(share * num_classes)), scales) for share, least, scales in FAST
        ]
        return [*first, Stage(5, num_scales)]
    return [Stage(10, 6), Stage(3, num_scales), Stage(1, num_scales, 3)]


def _fitted(preset: Sequence[Stage], num_classes: int, num_scales: int) -> tuple[Stage, ...]:
    """Fit a preset to a model: leave out stages that would drop nothing, but never the last one."""
    stages: list[Stage] = []
    left = num_classes
    for stage in preset:
        if stage.candidates < left or stage is preset[-1]:
            left = min(stage.candidates, left)
            stages.append(Stage(left, min(stage.scales, num_scales), stage.samples))
    return tuple(stages)
