"""The published files: where they are, what they hold, and their layout by formula.

Source: the Hub repository FoundationVision/var and ``models/__init__.py`` of FoundationVision/VAR (all widths follow
from the depth). Parameter counts leave the stored buffers out, as the paper's table 1 does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from var_hf.configuration_var import TOKEN_MAP_SIZES_256, TOKEN_MAP_SIZES_512, refiner_table
from var_hf.conversion.layout import Layout, meta_tensors, transformer_layout, vqvae_layout
from var_hf.conversion.reading import Part
from var_hf.conversion.transformer import convert_transformer
from var_hf.conversion.vqvae import convert_vqvae

PUBLISHED_REPO = "FoundationVision/var"


@dataclass(frozen=True)
class PublishedFile:
    """One published checkpoint.

    Attributes:
        name: File name in `PUBLISHED_REPO`.
        part: ``"transformer"`` or ``"vqvae"``.
        values: The config values that its tensors tell.
        parameters: Trained values in it.
    """

    name: str
    part: Part
    values: Mapping[str, Any]
    parameters: int

    def layout(self) -> Layout:
        """Every tensor of the file: name, dtype and shape."""
        return (
            transformer_layout(self.values)
            if self.part == "transformer"
            else vqvae_layout(self.values)
        )

    def converted_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the converted file under our name, with its shape."""
        convert = convert_transformer if self.part == "transformer" else convert_vqvae
        tensors, _ = convert(meta_tensors(self.layout()))
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _transformer(depth: int, parameters: int, *, side: int = 256) -> PublishedFile:
    values = {
        "vocab_size": 4096,
        "latent_channels": 32,
        "hidden_size": 64 * depth,
        "num_hidden_layers": depth,
        "num_attention_heads": depth,
        "intermediate_size": 256 * depth,
        "token_map_sizes": TOKEN_MAP_SIZES_512 if side == 512 else TOKEN_MAP_SIZES_256,
        "num_classes": 1000,
        "share_modulation": side == 512,
        "qk_norm": True,
    }
    return PublishedFile(f"var_d{depth}.pth", "transformer", values, parameters)


PUBLISHED_VQVAE = PublishedFile(
    "vae_ch160v4096z32.pth",
    "vqvae",
    {
        "in_channels": 3,
        "base_channels": 160,
        "channel_multipliers": (1, 1, 2, 2, 4),
        "num_res_blocks": 2,
        "latent_channels": 32,
        "codebook_size": 4096,
        "token_map_sizes": TOKEN_MAP_SIZES_256,
        "refiner_sharing": 4,
        "refiner_of_scale": refiner_table(10, 4),
        "refiner_mix": 0.5,
    },
    108_948_355,
)

# Size, as in `var-hf convert FoundationVision/var --size d16`, to transformer; all share the VQVAE.
PUBLISHED_TRANSFORMERS: dict[str, PublishedFile] = {
    "d16": _transformer(16, 310_283_520),
    "d20": _transformer(20, 600_917_136),
    "d24": _transformer(24, 1_033_399_360),
    "d30": _transformer(30, 2_010_020_356),
    "d36": _transformer(36, 2_353_893_904, side=512),
}


def published_file(name: str) -> PublishedFile | None:
    """The published checkpoint of that file name, or ``None``."""
    files = (*PUBLISHED_TRANSFORMERS.values(), PUBLISHED_VQVAE)
    return next((file for file in files if file.name == name), None)
