import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import make_pipe, make_transformer, make_vqvae
from image_files import an_image, write_image_folder

from var_hf.evaluation.classifier import SmallClassifier, save_classifier


@pytest.fixture
def inputs(tmp_path):
    make_pipe().save_pretrained(tmp_path / "pipe")
    torch.manual_seed(0)
    classifier = SmallClassifier(3, channels=(8, 16)).eval()
    save_classifier(classifier, ["circle", "dot", "ring"], tmp_path / "c.safetensors")
    write_image_folder(tmp_path / "images", ("circle", "dot"), count=9, side=10)
    return tmp_path


SAMPLE = ("sample", "--model", "pipe", "-n", 2, "--batch-size", 11)
EVALUATE = ("--reference", "images", "--features", "c.safetensors")


@pytest.mark.parametrize("command", ["sample", "evaluate", "evaluate-tokenizer"])
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


def test_samples_are_drawn_and_measured(var_hf, inputs):
    code, out, err = var_hf(*SAMPLE, "-o", "set")
    assert (code, out) == (0, "set\n"), err
    assert "22/22" in err

    code, out, err = var_hf(
        "evaluate", "set", *EVALUATE, "--min-images", 22, "-o", "report", "--json"
    )

    assert code == 0, err
    result = json.loads(out)
    assert result == json.loads((inputs / "report" / "result.json").read_text())
    assert (result["images"], result["reference"]["images"]) == (22, 18)
    assert (inputs / "report" / "report.html").exists()
    code, out, err = var_hf("evaluate", "set", *EVALUATE, "--min-images", 0)
    assert out.splitlines()[0] == f"FID              {result['fid']:.3f}"
    assert result["reference"]["sha256"] in out


def test_presets_are_the_published_settings(var_hf, inputs):
    """The release's cfg counts from 0: its 1.5 is 2.5 here."""
    settings = {}
    for preset in ("fid", "paper", "visual"):
        code, out, err = var_hf(*SAMPLE, "--preset", preset, "-o", preset, "--json")
        assert code == 0, err
        chosen = json.loads(out)["settings"]
        settings[preset] = tuple(chosen.values())
    code, out, err = var_hf(
        *SAMPLE,
        "--preset",
        "fid",
        "--cfg",
        4,
        "--sampling",
        "gumbel_softmax",
        "--temperature",
        0.8,
        "--guided-scales",
        3,
        "--guidance-schedule",
        "constant",
        "--ssg-scale",
        0.5,
        "-o",
        "own",
        "--json",
    )

    assert settings == {
        "fid": (2.5, 900, 0.96, "multinomial", 1.0, None, "ramp", 0.0),
        "paper": (3.0, 600, 1.0, "multinomial", 1.0, None, "ramp", 0.0),
        "visual": (5.0, 900, 0.95, "multinomial", 1.0, None, "ramp", 0.0),
    }
    assert tuple(json.loads(out)["settings"].values()) == (
        *(5.0, 900, 0.96, "gumbel_softmax", 0.8, 3, "constant", 0.5),
    )


def test_a_sweep_is_sampled_and_measured_in_one_go(var_hf, inputs):
    arguments = (
        "evaluate",
        "--model",
        "pipe",
        "--guidance-scale",
        "1,2.5",
        "-n",
        2,
        *EVALUATE,
        "--min-images",
        0,
        "-o",
        "sweep",
    )
    code, out, err = var_hf(*arguments)

    assert code == 0, err
    header, *rows = out.splitlines()
    assert header.split()[:3] == ["guidance", "FID", "sFID"]
    assert [row.split()[0] for row in rows] == ["1", "2.5"]
    assert {path.name for path in (inputs / "sweep").iterdir()} == {
        "guidance-1",
        "guidance-2.5",
        "sweep.json",
        "sweep.png",
    }
    assert var_hf(*arguments)[1] == out


def test_the_statistics_of_a_reference_are_a_reference(var_hf, inputs):
    var_hf(*SAMPLE, "-o", "set")
    code, first, err = var_hf(
        "evaluate", "set", *EVALUATE, "--min-images", 0, "--statistics", "s.npz", "--json"
    )
    assert code == 0, err

    code, second, err = var_hf(
        "evaluate",
        "set",
        "--reference",
        "s.npz",
        "--features",
        "c.safetensors",
        "--min-images",
        0,
        "--json",
    )

    assert code == 0, err
    assert json.loads(second)["fid"] == pytest.approx(json.loads(first)["fid"], rel=1e-9)
    assert json.loads(second)["precision"] is None


