"""Options that several commands of ``var-hf`` share, named like the Python arguments."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Any

import typer

from var_hf.assets import DEFAULT_MODEL


class DType(StrEnum):
    """Number formats of the computation. ``auto`` is the fast dtype of the device; ``int8`` is
    `enable_int8` on top of it.
    """

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    int8 = "int8"


class Sampling(StrEnum):
    """Methods to sample tokens from the logits."""

    multinomial = "multinomial"
    gumbel_softmax = "gumbel_softmax"


class GuidanceSchedule(StrEnum):
    """Schedules of the guidance over the scales."""

    ramp = "ramp"
    constant = "constant"


MODEL_HELP = (
    f"pipeline folder, Hub repository as user/name, or {DEFAULT_MODEL.name}, which ships with the "
    "package"
)
AUTO_DTYPE_HELP = (
    "auto is bfloat16 on a GPU or CPU with bfloat16 instructions, float16 on another NVIDIA GPU, "
    "else float32"
)

ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", metavar="MODEL", help=f"A {MODEL_HELP}."),
]
DTypeOption = Annotated[
    DType,
    typer.Option(
        help=(
            f"Number format of the weights; {AUTO_DTYPE_HELP}. int8: 8-bit linear layers in the "
            "transformer, for an x86 CPU."
        )
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help=(
            "Such as cpu, cuda, cuda:1 or mps; auto is the accelerator if there is one, else the "
            "CPU."
        ),
    ),
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(
        metavar="FLOAT",
        help=(
            "Classifier-free guidance at the finest scale; 1 is off.  [default: the checkpoint's; "
            "2.5 in converted releases]"
        ),
    ),
]
CfgOption = Annotated[
    float | None,
    typer.Option(
        metavar="FLOAT",
        help="The same in the convention of the original code: guidance scale minus 1.",
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option(
        metavar="INT",
        help=(
            "Draw from the k likeliest codes; 0 is off.  [default: the checkpoint's; 900 in "
            "converted releases]"
        ),
    ),
]
TopPOption = Annotated[
    float | None,
    typer.Option(
        metavar="FLOAT",
        help=(
            "Draw from the likeliest codes that reach this probability; 1 is off.  "
            "[default: the checkpoint's; 0.96 in converted releases]"
        ),
    ),
]
SamplingOption = Annotated[
    Sampling | None,
    typer.Option(
        help=(
            "gumbel_softmax mixes codes: smoother images, not for FID.  [default: the "
            "checkpoint's; multinomial in converted releases]"
        )
    ),
]


def parse_temperature(text: str) -> float | list[float]:
    """Parse one temperature, such as `"0.9"`, or one for each scale: `"1.1,1.1,1,1"`."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"takes a number, or one for each scale with commas between them. Got {text}."
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]


TemperatureOption = Annotated[
    Any,
    typer.Option(
        parser=parse_temperature,
        metavar="FLOAT|FLOAT,...",
        help=(
            "Divides the logits, one number or one for each scale: below 1 favours likely codes, "
            "1 is off.  [default: the checkpoint's; 1 in converted releases]"
        ),
    ),
]
RefinerOption = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help=(
            "Second, smaller model for the fine scales (collaborative decoding): pipeline folder "
            "or Hub repository."
        ),
    ),
]
DraftScalesOption = Annotated[
    int | None,
    typer.Option(
        metavar="INT",
        help=(
            "Scales that the first of two models draws, counted from the coarsest.  [default: "
            "the checkpoint's, or all but the last two]"
        ),
    ),
]


def parse_guided_scales(text: str) -> int | tuple[int, int]:
    """Parse scales, from the coarsest: `"5"` is the first five, `"2:8"` is 2 to 7."""
    start, colon, stop = text.partition(":")
    if not start.isdecimal() or (colon and not stop.isdecimal()):
        raise typer.BadParameter(
            f"takes a number of scales, such as 5, or a range START:STOP, such as 2:8. Got {text}."
        )
    return (int(start), int(stop)) if colon else int(start)


GuidedScalesOption = Annotated[
    Any,
    typer.Option(
        parser=parse_guided_scales,
        metavar="INT|START:STOP",
        help=(
            "Scales with guidance, counted from the coarsest: the first INT, or those from START "
            "to STOP - 1.  [default: the checkpoint's; all in converted releases]"
        ),
    ),
]
GuidanceScheduleOption = Annotated[
    GuidanceSchedule | None,
    typer.Option(
        help=(
            "ramp raises guidance from none at the coarsest scale to full at the finest; constant "
            "applies it everywhere.  [default: the checkpoint's; ramp in converted releases]"
        )
    ),
]
SSGScaleOption = Annotated[
    float | None,
    typer.Option(
        metavar="FLOAT",
        help=(
            "Scaled spatial guidance: strengthens the detail that each scale adds, without a "
            "second pass; 0 is off.  [default: the checkpoint's; 0 in converted releases]"
        ),
    ),
]
JSONOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def choose_guidance(guidance_scale: float | None, cfg: float | None) -> float | None:
    """Return the guidance scale from either convention; ``None`` is the checkpoint's default."""
    if cfg is None:
        return guidance_scale
    if guidance_scale is not None:
        raise ValueError(
            f"--cfg {cfg:g} and --guidance-scale {guidance_scale:g} set the same value in two "
            f"conventions: pass one of them. --cfg {cfg:g} is --guidance-scale {cfg + 1:g}."
        )
    if not 0 <= cfg < math.inf:
        raise ValueError(f"--cfg must be a finite number of at least 0 (0 is off). Got {cfg:g}.")
    return cfg + 1
