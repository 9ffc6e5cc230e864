"""Files of `torch.save`, read without torch's loader and without an unpickler.

Such a file is a zip archive of stored members: a pickle of names, shapes and places, and the bytes
of each storage. Here the archive's checksums are compared, the pickle's opcodes are interpreted by
a table that knows dictionaries, lists, tuples, numbers, text and dense tensors, and each tensor is
a view of the mapped file. Nothing in the file can name a function that is then called, and nothing
is allocated whose size the file declares.
"""

import hashlib
import math
import os
import pickletools
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor
from tqdm import tqdm

from var_hf.conversion.errors import CheckpointError
from var_hf.text import printable
from var_hf.untrusted import open_regular

_CHUNK = 1 << 20  # bytes read at a time
_MOST_PICKLE_BYTES = (
    1 << 24
)  # the pickle of VAR-d30 with the state of its optimizer has half a million
_MOST_DIMENSIONS = 8
_LOCAL_HEADER = 30  # bytes before the member's name

_STORAGES = {
    "torch BFloat16Storage": torch.bfloat16,
    "torch BoolStorage": torch.bool,
    "torch ByteStorage": torch.uint8,
    "torch CharStorage": torch.int8,
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch IntStorage": torch.int32,
    "torch LongStorage": torch.int64,
    "torch ShortStorage": torch.int16,
}
_OTHER_TENSORS = {
    "_rebuild_meta_tensor_no_storage": "a tensor without values (on the meta device)",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_sparse_tensor": "a sparse tensor",
}


class TorchFileError(Exception):
    """Why a file is refused: the second half of a sentence that begins with its name."""


@dataclass(frozen=True)
class _Member:
    """A stored member of the archive: the place of its bytes in the file, and their checksum."""

    name: str
    start: int
    size: int
    crc: int


def read_torch_file(path: Path, digest: "hashlib._Hash | None" = None) -> Any:
    """Read what `torch.save` has written; tensors are mapped from the file.

    Args:
        path: The file, a zip archive.
        digest: Is updated with the file's bytes while its checksums are computed.

    Returns:
        Dictionaries, lists, tuples, numbers, text, and dense tensors on the CPU.

    Raises:
        CheckpointError: The file is truncated, damaged, or holds anything else.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            members = _members(file)
            _check_sums(file, size, members, digest)
            return _read_archive(path, file, size, members)
    except TorchFileError as error:
        raise CheckpointError(f"{printable(path)} {error}") from error


# The archive


def _members(file: BinaryIO) -> list[_Member]:
    """The members in the order of their bytes; stored, disjoint and inside the file."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            end = archive.start_dir
    except Exception as error:  # zipfile lets through what damaged bytes raise
        raise TorchFileError("is truncated, damaged or not a PyTorch checkpoint.") from error
    members = sorted((_member(file, entry) for entry in entries), key=lambda member: member.start)
    previous = 0
    for member in members:
        if member.start < previous:
            raise TorchFileError(f"is damaged: {member.name} overlaps another member.")
        previous = member.start + member.size
    if previous > end:
        raise TorchFileError("is truncated, damaged or not a PyTorch checkpoint.")
    if len({member.name for member in members}) < len(members):
        raise TorchFileError("is damaged: a member of its archive is there twice.")
    return members


def _member(file: BinaryIO, entry: zipfile.ZipInfo) -> _Member:
    name = printable(entry.filename)
    stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
    if not stored or entry.flag_bits & 1:
        raise TorchFileError(
            f"holds {name} compressed or encrypted. torch.save stores its members as they are; "
            "load the file where "
            "it was made and save it again."
        )
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or not header.startswith(b"PK\x03\x04"):
        raise TorchFileError(f"is damaged: the header of {name} is broken.")
    name_length, extra_length = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    if file.read(name_length) != entry.orig_filename.encode("utf-8", "surrogateescape"):
        raise TorchFileError(f"is damaged: {name} has another name in its header.")
    start = entry.header_offset + _LOCAL_HEADER + name_length + extra_length
    return _Member(entry.filename, start, entry.file_size, entry.CRC)


