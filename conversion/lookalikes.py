"""Recognise checkpoints of other models that resemble VAR's, to name the model in the error.

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
    """Return a function that checks whether each pattern matches some tensor's name."""

    def matches(state_dict: _StateDict) -> bool:
        return all(any(re.match(pattern, name) for name in state_dict) for pattern in patterns)

    return matches


def _is_flexvar(state_dict: _StateDict) -> bool:
    positions = state_dict.get("pos_1LC")
    return positions is not None and positions.ndim == 4 and "lvl_embed.weight" not in state_dict


def _is_car_alone(state_dict: _StateDict) -> bool:
    return bool(state_dict) and all(name.startswith("car_") for name in state_dict)


def _hides_coarser_scales(state_dict: _StateDict) -> bool:
    """Check whether the mask also hides some scales that are coarser than the query's."""
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
        "it predicts masked tokens within a scale, with additional heads",
        _has(r"ns_head\.", r"mask_head\."),
    ),
    _LookAlike(
        "VAR-CLIP",
        "its condition is the CLIP embedding of a text instead of a class",
        _has(r"cond_proj\.", r"noise\."),
    ),
    _LookAlike(
        "M-VAR",
        "its blocks have a Mamba layer",
        _has(r"blocks\.\d+\.mamba\."),
    ),
    _LookAlike(
        "FlexVAR",
        "it predicts latents instead of residuals, and has a position map but no scale embedding",
        _is_flexvar,
    ),
    _LookAlike(
        "MVAR, or another model with its attention",
        "its stored mask hides coarser scales, while a token of VAR attends to all of them",
        _hides_coarser_scales,
    ),
)


def refuse_lookalikes(state_dict: _StateDict, what: str) -> None:
    """Refuse a checkpoint of another model that its tensors identify.

    Args:
        state_dict: Original names and tensors.
        what: Subject of the error message: the checkpoint and its source.

    Raises:
        CheckpointError: The checkpoint belongs to another model. The message names the model and
            the difference.
    """
    for model in _LOOK_ALIKES:
        if model.matches(state_dict):
            raise CheckpointError(
                f"{what} is not a VAR model but {model.name}: {model.difference}. Only checkpoints "
                "of the release's model can be converted."
            )
