"""Write files and folders so that they appear complete or not at all, and keep a second writer out.

Everything that this package leaves on a disk goes through `new_path` or `new_folder`: it is written
under a temporary name beside its target, flushed to the disk (fsync), and renamed. A folder that
exists is exchanged with the new one in a single step, so that a reader finds the old one or the new
one. docs/security.md states what this promises.
"""

import ctypes
import errno
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout, lock_descriptor
from safetensors import SafetensorError

from var_hf.text import printable

CONFIG_NAME = "config.json"
LOCK_NAME = ".lock"

_SUFFIX = ".partial"
_PREVIOUS, _LOCK, _PROBE = ".previous", ".writer", ".probe"  # in the temporary folder
# Errors that only a writer meets; any other error number counts if it names a temporary file.
_OF_WRITERS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
# Flags of renameat2 (linux/fs.h).
_NO_REPLACE, _EXCHANGE = 1, 2
_AT_FDCWD = -100
_MANY_FILES = 32  # fsync one by one took 3 ms a file, sync for all of them 0.5 ms
_ATTEMPTS = 100  # to replace a folder that other writers replace too
_PATIENCE = 1.0  # seconds in which the forked processes of a killed writer let go of its lock


class WriteError(OSError):
    """Writing a file or a folder failed, and nothing half-written was left behind."""

    def __str__(self) -> str:
        return str(self.strerror)


class FolderInUseError(OSError):
    """Another process writes to the folder."""


# Writing


@contextmanager
def new_path(
    path: str | os.PathLike[str],
    *,
    replace: bool = False,
    durable: bool = True,
    size: int | None = None,
) -> Iterator[Path]:
    """Give a temporary path to write a file or a folder to, and rename it to `path` at the end.

    The temporary path lies beside `path`, so that the rename is one step. Whatever ends the block
    early, an interrupt included, leaves neither `path` nor the temporary behind. The next writer of
    the same path removes what a killed process left. Missing parent folders are made. Files get the
    permissions that the umask gives.

    Args:
        path: The file or folder that is to appear.
        replace: Replace a file that exists at `path`, once the new one is complete. `new_folder`
            replaces folders.
        durable: Wait until file and name are on the disk; ``False`` for files that need not survive
            a power cut.
        size: Bytes that will be written, if known; named in the error of a full disk.

    Raises:
        FileExistsError: There is something at `path` already, and it is not to be replaced.
        WriteError: Writing failed, on a full disk for instance; the message names `path`.
    """
    path = Path(path)
    with writing_errors(path, size), _shelter(path) as shelter:
        if not replace or path.is_dir():
            check_absent(path)
        temporary = shelter / path.name
        yield temporary
        _finish(temporary, durable)
        if replace:
            os.replace(temporary, path)
        elif not _renameat2(temporary, path, _NO_REPLACE):
            check_absent(path)
            os.rename(temporary, path)
        if durable:
            _sync(path.parent)


