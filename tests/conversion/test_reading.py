import hashlib
import os
import pickle
import sys
from argparse import Namespace
from collections import OrderedDict

import pytest
import torch
from original_release import original_transformer, original_vqvae
from safetensors.torch import save_file

from var_hf.conversion import CheckpointError, convert_transformer, read_original


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def write(content, path, **options):
    torch.save(content, path, **options)
    return path


def trainers_checkpoint(transformer, vqvae):
    """What the release's trainer saves (trainer.py and train.py)."""
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]}
    return {
        "epoch": 3,
        "iter": 0,
        "trainer": {
            "config": {"patch_nums": (1, 2, 4), "label_smooth": 0.0},
            "var_wo_ddp": transformer,
            "vae_local": vqvae,
            "var_opt": {"optimizer": optimizer},
        },
        "args": OrderedDict(depth=16, bs=768, pn="256"),
    }


def test_a_plain_file_is_read_as_it_is(transformer, tmp_path):
    assert_same_tensors(read_original(write(transformer, tmp_path / "var.pth")), transformer)


def test_a_plain_file_ignores_the_part(transformer, tmp_path):
    path = write(transformer, tmp_path / "var.pth")

    assert_same_tensors(read_original(str(path), part="transformer"), transformer)


@pytest.mark.skipif(sys.platform != "linux", reason="mapped files are listed in Linux's /proc")
def test_tensors_are_mapped_from_the_file(transformer, tmp_path):
    tensors = read_original(write(transformer, tmp_path / "var.pth"))

    with open("/proc/self/maps") as maps:
        assert any(line.rstrip().endswith(str(tmp_path / "var.pth")) for line in maps)
    assert tensors["pos_start"].device.type == "cpu"


def test_a_file_of_before_torch_1_6_is_refused_with_a_way_out(transformer, tmp_path):
    path = write(transformer, tmp_path / "var.pth", _use_new_zipfile_serialization=False)

    with pytest.raises(CheckpointError, match=r"bare pickle.* save its state dict again"):
        read_original(path)


def test_the_digest_is_that_of_the_file(transformer, tmp_path):
    path = write(transformer, tmp_path / "var.pth")
    save_file(transformer, tmp_path / "var.safetensors")

    for file in (path, tmp_path / "var.safetensors"):
        tensors = read_original(file, digest=True)
        assert tensors.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert tensors.path == file
    assert read_original(path).sha256 is None


def test_a_safetensors_file_in_the_original_layout_is_read(transformer, tmp_path):
    save_file(transformer, tmp_path / "var.safetensors")

    assert_same_tensors(read_original(tmp_path / "var.safetensors"), transformer)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrapped_models_are_removed(transformer, prefix, tmp_path):
    wrapped = {prefix + name: tensor for name, tensor in transformer.items()}

    assert_same_tensors(read_original(write(wrapped, tmp_path / "var.pth")), transformer)


def test_prefixes_inside_names_are_removed(transformer, tmp_path):
    compiled = {
        name.replace("blocks.0.", "blocks.0._orig_mod."): t for name, t in transformer.items()
    }

    assert_same_tensors(read_original(write(compiled, tmp_path / "var.pth")), transformer)


def test_a_name_with_and_without_prefix_is_refused(transformer, tmp_path):
    transformer["module.pos_start"] = torch.ones(1)

    with pytest.raises(CheckpointError, match="holds 'pos_start' twice"):
        read_original(write(transformer, tmp_path / "var.pth"))


def test_either_part_of_a_trainers_checkpoint_is_read(transformer, vqvae, tmp_path):
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in transformer.items()}
    path = write(trainers_checkpoint(wrapped, vqvae), tmp_path / "ar-ckpt-last.pth")

    assert_same_tensors(read_original(path, part="transformer"), transformer)
    assert_same_tensors(read_original(path, part="vqvae"), vqvae)
    with pytest.raises(CheckpointError, match="Pass part"):
        read_original(path)


def test_a_trainers_checkpoint_without_the_part_is_refused(transformer, tmp_path):
    checkpoint = trainers_checkpoint(transformer, None)
    path = write(checkpoint, tmp_path / "ar-ckpt-last.pth")

    with pytest.raises(CheckpointError, match=r"without the vqvae \('vae_local'\)"):
        read_original(path, part="vqvae")


