"""Files of unknown origin: regular files only. Standard library alone."""

import os
import stat
from typing import BinaryIO

from var_hf.text import printable

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class NotRegularFileError(OSError):
    """A path names a FIFO, a socket or a device; reading it could wait for ever."""


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse what is no regular file, without opening it; links are followed.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: `path` is a folder.
        NotRegularFileError: `path` is a FIFO, a socket or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {printable(path)}.") from None
    _check_mode(path, mode)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file to read bytes. A FIFO is refused at once, without waiting.

    Raises:
        FileNotFoundError, IsADirectoryError, NotRegularFileError: See `check_regular`.
        PermissionError: The file may not be read.
    """
    check_regular(path)
    # Between the check and this call the path can come to name a FIFO; without O_NONBLOCK, opening
    # would wait.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _check_mode(path, os.fstat(file.fileno()).st_mode)
    except BaseException:
        file.close()
        raise
    return file


def _check_mode(path: str | os.PathLike[str], mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{printable(path)} is a folder, not a file.")
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        raise NotRegularFileError(f"{printable(path)} is {kind}; pass a regular file.")