@contextmanager
def new_folder(path: str | os.PathLike[str], *, size: int | None = None) -> Iterator[Path]:
    """Give an empty temporary folder to fill, and let it take the place of `path` at the end.

    On Linux a folder at `path` and the new one are exchanged in one step (renameat2), so that no
    reader finds `path` absent. Elsewhere, and on file systems without it (NFS for one), two renames
    replace the folder. `path` is absent between them, and after a kill between them until the next
    writer puts the old folder back.

    Args:
        path: The folder.
        size: Bytes that will be written, if known; named in the error of a full disk.

    Raises:
        FileExistsError: There is a file at `path`.
        WriteError: Writing failed, on a full disk for instance; a folder at `path` is untouched.
    """
    path = Path(path)
    with writing_errors(path, size), _shelter(path) as shelter:
        if os.path.lexists(path) and not path.is_dir():  # in this order: it may just have come
            raise _taken_error(path)
        temporary = shelter / path.name
        temporary.mkdir()
        yield temporary
        _finish(temporary, durable=True)
        _take_place(temporary, path, shelter)
        _sync(path.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8 that appears complete or not at all; it replaces a file."""
    with new_path(path, replace=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write indented JSON to a file that appears complete or not at all; it replaces a file."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def check_absent(path: str | os.PathLike[str]) -> None:
    """Refuse a path that is taken, as `new_path` does; for callers with long work before it.

    Raises:
        FileExistsError: There is a file, a folder or a link at `path`.
    """
    if os.path.lexists(path):
        raise _taken_error(path)


def check_space(path: str | os.PathLike[str], size: int) -> None:
    """Refuse to start writing `size` bytes to `path` where they do not fit.

    Raises:
        WriteError: Less is free on the disk.
    """
    if _free_space(Path(path)) < size:
        raise _write_error(Path(path), errno.ENOSPC, size)


@contextmanager
def writing_errors(path: str | os.PathLike[str], size: int | None = None) -> Iterator[None]:
    """Turn what Python, torch and safetensors raise on a full disk into a `WriteError` for `path`.

    Args:
        path: The file or folder that is being written.
        size: Bytes that it needs, if known.
    """
    try:
        yield
    except WriteError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        number = _error_number(error, Path(path))
        if number is None:
            raise
        raise _write_error(Path(path), number, size) from error


def sync(path: str | os.PathLike[str], *, recursive: bool = True) -> None:
    """Wait until a file is on the disk, or a folder and, if `recursive`, all that it holds."""
    path = Path(path)
    inside: list[Path] = []
    if recursive and path.is_dir():
        inside = [entry for entry in path.rglob("*") if not entry.is_symlink()]
    if len(inside) > _MANY_FILES and sys.platform != "win32":
        os.sync()  # one wait for all files; the calls below then report errors without waiting
    for entry in (*inside, path):
        _sync(entry)


# Folders that are filled over time


def lock_folder(folder: str | os.PathLike[str], name: str = LOCK_NAME) -> FileLock:
    """Become the only writer of a folder until the lock is released or this process ends.

    The system holds the lock for the process, so that a killed one blocks nobody. An empty file
    remains.

    Args:
        folder: Made if it does not exist.
        name: The lock's file in the folder. Writers under other names do not exclude each other.

    Returns:
        The lock, held; its ``release()`` ends it.

    Raises:
        FolderInUseError: Another writer holds it.
    """
    folder = Path(folder)
    with writing_errors(folder / name):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / name, thread_local=False)
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout:
            raise FolderInUseError(
                f"{folder} is being written by another process. Wait until it has ended, or choose "
                "another folder."
            ) from None
    return lock


def claim_folder(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    *,
    kind: str,
    free: Collection[str] = (),
    own: Collection[str] = (),
    lock: str | None = LOCK_NAME,
    complete: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> tuple[dict[str, Any], FileLock | None]:
    """Bind a folder to a configuration, stored as its ``config.json``, and lock it.

    A folder that is bound already has to have the same configuration.

    Args:
        folder: Made if it does not exist.
        config: What defines the content, as JSON values.
        kind: The folder's content in messages, such as "run".
        free: Names in `config` that may differ.
        own: Entries of the folder that may be there before ``config.json`` is.
        lock: See `lock_folder`; ``None`` takes no lock.
        complete: Brings a configuration that an earlier version stored to today's names and
            defaults.

    Returns:
        The configuration as it is stored, and the lock.

    Raises:
        ValueError: The folder belongs to another configuration (the message names the differences),
            it holds something else, or its ``config.json`` is damaged.
        FolderInUseError: Another process writes to it.
    """
    folder = Path(folder)
    file = folder / CONFIG_NAME
    known = {LOCK_NAME, *own}
    if not file.exists() and folder.exists():
        names = [entry.name for entry in folder.iterdir()]
        if any(name not in known and not name.endswith(_SUFFIX) for name in names):
            raise ValueError(
                f"{folder} is not empty and holds no {kind} ({CONFIG_NAME} is missing). Choose "
                "another folder."
            )
    held = None if lock is None else lock_folder(folder, lock)
    try:
        given: dict[str, Any] = json.loads(json.dumps(config))  # as read back: tuples become lists
        if not file.exists():
            write_json(file, given)
        stored = json.loads(json.dumps(complete(read_json(file))))
        check_same(f"{folder} was made with other settings", stored, given, free)
    except BaseException:
        if held is not None:
            held.release()
        raise
    return stored, held


def check_same(
    claim: str, stored: Mapping[str, Any], given: Mapping[str, Any], free: Collection[str] = ()
) -> None:
    """Refuse settings that differ from stored ones.

    Args:
        claim: The first half of the message.
        stored: What the folder was made with.
        given: What is asked for now.
        free: Names, at the top level, that may differ.

    Raises:
        ValueError: They differ; the message names what was and what is.
    """
    was, now = _flat(stored), _flat(given)
    names = sorted(name for name in was.keys() | now.keys() if name.split(".")[0] not in free)
    changes = [
        f"{printable(name)} was {_short(was.get(name))}, is {_short(now.get(name))}"
        for name in names
        if was.get(name) != now.get(name)
    ]
    if changes:
        raise ValueError(
            f"{claim}: {'; '.join(changes)}. Choose another folder, or give the same settings to "
            "continue."
        )


def read_json(file: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: The file is damaged, or cannot be read as one.
    """
    if os.path.exists(file) and not os.path.isfile(file):  # a pipe would never end
        raise ValueError(f"{file} is damaged: it is no regular file.")
    try:
        content = json.loads(Path(file).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged: it holds no JSON object.")
    return content


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dots in the names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _short(value: Any, length: int = 12) -> str:
    """A digest by its beginning, anything else as it is."""
    is_digest = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    return repr(f"{value[:length]}..." if is_digest else value)


# Temporary names
#
# Several writers of one path may be at work. Each makes a folder of its own, its shelter, and locks
# it. Who can lock a shelter takes it for the leftover of a killed writer, and removes it. That may
# be the shelter of a writer that has not locked it yet: it then finds it taken, and makes another.


@contextmanager
def _shelter(path: Path) -> Iterator[Path]:
    """A folder of our own beside `path`, locked while its process lives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name[:40]}."
    remove_leftovers(path.parent, prefix)
    shelter: Path | None = None
    lock: int | None = None
    try:
        while shelter is None or lock is None:
            shelter = Path(tempfile.mkdtemp(dir=path.parent, prefix=prefix, suffix=_SUFFIX))
            lock = _lock_shelter(shelter)  # None: another writer took it for a leftover
        yield shelter
    finally:
        if lock is not None:
            os.close(lock)
        if shelter is not None:
            shutil.rmtree(shelter, ignore_errors=True)


def _lock_shelter(shelter: Path) -> int | None:
    """The descriptor of a shelter's lock, or ``None`` if another writer has it, or if it has gone.

    A lock of a deleted file is none. Else nobody can remove the shelter while the lock is held:
    `_remove_leftover` renames it, deletes its files, and only then releases the lock.
    """
    try:
        descriptor = os.open(shelter / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    if lock_descriptor(descriptor, blocking=False) and os.fstat(descriptor).st_nlink:
        return descriptor
    os.close(descriptor)
    return None


def remove_leftovers(folder: Path, prefix: str = ".") -> None:
    """Remove what killed writers of `new_path` and `new_folder` left in a folder.

    They remove it themselves when they write the same path again. A writer that is killed between
    its rename and its cleaning has no such successor.
    """
    for name in os.listdir(folder):
        if name.startswith(prefix) and name.endswith(_SUFFIX):
            with suppress(OSError):  # somebody else's: not an obstacle
                _remove_leftover(folder / name)


def _remove_leftover(shelter: Path) -> None:
    """Remove a shelter; where its writer died between two renames, put the old folder back."""
    lock = _lock_shelter(shelter)
    if lock is None:
        return
    try:
        for previous in shelter.glob(f"{_PREVIOUS}*/*"):
            if not os.path.lexists(shelter.with_name(previous.name)):
                os.rename(previous, shelter.with_name(previous.name))
        # A new writer that waits for this lock has to find the name free, not a folder half-empty.
        doomed = shelter.with_name(f"{shelter.name.removesuffix(_SUFFIX)}-{os.getpid()}{_SUFFIX}")
        os.rename(shelter, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    finally:
        os.close(lock)


def _take_place(new: Path, path: Path, shelter: Path) -> None:
    """Rename a folder to `path`, where a folder may be; other writers may do the same."""
    for attempt in range(_ATTEMPTS):
        try:
            _replace_folder(new, path, shelter / f"{_PREVIOUS}{attempt}" / path.name)
            return
        except OSError as error:
            # Between test and rename another writer has put its folder there, or taken the old one.
            met_another = error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)
            if not met_another or not new.is_dir() or attempt == _ATTEMPTS - 1:
                raise


def _replace_folder(new: Path, path: Path, previous: Path) -> None:
    if not path.is_dir():
        os.rename(new, path)
    elif not _renameat2(new, path, _EXCHANGE):
        previous.parent.mkdir()
        try:
            os.rename(path, previous)
            os.rename(new, path)
        except BaseException:
            if previous.is_dir() and not os.path.lexists(path):
                os.rename(previous, path)
            raise


# The system's part


def _finish(temporary: Path, durable: bool) -> None:
    """Give what was written the usual permissions, and wait until it is on the disk."""
    probe = temporary.parent / _PROBE
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    files = temporary.rglob("*") if temporary.is_dir() else [temporary]
    for file in files:  # safetensors makes its files readable by their owner alone
        if file.is_file() and not file.is_symlink() and file.stat().st_mode & 0o777 == 0o600:
            file.chmod(mode)
    if durable:
        sync(temporary)


def _sync(path: Path) -> None:
    is_folder = path.is_dir()
    if is_folder and sys.platform == "win32":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY if sys.platform != "win32" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a folder.
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _renameat2(source: Path, target: Path, flag: int) -> bool:
    """Rename with a flag in one step; ``False`` where the system or the file system cannot."""
    rename = _find_renameat2()
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    if number == errno.EEXIST:
        raise _taken_error(target)
    raise OSError(number, os.strerror(number), str(source), None, str(target))


def _find_renameat2() -> Any:
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def _error_number(error: BaseException, path: Path) -> int | None:
    """The system's error number behind an error of a writer, which torch and safetensors hide."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno is not None:
            names_temporary = _SUFFIX in str(cause.filename)
            return cause.errno if cause.errno in _OF_WRITERS or names_temporary else None
        if isinstance(cause, SafetensorError) and (
            found := re.search(r"os error (\d+)", str(cause))
        ):
            return int(found[1])
    # torch.save to a path reports that its zip file came out short, and no reason.
    if isinstance(error, RuntimeError) and re.search("PytorchStream|inline_container", str(error)):
        return errno.ENOSPC if _free_space(path) < 2**20 else errno.EIO
    return None


def _write_error(path: Path, number: int, size: int | None) -> WriteError:
    message = f"Writing {path} failed and nothing of it was left behind: {os.strerror(number)}"
    if number == errno.ENOSPC:
        needed = "" if size is None else f"{_in_units(size)} are needed, "
        message += f" ({needed}{_in_units(_free_space(path))} are free); make room and start again"
    return WriteError(number, message)


def _taken_error(path: str | os.PathLike[str]) -> FileExistsError:
    return FileExistsError(f"{path} exists already. Choose another name or remove it first.")


def _free_space(path: Path) -> int:
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    return shutil.disk_usage(folder).free


def _in_units(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
