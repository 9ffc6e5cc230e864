"""Rounding what was trained to what ships, and what has shipped."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_pipe
from safetensors.torch import load_file

from var_hf import MultiScaleVQVAE, VARPipeline
from var_hf.assets import SHIPPED_MODELS, VAR_EMOJI_64, VAR_EMOJI_128
from var_hf.precision import stored_dtype
from var_hf.provenance import verify, write_provenance

EXAMPLE = Path(__file__).parents[2] / "examples" / "emoji"
LARGEST = {VAR_EMOJI_64: 25e6, VAR_EMOJI_128: 30e6}  # bytes


def names_no_place(folder):
    """Whether no configuration holds the folder that it was loaded from."""
    configs = [json.loads(file.read_text()) for file in folder.rglob("*.json")]
    return configs != [] and not any(config.get("_name_or_path") for config in configs)


@pytest.fixture
def ship(monkeypatch):
    spec = importlib.util.spec_from_file_location("emoji_ship", EXAMPLE / "ship.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ship.py", *map(str, arguments)])
        module.main()

    return run


def test_a_pipeline_ships_rounded_with_its_training_and_its_numbers(ship, tmp_path):
    pipe = make_pipe(id2label={i: f"class {i}" for i in range(11)})
    pipe.save_pretrained(tmp_path / "trained")
    write_provenance(tmp_path / "trained", [], {"steps": 7})
    result = {"metric": "share", "value": 0.9765, "command": "measure", "dataset": "images"}
    (tmp_path / "results.json").write_text(json.dumps([result]))

    ship(tmp_path / "trained", tmp_path / "shipped")
    ship(tmp_path / "trained", tmp_path / "shipped", "--results", tmp_path / "results.json")

    assert verify(tmp_path / "shipped").ok
    shipped = VARPipeline.from_pretrained(tmp_path / "shipped", dtype=torch.float32)
    rounded = VARPipeline.from_pretrained(tmp_path / "trained", dtype=torch.bfloat16)
    for name in ("transformer", "vqvae"):
        expected = getattr(rounded, name).state_dict()
        for key, tensor in getattr(shipped, name).state_dict().items():
            assert torch.equal(tensor, expected[key].to(tensor.dtype)), key
    assert "0.9765" in (tmp_path / "shipped" / "README.md").read_text()
    options = json.loads((tmp_path / "shipped" / "provenance.json").read_text())["options"]
    assert options == {"steps": 7, "dtype": "bfloat16"}
    assert names_no_place(tmp_path / "shipped")


def test_a_tokenizer_ships_alone(ship, tmp_path):
    vqvae = make_pipe().vqvae
    vqvae.save_pretrained(tmp_path / "vqvae")

    ship(tmp_path / "vqvae", tmp_path / "shipped")

    shipped = MultiScaleVQVAE.from_pretrained(tmp_path / "shipped", torch_dtype=torch.float32)
    rounded = MultiScaleVQVAE.from_pretrained(tmp_path / "vqvae", torch_dtype=torch.bfloat16)
    expected = rounded.state_dict()
    for key, tensor in shipped.state_dict().items():
        assert torch.equal(tensor, expected[key].to(tensor.dtype)), key
    assert names_no_place(tmp_path / "shipped")


def test_every_shipped_model_is_tested():
    assert set(SHIPPED_MODELS) == LARGEST.keys()


@pytest.mark.parametrize("model", LARGEST, ids=lambda folder: folder.name)
def test_what_has_shipped_is_whole_and_small_and_in_bfloat16_where_it_may_be(model):
    assert verify(model).ok
    assert names_no_place(model)
    files = [file for file in model.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < LARGEST[model]
    pipe = VARPipeline.from_pretrained(model)
    for file in model.glob("*/*.safetensors"):
        component = getattr(pipe, file.parent.name)
        for name, tensor in load_file(file).items():
            expected = stored_dtype(component, name, torch.bfloat16)
            assert tensor.dtype in (torch.bfloat16, expected), name


@pytest.mark.parametrize(
    ("model", "results", "psnr", "recognised", "num_scales", "least_used"),
    [
        (VAR_EMOJI_64, EXAMPLE / "results.json", 27, 0.97, 7, 0.25),
        (VAR_EMOJI_128, EXAMPLE / "128" / "results.json", 30, 0.95, 10, 0.18),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_has_shipped_reaches_the_goals(
    model, results, psnr, recognised, num_scales, least_used
):
    """The numbers that `measure.py` found, and that the card of the model gives."""
    values = {entry["metric"]: entry["value"] for entry in json.loads(results.read_text())}

    assert values["reconstruction PSNR in dB"] >= psnr
    shares = [value for name, value in values.items() if name.startswith("share of codes")]
    assert len(shares) == num_scales
    assert min(shares) >= least_used
    assert values["recognised by the classifier"] >= recognised
    assert values["classified by likelihood"] >= 0.95
    card = (model / "README.md").read_text()
    assert f"{values['reconstruction PSNR in dB']:g}" in card
