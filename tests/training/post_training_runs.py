"""What the tests of post-training share: data, a model that knows its classes, and settings."""

import json
from pathlib import Path

import torch
from conftest import make_pipe, make_transformer
from image_files import write_image_folder

from var_hf import VARPipeline

NAMES = ("apple", "fox", "rocket")


def write_inputs(folder: Path) -> Path:
    """Images of three classes, and a pipeline that knows them."""
    write_image_folder(folder / "images", NAMES, count=6, side=10)
    make_pipe(
        transformer=make_transformer(num_classes=3, drop_path_rate=0.3),
        id2label=dict(enumerate(NAMES)),
    ).save_pretrained(folder / "base")
    return folder


def settings(inputs: Path, **changes) -> dict:
    """Settings of a run of three steps over eighteen images, every step logged."""
    return {
        "model": str(inputs / "base"),
        "data": str(inputs / "images"),
        "resize_factor": 1.0,
        "random_crop": False,
        "batch_size": 8,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 2,
        "sample_steps": 0,
        **changes,
    }


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """The weights of a saved pipeline's transformer."""
    return VARPipeline.from_pretrained(folder).transformer.state_dict()


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def logged(run: Path) -> list[dict]:
    """The training lines of a run's log, without what is a matter of time."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{"step": line["step"], **line["training"]} for line in lines if "training" in line]
