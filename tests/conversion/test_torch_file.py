import hashlib
import io
import os
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from var_hf.conversion import CheckpointError, read_original
from var_hf.conversion.torch_file import read_torch_file
from var_hf.untrusted import NotRegularFileError

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool)


def write(content, path, **options):
    torch.save(content, path, **options)
    return path


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """The archive with members changed, and checksums that fit."""
    with zipfile.ZipFile(path) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    change(members)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def pickled(path, content):
    """A checkpoint around a pickle of our own, with one storage of 12 numbers."""
    write({"weight": torch.arange(12.0)}, path)
    return rewritten(path, lambda members: members.update({f"{path.stem}/data.pkl": content}))


class Called:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def tensor_pickle(shape, strides, offset=0, length=12, key="0", kind=torch.FloatStorage):
    """What torch.save writes for one tensor, with any shape."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", kind, key, "cpu", length) if value == "the storage" else None

    file = io.BytesIO()
    rebuilt = Called(
        torch._utils._rebuild_tensor_v2, "the storage", offset, shape, strides, False, OrderedDict()
    )
    Pickler(file, protocol=2).dump({"weight": rebuilt})
    return file.getvalue()


# The same as torch


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    numbers = torch.arange(draw(st.integers(0, 200)), dtype=torch.float64)
    tensor = numbers.repeat(300)[: torch.Size(shape).numel()].reshape(shape)
    tensor = tensor if tensor.shape == torch.Size(shape) else torch.zeros(shape)
    tensor = tensor.to(draw(st.sampled_from(DTYPES)))
    tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
    return tensor[1:] if shape and draw(st.booleans()) else tensor


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | tensors(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text("abc.", max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


def same(one, other):
    if isinstance(one, torch.Tensor):
        return (
            one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)
        )
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    return type(one) is type(other) and one == other


@given(value=VALUES)
def test_what_torch_reads_is_read(value, tmp_path_factory):
    path = write(value, tmp_path_factory.mktemp("saved") / "any.pth")

    assert same(read_torch_file(path), torch.load(path, weights_only=True))


def test_modules_state_dicts_and_parameters_are_read(tmp_path):
    state_dict = torch.nn.BatchNorm1d(3).state_dict()  # has versions in its _metadata
    parameter = {"weight": torch.nn.Parameter(torch.ones(2, 3)), "shape": torch.Size([2, 3])}

    assert same(read_torch_file(write(state_dict, tmp_path / "a.pth")), dict(state_dict))
    assert same(
        read_torch_file(write(parameter, tmp_path / "b.pth")),
        {"weight": torch.ones(2, 3), "shape": (2, 3)},
    )


def test_the_digest_is_computed_on_the_way(tmp_path):
    path, digest = write({"weight": torch.ones(3)}, tmp_path / "a.pth"), hashlib.sha256()

    read_torch_file(path, digest)

    assert digest.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()


# Damage


def test_every_flipped_bit_of_a_weight_is_found(tmp_path):
    path = write({"weight": torch.ones(8), "bias": torch.zeros(5)}, tmp_path / "a.pth")
    content = path.read_bytes()
    start = content.index(torch.ones(8).numpy().tobytes())

    for place in range(start, start + 32):
        for bit in (0, 6):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"the checksum \(CRC-32\) of a/data/0"):
                read_original(path)


def test_members_must_be_stored(tmp_path):
    path = write({"weight": torch.zeros(500_000)}, tmp_path / "a.pth")
    rewritten(path, lambda members: None, zipfile.ZIP_DEFLATED)

    with pytest.raises(CheckpointError, match=r"holds a/data.pkl compressed or encrypted"):
        read_original(path)


def test_a_storage_must_have_the_declared_size(tmp_path):
    path = write({"weight": torch.zeros(5)}, tmp_path / "a.pth")
    rewritten(path, lambda members: members.update({"a/data/0": bytes(16)}))

    with pytest.raises(CheckpointError, match="has 16 bytes, and 5 numbers of 4 bytes"):
        read_original(path)
    rewritten(path, lambda members: members.pop("a/data/0"))
    with pytest.raises(CheckpointError, match="it lacks the storage 0"):
        read_original(path)


def test_members_may_not_overlap_or_come_twice(tmp_path):
    path = write({"weight": torch.zeros(500)}, tmp_path / "a.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("a/data/0", bytes(2000))
    with pytest.raises(CheckpointError, match="is there twice"):
        read_original(path)

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/one", bytes(100))
        archive.writestr("a/two", bytes(100))
    content = path.read_bytes()
    second = content.rindex(b"PK\x03\x04")
    path.write_bytes(content.replace(struct.pack("<I", second) + b"a/two", bytes(4) + b"a/two"))
    with pytest.raises(CheckpointError, match=r"another name in its header|overlaps"):
        read_original(path)


@pytest.mark.parametrize(
    ("shape", "strides", "options", "message"),
    [
        ((4,), (0,), {}, "elements overlap"),
        ((3, 3), (2, 1), {}, "elements overlap"),
        ((10**6, 10**6), (1, 1), {}, "elements overlap"),
        ((13,), (1,), {}, "reaches beyond its storage of 12 numbers"),
        ((3,), (1,), {"offset": 10}, "reaches beyond its storage"),
        ((2, 3), (10**9, 1), {}, "reaches beyond its storage"),
        ((2**50,), (1,), {}, "no proper shape or strides"),
        ((-3,), (1,), {}, "no proper shape or strides"),
        ((3,), (-1,), {}, "no proper shape or strides"),
        ((3,), (1, 1), {}, "no proper shape or strides"),
        ((1.5,), (1,), {}, "no proper shape or strides"),
        ((1,) * 9, (1,) * 9, {}, "no proper shape or strides"),
        ((12,), (1,), {"length": 10**12}, "has 48 bytes, and 1000000000000 numbers of 4 bytes"),
        ((6,), (1,), {"kind": torch.DoubleStorage}, "has 48 bytes, and 12 numbers of 8 bytes"),
        ((12,), (1,), {"key": "../0"}, r"it lacks the storage \.\./0"),
        ((12,), (1,), {"kind": "FloatStorage"}, "names a storage that torch.save never makes"),
        ((12,), (1,), {"kind": OrderedDict}, "names a storage that torch.save never makes"),
    ],
)
def test_shapes_are_checked_before_anything_is_allocated(
    shape, strides, options, message, tmp_path
):
    path = pickled(tmp_path / "a.pth", tensor_pickle(shape, strides, **options))

    with pytest.raises(CheckpointError, match=message):
        read_original(path)


def test_a_proper_tensor_passes_those_checks(tmp_path):
    path = pickled(tmp_path / "a.pth", tensor_pickle((3, 2), (4, 1), offset=1))

    assert read_original(path)["weight"].tolist() == [[1, 2], [5, 6], [9, 10]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.eye(3).to_sparse(), "a sparse tensor; only dense"),
        (lambda: torch.ones(3, device="meta"), "without values"),
        (
            lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            "a quantised tensor",
        ),
        (lambda: torch.nn.Conv2d(1, 1, 1), r"asks for torch\.nn\.modules\.conv\.Conv2d to be run"),
    ],
)
def test_other_tensors_are_named(make, message, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write({"weight": make()}, tmp_path / "a.pth")

    with pytest.raises(CheckpointError, match=message):
        read_original(path)


@pytest.mark.parametrize(
    "content",
    [
        Called(bytearray, 10**12),
        Called(torch.FloatStorage, 10**11),
        Called(os.mkdir, "it ran"),
        Called(getattr, "a", "b"),
        Called(OrderedDict, [("a", 1)]),
    ],
)
def test_nothing_is_called(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = pickled(tmp_path / "a.pth", pickle.dumps({"weight": content}, protocol=2))

    with pytest.raises(CheckpointError, match=r"to be run|damaged"):
        read_original(path)
    assert not (tmp_path / "it ran").exists()


def test_keys_that_take_for_ever_to_hash_are_refused(tmp_path):
    key = ("a",)
    for _ in range(60):
        key = (key, key)
    content = pickle.dumps(key, protocol=2)[:-1]
    path = pickled(tmp_path / "a.pth", b"\x80\x02}" + content[2:] + b"K\x01s.")

    with pytest.raises(CheckpointError, match="damaged"):
        read_original(path)


def test_a_pickle_larger_than_any_state_dict_is_refused(tmp_path):
    path = pickled(tmp_path / "a.pth", bytes(2**24 + 1))

    with pytest.raises(CheckpointError, match="holds 17 MB beside its tensors"):
        read_original(path)


def test_tensors_that_share_memory_beyond_the_files_size_are_refused(tmp_path):
    tensor = torch.ones(1000)

    with pytest.raises(CheckpointError, match="they share memory"):
        read_original(write({str(i): tensor for i in range(9)}, tmp_path / "a.pth"))


def test_a_torchscript_program_is_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 3)).save(tmp_path / "a.pth")

    with pytest.raises(CheckpointError, match=r"TorchScript|compressed"):
        read_original(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["var.pth", "var.safetensors"])
def test_a_fifo_is_refused_at_once(name, tmp_path):
    os.mkfifo(tmp_path / name)

    with pytest.raises(NotRegularFileError, match="is a FIFO"):
        read_original(tmp_path / name)
