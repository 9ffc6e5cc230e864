"""Repositories and folders that somebody has tampered with."""

import json

import pytest
from safetensors.torch import save

PULL = "result = same(VARPipeline.from_pretrained('user/tiny', cache_dir=cache))"
ADAPTER = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "user/other"}).encode()
OUTSIDE = json.dumps({"weight_map": {"a": "../vqvae/diffusion_pytorch_model.safetensors"}}).encode()


@pytest.fixture
def repo(hub, client):
    client.run('pipe.push_to_hub("user/tiny")')
    return hub.model("user/tiny")


@pytest.mark.parametrize("part", ["transformer", "vqvae"])
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_is_refused_and_never_fetched(hub, client, repo, cache, part, name):
    hub.change("user/tiny", {f"{part}/{name}": ADAPTER})

    message = client.fails(PULL, cache=cache)
    assert f"user/tiny is refused: it holds {part}/{name}, an adapter" in message
    assert "pass verify=False" in message

    assert client.run(PULL.replace("cache_dir", "verify=False, cache_dir"), cache=cache)
    assert not list(cache.rglob("adapter_*"))


def test_an_adapter_beside_a_single_model_is_refused(hub, client, cache):
    load = "from var_hf import VARModel; VARModel.from_pretrained('user/part', cache_dir=cache)"
    client.run('pipe.transformer.push_to_hub("user/part")')
    hub.change("user/part", {"adapter_config.json": ADAPTER})

    assert "it holds adapter_config.json, an adapter" in client.fails(load, cache=cache)


@pytest.mark.parametrize(
    "load",
    [
        "VARPipeline.from_pretrained(folder)",
        "VARModel.from_pretrained(folder, subfolder='transformer')",
        "VARModel.from_pretrained(f'{folder}/transformer')",
    ],
)
def test_an_adapter_in_a_local_folder_is_not_followed(client, folder, load):
    (folder / "transformer/adapter_config.json").write_bytes(ADAPTER)

    message = client.fails(load, "ValueError", folder=folder)

    assert f"{folder}/transformer is refused: it holds adapter_config.json, an adapter" in message


def test_an_adapter_is_not_pushed(hub, client, folder):
    (folder / "transformer/adapter_config.json").write_bytes(ADAPTER)
    (folder / "transformer/adapter_model.safetensors").write_bytes(save({}))

    client.run('push_folder(folder, "user/tiny")', folder=folder)

    assert "not pushed: transformer/adapter_config.json, transformer/adapter_model" in client.log
    assert not any("adapter" in path for path in hub.model("user/tiny").files())


def test_a_plain_bin_is_not_loaded(client, folder):
    """Neither beside its index nor alone: transformers and diffusers would."""
    client.run(
        """
        for part, name in (("transformer", "pytorch_model"), ("vqvae", "diffusion_pytorch_model")):
            torch.save(getattr(pipe, part).state_dict(), f"{folder}/{part}/{name}.bin")
            for path in Path(folder, part).glob("*.safetensors"):
                path.unlink()
        """,
        folder=folder,
    )
    for part, name in (("transformer", "VARModel"), ("vqvae", "MultiScaleVQVAE")):
        message = client.fails(
            f"{name}.from_pretrained(f'{{folder}}/{part}')", "ValueError", folder=folder
        )
        assert "as a pickle" in message


@pytest.mark.parametrize("verify", [True, False])
def test_a_list_of_shards_stays_in_its_folder(hub, client, repo, cache, verify):
    hub.change(
        "user/tiny", {"transformer/model.safetensors.index.json": OUTSIDE, "provenance.json": None}
    )
    pull = PULL.replace("cache_dir", f"verify={verify}, cache_dir")

    message = client.fails(pull, cache=cache)

    assert "weight_map must name safetensors files beside it" in message
    assert "Got ../vqvae/diffusion_pytorch_model.safetensors." in message


def test_a_list_of_shards_of_a_single_model_stays_in_its_folder(hub, client, cache):
    load = "from var_hf import VARModel; VARModel.from_pretrained('user/part', cache_dir=cache)"
    client.run('pipe.transformer.push_to_hub("user/part")')
    hub.change("user/part", {"model.safetensors.index.json": OUTSIDE, "provenance.json": None})

    message = client.fails(load, cache=cache)
    assert "weight_map must name safetensors files beside it" in message


def test_names_that_forge_output_are_escaped(hub, client, repo, cache):
    name = "x\nuser/tiny: all 7 files are as written\x1b[2J.sh"
    hub.change("user/tiny", {name: b"#!/bin/sh"})

    message = client.fails(PULL, cache=cache)

    assert "x\\nuser/tiny: all 7 files are as written\\x1b[2J.sh" in message
    assert message.isprintable()


COMMAND = """
from typer.testing import CliRunner
from var_hf.cli_app import app
done = CliRunner().invoke(app, arguments)
result = [done.exit_code, str(done.exception or "")]
"""


@pytest.mark.parametrize("where", ["on the Hub", "in a folder"])
def test_the_commands_load_what_was_pushed_with_its_code(hub, client, tmp_path, where):
    client.run('pipe.push_to_hub("user/carrying", with_code=True)')
    model = "user/carrying"
    if where == "in a folder":
        model = client.run('result = str(pull_everything("user/carrying"))')
    picture, output = str(tmp_path / "out.png"), str(tmp_path / "edited.png")

    for arguments in (
        ["generate", "hen", "--model", model, "-o", picture],
        ["edit", picture, "--strength", "0.5", "--model", model, "-o", output],
        ["classify", picture, "--model", model],
        ["export-original", model, "-o", str(tmp_path / "original")],
        ["verify", model],
    ):
        assert client.run(COMMAND, arguments=arguments) in ([0, ""], [0, "0"]), arguments
