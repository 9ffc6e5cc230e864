import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_vqvae
from original_release import original_transformer, original_vqvae
from PIL import Image

from var_hf import VARPipeline, __version__
from var_hf.cli import PublishedSize
from var_hf.conversion import PUBLISHED_TRANSFORMERS

COMMAND = (sys.executable, "-m", "var_hf.cli")
HEAVY = ("torch", "transformers", "diffusers", "huggingface_hub", "numpy", "PIL")


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


# Help


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], []])
def test_help_loads_no_heavy_library(arguments):
    code = (
        "import atexit, sys; from var_hf.cli import main; "
        f"atexit.register(lambda: print(sorted({set(HEAVY)} & set(sys.modules)), file=sys.stderr)); "
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("Usage: var-hf")
    assert done.stderr == "[]\n"


def test_version(var_hf):
    assert var_hf("--version") == (0, f"var-hf {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["draw"], "var-hf: No such command 'draw'. See var-hf --help."),
        (
            ["generate", "--fast", "hen"],
            "var-hf: No such option: --fast. See var-hf generate --help.",
        ),
        (
            ["convert", "model.pth"],
            "var-hf: Missing option '--output' / '-o'. See var-hf convert --help.",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(fails, arguments, line):
    assert fails(*arguments, code=2) == line


# Generate: what is drawn


def test_the_grid_is_what_the_pipeline_draws(var_hf, pipe, pipe_folder):
    """Image i has the generator of seed + i, so it can be drawn again alone."""
    code, out, _ = var_hf("generate", "hen", 0, "--model", pipe_folder, "--seed", 5, "-o", "x.png")

    assert (code, out) == (0, "x.png\n")
    side = pipe.vqvae.stride * 5
    images = pipe(["hen", 0], generator=[torch.Generator().manual_seed(5 + i) for i in (0, 1)])
    hen, tench = map(np.asarray, images.images)
    grid = pixels("x.png")
    assert grid.shape == (side, 2 * side + 1, 3)
    np.testing.assert_array_equal(grid[:, :side], hen)
    np.testing.assert_array_equal(grid[:, side + 1 :], tench)
    assert (grid[:, side] == 255).all()


def test_an_image_can_be_drawn_again_alone(var_hf, pipe_folder):
    common = ("--model", pipe_folder, "--separate")
    var_hf("generate", 1, "hen", *common, "-n", 3, "--seed", 40, "--batch-size", 4, "-o", "all.png")
    var_hf("generate", "hen", *common, "--seed", 44, "-o", "one.png")

    difference = pixels("all-004-hen.png") - pixels("one-000-hen.png")
    assert abs(difference).max() <= 1  # another batch, another rounding


@pytest.mark.parametrize("index", range(4))
def test_one_stream_draws_the_original_codes_images(var_hf, golden, tmp_path, index):
    pipe = VARPipeline.from_original(
        golden.var_file,
        golden.vae_file,
        token_map_sizes=golden.meta["config"]["patch_nums"],
    )
    pipe.save_pretrained(tmp_path / "model")
    wanted = golden.meta["generate"][index]
    code, _, err = var_hf(
        *("generate", *golden.data["class_labels"].tolist(), "--model", "model"),
        *("--cfg", wanted["guidance"], "--top-k", wanted["top_k"]),
        *("--top-p", wanted["top_p"] or 1.0, "--seed", wanted["seed"]),
        *(["--smooth"] if wanted["more_smooth"] else []),
        *("--one-stream", "--separate"),
    )

    assert code == 0, err
    drawn = np.stack([pixels(file) for file in sorted(tmp_path.glob("out-*.png"))])
    expected = golden.data[f"generate{index}.image"].permute(0, 2, 3, 1).numpy() * 255
    assert abs(drawn - expected).max() < 0.5 + 255 * 1e-3


def test_the_settings_are_in_the_file_and_in_the_json(var_hf, pipe_folder):
    code, out, _ = var_hf(
        *("generate", 2, "tench, tinca tinca", "--model", pipe_folder, "--seed", 3, "--json"),
        *("--cfg", 0.5, "--top-k", 7, "--top-p", 0.8, "--smooth", "--dtype", "bfloat16"),
    )
    result = json.loads(out)

    assert code == 0
    assert result.pop("files") == ["out.png"]
    assert json.loads(Image.open("out.png").text["var-hf"]) == result
    assert result == {
        "software": f"var-hf {__version__}",
        "model": str(pipe_folder),
        "device": "cpu",
        "dtype": "bfloat16",
        "seed": 3,
        "one_stream": False,
        "guidance_scale": 1.5,
        "top_k": 7,
        "top_p": 0.8,
        "sampling": "gumbel_softmax",
        "temperature": 1.0,
        "guided_scales": None,
        "images": [
            {"class_id": 2, "class_name": "crane", "seed": 3},
            {"class_id": 0, "class_name": "tench, Tinca tinca", "seed": 4},
        ],
    }


def test_what_is_not_said_comes_from_the_checkpoint_and_the_seed_is_fresh(var_hf, pipe_folder):
    results = [
        json.loads(var_hf("generate", 2, "--model", pipe_folder, "--json")[1]) for _ in range(2)
    ]

    assert [results[0][name] for name in ("guidance_scale", "top_k", "top_p", "sampling")] == [
        *(3.0, 13, 0.9, "multinomial")
    ]
    assert results[0]["seed"] != results[1]["seed"]


def test_separate_files_are_named_after_their_class(var_hf, pipe_folder):
    """Class 9 has no name in this model; an old file is replaced."""
    with open("new-001-class_9.png", "w") as file:
        file.write("old")
    code, out, _ = var_hf(
        "generate", 0, 9, "--model", pipe_folder, "--separate", "-o", "a/new.png", "--seed", 1
    )
    var_hf("generate", 9, "--model", pipe_folder, "-o", "new-001-class_9.png", "--seed", 2)

    assert code == 0
    assert out.split() == ["a/new-000-tench.png", "a/new-001-class_9.png"]
    np.testing.assert_array_equal(pixels("a/new-001-class_9.png"), pixels("new-001-class_9.png"))
    assert json.loads(Image.open("a/new-001-class_9.png").text["var-hf"])["images"] == [
        {"class_id": 9, "class_name": None, "seed": 2}
    ]


@pytest.mark.parametrize(
    ("labels", "num_images", "columns", "rows"),
    [(1, 5, 3, 2), (5, 1, 3, 2), (2, 3, 3, 2), (1, 1, 1, 1)],
)
def test_layout_of_the_grid(var_hf, pipe_folder, labels, num_images, columns, rows):
    """A row per class where there are several of several, else nearly a square."""
    code, *_ = var_hf("generate", *range(labels), "-n", num_images, "--model", pipe_folder)

    side, gap = 10, 1
    assert code == 0
    height, width, _ = pixels("out.png").shape
    assert (width, height) == (columns * (side + gap) - gap, rows * (side + gap) - gap)


# Generate: what is refused


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["tensch"], "no class 'tensch' among the 6 known names. Did you mean 'tench'?"),
        (["crane"], "'crane' is the name of classes [2, 5]. Pass the number"),
        ([11], "Class ids lie in [0, 10] for this model. Got 11."),
        (["hen", "--cfg", 1.5, "--guidance-scale", 2.5], "--cfg 1.5 is --guidance-scale 2.5."),
        (["hen", "--cfg", -1], "--cfg must be a finite number of at least 0 (0 is off). Got -1."),
        (["hen", "--cfg", "inf"], "--cfg must be a finite number of at least 0"),
        (["hen", "--guidance-scale", "nan"], "guidance_scale must be a finite number"),
        (["hen", "--top-p", 1.5], "top_p must lie in (0, 1] (1.0 is off). Got 1.5."),
        (["hen", "--top-k", -1], "top_k must be a whole number of at least 0 (0 is off). Got -1."),
        (["hen", "--one-stream", "--batch-size", 2], "leave --batch-size out"),
        (["hen", "--device", "gpu"], "There is no device 'gpu'. Pass cpu, cuda, cuda:1, mps"),
        (["hen", "--device", "cuda:99"], "PyTorch finds no device 'cuda:99'"),
        (["hen", "-o", "picture.jpg"], "The output has to be a .png file. Got picture.jpg."),
        (["hen", "-o", "folder.png"], "The output folder.png is a folder."),
    ],
)
def test_bad_requests_are_refused(fails, pipe_folder, tmp_path, arguments, problem):
    (tmp_path / "folder.png").mkdir()

    assert problem in fails("generate", *arguments, "--model", pipe_folder)


