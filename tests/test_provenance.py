import hashlib
import json
import os
import pickle
import socket

import pytest

from var_hf.provenance import (
    Source,
    Verification,
    read_provenance,
    sha256,
    verify,
    write_provenance,
)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "var_d16.pth"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def folder(tmp_path, source):
    folder = tmp_path / "model"
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "transformer" / "model.safetensors").write_bytes(b"\x08" + bytes(99))
    sources = [Source("transformer", source), Source("vqvae", source, "some/repo", "f" * 40)]
    write_provenance(folder, sources, {"dtype": "float32"})
    return folder


def test_digest_is_that_of_the_bytes(tmp_path):
    content = bytes(range(256)) * 5000  # more than one piece
    (tmp_path / "file").write_bytes(content)

    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_sources_options_versions_and_files_are_recorded(folder):
    content = read_provenance(folder)

    digest = hashlib.sha256(b"weights").hexdigest()
    named = {"name": "var_d16.pth", "size": 7, "sha256": digest}
    assert content["sources"] == [
        {"part": "transformer", **named},
        {"part": "vqvae", **named, "repository": "some/repo", "revision": "f" * 40},
    ]
    assert content["options"] == {"dtype": "float32"}
    assert {"var-hf", "python", "torch", "safetensors"} <= content["tools"].keys()
    assert content["files"]["transformer/model.safetensors"]["size"] == 100
    assert content["files"].keys() == {"model_index.json", "transformer/model.safetensors"}


def test_the_same_folder_gives_the_same_bytes_and_no_path_of_the_machine(folder, source):
    before = (folder / "provenance.json").read_text()

    sources = [Source("transformer", source), Source("vqvae", source, "some/repo", "f" * 40)]
    write_provenance(folder, sources, {"dtype": "float32"})

    assert (folder / "provenance.json").read_text() == before
    assert str(source.parent) not in before


def test_an_untouched_folder_verifies(folder):
    assert verify(folder) == Verification()
    assert verify(folder).ok


def test_a_changed_a_missing_and_an_extra_file_are_told_apart(folder):
    weights = folder / "transformer" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")  # same size
    (folder / "model_index.json").unlink()
    (folder / "transformer" / "notes.txt").write_text("new")

    found = verify(folder)

    assert found.changed == ["transformer/model.safetensors"]
    assert found.missing == ["model_index.json"]
    assert found.extra == ["transformer/notes.txt"]
    assert not found.ok


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pth", "innocent.json"])
def test_a_stray_pickle_is_reported_by_its_name_or_its_content(folder, name):
    (folder / "transformer" / name).write_bytes(pickle.dumps({"a": 1}))

    found = verify(folder)

    assert found.pickles == found.extra == [f"transformer/{name}"]


def test_what_git_and_the_hub_add_is_not_extra(folder):
    for name in (".git/HEAD", ".gitattributes", ".cache/huggingface/download/x.metadata"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")

    assert verify(folder).ok


def test_links_into_a_cache_verify_and_dangling_ones_are_missing(folder, tmp_path):
    weights = folder / "transformer" / "model.safetensors"
    blob = weights.rename(tmp_path / "blob")
    weights.symlink_to(blob)
    assert verify(folder).ok

    blob.unlink()
    assert verify(folder).missing == ["transformer/model.safetensors"]


@pytest.mark.parametrize(
    "name",
    [".git/run.sh", ".cache/evil.PY", ".git/hooks/post-checkout", ".cache/huggingface/x/lib.so"],
)
def test_code_among_what_git_and_the_hub_add_is_extra(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("#!/bin/sh\n")
    (folder / ".git/hooks").mkdir(parents=True, exist_ok=True)
    (folder / ".git/hooks/pre-push.sample").write_text("#!/bin/sh\n")  # Git runs no samples

    assert verify(folder).extra == [name]


def test_a_pickle_in_git_is_found(folder):
    (folder / ".git").mkdir()
    (folder / ".git/object").write_bytes(pickle.dumps({"a": 1}))

    assert verify(folder).pickles == [".git/object"]


def put_link_to_folder(path, elsewhere):
    path.symlink_to(elsewhere, target_is_directory=True)


def put_dangling_link(path, elsewhere):
    path.symlink_to(elsewhere / "nothing")


def put_fifo(path, elsewhere):
    os.mkfifo(path)


def put_socket(path, elsewhere):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # an absolute path may be too long for a socket


@pytest.mark.parametrize("put", [put_link_to_folder, put_dangling_link, put_fifo, put_socket])
@pytest.mark.parametrize("place", ["", "transformer", ".cache"])
def test_what_is_neither_file_nor_folder_is_extra(folder, tmp_path, put, place):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "evil.py").write_text("import os")
    (folder / place).mkdir(exist_ok=True)

    put(folder / place / "odd", elsewhere)

    assert verify(folder).extra == [f"{place}/odd".lstrip("/")]


def test_a_fifo_in_the_place_of_a_file_is_a_change(folder):
    (folder / "model_index.json").unlink()
    os.mkfifo(folder / "model_index.json")

    assert verify(folder) == Verification(changed=["model_index.json"])


def test_shards_are_looked_for_in_their_folder(folder):
    index = {"weight_map": {"a": "model.safetensors", "b": "../../b.safetensors"}}
    (folder.parent / "b.safetensors").write_bytes(b"")
    (folder / "transformer/model.safetensors.index.json").write_text(json.dumps(index))
    write_provenance(folder, [], {})

    assert verify(folder) == Verification(missing=["transformer/../../b.safetensors"])


def test_no_safetensors_file_is_taken_for_a_pickle(folder):
    """The length of the header stands first, and 640 starts as a pickle of protocol 2 does."""
    header = b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'.ljust(640)
    (folder / "a.safetensors").write_bytes((640).to_bytes(8, "little") + header)

    assert verify(folder).pickles == []


def test_a_folder_without_provenance_is_refused(folder):
    (folder / "provenance.json").unlink()

    with pytest.raises(FileNotFoundError, match=r"has no provenance\.json"):
        verify(folder)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        json.dumps({"sources": [], "files": {"a": {}}}),
        json.dumps({"sources": [{"part": "vqvae"}], "files": {}}),
        json.dumps({"sources": [{"part": "vqvae", "name": 3}], "files": {}}),
        json.dumps({"sources": [], "files": {"a": {"sha256": None}}}),
        json.dumps({"sources": [], "files": {"a": {"sha256": "ab", "size": "1"}}}),
        json.dumps({"sources": [], "files": [], "tools": 3}),
        "[" * 100_000,
    ],
)
def test_a_damaged_provenance_is_refused(folder, text):
    (folder / "provenance.json").write_text(text)

    with pytest.raises(ValueError, match=r"provenance\.json is damaged"):
        verify(folder)
