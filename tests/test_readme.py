"""Every code block of the README and of the pages in docs/ runs, page by page, in a folder with
what the pages name.

A block that cannot run here says so in the line above it: ``<!-- not run: reason -->``. A block of
text below ``<!-- prints -->`` is what the Python block before it prints, to the letter.
"""

import re
import runpy
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from image_files import write_image_folder
from original_release import original_transformer, original_vqvae
from PIL import Image

from var_hf.cli import run
from var_hf.configuration_var import TOKEN_MAP_SIZES_256
from var_hf.evaluation.classifier import classifier_file
from var_hf.pipelines.original import convert_checkpoint

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
)
BLOCK = re.compile(
    r"(?:^<!-- (?P<note>not run: [^\n]+|prints) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
NOT_CODE = {"bibtex", "json", "text"}
#: Pages whose blocks need more than a folder; the test that runs them.
RUN_ELSEWHERE = {
    "docs/demo.md": "tests/demo/test_api.py",
    "docs/hub.md": "tests/hub/test_documentation.py",
}


@dataclass
class Block:
    language: str
    code: str
    note: str | None

    @property
    def reason(self):
        """Why the block is not run, if it is not."""
        return self.note if self.note and self.note.startswith("not run") else None


def blocks(document):
    found = BLOCK.finditer((ROOT / document).read_text(encoding="utf-8"))
    return [Block(match["language"], match["code"], match["note"]) for match in found]


def blocks_to_run(document):
    return [
        block for block in blocks(document) if not block.reason and block.language not in NOT_CODE
    ]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """Small files in the layout of the release: 1,000 classes, ten scales, 256 x 256 pixels."""
    folder = tmp_path_factory.mktemp("stand-in")
    transformer = original_transformer(
        channels=8, vocab=40, classes=1000, depth=2, sizes=TOKEN_MAP_SIZES_256
    )
    vqvae = original_vqvae(
        channels=8, vocab=40, base=32, groups=32, multipliers=(1, 1, 1, 1, 1), num_scales=10
    )
    torch.save(transformer, folder / "var_d16.pth")
    torch.save(vqvae, folder / "vae_ch160v4096z32.pth")
    nested = {"trainer": {"var_wo_ddp": transformer, "vae_local": vqvae}}
    torch.save(nested, folder / "ar-ckpt-last.pth")
    convert_checkpoint(*[folder / "ar-ckpt-last.pth"] * 2, folder / "var-d16-256")
    return folder


@pytest.fixture
def folder(stand_in, tmp_path, monkeypatch):
    """The working folder of a reader: a converted model, the files it came from, and images."""
    for each in stand_in.iterdir():
        (tmp_path / each.name).symlink_to(each)
    for half in ("code-drafter-8", "code-refiner-8"):
        (tmp_path / half).symlink_to(stand_in / "var-d16-256")
    shipped = classifier_file("emoji")
    (tmp_path / "classifier.safetensors").symlink_to(shipped)
    Image.new("RGB", (40, 30), "peru").save(tmp_path / "dog.png")
    mask = Image.new("L", (40, 30))
    mask.paste(255, (0, 0, 20, 30))
    mask.save(tmp_path / "mask.png")
    write_image_folder(tmp_path / "photos", ("apple", "fox", "rocket"), count=6)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_command(line, monkeypatch):
    """A line of a shell block, in this process: importing torch anew for every line would take
    minutes.
    """
    program, *arguments = shlex.split(line, comments=True)
    if program == "python":
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
        return
    assert program == "var-hf", line
    assert run(arguments) == 0, line


def run_page(document, monkeypatch, capsys):
    """Run the blocks of a page in order; names of Python blocks live on until its end."""
    namespace = {"__name__": document}
    for block in blocks(document):
        if block.note == "prints":
            assert capsys.readouterr().out == block.code, document
        if block.reason or block.language in NOT_CODE:
            continue
        capsys.readouterr()
        if block.language == "python":
            exec(compile(block.code, document, "exec"), namespace)
            continue
        assert block.language == "sh", f"{document}: a block of {block.language}"
        for line in block.code.replace("\\\n", " ").splitlines():
            if line and not line.startswith("#"):
                run_command(line, monkeypatch)


@pytest.mark.parametrize(
    "document", [page for page in PAGES if blocks_to_run(page) and page not in RUN_ELSEWHERE]
)
def test_every_code_block_runs(document, folder, monkeypatch, capsys):
    run_page(document, monkeypatch, capsys)


@pytest.mark.parametrize(("document", "test"), RUN_ELSEWHERE.items())
def test_the_blocks_that_run_elsewhere_do(document, test):
    assert blocks_to_run(document)
    assert f'blocks("{document}")' in (ROOT / test).read_text(encoding="utf-8")


def test_the_readme_has_blocks_of_both_languages():
    """So that a change of the README's form cannot empty the test above."""
    run = [block.language for block in blocks_to_run("README.md")]

    assert run.count("python") >= 1
    assert run.count("sh") >= 2


def anchors_of(page):
    """The anchors of a page's headings, as GitHub and the site make them."""
    without_code = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)
    }


@pytest.mark.parametrize("document", [*PAGES, "CHANGELOG.md", "THIRD_PARTY_NOTICES.md"])
def test_links_within_the_repository_lead_somewhere(document):
    page = ROOT / document
    without_code = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)]+)\)", without_code):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors_of(linked), target