class RunsCode:
    """Unpickling this creates a file."""

    def __init__(self, evidence):
        self.evidence = evidence

    def __reduce__(self):
        return os.mkdir, (str(self.evidence),)


def malicious_files(folder, evidence):
    torch.save({"pos_start": RunsCode(evidence)}, folder / "zip.pth")
    torch.save(
        {"pos_start": RunsCode(evidence)},
        folder / "legacy.pth",
        _use_new_zipfile_serialization=False,
    )
    for protocol in (0, 2, 5):
        with open(folder / f"pickle{protocol}.pth", "wb") as file:
            pickle.dump({"pos_start": RunsCode(evidence)}, file, protocol=protocol)
    return sorted(folder.glob("*.pth"))


def test_a_pickle_that_runs_code_is_refused_and_nothing_runs(tmp_path):
    evidence = tmp_path / "it ran"
    files = malicious_files(tmp_path, evidence)
    messages = {"zip": "asks for .*mkdir to be run", "pickle0": "not a PyTorch checkpoint"}
    messages |= dict.fromkeys(("legacy", "pickle2", "pickle5"), "is a bare pickle")
    assert {file.stem for file in files} == messages.keys()

    for file in files:
        with pytest.raises(CheckpointError, match=messages[file.stem]):
            read_original(file)
        assert not evidence.exists()

    torch.load(tmp_path / "zip.pth", weights_only=False)  # the file does what it says if it is let
    assert evidence.exists()


def test_objects_besides_tensors_are_named(transformer, tmp_path):
    path = write({**transformer, "args": Namespace(depth=16)}, tmp_path / "var.pth")

    with pytest.raises(
        CheckpointError, match=r"asks for argparse\.Namespace to be run.* Nothing was run"
    ):
        read_original(path)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint file .*var_d16\.pth"):
        read_original(tmp_path / "var_d16.pth")
    with pytest.raises(IsADirectoryError, match="is a folder, not an original checkpoint file"):
        read_original(tmp_path)


@pytest.mark.parametrize("name", ["var.pth", "var.safetensors"])
def test_an_empty_file_is_said_to_be_empty(tmp_path, name):
    (tmp_path / name).touch()

    with pytest.raises(CheckpointError, match="is empty"):
        read_original(tmp_path / name)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_truncated_file_is_said_to_be_damaged(transformer, tmp_path, share):
    path = write(transformer, tmp_path / "var.pth")
    content = path.read_bytes()
    path.write_bytes(content[: round(len(content) * share)])

    with pytest.raises(CheckpointError, match=r"var\.pth is truncated, damaged or"):
        read_original(path)


def test_a_truncated_safetensors_file_is_said_to_be_damaged(transformer, tmp_path):
    path = tmp_path / "var.safetensors"
    save_file(transformer, path)
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(CheckpointError, match="is truncated, damaged or"):
        read_original(path)


def test_files_of_other_kinds_are_said_to_be_none(tmp_path):
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    with pytest.raises(
        CheckpointError, match=r"is not a PyTorch checkpoint: it starts with b'<!DOCTYP'"
    ):
        read_original(tmp_path / "page.pth")

    (tmp_path / "pointer.pth").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
    with pytest.raises(CheckpointError, match="is a Git LFS pointer"):
        read_original(tmp_path / "pointer.pth")

    write(torch.ones(3), tmp_path / "tensor.pth")
    with pytest.raises(CheckpointError, match="holds no state dict: a Tensor"):
        read_original(tmp_path / "tensor.pth")

    write({"model": {"weight": torch.ones(3)}}, tmp_path / "nested.pth")
    with pytest.raises(CheckpointError, match="'model' is a dict, not a tensor"):
        read_original(tmp_path / "nested.pth")

    write({}, tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_original(tmp_path / "nothing.pth")


def test_what_is_read_converts(transformer, tmp_path):
    wrapped = {f"module.{name}": tensor for name, tensor in transformer.items()}
    path = write(trainers_checkpoint(wrapped, original_vqvae()), tmp_path / "last.pth")

    converted, values = convert_transformer(read_original(path, part="transformer"), source=path)

    assert values == convert_transformer(original_transformer())[1]
    assert torch.equal(converted["lm_head.weight"], transformer["head.weight"])
