import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from var_hf.processes import (
    Companions,
    _Connected,
    companions,
    joined,
    process_timeout,
)


@pytest.fixture
def port(monkeypatch):
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        number = server.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(number))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    return number


def in_threads(count, work):
    """What `work` returns or raises as each of `count` processes, here threads of one."""
    found = [None] * count

    def run(index):
        each = _Connected(index, count, 4.0)
        try:
            found[index] = work(each)
        except ValueError as error:
            found[index] = error
        each.leave(True)

    threads = [threading.Thread(target=run, args=[index]) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def test_a_process_alone_has_nobody_to_compare_with(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined() as others:
        assert (others.index, others.count) == (0, 1)
        others.compare({"anything": "here"})
    assert isinstance(companions(), Companions)


def test_processes_without_an_address_do_not_look_for_each_other(monkeypatch):
    """Samples are drawn so by launchers that set RANK and WORLD_SIZE alone."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with joined() as others:
        assert others.count == 1


def test_equal_values_and_a_shared_folder_pass(port, tmp_path):
    def work(each):
        each.compare({"samples": "a", "features": "b"})
        each.check_shared(tmp_path)
        return each.count

    assert in_threads(3, work) == [3, 3, 3]
    assert list(tmp_path.iterdir()) == []


def test_every_process_names_the_one_that_differs(port):
    errors = in_threads(
        3, lambda each: each.compare({"samples": "0" * 64 if each.index < 2 else "x"})
    )

    for error in errors:
        assert str(error).startswith("Process 2 (on ")
        assert "has other samples than process 0 (on " in str(error)
        assert str(error).endswith(
            ": x against 000000000000.... Give every process the same samples."
        )


def test_every_process_names_the_one_that_does_not_share_the_folder(port, tmp_path):
    for index in range(2):
        (tmp_path / str(index)).mkdir()

    errors = in_threads(2, lambda each: each.check_shared(tmp_path / str(each.index)))

    for error in errors:
        assert "Process 1 (on " in str(error)
        assert "does not see what process 0 (on" in str(error)
    assert not [file for folder in tmp_path.iterdir() for file in folder.iterdir()]


@pytest.mark.parametrize("text", ["", "soon", "0", "3", "-5", "nan", "inf"])
def test_an_odd_timeout_is_refused(text, monkeypatch):
    monkeypatch.setenv("VAR_HF_PROCESS_TIMEOUT", text)
    with pytest.raises(ValueError, match="VAR_HF_PROCESS_TIMEOUT must be a number of seconds"):
        process_timeout()


# Process 1 is killed. Process 0 waits for it in gloo, or is busy elsewhere.
TWO = """
import sys, time
from var_hf.processes import LostProcessError, joined
try:
    with joined() as others:
        if sys.argv[1] == "barrier":
            import torch.distributed as dist
            dist.init_process_group("gloo")
        print("ready", flush=True)
        if sys.argv[1] == "barrier" and others.index == 0:
            dist.barrier()
        time.sleep(60)
except LostProcessError as error:
    sys.exit(f"var-hf: {error}")
"""


@pytest.mark.parametrize("where", ["barrier", "elsewhere"])
def test_the_others_stop_with_a_sentence_when_a_process_is_killed(where, port, tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    both = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "two.py"), where],
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for each in both:
            assert each.stdout.readline() == "ready\n", each.stderr.read()
        moment = time.monotonic()
        both[1].send_signal(signal.SIGKILL)
        _, said = both[0].communicate(timeout=60)
    finally:
        for each in both:
            each.kill()
            each.communicate()

    assert both[0].returncode == 1
    assert time.monotonic() - moment < 30
    sentence = said.strip().splitlines()[-1]
    assert sentence.startswith("var-hf: Process 1 (on ")
    assert "has ended before its work was done. Start the same command again" in sentence
