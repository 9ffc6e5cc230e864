"""What pulling refuses, and what verifying finds."""

import json
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "push_and_pull.py"
PULL = "result = same(VARPipeline.from_pretrained('user/tiny', cache_dir=cache))"
TRUST = "pass verify=False"


@pytest.fixture
def repo(hub, client):
    client.run('pipe.push_to_hub("user/tiny", with_code=True)')
    return hub.model("user/tiny")


def other_weights(repo) -> bytes:
    """The transformer's weight file with one number changed."""
    content = repo.files()["transformer/model.safetensors"]
    return content[:-4] + b"\0\0\1\0"


def test_changed_weights_are_refused_before_they_are_fetched(hub, client, repo, cache):
    hub.change("user/tiny", {"transformer/model.safetensors": other_weights(repo)})
    hub.requests.clear()

    message = client.fails(PULL, cache=cache)

    assert (
        "user/tiny is refused: transformer/model.safetensors changed after provenance.json was"
        in message
    )
    assert TRUST in message
    assert not any("/storage/" in request for request in hub.requests)
    assert not client.run(PULL.replace("cache_dir", "verify=False, cache_dir"), cache=cache)


def test_changed_weights_in_the_cache_are_refused_offline_too(hub, client, repo, cache):
    hub.change("user/tiny", {"transformer/model.safetensors": other_weights(repo)})
    client.run(PULL.replace("cache_dir", "verify=False, cache_dir"), cache=cache)

    message = client.fails(
        PULL.replace("cache_dir", "local_files_only=True, cache_dir"), cache=cache
    )

    assert "transformer/model.safetensors changed" in message


@pytest.mark.parametrize("path", ["vqvae/pytorch_model.bin", "old.ckpt", "a/b/c.PKL"])
def test_a_stray_pickle_is_refused_and_never_fetched(hub, client, repo, cache, path):
    hub.change("user/tiny", {path: b"\x80\x04."})

    message = client.fails(PULL, cache=cache)

    assert (
        f"user/tiny is refused: it holds {path}, which may run code" in message and TRUST in message
    )
    assert client.run(PULL.replace("cache_dir", "verify=False, cache_dir"), cache=cache)
    assert not list(cache.rglob(path.rsplit("/")[-1]))


@pytest.mark.parametrize("path", ["setup.py", "transformer/kernel.so", "run.sh", "notes.ipynb"])
def test_unlisted_code_is_refused(hub, client, repo, cache, path):
    hub.change("user/tiny", {path: b"import os"})

    message = client.fails(PULL, cache=cache)

    assert f"it holds code that provenance.json does not list: {path}." in message
    assert client.run(PULL.replace("cache_dir", "verify=False, cache_dir"), cache=cache)


def test_changed_code_is_refused(hub, client, repo, cache):
    hub.change("user/tiny", {"pipeline.py": b"import os\n" + repo.files()["pipeline.py"]})

    message = client.fails(PULL, cache=cache)

    assert "user/tiny is refused: pipeline.py changed after provenance.json was written" in message


def test_changed_weights_are_refused_where_the_hub_lists_no_sha256(hub, client, cache):
    hub.habits.in_lfs = (".bin",)
    client.run('pipe.push_to_hub("user/tiny")')
    assert client.run(PULL, cache=cache)
    assert not any("/storage/" in request for request in hub.requests)
    repo = hub.model("user/tiny")
    hub.change("user/tiny", {"transformer/model.safetensors": other_weights(repo)})

    message = client.fails(PULL, cache=cache)

    assert "transformer/model.safetensors changed after provenance.json was written" in message


def test_weights_that_are_not_listed_are_refused(hub, client, repo, cache):
    hub.change("user/tiny", {"vqvae/diffusion_pytorch_model.fp16.safetensors": other_weights(repo)})

    assert client.run(PULL, cache=cache)  # nobody asks for them
    message = client.fails(PULL.replace("cache_dir", "variant='fp16', cache_dir"), cache=cache)

    assert "vqvae/diffusion_pytorch_model.fp16.safetensors not listed in provenance.json" in message


def test_a_changed_setting_is_accepted(hub, client, repo, cache):
    """People tune the sampling defaults on the Hub's pages; weights they do not."""
    config = json.loads(repo.files()["scheduler/scheduler_config.json"]) | {"top_k": 5}
    hub.change("user/tiny", {"scheduler/scheduler_config.json": json.dumps(config).encode()})

    assert client.run(PULL, cache=cache)