def _check_sums(
    file: BinaryIO, size: int, members: list[_Member], digest: "hashlib._Hash | None"
) -> None:
    """Read the file once, from its start to its end, for checksums and digest."""
    file.seek(0)
    progress = tqdm(
        total=size, desc="checking sums", unit="B", unit_scale=True, leave=False, delay=2
    )
    with progress:

        def pieces(length: int) -> Iterator[bytes]:
            while length > 0 and (piece := file.read(min(length, _CHUNK))):
                length -= len(piece)
                progress.update(len(piece))
                if digest is not None:
                    digest.update(piece)
                yield piece

        for member in members:
            for _ in pieces(member.start - file.tell()):
                pass
            crc = 0
            for piece in pieces(member.size):
                crc = zlib.crc32(piece, crc)
            if crc != member.crc:
                raise TorchFileError(
                    f"is damaged: the checksum (CRC-32) of {printable(member.name)} does not "
                    "match its bytes. "
                    "Download or copy the file again."
                )
        for _ in pieces(size - file.tell()):
            pass


def _read_archive(path: Path, file: BinaryIO, size: int, members: list[_Member]) -> Any:
    pickles = [member for member in members if member.name.endswith("/data.pkl")]
    if len(pickles) != 1 or pickles[0].name.count("/") != 1:
        raise TorchFileError("is a zip archive that torch.save has not written.")
    prefix = pickles[0].name.removesuffix("data.pkl")
    by_name = {member.name.removeprefix(prefix): member for member in members}
    if "constants.pkl" in by_name:
        raise TorchFileError("is a TorchScript program. Save the state dict of its model alone.")
    if pickles[0].size > _MOST_PICKLE_BYTES:
        raise TorchFileError(
            f"holds {pickles[0].size / 1e6:.0f} MB beside its tensors; at most "
            f"{_MOST_PICKLE_BYTES / 1e6:.0f} MB are "
            "read. Save the state dict alone."
        )

    def content(member: _Member) -> bytes:
        file.seek(member.start)
        return file.read(member.size)

    if (order := by_name.get("byteorder")) is not None and content(order) != b"little":
        raise TorchFileError("was not saved on a little-endian machine.")
    storages = _Storages(path, size, by_name)
    return _Interpreter(storages.load).run(content(pickles[0]))


# Tensors


@dataclass(frozen=True)
class _Storage:
    """The bytes of a member as numbers of one type."""

    mapped: torch.UntypedStorage
    dtype: torch.dtype
    length: int


class _Storages:
    """The storages of a file, mapped when the first one is asked for."""

    def __init__(self, path: Path, size: int, members: Mapping[str, _Member]):
        self.path, self.size, self.members = path, size, members
        self.mapped: torch.UntypedStorage | None = None

    def load(self, identifier: Any) -> _Storage:
        """The storage of a persistent id: (kind, type, key, device, length)."""
        match identifier:
            case (
                "storage",
                _Reference(name=str(kind)),
                str(key),
                str(device),
                int(length),
            ) if kind in _STORAGES:
                pass
            case _:
                raise TorchFileError("is damaged: it names a storage that torch.save never makes.")
        if device == "meta":
            raise TorchFileError(f"holds {_OTHER_TENSORS['_rebuild_meta_tensor_no_storage']}.")
        dtype = _STORAGES[kind]
        member = self.members.get(f"data/{key}")
        if member is None:
            raise TorchFileError(f"is damaged: it lacks the storage {printable(key)}.")
        if member.size != length * dtype.itemsize:
            raise TorchFileError(
                f"is damaged: the storage {printable(key)} has {member.size} bytes, and {length} "
                "numbers of "
                f"{dtype.itemsize} bytes are declared."
            )
        if self.mapped is None:
            mapped = torch.UntypedStorage.from_file(str(self.path), False, self.size)
            self.mapped = cast(torch.UntypedStorage, mapped)
        return _Storage(self.mapped[member.start : member.start + member.size], dtype, length)


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> Tensor:
    """A dense tensor; its elements lie inside the storage and none of them lies on another."""
    numbers = (offset, *shape, *strides)
    if (
        not isinstance(storage, _Storage)
        or len(shape) != len(strides)
        or len(shape) > _MOST_DIMENSIONS
        or not all(type(number) is int and 0 <= number < 2**48 for number in numbers)
    ):
        raise TorchFileError("is damaged: a tensor has no proper shape or strides.")
    if hooks or metadata:
        raise TorchFileError("holds a tensor with hooks or conjugated numbers.")
    reach = 0  # of the dimensions so far, from the smallest stride to the largest
    for stride, side in sorted(zip(strides, shape, strict=True)):
        if side > 1 and stride <= reach:
            raise TorchFileError(
                f"holds a tensor of the shape {tuple(shape)} whose elements overlap. Save a "
                "contiguous copy."
            )
        reach += max(0, side - 1) * stride
    if math.prod(shape) and offset + reach >= storage.length:
        raise TorchFileError(
            f"is damaged: a tensor of the shape {tuple(shape)} reaches beyond its storage of "
            f"{storage.length} numbers."
        )
    tensor = torch.empty(0, dtype=storage.dtype)
    return tensor.set_(storage.mapped, offset, tuple(shape), tuple(strides))


