"""Options that several commands of ``var-hf`` share."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated

import typer

from var_hf.assets import VAR_EMOJI_64


class DType(StrEnum):
    """Number formats of weights in use, and ``auto``: what fits the device."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help=f"Pipeline folder, Hub repository as user/name, or {VAR_EMOJI_64.name}, which ships with the package.",
    ),
]
DTypeOption = Annotated[
    DType,
    typer.Option(
        help="Number format of the weights; auto is bfloat16 where the device computes it, else float32."
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="cpu, cuda, cuda:1, mps or the like; auto is the accelerator where there is one.",
    ),
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(
        metavar="FLOAT",
        help="Guidance at the finest scale; 1 is off.  [default: the checkpoint's; 2.5 in converted releases]",
    ),
]
CfgOption = Annotated[
    float | None,
    typer.Option(
        metavar="FLOAT", help="The same as the original code counts it: guidance scale minus 1."
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option(
        metavar="INT",
        help="Draw from the k likeliest codes; 0 is off.  [default: the checkpoint's; 900 in converted releases]",
    ),
]
TopPOption = Annotated[
    float | None,
    typer.Option(
        metavar="FLOAT",
        help="Draw from the likeliest codes that reach this probability; 1 is off.  "
        "[default: the checkpoint's; 0.96 in converted releases]",
    ),
]
SmoothOption = Annotated[
    bool,
    typer.Option("--smooth", help="Mix codes (Gumbel-softmax): smoother pictures, not for FID."),
]
JSONOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def choose_guidance(guidance_scale: float | None, cfg: float | None) -> float | None:
    """One number out of the two conventions; ``None`` is the checkpoint's default."""
    if cfg is None:
        return guidance_scale
    if guidance_scale is not None:
        raise ValueError(
            f"--cfg {cfg:g} and --guidance-scale {guidance_scale:g} say the same thing in two conventions: pass one "
            f"of them. --cfg {cfg:g} is --guidance-scale {cfg + 1:g}."
        )
    if not 0 <= cfg < math.inf:
        raise ValueError(f"--cfg must be a finite number of at least 0 (0 is off). Got {cfg:g}.")
    return cfg + 1
