"""What docs/hub.md shows is run, in order, against the test Hub."""

import shlex
from pathlib import Path

import pytest
import torch
from original_release import original_transformer, original_vqvae
from test_readme import blocks

ROOT = Path(__file__).parents[2]
LOGIN = "hf auth login"  # asks at the terminal; the token of these tests is in the environment


@pytest.fixture
def desk(hub, client, tmp_path):
    """A client of the user `me`, with two folders and the files that the page downloads."""
    client.run(
        """
        import os
        before = os.getcwd(), os.environ["HF_TOKEN"]
        kept = dict(globals())  # the page binds names that other tests' code reads, pipe above all
        os.chdir(desk)
        os.environ["HF_TOKEN"] = "hf_me"
        from var_hf.pipelines.original import convert_checkpoint
        torch.save(pipe.transformer.to_original(), "var.pth")
        torch.save(pipe.vqvae.to_original(), "vae.pth")
        options = {"token_map_sizes": (1, 2, 3, 5), "norm_num_groups": 4, "num_attention_heads": 7}
        for name in ("var-d16-256", "my-var"):
            convert_checkpoint("var.pth", "vae.pth", name, **options)
        Path("my-var/samples.png").write_bytes(b"PNG")
        push_folder("var-d16-256", "me/var-d16-256")
        push_folder("var-d16-256", "me/var-d16-256", revision="v1")
        pipe.vqvae.push_to_hub("me/my-vqvae")
        from var_hf.conversion import published, registry
        from importlib.resources import files
        table = json.loads(files("var_hf.conversion").joinpath("published.json").read_text())
        table["vqvae"] |= {"bytes": None, "sha256": None}  # the release's files are stand-ins here
        Path("table.json").write_text(json.dumps(table))
        published._TABLE = str(Path("table.json").absolute())
        registry.cache_clear()
        """,
        desk=tmp_path,
    )
    hub.add("somebody/var", hub.model("me/var-d16-256").files())
    original = {
        "var_d20.pth": original_transformer(channels=8, vocab=40, classes=1000, depth=2),
        "vae_ch160v4096z32.pth": original_vqvae(channels=8, vocab=40, base=32, groups=32),
    }
    for name, state_dict in original.items():
        torch.save(state_dict, tmp_path / name)
    hub.add("FoundationVision/var", {name: (tmp_path / name).read_bytes() for name in original})
    yield client
    client.run(
        """
        published._TABLE = "published.json"
        registry.cache_clear()
        os.chdir(before[0])
        os.environ["HF_TOKEN"] = before[1]
        (lambda names, kept: (names.clear(), names.update(kept)))(globals(), kept)
        """
    )


def run_line(client, line):
    program, *arguments = shlex.split(line)
    if program == "python":
        return client.run(
            """
            import runpy, sys
            sys.argv = arguments
            runpy.run_path(script, run_name="__main__")
            """,
            script=ROOT / arguments[0],
            arguments=arguments,
        )
    assert program == "var-hf", line
    code, error = client.run(
        """
        from typer.testing import CliRunner
        from var_hf.cli_app import app
        done = CliRunner().invoke(app, arguments)
        result = [done.exit_code, str(done.exception)]
        """,
        arguments=arguments,
    )
    assert code == 0, f"{line}: {error}"


def test_every_block_of_the_page_works(hub, desk):
    found = blocks("docs/hub.md")
    assert sum(block.language == "python" for block in found) >= 5
    for block in found:
        if block.language == "python":
            desk.run(block.code)
        elif block.language == "sh":
            for line in block.code.splitlines():
                if line != LOGIN:
                    run_line(desk, line)

    models = {repo_id for kind, repo_id in hub.repos if kind == "model"}
    assert {"me/my-transformer", "me/var-d20-256"} <= models
    assert any(request.endswith("me/my-var/branch/experiment") for request in hub.requests)
    assert "refs/pr/1" in hub.model("somebody/var").refs