def test_without_a_model_the_one_that_ships_draws(var_hf):
    code, out, err = var_hf("generate", "pizza", 12, "--seed", 3, "--json")

    assert code == 0, err
    result = json.loads(out)
    assert result["model"] == "var-emoji-64"
    assert [image["class_name"] for image in result["images"]] == ["pizza", "fox"]
    with Image.open("out.png") as grid:
        assert grid.size == (64 + 1 + 64, 64)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("nowhere", "There is no folder nowhere, and a Hub repository is named user/name."),
        ("./user/name", "There is no folder ./user/name"),
        (
            "var_d16.pth",
            "var_d16.pth is a file. Convert original checkpoints first: var-hf convert.",
        ),
        ("empty", "empty is no pipeline folder: it has no model_index.json."),
        ("part", "part is no complete VAR pipeline folder: it lacks transformer/config.json."),
        ("other", "other is no VAR pipeline but StableDiffusionPipeline"),
        ("damaged", "'damaged/model_index.json' is not a valid JSON file."),
        ("cut", "cut could not be loaded: Error while deserializing header"),
        ("swapped", "Transformer and VQVAE do not belong together: they differ in codes"),
    ],
)
def test_a_model_that_is_none_is_refused(fails, pipe_folder, tmp_path, model, problem):
    (tmp_path / "var_d16.pth").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    for name in ("part", "other", "damaged", "cut", "swapped"):
        shutil.copytree(pipe_folder, tmp_path / name)
    (tmp_path / "other/model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet"]})
    )
    (tmp_path / "part/transformer/config.json").unlink()
    (tmp_path / "damaged/model_index.json").write_text("{")
    weights = tmp_path / "cut/transformer/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    make_vqvae(codebook_size=31).save_pretrained(tmp_path / "swapped/vqvae")

    assert problem in fails("generate", "hen", "--model", model)


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path):
    """Offline, and nothing in the cache; a process of its own, as the Hub's client reads the environment once."""
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [*COMMAND, "generate", "hen", "--model", "someone/var-d16-256"],
        capture_output=True,
        text=True,
        env=offline,
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("var-hf: ")
    assert "Traceback" not in done.stderr


