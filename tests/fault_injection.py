"""A layer over the system's files in which one operation fails, or the process is killed in it.

Counted are writes, fsyncs and renames, and the writers of torch and safetensors as one write each,
since they leave Python. A write that goes wrong has written half.
"""

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import safetensors.torch
import torch
from safetensors import SafetensorError

from var_hf import files

KILL = "kill"
#: How an operation goes wrong.
FAULTS = (errno.ENOSPC, errno.EIO, KILL)


class FaultyFiles:
    """Counts the operations, and lets one of them go wrong.

    Args:
        at: Number of that operation, from 0; ``None`` lets all go well.
        fault: An error number, or `KILL`.
    """

    def __init__(self, at: int | None = None, fault: int | str = errno.EIO):
        self.at, self.fault = at, fault
        self.count = 0

    def is_next_bad(self) -> bool:
        self.count += 1
        return self.count - 1 == self.at

    def go_wrong(
        self,
        error: Callable[[int], Exception] = lambda number: OSError(number, os.strerror(number)),
    ):
        if self.fault == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        raise error(self.fault)

    def call(self, operation: Callable) -> Callable:
        """A rename or fsync: it goes wrong before it has done anything."""

        def counted(*arguments, **options):
            if self.is_next_bad():
                self.go_wrong()
            return operation(*arguments, **options)

        return counted

    def write_file(
        self, operation: Callable, error: Callable[[int], Exception], where: int
    ) -> Callable:
        """A writer of whole files outside Python: argument number `where` is the path."""

        def counted(*arguments, **options):
            result = operation(*arguments, **options)
            if isinstance(arguments[where], (str, os.PathLike)) and self.is_next_bad():
                os.truncate(arguments[where], os.stat(arguments[where]).st_size // 2)
                self.go_wrong(error)
            return result

        return counted

    def open(self, operation: Callable) -> Callable:
        def opened(file, mode="r", *arguments, **options):
            handle = operation(file, mode, *arguments, **options)
            writes = set(mode) & set("wax+") and not isinstance(file, int)
            return FaultyHandle(handle, self) if writes else handle

        return opened


class FaultyHandle:
    """An open file whose writes are counted."""

    def __init__(self, handle, faulty: FaultyFiles):
        self._handle, self._faulty = handle, faulty

    def write(self, data):
        if self._faulty.is_next_bad():
            self._handle.write(data[: len(data) // 2])
            self._handle.flush()
            self._faulty.go_wrong()
        return self._handle.write(data)

    def __getattr__(self, name):
        return getattr(self._handle, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._handle.close()

    def __iter__(self):
        return iter(self._handle)


def _safetensors_error(number: int) -> Exception:
    return SafetensorError(
        f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
    )


def _torch_error(number: int) -> Exception:
    return RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")


@contextmanager
def faulty_files(at: int | None = None, fault: int | str = errno.EIO) -> Iterator[FaultyFiles]:
    """Install the layer."""
    faulty = FaultyFiles(at, fault)
    serialize = safetensors.torch.serialize_file
    with ExitStack() as stack:
        for owner, name, replacement in (
            (os, "fsync", faulty.call(os.fsync)),
            (os, "rename", faulty.call(os.rename)),
            (os, "replace", faulty.call(os.replace)),
            (files, "_renameat2", faulty.call(files._renameat2)),
            (io, "open", faulty.open(io.open)),
            (builtins, "open", faulty.open(builtins.open)),
            (
                safetensors.torch,
                "serialize_file",
                faulty.write_file(serialize, _safetensors_error, 1),
            ),
            (torch, "save", faulty.write_file(torch.save, _torch_error, 1)),
        ):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield faulty


def killed(work: Callable[[], object], at: int) -> None:
    """Run `work` in a forked process that is killed in operation number `at`."""
    process = os.fork()
    if process == 0:
        try:
            torch.set_num_threads(1)  # the threads of the parent are not here
            with faulty_files(at, KILL):
                work()
        finally:
            os._exit(1)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but locks and those under temporary names."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name != files.LOCK_NAME
        and not any(part.endswith(".partial") for part in path.relative_to(folder).parts)
    }
