"""The processes of one command, on one or several machines: started by torchrun, accelerate or Ray.

The libraries below notice a lost machine only when a process waits for it, after up to half an
hour, and report it as frames of C++. Here each process has a connection to the first one, which the
operating systems keep alive whatever the processes are doing. When one ends, the others stop with a
sentence.
"""

import json
import os
import platform
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import PartialState

TIMEOUT_VARIABLE = "VAR_HF_PROCESS_TIMEOUT"
DEFAULT_TIMEOUT = 60  # seconds without an answer of a machine
_JOIN_TIMEOUT = 600  # seconds in which all processes have to come
_PATIENCE = timedelta(days=30)  # for answers, once lost processes are noticed
_GRACE = 5.0  # seconds in which a process ends by itself after another one was lost
_LOOK_EVERY = 0.02  # seconds
_NOTICE = 3.0  # seconds between the failure of a call and the notice why
_ADVICE = "Start the same command again on all machines; it goes on from what is finished."

_companions: ContextVar["Companions | None"] = ContextVar("companions", default=None)


class LostProcessError(OSError):
    """Another process of the same command has ended or cannot be reached."""


def process_timeout() -> float:
    """Seconds after which a silent machine counts as lost: ``VAR_HF_PROCESS_TIMEOUT``, or 60.

    Raises:
        ValueError: The variable holds no number of at least 4.
    """
    text = os.environ.get(TIMEOUT_VARIABLE, str(DEFAULT_TIMEOUT))
    with suppress(ValueError):
        if 4 <= (seconds := float(text)) < 1e6:
            return seconds
    raise ValueError(f"{TIMEOUT_VARIABLE} must be a number of seconds of at least 4. Got {text}.")


class Companions:
    """What a process knows of the others. Without others, nothing is compared or watched."""

    index = 0
    count = 1

    def compare(self, values: Mapping[str, str]) -> None:
        """Refuse values in which a process differs from the first. Every process has to call it.

        Args:
            values: Digests or names by what they are of, such as ``"samples"``.

        Raises:
            ValueError: A process has another value; in every process.
        """

    def check_shared(self, folder: str | os.PathLike[str]) -> None:
        """Refuse a folder that not all processes share. Every process has to call it.

        Raises:
            ValueError: A process does not see what the first one writes; in every process.
        """


def companions() -> Companions:
    """The other processes, as the innermost `joined` knows them."""
    return _companions.get() or Companions()


def process_state() -> "PartialState":
    """Rank, number of processes and device; connects the processes when it is first called.

    Without `cpu`, accelerate takes each of several processes on a machine without GPUs for the only
    one.
    """
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def gather_to_first(value: Any) -> list[Any]:
    """The values of all processes in the first one, and nothing in the others.

    Every process has to call it.
    """
    from torch import distributed

    if companions().count == 1:
        return [value]
    state = process_state()
    found: list[Any] = [None] * state.num_processes
    distributed.gather_object(value, found if state.is_main_process else None)
    return found if state.is_main_process else []


@contextmanager
def joined() -> Iterator[Companions]:
    """Watch the other processes of a command while a block runs; usable as a decorator.

    A process that is alone, or was started without ``MASTER_ADDR``, watches nothing. Within a
    block, further blocks belong to it.

    Raises:
        LostProcessError: Another process has ended or cannot be reached. Where this process cannot
            raise it, because it waits in a library, it writes the message to stderr and exits with
            1.
        OSError: Not all processes came.
        ValueError: ``VAR_HF_PROCESS_TIMEOUT`` is no number.
    """
    outer = _companions.get()
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if outer is not None or count == 1 or "MASTER_ADDR" not in os.environ:
        yield outer or Companions()
        return
    companions = _Connected(int(os.environ["RANK"]), count, process_timeout())
    token = _companions.set(companions)
    is_done = False
    try:
        yield companions
        is_done = True
    except RuntimeError as error:  # of torch.distributed, which sees closed connections too
        if companions.was_lost(within=_NOTICE):
            raise LostProcessError(companions.loss) from error
        raise
    finally:
        _companions.reset(token)
        companions.leave(is_done)


