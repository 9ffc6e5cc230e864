"""Configuration of the transformer, and two rules about scales that all other modules use."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

TOKEN_MAP_SIZES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)  # arXiv 2404.02905, table 1: 680 tokens
TOKEN_MAP_SIZES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)  # VAR-d36-s: 2240 tokens


def check_token_map_sizes(token_map_sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the schedule as a tuple of ints, or raise an error.

    Args:
        token_map_sizes: Side of each token map, coarse to fine.

    Raises:
        ValueError: Fewer than two scales, a side below 1, or sides that do not increase.
    """
    sizes = tuple(int(size) for size in token_map_sizes)
    if len(sizes) < 2 or sizes[0] < 1 or any(a >= b for a, b in pairwise(sizes)):
        raise ValueError(
            f"token_map_sizes must hold at least two increasing positive sides, coarse to fine. "
            f"Got {sizes}; "
            f"the 256 px release uses {TOKEN_MAP_SIZES_256}."
        )
    return sizes


def refiner_table(num_scales: int, refiner_sharing: int) -> tuple[int, ...]:
    """Return the refiner (the release's phi) of each scale.

    Scale s of S takes the refiner whose tick lies nearest to s / (S - 1); the first wins a tie. Two
    of the ten scales of the release are ties up to rounding, and only numpy's float64 arithmetic
    decides them as the trained weights expect: ``(0, 0, 1, 1, 1, 2, 2, 3, 3, 3)``. Configs
    therefore store this table.

    Args:
        num_scales: S, at least 2.
        refiner_sharing: Number of refiners; 0 means one per scale (the release's
            ``share_quant_resi``).

    Returns:
        One refiner index per scale.

    Source: ``models/quant.py`` of FoundationVision/VAR (``PhiPartiallyShared``, ``PhiNonShared``).
    """
    num_refiners = refiner_sharing or num_scales
    if num_refiners == 1:
        return (0,) * num_scales
    edge = 1 / 3 / num_refiners if num_refiners == 4 else 1 / 2 / num_refiners
    ticks = np.linspace(edge, 1 - edge, num_refiners)
    return tuple(int(np.argmin(np.abs(ticks - s / (num_scales - 1)))) for s in range(num_scales))


@strict
class VARConfig(PreTrainedConfig):
    r"""
    Configuration of a [`VARModel`]. The defaults are the published VAR-d16 at 256 px.

    Args:
        vocab_size (`int`, *optional*, defaults to 4096):
            Number of codes V; the VQVAE calls it `codebook_size`.
        latent_channels (`int`, *optional*, defaults to 32):
            Channels Z of the latents that the transformer reads.
        hidden_size (`int`, *optional*, defaults to 1024):
            Width C. The published models use 64 times the number of layers.
        num_hidden_layers (`int`, *optional*, defaults to 16):
            Depth.
        num_attention_heads (`int`, *optional*, defaults to 16):
            Heads H; must divide `hidden_size`.
        intermediate_size (`int`, *optional*, defaults to 4 * hidden_size):
            Width inside the MLP.
        token_map_sizes (`tuple[int, ...]`, *optional*, defaults to the 256 px schedule):
            Side of each token map, coarse to fine.
        num_classes (`int`, *optional*, defaults to 1000):
            Number of classes. Row `num_classes` of the class table is the null class.
        share_modulation (`bool`, *optional*, defaults to `False`):
            One modulation layer for all blocks plus a table per block, as in the 512 px d36
            checkpoint.
        qk_norm (`bool`, *optional*, defaults to `True`):
            L2-normalise queries and keys and learn a scale per head (the release's `attn_l2_norm`).
        layer_norm_eps (`float`, *optional*, defaults to 1e-6):
            Constant that the layer norms add to the variance.
        class_dropout_prob (`float`, *optional*, defaults to 0.1):
            Probability of replacing a label by the null class in training.
        drop_path_rate (`float`, *optional*, defaults to 0.1 * num_hidden_layers / 24):
            Stochastic depth of the last block in training; it rises linearly from 0 at the first.
        initializer_range (`float`, *optional*, defaults to sqrt(1 / (3 * hidden_size))):
            Standard deviation of the initial weights.
        head_init_scale (`float`, *optional*, defaults to 0.02):
            Factor on the initial weights of `lm_head`.
        modulation_init_scale (`float`, *optional*, defaults to 0.5):
            Factor on the initial weights of the modulation layers.
        gate_init_scale (`float`, *optional*, defaults to 1e-3):
            Further factor on their gate rows; the release takes 1e-3 for d16 and d20, 1e-4 for d24,
            1e-5 for d30.

    The initial values follow `init_weights` of the release's `models/var.py`.
    """

    model_type = "visual_autoregressive"

    vocab_size: int = 4096
    latent_channels: int = 32
    hidden_size: int = 1024
    num_hidden_layers: int = 16
    num_attention_heads: int = 16
    intermediate_size: int | None = None
    token_map_sizes: list[int] | tuple[int, ...] = TOKEN_MAP_SIZES_256
    num_classes: int = 1000
    share_modulation: bool = False
    qk_norm: bool = True
    layer_norm_eps: float = 1e-6
    class_dropout_prob: float | int = 0.1
    drop_path_rate: float | int | None = None
    initializer_range: float | None = None
    head_init_scale: float = 0.02
    modulation_init_scale: float = 0.5
    gate_init_scale: float = 1e-3

    def __post_init__(self, **kwargs: Any) -> None:
        from .schema import TRANSFORMER, check_values

        check_values({name: getattr(self, name) for name in TRANSFORMER}, TRANSFORMER, "VARConfig")
        self.token_map_sizes = check_token_map_sizes(self.token_map_sizes)
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.drop_path_rate is None:
            self.drop_path_rate = 0.1 * self.num_hidden_layers / 24
        if self.initializer_range is None:
            self.initializer_range = math.sqrt(1 / (3 * self.hidden_size))
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})."
            )
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Create a configuration from the values of a ``config.json``, as in transformers.

        Raises:
            ValueError: A value has a wrong type or is out of range, names a method of this class,
                or asks for an attention kernel, quantised weights or another weight file. Ask for
                these in Python.
        """
        from .schema import check_config

        check_config(config_dict, "transformer", "config.json", cls)
        return super().from_dict(config_dict, **kwargs)

    @property
    def num_scales(self) -> int:
        """Number of scales S."""
        return len(self.token_map_sizes)

    @property
    def token_slices(self) -> tuple[slice, ...]:
        """Slices of the tokens of each scale among all L tokens."""
        slices, start = [], 0
        for size in self.token_map_sizes:
            slices.append(slice(start, start + size * size))
            start += size * size
        return tuple(slices)

    @property
    def num_tokens(self) -> int:
        """Number of tokens L of all scales together; 680 at 256 px."""
        return sum(size * size for size in self.token_map_sizes)


__all__ = [
    "TOKEN_MAP_SIZES_256",
    "TOKEN_MAP_SIZES_512",
    "VARConfig",
    "check_token_map_sizes",
    "refiner_table",
]
