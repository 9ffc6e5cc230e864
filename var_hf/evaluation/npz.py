"""Arrays in ``.npz`` files of unknown origin, read piece by piece.

An array is read only if the archive holds as many bytes as its header declares, so that memory
follows what is there and not what is claimed.
"""

import math
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from var_hf.text import printable
from var_hf.untrusted import open_regular

_READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # np.savez and np.savez_compressed


class DamagedArrayError(OSError):
    """An array cannot be read; the message names it and its file."""


@dataclass(frozen=True)
class StoredArray:
    """An array in an archive, open to read its bytes in order.

    Attributes:
        name: What errors call it: array and file.
        shape: Its shape.
        dtype: Its type.
        column_major: Whether the first index runs fastest.
    """

    name: str
    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"
    column_major: bool
    _data: IO[bytes]

    def read(self, count: int) -> np.ndarray:
        """The next elements, as one dimension.

        Raises:
            DamagedArrayError: The file is damaged.
        """
        missing, pieces = count * self.dtype.itemsize, []
        try:
            while missing and (piece := self._data.read(min(missing, 1 << 20))):
                pieces.append(piece)
                missing -= len(piece)
        except Exception as error:  # zipfile and zlib let through what damaged bytes raise
            raise _damaged(self.name, error) from error
        if missing:
            raise DamagedArrayError(f"{self.name} was cut off: {missing} bytes are missing.")
        return np.frombuffer(b"".join(pieces), self.dtype)


def array_names(file: str | Path) -> set[str]:
    """Names of the arrays in an archive.

    Raises:
        FileNotFoundError, NotRegularFileError: There is no such file, or it is a FIFO or a device.
        DamagedArrayError: It is no archive, or is damaged.
    """
    with open_regular(file) as handle:
        try:
            with zipfile.ZipFile(handle) as archive:
                for entry in archive.infolist():
                    archive.open(entry).close()  # compares the two names that the archive has of it
                return {name.removesuffix(".npy") for name in archive.namelist()}
        except Exception as error:
            raise _damaged(printable(file), error) from error


@contextmanager
def open_array(file: str | Path, name: str) -> Iterator[StoredArray]:
    """Open an array of an archive.

    Raises:
        DamagedArrayError: The file is damaged, encrypted, or holds another number of bytes than the
            array's header declares.
        ValueError: The array is stored as Python objects.
    """
    what = f"{printable(name)} of {printable(file)}"
    with ExitStack() as stack:
        handle = stack.enter_context(open_regular(file))
        try:
            archive = stack.enter_context(zipfile.ZipFile(handle))
            entry = archive.getinfo(f"{name}.npy")
            if entry.flag_bits & 1 or entry.compress_type not in _METHODS:
                raise ValueError("it is encrypted or compressed in an unusual way")
            data = stack.enter_context(archive.open(entry))
            read_header = _READ_HEADER[np.lib.format.read_magic(data)]
            shape, column_major, dtype = read_header(data)
            declared = math.prod(shape) * dtype.itemsize if all(n >= 0 for n in shape) else -1
            if not dtype.hasobject and declared != entry.file_size - data.tell():
                raise ValueError(
                    f"its header declares {declared} bytes and the archive "
                    f"{entry.file_size - data.tell()}"
                )
        except Exception as error:  # zipfile and numpy let through what damaged bytes raise
            raise _damaged(what, error) from error
        if dtype.hasobject:
            raise ValueError(f"{what} is stored as Python objects; save a plain array.")
        yield StoredArray(what, shape, dtype, column_major, data)


def read_array(file: str | Path, name: str, most_bytes: int) -> np.ndarray:
    """An array as a whole.

    Raises:
        DamagedArrayError: See `open_array`.
        ValueError: It has more than `most_bytes`, or is stored as Python objects.
    """
    with open_array(file, name) as array:
        count = math.prod(array.shape)
        if count * array.dtype.itemsize > most_bytes:
            raise ValueError(
                f"{array.name} has {count * array.dtype.itemsize} bytes; at most {most_bytes} are "
                "read."
            )
        return array.read(count).reshape(array.shape, order="F" if array.column_major else "C")


def _damaged(what: str, error: Exception) -> DamagedArrayError:
    reason = printable(error) or type(error).__name__
    return DamagedArrayError(f"{what} cannot be read, the file is damaged: {reason}")
