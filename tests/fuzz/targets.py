"""The readers of files of unknown origin, as functions of bytes: for the property tests and for the fuzzer.

Each returns what was read, or None where the bytes were refused. A refusal is one ValueError or OSError on one line; anything else
goes through and is a finding.
"""

import io
import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from var_hf.conversion import read_original
from var_hf.evaluation.image_sources import ImageSource, open_source
from var_hf.hub.files import read_weight_map
from var_hf.image_files import open_image
from var_hf.schema import check_config, parse_json
from var_hf.stored import check_pipeline
from var_hf.training.tokenizer_config import TokenizerTrainingConfig
from var_hf.training.transformer_config import TransformerTrainingConfig

FOLDER = Path(tempfile.mkdtemp(prefix="var-hf-fuzz-"))


def refused(error: Exception) -> None:
    """Check that an error is one that a user can read."""
    assert isinstance(error, ValueError | OSError), error
    message = str(error)
    assert message and len(message.splitlines()) == 1, message
    assert len(message) < 2000, message


def put(name: str, content: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(content)
    return path


def pth(content: bytes):
    """Tensors by name."""
    try:
        return read_original(put("file.pth", content), part="transformer")
    except (ValueError, OSError) as error:
        return refused(error)


def image(content: bytes):
    """An image of at most a million pixels."""
    try:
        read = open_image(io.BytesIO(content), "file", most_pixels=10**6, longest_side=256)
    except (ValueError, OSError) as error:
        return refused(error)
    assert read.mode in ("L", "LA", "RGB", "RGBA")
    assert max(read.size) <= 256
    return read


def npz(content: bytes):
    """Arrays by name: images and labels, or mean and covariance."""
    path = put("file.npz", content)
    try:
        source = open_source(path)
        found = {}
        images = source if isinstance(source, ImageSource) else source.images
        if images is not None:
            found["images"] = np.concatenate([b.numpy() for b in images.batches(4)])
            found["labels"] = images.labels
        if not isinstance(source, ImageSource):
            for name, moments in source.moments.items():
                found[name] = np.concatenate([moments.mean[None], moments.covariance])
        return found
    except (ValueError, OSError) as error:
        return refused(error)


def config(content: bytes):
    """Values of any of the JSON files; the first byte chooses which."""
    kinds = ("transformer", "vqvae", "scheduler", "index", "weights", "train", "train-tokenizer")
    return json_file(kinds[content[0] % len(kinds)], content[1:]) if content else None


def json_file(kind: str, content: bytes):
    """Values of a JSON file that the package accepts, and that make the object they are for."""
    from var_hf import MultiScaleVQVAE, NextScaleScheduler, VARConfig, VARModel

    try:
        if kind == "index":
            put("model_index.json", content)
            check_pipeline(FOLDER)
            return parse_json(content, kind)
        if kind == "weights":
            return read_weight_map(put("model.safetensors.index.json", content))
        values = parse_json(content, kind)
        if kind == "train":
            TransformerTrainingConfig.from_recipe(put("recipe.json", content))
        elif kind == "train-tokenizer":
            TokenizerTrainingConfig.from_recipe(put("recipe.json", content))
        elif kind == "transformer":
            check_config(values, kind, "config.json", VARConfig)
            VARConfig.from_dict(dict(values))
            if values.get("num_hidden_layers", 1) <= 64:
                VARModel.stored_shapes(values)
        elif kind == "vqvae":
            check_config(values, kind, "config.json")
            if values.get("num_res_blocks", 1) <= 16:
                MultiScaleVQVAE.stored_shapes(values)
        else:
            check_config(values, kind, "scheduler_config.json")
            NextScaleScheduler.from_config(values)
        return values
    except (ValueError, OSError) as error:
        return refused(error)


TARGETS = {"pth": pth, "image": image, "npz": npz, "config": config}


def examples() -> dict[str, dict[str, bytes]]:
    """Small valid files of every kind."""
    import torch
    from PIL import Image

    gradient = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3) * 2
    images = {}
    for image_format in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"):
        file = io.BytesIO()
        Image.fromarray(gradient).save(file, image_format)
        images[image_format.lower()] = file.getvalue()
    checkpoint = io.BytesIO()
    torch.save({"weight": torch.arange(6.0).reshape(2, 3), "step": torch.tensor(3)}, checkpoint)
    arrays = {
        "images": {
            "arr_0": np.arange(3 * 48, dtype=np.uint8).reshape(3, 4, 4, 3),
            "arr_1": np.arange(3),
        },
        "statistics": {"mu": np.arange(3.0), "sigma": np.eye(3)},
    }
    npzs = {}
    for name, content in arrays.items():
        file = io.BytesIO()
        np.savez(file, **content)
        npzs[name] = file.getvalue()
        file = io.BytesIO()
        np.savez_compressed(file, **content)
        npzs[f"{name}-compressed"] = file.getvalue()
    return {
        "pth": {"small": checkpoint.getvalue()},
        "image": images,
        "npz": npzs,
        "config": {
            name: bytes([number]) + json.dumps(content).encode()
            for number, (name, content) in enumerate(json_examples().items())
        },
    }


def json_examples() -> dict[str, dict]:
    """A valid content of every JSON file, in the order of `config`."""
    component = ["var_hf.modeling_var", "VARModel"]
    return {
        "transformer": {
            "model_type": "visual_autoregressive", "vocab_size": 29, "latent_channels": 6, "hidden_size": 112,
            "num_hidden_layers": 3, "num_attention_heads": 7, "intermediate_size": 60, "num_classes": 11,
            "token_map_sizes": [1, 2, 3, 5], "qk_norm": True, "share_modulation": False, "layer_norm_eps": 1e-6,
            "class_dropout_prob": 0.1, "drop_path_rate": 0.0, "dtype": "float32", "architectures": ["VARModel"],
        },
        "vqvae": {
            "_class_name": "MultiScaleVQVAE", "base_channels": 8, "channel_multipliers": [1, 2], "num_res_blocks": 1,
            "latent_channels": 6, "codebook_size": 29, "token_map_sizes": [1, 2, 3, 5], "norm_num_groups": 4,
            "norm_eps": 1e-6, "refiner_sharing": 4, "refiner_of_scale": [0, 1, 2, 3], "refiner_mix": 0.5,
        },
        "scheduler": {
            "_class_name": "NextScaleScheduler", "guidance_scale": 2.5, "top_k": 900, "top_p": 0.96,
            "sampling": "multinomial", "gumbel_temperature": 0.27,
        },
        "index": {
            "_class_name": "VARPipeline", "_diffusers_version": "0.42.1", "transformer": component, "vqvae": component,
            "scheduler": component, "id2label": {"0": "tench", "1": "goldfish"},
        },
        "weights": {
            "metadata": {"total_size": 12},
            "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
        },
        "train": {
            "data": "images", "tokenizer": "vqvae", "architecture": {"num_hidden_layers": 2}, "num_train_epochs": 3.5,
            "global_batch_size": 8, "betas": [0.9, 0.95], "strict": True, "freeze": [], "image_size": 64,
        },
        "train-tokenizer": {
            "data": "images", "steps": 20, "batch_size": 4, "betas": [0.5, 0.9], "learning_rate": 3e-4, "strict": False,
        },
    }  # fmt: skip


def zip_members(content: bytes) -> dict[str, bytes]:
    """The members of an archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zip_of(members: dict[str, bytes]) -> bytes:
    """A stored archive with proper checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()
