"""What the tests of transformer training share: a tiny data set, a tokenizer, and settings."""

import json
from pathlib import Path

import torch
from conftest import make_vqvae
from image_files import write_image_folder
from safetensors.torch import save_file

from var_hf.training.token_cache import FORMAT, TokenCache, shard_metadata, tokenizer_digest
from var_hf.training.transformer_config import TransformerTrainingConfig

CLASSES = ("apple", "fox", "rocket")
ARCHITECTURE = {
    "hidden_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 7,
    "intermediate_size": 60,
    "drop_path_rate": 0.3,
}


def write_inputs(folder: Path) -> Path:
    """Images of three classes and a tokenizer."""
    write_image_folder(folder / "images", CLASSES, count=6)
    make_vqvae().save_pretrained(folder / "vqvae")
    return folder


def settings(folder: Path, **changes) -> dict:
    """Settings of a run of nine steps over eighteen images, every step logged."""
    return {
        "data": str(folder / "images"),
        "tokenizer": str(folder / "vqvae"),
        "resize_factor": 1.5,
        "copies": 2,
        "architecture": ARCHITECTURE,
        "num_train_epochs": 4,
        "batch_size": 8,
        "base_learning_rate": 1e-1,
        "sampling": {"top_k": 7, "guidance_scale": 3.0},
        "logging_steps": 1,
        "save_steps": 4,
        "sample_steps": 0,
        **changes,
    }


def config(folder: Path, **changes) -> TransformerTrainingConfig:
    return TransformerTrainingConfig(**settings(folder, **changes))


def log_lines(run: Path, kind: str) -> list[dict]:
    """The lines of one kind, each with its step, without what is a matter of time."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{"step": line["step"], **line[kind]} for line in lines if kind in line]


def write_cache(
    folder: Path, tokens: torch.Tensor, class_labels: torch.Tensor, vqvae
) -> TokenCache:
    """A cache of given tokens ``(N, L)``, as `encode_images` would have written it."""
    folder.mkdir(parents=True)
    description = {
        "format": FORMAT,
        "images": "0" * 64,
        "num_images": len(tokens),
        "class_names": None,
        "tokenizer": tokenizer_digest(vqvae),
        "token_map_sizes": list(vqvae.quantizer.token_map_sizes),
        "codebook_size": vqvae.quantizer.codebook.num_embeddings,
        "transform": {},
        "copies": 1,
        "shard_size": 4096,
    }
    (folder / "config.json").write_text(json.dumps(description))
    tensors = {
        "tokens": tokens[:, None].to(torch.int16).contiguous(),
        "class_labels": class_labels.long(),
        "image_numbers": torch.arange(len(tokens)),
    }
    metadata = shard_metadata(tensors, skipped=[])
    save_file(tensors, folder / "shard-00000.safetensors", metadata=metadata)
    return TokenCache(folder)
