"""What the tests of post-training share: data, a model that knows its classes, and settings."""

import json
import os
import subprocess
import sys
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


def train_on_two_processes(method: str, options: dict, output: Path) -> None:
    """Run `train_<method>` with its settings under `accelerate launch`."""
    script = output.with_suffix(".py")
    script.write_text(
        "import json, os, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import conftest\n"
        f"from var_hf.training.{method} import {method_config(method)} as Config\n"
        f"from var_hf.training.{method} import train_{method} as train\n"
        "train(Config(**json.loads(sys.argv[2])), sys.argv[3])\n"
        "open(sys.argv[3] + '.rank' + os.environ['RANK'], 'w').close()\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--main_process_port", "0", str(script)]
    subprocess.run(
        [*command, str(Path(__file__).parents[1]), json.dumps(options), str(output)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        check=True,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    assert len(list(output.parent.glob(f"{output.name}.rank[01]"))) == 2


def method_config(method: str) -> str:
    return {"cca": "CCAConfig", "ddo": "DDOConfig", "neon": "NeonConfig"}[method]


def assert_same_lines(one: Path, other: Path, names: tuple[str, ...]) -> None:
    """The training lines of two runs agree but for rounding."""
    expected_lines, lines = logged(one), logged(other)
    assert len(expected_lines) == len(lines) > 0
    for expected, got in zip(expected_lines, lines, strict=True):
        for name in names:
            assert abs(got[name] - expected[name]) <= 1e-4 * (1 + abs(expected[name])), name