def test_a_tokenizer_is_measured(var_hf, inputs):
    make_vqvae(token_map_sizes=(1, 2, 4, 7)).save_pretrained(inputs / "vqvae")
    write_image_folder(inputs / "larger", count=5, side=14)

    code, out, err = var_hf(
        "evaluate-tokenizer",
        "--model",
        "vqvae",
        "--data",
        "larger",
        "--features",
        "c.safetensors",
        "-o",
        "t",
    )

    assert code == 0, err
    result = json.loads((inputs / "t" / "result.json").read_text())
    lines = out.splitlines()
    assert lines[0] == f"psnr   {result['psnr']:.3f}"
    assert f"rfid   {result['rfid']:.3f}" in lines
    assert [line.split()[0] for line in lines[-4:]] == ["1x1", "2x2", "4x4", "7x7"]
    assert (inputs / "t" / "reconstructions.png").exists()
    code, out, err = var_hf(
        "evaluate-tokenizer", "--model", "vqvae", "--data", "larger", "--features", "none"
    )
    assert "rfid   not measured" in out, err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("evaluate", *EVALUATE), "Name the samples, or a model to sample from"),
        (("evaluate", "images", "--model", "pipe", *EVALUATE), "one of the two"),
        (("evaluate", "images"), "Name the images to compare with (--reference)"),
        (("evaluate", "--model", "pipe", *EVALUATE), "name a folder for the samples (--output)"),
        (
            ("evaluate", "images", *EVALUATE),
            "images holds 18 images, and published numbers are of 50000",
        ),
        (
            ("evaluate", "images", *EVALUATE, "--preset", "fid"),
            "are for drawing samples, with --model",
        ),
        (
            ("evaluate", "images", "--reference", "images"),
            "The published Inception weights do not ship",
        ),
        (
            ("evaluate", "images", "--reference", "images", "--weights", "c.safetensors"),
            "holds other weights",
        ),
        (
            ("evaluate", "images", "--reference", "images", "--features", "vgg"),
            "There is no feature extractor 'vgg'",
        ),
        (
            ("evaluate", "images", "--reference", "none.npz", "--features", "emoji"),
            "There is no file none.npz",
        ),
        (("evaluate", "s.npz", *EVALUATE), "s.npz holds statistics and no images"),
        (
            ("evaluate", "large.npz", *EVALUATE, "--min-images", 0),
            "of 24 pixels a side and the reference images of 10",
        ),
        (
            ("evaluate", "--model", "pipe", *EVALUATE, "-o", "x", "--guidance-scale", "a"),
            "numbers with commas",
        ),
        (
            ("evaluate", "--model", "pipe", *EVALUATE, "-o", "x", "--guidance-scale", "1,1"),
            "different finite numbers",
        ),
        (
            ("evaluate", "--model", "pipe", *EVALUATE, "-o", "x"),
            "Every set of this sweep holds 550 images",
        ),
        (("sample", "--model", "nowhere", "-o", "x"), "There is no folder nowhere"),
        (
            ("sample", "--model", "pipe", "-o", "images"),
            "images is not empty and holds no sample set",
        ),
        (
            ("sample", "--model", "pipe", "-o", "x", "--top-p", 0),
            "top_p must be a finite number in (0, 1]",
        ),
        (
            ("sample", "--model", "pipe", "-o", "x", "--cfg", 1, "--guidance-scale", 2),
            "in two conventions",
        ),
        (
            ("evaluate-tokenizer", "--model", "pipe", "--data", "none.parquet"),
            "none.parquet does not exist",
        ),
        (
            ("evaluate-tokenizer", "--model", "nowhere", "--data", "images", "--features", "none"),
            "nowhere",
        ),
    ],
)
def test_bad_requests_are_refused_in_one_line(fails, inputs, arguments, problem):
    np.savez(inputs / "s.npz", mu=np.zeros(16), sigma=np.eye(16))
    np.savez(inputs / "large.npz", arr_0=np.stack([np.asarray(an_image(n)) for n in range(5)]))

    assert problem in fails(*arguments)


def test_a_report_without_matplotlib_is_refused_before_the_work(fails, inputs, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    line = fails("evaluate", "images", *EVALUATE, "--min-images", 0, "-o", "report")

    assert "Plots need the library matplotlib: pip install var-hf[evaluation]" in line


def test_two_models_draw_a_sample_set(var_hf, inputs, fails):
    """Another number of drafted scales is another set."""
    make_pipe(transformer=make_transformer(num_hidden_layers=2)).save_pretrained(inputs / "small")
    two = (*SAMPLE, "--refiner", "small", "-o", "set")

    code, out, err = var_hf(*two, "--draft-scales", 3, "--json")

    assert code == 0, err
    manifest = json.loads(out)
    assert manifest["settings"]["draft_scales"] == 3
    assert "draft_scales" in fails(*two, "--draft-scales", 1)
