"""The weights behind the golden numbers, computed from tensor names instead of stored.

The golden files were made by the original VAR code (FoundationVision/VAR, MIT) with exactly these
weights.
"""

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

COMPUTED = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias", "ema_vocab_hit_SV")


def mean_and_std(name: str, shape: Sequence[int]) -> tuple[float, float]:
    """Moments of a tensor of the release; the first rule that fits counts."""
    leaf = name.split(".")[-1]
    if "norm" in name and leaf == "weight":
        return 1, 0.1
    if leaf == "scale_mul_1H11":
        return math.log(4), 0.1
    if "ada_lin" in name and leaf == "weight":
        return 0, 0.5 / math.sqrt(shape[1])
    if leaf in {"bias", "q_bias", "v_bias"}:
        return 0, 0.1
    if leaf in {"pos_1LC", "pos_start", "ada_gss"}:
        return 0, 0.5
    if leaf == "weight" and len(shape) == 4:
        return 0, 1 / math.sqrt(math.prod(shape[1:]))
    if "embed" in name or "class_emb" in name:
        return 0, 1 if "quantize" in name else 0.7
    return 0, (1.5 if name == "head.weight" else 1) / math.sqrt(shape[1])


def stand_in(name: str, shape: Sequence[int]) -> Tensor:
    """Float32 weights of the release's tensor `name`. numpy guarantees this random stream."""
    mean, std = mean_and_std(name, shape)
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    return torch.from_numpy((mean + std * draw).astype(np.float32))


def stand_in_state_dict(
    shapes: Mapping[str, Sequence[int]], token_map_sizes: Sequence[int]
) -> dict[str, Tensor]:
    """A whole file of the release: stand-in weights, and the buffers that the release computes."""
    scale_ids = torch.cat(
        [torch.full((size**2,), scale) for scale, size in enumerate(token_map_sizes)]
    )
    hidden = scale_ids[:, None] < scale_ids[None, :]
    computed = {
        "lvl_1L": scale_ids[None],
        "attn_bias_for_masking": torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)[
            None, None
        ],
    }
    state_dict = {}
    for name, shape in shapes.items():
        leaf = name.split(".")[-1]
        if leaf in COMPUTED:
            state_dict[name] = computed.get(leaf, torch.zeros(tuple(shape)))
        else:
            state_dict[name] = stand_in(name, shape)
    return state_dict