# The pickle


@dataclass(frozen=True)
class _Reference:
    """A name in the pickle, "module attribute"; nothing is imported for it."""

    name: str


class _Interpreter:
    """Opcodes of pickle protocol 2, as far as `torch.save` uses them for state dicts."""

    def __init__(self, storage: Callable[[Any], _Storage]):
        self.storage = storage
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        """The object that a pickle describes."""
        try:
            for opcode, argument, _ in pickletools.genops(content):
                if opcode.name == "STOP":
                    return self.stack.pop()
                self.step(opcode.name, argument)
        # A pickle with too little on its stack, an argument of the wrong type, or broken text.
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise TorchFileError("is truncated, damaged or not a PyTorch checkpoint.") from error
        raise TorchFileError("is truncated, damaged or not a PyTorch checkpoint.")

    def step(self, name: str, argument: Any) -> None:
        """Carry out one opcode."""
        stack = self.stack
        match name:
            case "PROTO":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "MARK":
                self.marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "TUPLE":
                stack.append(tuple(self.since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self.take(int(name[-1]))))
            case "APPEND":
                self.extend(self.take(1))
            case "APPENDS":
                self.extend(self.since_mark())
            case "SETITEM":
                self.update(self.take(2))
            case "SETITEMS":
                self.update(self.since_mark())
            case "GLOBAL":
                stack.append(_known(argument))
            case "BINPERSID":
                stack.append(self.storage(stack.pop()))
            case "REDUCE":
                reference, arguments = self.take(2)
                stack.append(_rebuild(reference, arguments))
            case "BUILD":  # attributes of an OrderedDict: the versions in a state dict's _metadata
                self.take(1)
                if type(stack[-1]) is not dict:
                    raise TypeError
            case _:
                raise TorchFileError(
                    f"holds the pickle opcode {name}, which torch.save does not write."
                )

    def take(self, count: int) -> list[Any]:
        """Remove the last values from the stack."""
        if len(self.stack) < count:
            raise LookupError
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def since_mark(self) -> list[Any]:
        """Remove the values since the last mark from the stack."""
        return self.take(len(self.stack) - self.marks.pop())

    def extend(self, values: list[Any]) -> None:
        """Add values to the list on top of the stack."""
        if type(self.stack[-1]) is not list:
            raise TypeError
        self.stack[-1].extend(values)

    def update(self, values: list[Any]) -> None:
        """Add names and values to the dictionary on top of the stack."""
        names = values[::2]
        # A tuple of tuples of tuples as a key could take for ever to hash.
        if type(self.stack[-1]) is not dict or not all(type(name) in (str, int) for name in names):
            raise TypeError
        self.stack[-1].update(zip(names, values[1::2], strict=True))


_REBUILDERS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": dict,
    "torch Size": tuple,
    "torch._utils _rebuild_parameter": lambda data, requires_grad, hooks: data,
    "torch._utils _rebuild_tensor_v2": _tensor,
}


def _known(name: str) -> _Reference:
    if name in _STORAGES or name in _REBUILDERS:
        return _Reference(name)
    module, _, attribute = name.partition(" ")
    if module == "torch._utils" and attribute in _OTHER_TENSORS:
        raise TorchFileError(f"holds {_OTHER_TENSORS[attribute]}; only dense tensors are read.")
    raise TorchFileError(
        f"asks for {printable(module)}.{printable(attribute)} to be run, and only files of "
        "tensors are read. Nothing "
        "was run. If you trust the file, load it where it was made and save its state dict alone."
    )


def _rebuild(reference: Any, arguments: Any) -> Any:
    rebuilder = _REBUILDERS[reference.name]
    if type(arguments) is not tuple or (rebuilder is dict and arguments):
        raise TypeError
    return rebuilder(*arguments)