# Generate: full disks and interrupts


def no_large_files():
    """Writing more than 100 bytes to a file fails from here on, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_picture(pipe_folder, tmp_path):
    (tmp_path / "out.png").write_bytes(b"old")
    done = subprocess.run(
        [*COMMAND, "generate", "hen", "--model", str(pipe_folder)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        preexec_fn=no_large_files,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        "var-hf: Writing out.png failed and nothing of it was left behind: File too large"
    )
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("out.png", b"old")]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_quietly_and_leaves_whole_files(pipe_folder, tmp_path, number, code):
    """More images than any machine draws; the signal comes once the first are there."""
    process = subprocess.Popen(
        [*COMMAND, "generate", "hen", "-n", "100000", "--model", str(pipe_folder), "--separate"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    while not (tmp_path / "out-00009-hen.png").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate()

    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err
    files = list(tmp_path.iterdir())
    assert len(files) < 100000
    for file in files:
        Image.open(file).load()


# Convert, export-original, verify


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Folder with a small model in the original layout: three files, and a trainer's checkpoint of both parts."""
    folder = tmp_path_factory.mktemp("original")
    transformer = original_transformer(heads=3, width=24, classes=7, channels=8)
    vqvae = original_vqvae(channels=8, groups=2)
    torch.save(transformer, folder / "var.pth")
    torch.save(vqvae, folder / "vae.pth")
    nested = {"epoch": 3, "trainer": {"var_wo_ddp": transformer, "vae_local": vqvae}}
    torch.save(nested, folder / "ar-ckpt-last.pth")
    torch.save(original_transformer(channels=8, qk_norm=False), folder / "no-norm.pth")
    return folder


SET = ("--set", "norm_num_groups=2")


def test_convert_then_generate_then_export_gives_the_files_back(var_hf, files):
    (files.parent / "names.json").write_text(json.dumps([f"name {i}" for i in range(7)]))
    code, out, err = var_hf(
        *("convert", files / "var.pth", files / "vae.pth", "-o", "model", *SET),
        *("--class-names", files.parent / "names.json"),
    )
    assert (code, out) == (0, "model\n"), err
    assert var_hf("generate", "name 3", 4, "--model", "model")[0] == 0

    code, out, _ = var_hf("export-original", "model", "-o", "original")
    assert (code, out.split()) == (0, ["original/var_d2.pth", "original/vae_ch4v37z8.pth"])
    for name, source in zip(out.split(), ("var.pth", "vae.pth"), strict=True):
        exported, original = torch.load(name), torch.load(files / source)
        assert exported.keys() == original.keys()
        assert all(torch.equal(exported[key], original[key]) for key in original)


