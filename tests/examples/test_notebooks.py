"""The notebooks run from top to bottom, on the shipped model and on one like the release."""

import re
from pathlib import Path

import nbformat
import pytest
import torch
from image_files import write_image_folder
from nbclient import NotebookClient
from nbclient.util import run_sync
from original_release import original_transformer, original_vqvae

from var_hf.assets import VAR_EMOJI_64
from var_hf.configuration_var import TOKEN_MAP_SIZES_256
from var_hf.pipelines.original import convert_checkpoint

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples/notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def release_model(tmp_path_factory):
    """1,000 classes, ten scales and 256 x 256 pixels, with few and untrained weights."""
    folder = tmp_path_factory.mktemp("release")
    nested = {
        "var_wo_ddp": original_transformer(
            channels=8, vocab=40, classes=1000, depth=2, sizes=TOKEN_MAP_SIZES_256
        ),
        "vae_local": original_vqvae(
            channels=8, vocab=40, base=32, groups=32, multipliers=(1, 1, 1, 1, 1), num_scales=10
        ),
    }
    torch.save({"trainer": nested}, folder / "original.pth")
    convert_checkpoint(*[folder / "original.pth"] * 2, folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def kernel():
    """One process for all notebooks: importing torch anew for each would take minutes."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import var_hf")])
    client = NotebookClient(notebook, timeout=300)
    client.execute(cleanup_kc=False)
    client.kc.stop_channels()
    yield client.km
    run_sync(client.km.shutdown_kernel)(now=True)


def execute(notebook, kernel, folder, model, steps):
    """Run a notebook in a clean namespace and its own folder; return the outputs of its cells.

    The folder holds a few images for fine-tuning, which the notebook else draws with a font.
    """
    write_image_folder(folder / "images", ("cactus", "ghost"), count=6)
    start = f"""
    %reset -f
    import os, torch
    os.chdir({str(folder)!r})
    os.environ |= {{"VAR_MODEL": {str(model)!r}, "VAR_STEPS": "{steps}"}}
    torch.set_num_threads(1)
    """
    lines = "\n".join(line.strip() for line in start.splitlines())
    notebook.cells.insert(0, nbformat.v4.new_code_cell(lines))
    client = NotebookClient(notebook, timeout=300, km=kernel)
    try:
        client.execute(cleanup_kc=False)
    finally:
        client.kc.stop_channels()
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def some_images(outputs):
    return sum("image/png" in output.get("data", {}) for cell in outputs for output in cell)


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_runs_on_the_model_that_ships(file, kernel, tmp_path):
    notebook = nbformat.read(file, as_version=4)
    assert VAR_EMOJI_64.exists()

    outputs = execute(notebook, kernel, tmp_path, VAR_EMOJI_64, steps=6)

    assert some_images(outputs) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_runs_unchanged_on_a_model_of_the_release(file, kernel, release_model, tmp_path):
    notebook = nbformat.read(file, as_version=4)

    outputs = execute(notebook, kernel, tmp_path, release_model, steps=1)

    assert some_images(outputs) >= 1


def test_there_is_one_for_every_task():
    assert [file.stem for file in NOTEBOOKS] == ["edit", "fine_tune", "generate", "tokenizer"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_links_lead_somewhere(file):
    notebook = nbformat.read(file, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert (file.parent / target).exists(), target
