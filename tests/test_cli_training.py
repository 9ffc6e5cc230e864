import json
import subprocess
import sys

import pytest
from conftest import make_pipe, make_vqvae
from image_files import write_image_folder
from training.transformer_runs import ARCHITECTURE, CLASSES

from var_hf import MultiScaleVQVAE, VARPipeline


@pytest.fixture
def inputs(tmp_path):
    write_image_folder(tmp_path / "images", CLASSES, count=3)
    make_vqvae().save_pretrained(tmp_path / "vqvae")
    make_pipe().save_pretrained(tmp_path / "pipe")
    recipe = {
        "about": {"title": "tiny"},
        "architecture": ARCHITECTURE,
        "batch_size": 3,
        "num_train_epochs": 1,
        "sampling": {"top_k": 5},
    }
    (tmp_path / "tiny.json").write_text(json.dumps(recipe))
    return tmp_path


@pytest.mark.parametrize("command", ["train", "train-tokenizer"])
def test_help_loads_no_heavy_library(command):
    code = (
        "import atexit, sys; from var_hf.cli import main; "
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command, "--help"], capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith(f"Usage: var-hf {command}")
    assert done.stderr == "False\n"


def test_train_makes_a_pipeline_that_draws(var_hf, inputs, caplog):
    arguments = (
        "train",
        "--recipe",
        "tiny.json",
        "--data",
        "images",
        "--tokenizer",
        "vqvae",
        "-o",
        "run",
    )

    code, out, err = var_hf(*arguments, "--batch-size", 9, "--set", "optimizer=muon", "--json")

    assert code == 0, err
    result = json.loads(out)
    assert (result["pipeline"], result["steps"], result["images"]) == ("run/pipeline", 1, 9)
    assert VARPipeline.from_pretrained("run/pipeline").scheduler.config.top_k == 5
    settings = json.loads((inputs / "run" / "config.json").read_text())
    assert (settings["batch_size"], settings["optimizer"]) == (9, "muon")
    assert "9 images in 3 classes" in caplog.text
    code, out, err = var_hf("generate", "fox", "--model", "run/pipeline", "-o", "fox.png")
    assert code == 0, err


def test_a_pipeline_is_fine_tuned(var_hf, inputs):
    code, out, err = var_hf(
        "train",
        "--model",
        "pipe",
        "--data",
        "images",
        "--new-classes",
        "--freeze",
        "embeddings.pos*",
        "--freeze",
        "layers.0.*",
        "--batch-size",
        9,
        "--num-train-epochs",
        1,
        "--decoder-steps",
        0,
        "-o",
        "run",
    )

    assert (code, out) == (0, "run/pipeline\n"), err
    before, after = (
        VARPipeline.from_pretrained(name).transformer for name in ("pipe", out.strip())
    )
    same = {
        name
        for name, tensor in after.state_dict().items()
        if tensor.shape == before.state_dict()[name].shape
        and tensor.equal(before.state_dict()[name])
    }
    assert same == {
        name
        for name in before.state_dict()
        if name.startswith(("embeddings.position_embedding", "layers.0."))
    }


def test_train_tokenizer_makes_a_tokenizer(var_hf, inputs):
    make_vqvae(token_map_sizes=(1, 2, 4, 7)).save_pretrained(
        inputs / "larger"
    )  # SSIM needs 11 pixels
    code, out, err = var_hf(
        "train-tokenizer",
        "--data",
        "images",
        "--model",
        "larger",
        "--max-steps",
        1,
        "--batch-size",
        4,
        "-o",
        "run",
        "--set",
        "resize_factor=1.2",
        "--set",
        "validation_images=2",
        "--json",
    )

    assert code == 0, err
    result = json.loads(out)
    assert result["steps"] == 1
    assert MultiScaleVQVAE.from_pretrained(result["tokenizer"]).image_size == 14


TRAIN = ("train", "--recipe", "tiny.json", "-o", "run")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((*TRAIN,), "Name the images (data), or a folder with their tokens"),
        ((*TRAIN, "--data", "images"), "Name the tokenizer, or a pipeline to start from"),
        ((*TRAIN, "--data", "images", "--tokenizer", "none"), "There is no folder none."),
        ((*TRAIN, "--data", "images/fox", "--tokenizer", "vqvae"), "The images have no classes"),
        ((*TRAIN, "--data", "empty", "--tokenizer", "vqvae"), "empty"),
        ((*TRAIN, "--set", "optimizer"), "--set takes NAME=VALUE"),
        ((*TRAIN, "--set", "speed=3"), "unknown settings speed"),
        (("train", "--recipe", "d17", "-o", "run"), "There is no recipe 'd17'"),
        (("train", "--data", "images", "--model", "pipe", "-o", "run"), "new_classes"),
        (
            ("train-tokenizer", "--data", "images", "-o", "run", "--set", "speed=3"),
            "unknown settings speed",
        ),
        (
            ("train-tokenizer", "--data", "images", "-o", "run", "--max-steps", 0),
            "max_steps must be above 0",
        ),
    ],
)
def test_bad_requests_are_refused_in_one_line_without_a_run_folder(
    fails, inputs, arguments, problem
):
    (inputs / "empty").mkdir()

    assert problem in fails(*arguments)
