"""Neon's merge: the authors' arithmetic bit for bit, and models that do not belong together."""

import json
import os

import pytest
import torch
from conftest import make_pipe, make_transformer, make_vqvae, seeded
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from var_hf import VARCollaborativePipeline, VARPipeline
from var_hf.provenance import read_provenance, verify
from var_hf.training.merging import extrapolate, merge_to_folder


@pytest.fixture
def pipes():
    """A pipeline, and the same with other weights in its transformer."""
    base, other = make_pipe(), make_pipe()
    weights = parameters_to_vector(other.transformer.parameters()).detach()
    moved = weights + 0.01 * torch.randn(weights.shape, generator=seeded(0))
    vector_to_parameters(moved, other.transformer.parameters())
    return base, other


def weights(pipe):
    return {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}


@pytest.mark.parametrize("weight", [0.5, 1.5, -0.25])
def test_the_merge_is_the_authors_bit_for_bit(pipes, weight):
    """Their `generate_and_fid_neon.py` computes ``vB + w * (vB - vA)`` for each tensor."""
    base, other = map(weights, pipes)

    extrapolate(*pipes, weight)

    for name, tensor in weights(pipes[0]).items():
        assert torch.equal(tensor, base[name] + weight * (base[name] - other[name]))
    assert all(torch.equal(tensor, other[name]) for name, tensor in weights(pipes[1]).items())


def test_a_weight_of_zero_is_the_base(pipes):
    before = weights(pipes[0])
    extrapolate(*pipes, 0.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(pipes[0]).items())


def test_the_folder_is_a_pipeline_with_a_card_and_provenance(pipes, tmp_path):
    folder = tmp_path / "neon"

    merge_to_folder(*pipes, 1.0, folder, dtype=torch.bfloat16)

    loaded = VARPipeline.from_pretrained(folder, dtype=torch.float32)
    for name, tensor in loaded.transformer.state_dict().items():
        assert torch.equal(tensor, pipes[0].transformer.state_dict()[name].float())
    assert loaded.id2label == pipes[0].id2label
    assert loaded.resolve_settings() == pipes[0].resolve_settings()
    assert verify(folder).ok
    merge = read_provenance(folder)["options"]["merge"]
    assert (merge["method"], merge["weight"]) == ("neon", 1.0)
    assert merge["base_sha256"] != merge["self_trained_sha256"]
    assert (folder / "README.md").is_file()
    with pytest.raises(FileExistsError):
        merge_to_folder(*pipes, 1.0, folder)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(pipes, weight):
    with pytest.raises(ValueError, match="weight must be a finite number"):
        extrapolate(*pipes, weight)


def test_a_weight_that_leaves_the_finite_numbers_is_refused(pipes, tmp_path):
    with pytest.raises(ValueError, match=r"With weight 1e\+300, .* is no longer finite"):
        merge_to_folder(*pipes, 1e300, tmp_path / "neon")
    assert os.listdir(tmp_path) == []


def changed_codebook():
    vqvae = make_vqvae()
    with torch.no_grad():
        vqvae.quantizer.codebook.weight[3, 1] += 1
    return vqvae


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"transformer": lambda: make_transformer(num_hidden_layers=2)},
            "do not have the same shape",
        ),
        ({"vqvae": changed_codebook}, "different codebooks"),
        ({"id2label": lambda: {0: "another"}}, "different class names"),
    ],
    ids=["shape", "codebook", "names"],
)
def test_models_that_do_not_belong_together_are_refused(pipes, parts, message):
    other = make_pipe(**{name: make() for name, make in parts.items()})
    before = weights(pipes[0])
    with pytest.raises(ValueError, match=message):
        extrapolate(pipes[0], other, 1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(pipes[0]).items())


def test_two_transformers_are_not_merged(pipes):
    pair = VARCollaborativePipeline.from_pipe(pipes[0], refiner=pipes[1].transformer)
    for one, other in ((pair, pipes[1]), (pipes[1], pair)):
        with pytest.raises(ValueError, match="has two transformers"):
            extrapolate(one, other, 1.0)


def test_the_command(pipes, tmp_path, var_hf):
    for name, pipe in zip(("base", "self-trained"), pipes, strict=True):
        pipe.save_pretrained(tmp_path / name)
    arguments = ("merge", tmp_path / "base", tmp_path / "self-trained", "-o", tmp_path / "neon")

    code, out, err = var_hf(*arguments, "--weight", 0.5, "--json")

    assert code == 0, err
    assert json.loads(out) == {"pipeline": str(tmp_path / "neon"), "weight": 0.5}
    extrapolate(*pipes, 0.5)
    loaded = VARPipeline.from_pretrained(tmp_path / "neon")
    assert all(
        torch.equal(tensor, pipes[0].transformer.state_dict()[name])
        for name, tensor in loaded.transformer.state_dict().items()
    )
    code, _, err = var_hf(*arguments)
    assert (code, len(err.splitlines())) == (1, 1)
    code, _, err = var_hf(*arguments[:3], "-o", tmp_path / "other", "--weight", "nan")
    assert (code, err) == (1, "var-hf: --weight must be a finite number. Got nan.\n")