def test_without_a_provenance_it_loads_with_a_warning(hub, client, folder, cache):
    files = {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    hub.add("user/tiny", files)

    assert client.run(PULL, cache=cache)
    assert "user/tiny has no provenance.json" in client.log


def test_a_damaged_provenance_is_an_error(hub, client, repo, cache):
    hub.change("user/tiny", {"provenance.json": b'{"files": 3}'})

    assert "is damaged" in client.fails(PULL, "ValueError", cache=cache)


COMMAND = """
from typer.testing import CliRunner
from var_hf.cli_app import app
done = CliRunner().invoke(app, arguments)
result = [done.exit_code, done.stdout, str(done.exception)]
"""


def test_the_command_verifies_a_repository(hub, client, repo):
    code, output, _ = client.run(COMMAND, arguments=["verify", "user/tiny"])
    assert (code, output.strip()) == (
        0,
        f"user/tiny: all {len(repo.files()) - 2} files are as written",
    )

    first = repo.refs["main"]
    hub.change(
        "user/tiny",
        {
            "transformer/model.safetensors": other_weights(repo),
            "vqvae/config.json": None,
            "evil.bin": b"\x80\x04.",
            "run.sh": b"#!/bin/sh",
        },
    )
    code, output, _ = client.run(COMMAND, arguments=["verify", "user/tiny"])
    assert code == 1
    assert {" ".join(line.split()) for line in output.splitlines()} == {
        "changed transformer/model.safetensors",
        "missing vqvae/config.json",
        "extra evil.bin",
        "extra run.sh",
        "pickles evil.bin",
    }

    code, _, _ = client.run(COMMAND, arguments=["verify", "user/tiny", "--revision", first])
    assert code == 0


def test_the_command_pushes_a_folder(hub, client, folder, tmp_path):
    results = tmp_path / "results.json"
    measured = {
        "metric": "FID",
        "value": 12.5,
        "command": "var-hf evaluate --model me/tiny",
        "dataset": "ImageNet 10 x 10",
    }
    results.write_text(json.dumps([measured]))
    arguments = [
        *("push", folder, "user/tiny", "--with-code", "--private", "--license", "mit"),
        *("--base-model", "user/base", "--results", results, "--message", "First", "--json"),
    ]

    code, output, error = client.run(COMMAND, arguments=[str(one) for one in arguments])

    assert code == 0, error
    repo = hub.model("user/tiny")
    assert json.loads(output) == {
        "repository": "user/tiny",
        "commit": repo.refs["main"],
        "url": f"{hub.endpoint}/user/tiny/commit/{repo.refs['main']}",
    }
    assert repo.private and repo.commits[repo.refs["main"]].title == "First"
    card = repo.files()["README.md"].decode()
    assert "base_model: user/base" in card and "`var-hf evaluate --model me/tiny`" in card


def test_the_command_converts_a_published_size_and_pushes_it(hub, client, tmp_path):
    """From another repository with the names of the release's files."""
    client.run(
        """
        from pathlib import Path
        Path(tmp).mkdir(exist_ok=True)
        torch.save(pipe.transformer.to_original(), f"{tmp}/var_d16.pth")
        torch.save(pipe.vqvae.to_original(), f"{tmp}/vae_ch160v4096z32.pth")
        """,
        tmp=tmp_path,
    )
    names = ("var_d16.pth", "vae_ch160v4096z32.pth")
    hub.add("me/mirror", {name: (tmp_path / name).read_bytes() for name in names})
    arguments = [
        "convert",
        "me/mirror",
        "--size",
        "d16",
        "--output",
        str(tmp_path / "out"),
    ]
    arguments += ["--set", "token_map_sizes=[1,2,3,5]", "--set", "norm_num_groups=4"]
    arguments += [
        "--set",
        "num_attention_heads=7",
        "--push",
        "user/var-d16",
        "--with-code",
        "--json",
    ]

    code, output, error = client.run(COMMAND, arguments=arguments)

    assert code == 0, error
    files = hub.model("user/var-d16").files()
    assert json.loads(output)["repository"] == "user/var-d16"
    assert {
        "transformer/model.safetensors",
        "vqvae/diffusion_pytorch_model.safetensors",
        "pipeline.py",
    } <= files.keys()
    sources = json.loads(files["provenance.json"])["sources"]
    assert [(s["name"], s["repository"], len(s["revision"])) for s in sources] == [
        (name, "me/mirror", 40) for name in names
    ]
    assert client.run("result = same(VARPipeline.from_pretrained('user/var-d16'))")


def test_the_example_pushes_pulls_and_compares(hub, client, folder):
    output = client.run(
        """
        import contextlib, io, runpy, sys
        output, sys.argv = io.StringIO(), ["push_and_pull.py", folder, "user/example", "--delete"]
        with contextlib.redirect_stdout(output):
            runpy.run_path(script, run_name="__main__")
        result = output.getvalue()
        """,
        folder=folder,
        script=EXAMPLE,
    )

    assert output.count("True") == 3 and "False" not in output
    assert output.endswith("deleted\n") and not hub.repos


@pytest.mark.parametrize("model", ["VARModel", "MultiScaleVQVAE"])
def test_a_single_model_is_checked_before_it_is_fetched(hub, client, folder, cache, model):
    part = {"VARModel": "transformer", "MultiScaleVQVAE": "vqvae"}[model]
    load = (
        f"from var_hf import {model}\n"
        f"result = type({model}.from_pretrained('user/part', cache_dir=cache)).__name__"
    )
    client.run(f'pipe.{part}.push_to_hub("user/part")')
    assert client.run(load, cache=cache) == model

    repo = hub.model("user/part")
    (weights,) = (path for path in repo.files() if path.endswith(".safetensors"))
    hub.change("user/part", {weights: repo.files()[weights][:-4] + b"\0\0\1\0"})
    hub.requests.clear()
    assert f"user/part is refused: {weights} changed" in client.fails(load, cache=cache)
    assert not any("/storage/" in request for request in hub.requests)
    assert client.run(load.replace("cache_dir", "verify=False, cache_dir"), cache=cache) == model

    hub.change("user/part", {weights: repo.files()[weights], "training_state.pt": b"\x80\x04."})
    assert "it holds training_state.pt, which may run code" in client.fails(load, cache=cache)
