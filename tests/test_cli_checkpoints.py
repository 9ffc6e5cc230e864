import json
from pathlib import Path

import pytest
import torch
from original_release import original_transformer, original_vqvae

from var_hf import VARModel, VARPipeline
from var_hf.cli_checkpoints import PublishedSize
from var_hf.conversion import PUBLISHED_TRANSFORMERS


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Folder with a small model in the original layout: three files, and a trainer's checkpoint of
    both parts.
    """
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
    model = VARModel.from_pretrained("model", subfolder="transformer")
    assert model.config.num_attention_heads == 4
    assert model.dtype == torch.bfloat16  # as stored
    assert VARPipeline.from_pretrained("model").transformer.dtype == torch.float32


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

    assert line.endswith("choose a model in it: --size d16.")


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