def test_convert_takes_a_trainers_checkpoint_alone(var_hf, files):
    assert var_hf("convert", files / "ar-ckpt-last.pth", "-o", "one", *SET)[0] == 0
    assert var_hf("convert", files / "var.pth", files / "vae.pth", "-o", "two", *SET)[0] == 0

    for name in ("transformer/model", "vqvae/diffusion_pytorch_model"):
        one, two = (Path(folder, f"{name}.safetensors").read_bytes() for folder in ("one", "two"))
        assert one == two


def test_convert_options_reach_the_folder(var_hf, files):
    code, out, err = var_hf(
        *("convert", files / "no-norm.pth", files / "vae.pth", "-o", "model", *SET, "--json"),
        *("--set", "num_attention_heads=4", "--set", "token_map_sizes=[1, 2, 4]"),
        *("--dtype", "bfloat16", "--max-shard-size", "20KB"),
    )
    assert code == 0, err
    result = json.loads(out)
    assert result["folder"] == "model"
    assert [source["name"] for source in result["sources"]] == ["no-norm.pth", "vae.pth"]
    assert "transformer/model.safetensors.index.json" in result["files"]
    model = VARPipeline.from_pretrained("model")
    assert model.transformer.config.num_attention_heads == 4
    assert model.transformer.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["var.pth", "vae.pth", "-o", "taken"], "taken exists already."),
        (["vae.pth", "var.pth"], "Were the two files swapped?"),
        (["var.pth"], "(No VQVAE was named, so it was looked for in {files}/var.pth as well.)"),
        (["nothing.pth", "vae.pth"], "There is no checkpoint file {files}/nothing.pth."),
        (["var.pth", "vae.pth", "--size", "d16"], "leave {files}/vae.pth out"),
        (["var.pth", "vae.pth", "--revision", "main"], "pass --size as well"),
        (["var.pth", "vae.pth", "--set", "num_heads=3"], "Unknown override num_heads"),
        (["var.pth", "vae.pth", "--set", "norm_eps"], "--set takes NAME=VALUE"),
        (["var.pth", "vae.pth", "--class-names", "names.json"], "has to be JSON"),
        (["var.pth", "vae.pth", "--class-names", "numbers.json"], "names that are no text"),
    ],
)
def test_bad_conversions_are_refused(fails, files, tmp_path, arguments, problem):
    (tmp_path / "taken").mkdir()
    (tmp_path / "names.json").write_text("tench\n")
    (tmp_path / "numbers.json").write_text("[1, 2]")
    arguments = [files / name if name.endswith(".pth") else name for name in arguments]
    output = [] if "-o" in arguments else ["-o", "model"]

    assert problem.format(files=files) in fails("convert", *arguments, *output, *SET)


def test_a_hub_repository_needs_a_size(fails):
    line = fails("convert", "FoundationVision/var", "-o", "model")

    assert line.endswith("say which model to take from it: --size d16.")


def test_convert_knows_every_published_size():
    assert list(PublishedSize) == list(PUBLISHED_TRANSFORMERS)


def test_export_refuses_what_is_there(fails, pipe_folder, tmp_path):
    (tmp_path / "original").mkdir()

    assert "original exists already" in fails("export-original", pipe_folder, "-o", "original")


def test_verify_names_what_is_not_as_written(var_hf, files):
    var_hf("convert", files / "var.pth", files / "vae.pth", "-o", "model", *SET)
    assert var_hf("verify", "model")[:2] == (0, "model: all 7 files are as written\n")

    weights = Path("model/transformer/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    Path("model/scheduler/scheduler_config.json").unlink()
    Path("model/extra.bin").write_bytes(b"\x80\x02.")

    assert var_hf("verify", "model") == (
        1,
        "changed  transformer/model.safetensors\n"
        "missing  scheduler/scheduler_config.json\n"
        "extra    extra.bin\n"
        "pickles  extra.bin\n",
        "",
    )
    code, out, _ = var_hf("verify", "model", "--json")
    assert code == 1
    assert json.loads(out) == {
        "folder": "model",
        "ok": False,
        "changed": ["transformer/model.safetensors"],
        "missing": ["scheduler/scheduler_config.json"],
        "extra": ["extra.bin"],
        "pickles": ["extra.bin"],
        "lacking": {},
    }


@pytest.mark.parametrize(
    ("folder", "problem"),
    [("nowhere", "There is no folder nowhere."), (".", "has no provenance.json")],
)
def test_verify_refuses_what_was_not_converted(fails, folder, problem):
    assert problem in fails("verify", folder)
