"""Every code block of the documents below runs, in order, in a folder with a small stand-in for the models they name.

A block that cannot run here says so in the line above it: ``<!-- not run: reason -->``.
"""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from original_release import original_transformer, original_vqvae
from PIL import Image

from var_hf.cli import main
from var_hf.pipelines.original import convert_checkpoint

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "docs/command-line.md", "docs/editing.md", "docs/understanding.md"]
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
NOT_CODE = {"bibtex", "text"}


@dataclass
class Block:
    language: str
    code: str
    reason: str | None


def blocks(document):
    found = BLOCK.finditer((ROOT / document).read_text(encoding="utf-8"))
    return [Block(match["language"], match["code"], match["reason"]) for match in found]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder of a reader: a converted model, a trainer's checkpoint of their own, and pictures."""
    transformer = original_transformer(channels=8, vocab=40, classes=1000, depth=2)
    vqvae = original_vqvae(channels=8, vocab=40, base=32, groups=32)
    nested = {"trainer": {"var_wo_ddp": transformer, "vae_local": vqvae}}
    torch.save(nested, tmp_path / "ar-ckpt-last.pth")
    convert_checkpoint(*[tmp_path / "ar-ckpt-last.pth"] * 2, tmp_path / "var-d16-256")
    Image.new("RGB", (40, 30), "peru").save(tmp_path / "dog.png")
    mask = Image.new("L", (40, 30))
    mask.paste(255, (0, 0, 20, 30))
    mask.save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_command(line, monkeypatch):
    """A line of a shell block, in this process: importing torch anew for every line would take minutes."""
    program, *arguments = shlex.split(line)
    assert program == "var-hf", line
    monkeypatch.setattr(sys, "argv", ["var-hf", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, line


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_code_block_runs(document, folder, monkeypatch):
    namespace = {"__name__": document}
    for block in blocks(document):
        if block.reason or block.language in NOT_CODE:
            continue
        if block.language == "python":
            exec(compile(block.code, document, "exec"), namespace)
            continue
        assert block.language == "sh"
        for line in block.code.splitlines():
            run_command(line, monkeypatch)


def test_the_readme_has_blocks_of_both_languages():
    """So that a change of the README's form cannot empty the test above."""
    run = [block.language for block in blocks("README.md") if not block.reason]

    assert run.count("python") >= 1
    assert run.count("sh") >= 2


@pytest.mark.parametrize("document", [*DOCUMENTS, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_within_the_repository_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    here = (ROOT / document).parent
    headings = {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings
        elif "://" not in target:
            assert (here / target.partition("#")[0]).exists(), target
