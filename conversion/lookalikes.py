"""Checkpoints of other models that look like VAR's: each is named instead of failing by a tensor.

Names and shapes are those of the authors' code: OliverRensu/MVAR (M-VAR), jiaosiyu1999/FlexVAR,
NVlabs/HMAR, daixiangzi/VAR-CLIP and MiracleDance/CAR; the attention of MVAR is that of arXiv
2505.12742.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from var_hf.conversion.errors import CheckpointError

_StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class _LookAlike:
    name: str
    difference: str
    matches: Callable[[_StateDict], bool]


def _has(*patterns: str) -> Callable[[_StateDict], bool]:
    """Whether each pattern is that of some tensor's name."""

    def matches(state_dict: _StateDict) -> bool:
        return all(any(re.match(pattern, name) for name in state_dict) for pattern in patterns)

    return matches


def _is_flexvar(state_dict: _StateDict) -> bool:
    positions = state_dict.get("pos_1LC")
    return positions is not None and positions.ndim == 4 and "lvl_embed.weight" not in state_dict


def _is_car_alone(state_dict: _StateDict) -> bool:
    return bool(state_dict) and all(name.startswith("car_") for name in state_dict)


def _hides_coarser_scales(state_dict: _StateDict) -> bool:
    """Whether the mask hides all that VAR's hides, and some scales coarser than the query's."""
    mask, levels = state_dict.get("attn_bias_for_masking"), state_dict.get("lvl_1L")
    if mask is None or levels is None or mask.is_meta or levels.is_meta or mask.ndim != 4:
        return False
    scales = levels.flatten().long()
    if mask.shape != (1, 1, len(scales), len(scales)) or scales.min() != 0:
        return False
    visible = {
        scale: scales[mask[0, 0, (scales == scale).nonzero()[0, 0]] == 0].unique().tolist()
        for scale in scales.unique().tolist()
    }
    return all(seen and seen[-1] == scale for scale, seen in visible.items()) and any(
        seen[0] > 0 for seen in visible.values()
    )


_LOOK_ALIKES = (
    _LookAlike(
        "the control branch of CAR alone",
        "it adds a condition to a VAR model and holds no model of its own",
        _is_car_alone,
    ),
    _LookAlike(
        "HMAR",
        "it predicts masked tokens within a scale, by heads of its own",
        _has(r"ns_head\.", r"mask_head\."),
    ),
    _LookAlike(
        "VAR-CLIP",
        "it takes a CLIP vector of a text, and no classes",
        _has(r"cond_proj\.", r"noise\."),
    ),
    _LookAlike(
        "M-VAR",
        "its blocks have a Mamba layer",
        _has(r"blocks\.\d+\.mamba\."),
    ),
    _LookAlike(
        "FlexVAR",
        "it predicts latents instead of residuals, with a map of positions and no levels",
        _is_flexvar,
    ),
    _LookAlike(
        "MVAR, or another model with its attention",
        "its stored mask hides coarser scales, all of which a token of VAR sees",
        _hides_coarser_scales,
    ),
)


def refuse_lookalikes(state_dict: _StateDict, what: str) -> None:
    """Refuse the checkpoint of another model that can be told by its tensors.

    Args:
        state_dict: Original names and tensors.
        what: What it is and where it comes from, to begin the message with.

    Raises:
        CheckpointError: It is one; the message names the model and the difference.
    """
    for model in _LOOK_ALIKES:
        if model.matches(state_dict):
            raise CheckpointError(
                f"{what} is no VAR but {model.name}: {model.difference}. Only checkpoints of the "
                "release's model are converted."
            )
