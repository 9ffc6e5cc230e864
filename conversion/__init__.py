"""Convert original checkpoints to ours and back, as state dicts and config values."""

from var_hf.conversion.errors import CheckpointError
from var_hf.conversion.published import (
    PUBLISHED_REPO,
    PUBLISHED_TRANSFORMERS,
    PUBLISHED_VQVAE,
    Checkpoint,
    PublishedFile,
    checkpoint_of_file,
    find_checkpoint,
    published_file,
    registry,
)
from var_hf.conversion.reading import read_original
from var_hf.conversion.transformer import (
    convert_transformer,
    export_transformer,
    transformer_shapes,
)
from var_hf.conversion.vqvae import convert_vqvae, export_vqvae, vqvae_shapes
from var_hf.conversion.writing import write_original

__all__ = [
    "PUBLISHED_REPO",
    "PUBLISHED_TRANSFORMERS",
    "PUBLISHED_VQVAE",
    "Checkpoint",
    "CheckpointError",
    "PublishedFile",
    "checkpoint_of_file",
    "convert_transformer",
    "convert_vqvae",
    "export_transformer",
    "export_vqvae",
    "find_checkpoint",
    "published_file",
    "read_original",
    "registry",
    "transformer_shapes",
    "vqvae_shapes",
    "write_original",
]