class _Connected(Companions):
    """The processes in a star: the first one has a connection to each of the others."""

    def __init__(self, index: int, count: int, timeout: float):
        from torch.distributed.rendezvous import rendezvous

        self.index, self.count = index, count
        self.loss = ""
        self._lost, self._left = threading.Event(), threading.Event()
        try:
            wait = timedelta(seconds=_JOIN_TIMEOUT)
            self._store, _, _ = next(rendezvous("env://", index, count, timeout=wait))
            # The store may serve several blocks of one process, one after the other.
            turn = self._store.add(f"var-hf/turns/{index}", 1)
            self._prefix = f"var-hf/{turn}"
            self._number = 0
            self._store.set(f"{self._prefix}/host/{index}", platform.node())
            self._connections = self._accept() if index == 0 else {0: self._connect()}
            self._hosts = [self._get(f"host/{other}") for other in range(count)]
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"Process {index} could not reach all {count} processes through "
                f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT')} within "
                f"{_JOIN_TIMEOUT} s. Start the same command on all machines."
            ) from error
        self._store.set_timeout(_PATIENCE)
        for connection in self._connections.values():
            connection.settimeout(None)
            _keep_alive(connection, timeout)
        threading.Thread(target=self._watch, name="var-hf-processes", daemon=True).start()

    # Joining

    def _get(self, name: str) -> str:
        return self._store.get(f"{self._prefix}/{name}").decode("utf-8", "replace")

    def _accept(self) -> dict[int, socket.socket]:
        word = secrets.token_hex(16)
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        connections: dict[int, socket.socket] = {}
        with socket.create_server(("", 0), family=family, dualstack_ipv6=dual) as server:
            server.settimeout(_JOIN_TIMEOUT)
            self._store.set(f"{self._prefix}/door", f"{server.getsockname()[1]} {word}")
            while len(connections) < self.count - 1:
                connection, _ = server.accept()
                connection.settimeout(_JOIN_TIMEOUT)
                with suppress(ValueError, OSError):  # a stranger
                    said, number = connection.makefile("r").readline(100).split()
                    if secrets.compare_digest(said, word):
                        connections[int(number)] = connection
                        continue
                connection.close()
        return connections

    def _connect(self) -> socket.socket:
        port, word = self._get("door").split()
        connection = socket.create_connection((os.environ["MASTER_ADDR"], int(port)), _JOIN_TIMEOUT)
        connection.sendall(f"{word} {self.index}\n".encode())
        return connection

    # Watching

    def _watch(self) -> None:
        done = set()
        with selectors.DefaultSelector() as selector:
            for number, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, number)
            while selector.get_map():
                for key, _ in selector.select():
                    word, reason = _receive(key.fileobj)
                    if word == "done":
                        done.add(key.data)
                        continue
                    if key.data not in done and not self._left.is_set():
                        self._stop(word, reason, key.data)
                    selector.unregister(key.fileobj)
                    self._connections[key.data].close()

    def _stop(self, word: str, reason: str, number: int) -> None:
        """Say which process was lost, and end this one if it does not end by itself."""
        with suppress(ValueError):
            number = int(word.removeprefix("lost "))  # what the first process has seen
            reason = "was lost"
        if self.index == 0:
            for other, connection in self._connections.items():
                if other != number:
                    with suppress(OSError):
                        connection.sendall(f"lost {number}\n".encode())
        host = self._hosts[number] if 0 <= number < self.count else "?"
        self.loss = f"Process {number} (on {host}) {reason}. {_ADVICE}"
        self._lost.set()
        if not self._left.wait(_GRACE):
            sys.stderr.write(f"var-hf: {self.loss}\n")
            sys.stderr.flush()
            os._exit(1)

    def was_lost(self, within: float) -> bool:
        """Whether another process was lost, or is found to be within some seconds."""
        return self._lost.wait(within)

    def leave(self, is_done: bool) -> None:
        """Stop watching, and tell the others that this process has done its work, if it has."""
        self._left.set()
        for connection in self._connections.values():
            with suppress(OSError):
                if is_done:
                    connection.sendall(b"done\n")
                connection.shutdown(socket.SHUT_WR)

    # Comparing

    def compare(self, values: Mapping[str, str]) -> None:
        self._agree(dict(values), self._differences)

    def _differences(self, of_all: Sequence[Mapping[str, str]]) -> str:
        for number, found in enumerate(of_all):
            for name, value in of_all[0].items():
                if found.get(name) != value:
                    return (
                        f"{self._name(number)} has other {name} than {self._name(0)}: "
                        f"{_short(found.get(name))} against {_short(value)}. Give every process "
                        f"the same {name}."
                    )
        return ""

    def check_shared(self, folder: str | os.PathLike[str]) -> None:
        file = os.path.join(folder, f".shared-{secrets.token_hex(8)}")
        if self.index == 0:
            with open(file, "x"):
                pass
        try:
            # A name that nobody has looked for is in no cache of a network file system.
            name = self._agree({"name": os.path.basename(file)}, lambda of_all: "")[0]["name"]
            sees = os.path.exists(os.path.join(folder, name))
            self._agree({"sees": sees}, lambda of_all: self._blind(of_all, folder))
        finally:
            if self.index == 0:
                os.unlink(file)

    def _blind(self, of_all: Sequence[Mapping[str, Any]], folder: Any) -> str:
        for number, found in enumerate(of_all):
            if not found["sees"]:
                return (
                    f"{self._name(number)} does not see what {self._name(0)} writes to {folder}. "
                    "Name a folder on a file system that all machines share."
                )
        return ""

    def _name(self, number: int) -> str:
        return f"{'process' if number == 0 else 'Process'} {number} (on {self._hosts[number]})"

    def _agree(self, own: Mapping[str, Any], judge: Any) -> list[dict[str, Any]]:
        """Give all processes what each has; the first one judges, and all raise what it finds."""
        self._number += 1
        place = f"agree-{self._number}"
        self._store.set(f"{self._prefix}/{place}/{self.index}", json.dumps(own))
        if self.index == 0:
            of_all = [json.loads(self._get(f"{place}/{n}")) for n in range(self.count)]
            said = json.dumps({"fault": judge(of_all), "of_all": of_all})
            self._store.set(f"{self._prefix}/{place}/said", said)
        answer = json.loads(self._get(f"{place}/said"))
        heard = self._store.add(f"{self._prefix}/{place}/heard", 1)
        while self.index == 0 and heard < self.count:  # the store may end with this process
            time.sleep(_LOOK_EVERY)
            heard = self._store.add(f"{self._prefix}/{place}/heard", 0)
        if answer["fault"]:
            raise ValueError(answer["fault"])
        return answer["of_all"]


def _keep_alive(connection: socket.socket, timeout: float) -> None:
    """Let the system ask the other machine now and then, and give up after `timeout` seconds."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # macOS has another name for the first; Windows lacks the last.
    idle = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"
    every = max(1, int(timeout / 4))
    for name, value in (
        (idle, every),
        ("TCP_KEEPINTVL", every),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", int(timeout * 1000)),
    ):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _receive(connection: Any) -> tuple[str, str]:
    """What another process says, and else why it is silent for ever."""
    try:
        said = connection.recv(100)
    except TimeoutError as error:
        return "", f"cannot be reached any more: {error.strerror or 'timed out'}"
    except OSError as error:
        return "", f"was lost: {error.strerror}"
    if not said:
        return "", "has ended before its work was done"
    return said.decode("ascii", "replace").split("\n")[0], "was lost"


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text
