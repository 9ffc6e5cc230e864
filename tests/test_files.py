import ctypes
import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from var_hf import files
from var_hf.files import (
    FolderInUseError,
    WriteError,
    check_space,
    claim_folder,
    lock_folder,
    new_folder,
    new_path,
    read_json,
    writing_errors,
)


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_nothing_is_overwritten(tmp_path, kind):
    path = tmp_path / "taken"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")

    with pytest.raises(FileExistsError, match="taken exists already"), new_path(path):
        raise AssertionError("the block must not run")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), SystemExit(1)])
def test_an_error_or_an_interrupt_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)), new_path(tmp_path / "out" / "folder") as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("half a file")
        raise error

    assert list((tmp_path / "out").iterdir()) == []


def test_the_path_appears_only_at_the_end_and_with_the_usual_permissions(tmp_path):
    (tmp_path / "other").mkdir()

    with new_path(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "file").touch()
        assert not (tmp_path / "folder").exists()

    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["file"]
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "other"]


def test_what_appeared_meanwhile_is_not_overwritten(tmp_path):
    with pytest.raises(FileExistsError, match="file exists already"):  # noqa: SIM117
        with new_path(tmp_path / "file") as temporary:
            temporary.write_text("new")
            (tmp_path / "file").write_text("of somebody else")

    assert (tmp_path / "file").read_text() == "of somebody else"
    assert os.listdir(tmp_path) == ["file"]


def test_weights_get_the_permissions_of_the_files_beside_them(tmp_path):
    """Safetensors lets their owner alone read them."""
    with new_folder(tmp_path / "model") as folder:
        save_file({"weight": torch.zeros(3)}, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
        assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o600

    weights, config = (tmp_path / "model" / name for name in ("model.safetensors", "config.json"))
    assert weights.stat().st_mode == config.stat().st_mode


# Folders that are replaced


def fill(path, text):
    with new_folder(path) as folder:
        (folder / "one").write_text(text)
        (folder / "deep").mkdir()
        (folder / "deep" / "two").write_text(text)


def content(path):
    return {
        entry.relative_to(path).as_posix(): entry.read_text()
        for entry in path.rglob("*")
        if entry.is_file()
    }


def test_a_reader_never_finds_a_replaced_folder_absent_or_mixed(tmp_path):
    if files._find_renameat2() is None:
        pytest.skip("needs renameat2")
    fill(tmp_path / "pipeline", "0")
    absent, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            if not (tmp_path / "pipeline" / "deep" / "two").exists():
                absent.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(1, 31):
            fill(tmp_path / "pipeline", str(number))
    finally:
        stop.set()
        reader.join()
    assert absent == []
    assert content(tmp_path / "pipeline") == {"one": "30", "deep/two": "30"}
    assert os.listdir(tmp_path) == ["pipeline"]


def test_where_folders_cannot_be_exchanged_two_renames_stand_in(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_find_renameat2", lambda: None)
    fill(tmp_path / "pipeline", "old")

    fill(tmp_path / "pipeline", "new")

    assert content(tmp_path / "pipeline") == {"one": "new", "deep/two": "new"}
    assert os.listdir(tmp_path) == ["pipeline"]


def test_a_file_is_no_folder_to_replace(tmp_path):
    (tmp_path / "pipeline").write_text("mine")

    with pytest.raises(FileExistsError, match="pipeline exists already"):
        fill(tmp_path / "pipeline", "new")


# Killed writers


def die_in_a_process(work):
    """Run `work` in a forked process, which is to kill itself."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_of_a_living_one(tmp_path):
    def die():
        with new_path(tmp_path / "file") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    die_in_a_process(die)
    assert len(os.listdir(tmp_path)) == 1

    with new_path(tmp_path / "file") as living:
        living.write_text("mine")
        with new_path(tmp_path / "file") as temporary:
            temporary.write_text("of another writer")
        assert living.read_text() == "mine"
        (tmp_path / "file").unlink()

    assert (tmp_path / "file").read_text() == "mine"
    assert os.listdir(tmp_path) == ["file"]


def die_between_two_renames(path, monkeypatch):
    """A process dies in replacing a folder without an exchange: the old one is moved away."""
    rename = os.rename

    def rename_and_die(source, target):
        rename(source, target)
        os.kill(os.getpid(), signal.SIGKILL)

    def die():
        monkeypatch.setattr(os, "rename", rename_and_die)
        fill(path, "new")

    die_in_a_process(die)


def test_a_folder_that_was_between_two_renames_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_find_renameat2", lambda: None)
    fill(tmp_path / "pipeline", "old")
    die_between_two_renames(tmp_path / "pipeline", monkeypatch)
    assert not (tmp_path / "pipeline").exists()

    with pytest.raises(FileExistsError), new_path(tmp_path / "pipeline"):
        pass  # any writer of the path puts it back
    assert content(tmp_path / "pipeline") == {"one": "old", "deep/two": "old"}


def test_an_old_folder_comes_back_under_its_own_name(tmp_path, monkeypatch):
    """The temporary names of "model" and "model.v2" begin alike."""
    monkeypatch.setattr(files, "_find_renameat2", lambda: None)
    fill(tmp_path / "model.v2", "second")
    die_between_two_renames(tmp_path / "model.v2", monkeypatch)
    fill(tmp_path / "model", "first")

    assert content(tmp_path / "model")["one"] == "first"
    assert content(tmp_path / "model.v2")["one"] == "second"
    assert sorted(os.listdir(tmp_path)) == ["model", "model.v2"]


# Several writers


@pytest.mark.parametrize("exchange", [True, False])
def test_a_writer_that_was_slower_replaces_the_folder_of_a_faster_one(
    tmp_path, monkeypatch, exchange
):
    if not exchange:
        monkeypatch.setattr(files, "_find_renameat2", lambda: None)
    rename, others = os.rename, ["of another writer", "of a third"]

    def rename_too_late(source, target):
        if os.fspath(target) == os.fspath(tmp_path / "model") and others:
            rename(make_folder(tmp_path / "other", others.pop()), target)
        rename(source, target)

    def make_folder(path, text):
        path.mkdir()
        (path / "one").write_text(text)
        return path

    monkeypatch.setattr(os, "rename", rename_too_late)
    fill(tmp_path / "model", "mine")

    assert content(tmp_path / "model") == {"one": "mine", "deep/two": "mine"}
    assert os.listdir(tmp_path) == ["model"]


def test_a_name_that_is_taken_and_free_again_is_one_error(tmp_path, monkeypatch):
    """The system finds a file, and somebody removes it before the error is made."""
    monkeypatch.setattr(files, "_find_renameat2", lambda: lambda *_: fail())

    def fail():
        ctypes.set_errno(errno.EEXIST)
        return -1

    with pytest.raises(FileExistsError, match="file exists already"):  # noqa: SIM117
        with new_path(tmp_path / "file") as temporary:
            temporary.write_text("new")
    assert os.listdir(tmp_path) == []


def test_many_writers_of_one_name_meet_no_error(tmp_path):
    whole = {str(number): {"one": str(number), "deep/two": str(number)} for number in range(8)}
    for _ in range(5):
        with ThreadPoolExecutor(8) as writers:
            list(writers.map(lambda text: fill(tmp_path / "model", text), whole))
        assert content(tmp_path / "model") in whole.values()
        assert os.listdir(tmp_path) == ["model"]
        shutil.rmtree(tmp_path / "model")


# Locks


def test_a_second_writer_gets_one_line(tmp_path):
    lock = lock_folder(tmp_path / "run")
    with pytest.raises(FolderInUseError, match=r"run is being written by another process\.[^\n]*$"):
        lock_folder(tmp_path / "run")
    lock_folder(tmp_path / "run", "other").release()

    lock.release()
    lock_folder(tmp_path / "run").release()


def test_the_lock_of_a_dead_process_blocks_nobody(tmp_path):
    children = tmp_path / "children"
    script = f"""
        import os, signal, sys
        from var_hf.files import lock_folder
        lock = lock_folder("{tmp_path}/run")
        child = os.fork()
        if child == 0:  # a data-loading worker that outlives it for a while
            signal.pause()
        open("{children}", "w").write(str(child))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -signal.SIGKILL
    try:
        lock_folder(tmp_path / "run").release()
    finally:
        os.kill(int(children.read_text()), signal.SIGKILL)


# What a folder belongs to


def test_a_folder_belongs_to_its_configuration(tmp_path):
    config = {"steps": 5, "betas": (0.5, 0.9), "transform": {"flip": True}, "log_every": 2}
    digests = {"tokenizer": "ab" * 32}

    stored, lock = claim_folder(tmp_path / "run", config | digests, kind="run")

    assert stored["betas"] == [0.5, 0.9]
    with pytest.raises(FolderInUseError):
        claim_folder(tmp_path / "run", config | digests, kind="run")
    lock.release()
    same = config | digests | {"log_every": 3}
    assert claim_folder(tmp_path / "run", same, kind="run", free=["log_every"])[0] == stored
    other = config | {"steps": 6, "transform": {"flip": False}, "tokenizer": "cd" * 32}
    with pytest.raises(ValueError) as caught:
        claim_folder(tmp_path / "run", other, kind="run")
    assert str(caught.value) == (
        f"{tmp_path}/run was made with other settings: steps was 5, is 6; tokenizer was "
        "'abababababab...', is 'cdcdcdcdcdcd...'; transform.flip was True, is False. Choose "
        "another folder, or give the same settings to continue."
    )


def test_a_foreign_folder_is_refused_and_the_remains_of_a_kill_are_not(tmp_path):
    (tmp_path / "run" / ".config.json.abc.partial").mkdir(parents=True)
    lock_folder(tmp_path / "run").release()
    claim_folder(tmp_path / "run", {}, kind="run")
    (tmp_path / "thesis.txt").write_text("precious")

    with pytest.raises(ValueError, match="not empty and holds no run"):
        claim_folder(tmp_path, {}, kind="run")
    assert sorted(os.listdir(tmp_path)) == ["run", "thesis.txt"]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_damaged_json_is_one_error(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)

    with pytest.raises(ValueError, match=r"config\.json is damaged: [^\n]*$"):
        read_json(tmp_path / "config.json")


# Full disks


def test_the_space_that_is_missing_is_named(tmp_path, monkeypatch):
    usage = files.shutil.disk_usage(tmp_path)._replace(free=30_000_000)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    message = (
        r"deep/out failed and nothing.*: No space left on device \(2.5 GB are needed, "
        r"30.0 MB are free\); make room and start again$"
    )

    with pytest.raises(WriteError, match=message) as caught:
        check_space(tmp_path / "deep" / "out", 2_500_000_000)
    assert caught.value.errno == errno.ENOSPC
    with (
        pytest.raises(WriteError, match=message),
        new_path(tmp_path / "deep" / "out", size=2_500_000_000),
    ):
        raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")
    assert os.listdir(tmp_path / "deep") == []


def test_errors_that_are_not_of_the_disk_pass_unchanged(tmp_path):
    for error in (ValueError("bad"), RuntimeError("CUDA"), SafetensorError("invalid header")):
        with pytest.raises(type(error), match=str(error)), new_path(tmp_path / "file"):
            raise error
    with pytest.raises(FileNotFoundError, match=r"photo\.png"), writing_errors(tmp_path / "file"):
        (tmp_path / "photo.png").read_bytes()


def test_a_disk_that_refuses_more_bytes_is_one_error_and_nothing_is_left(tmp_path):
    """A limit on file sizes makes the system refuse to write where a full disk would."""
    script = f"""
        import resource, torch
        from safetensors.torch import save_file
        from var_hf.conversion import write_original
        from var_hf.files import new_path

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        tensors = {{"weight": torch.zeros(1_000_000), "bias": torch.zeros(7)}}
        try:
            write_original(tensors, "{tmp_path}/var.pth")
        except OSError as error:
            print(error.errno, error)
        try:
            with new_path("{tmp_path}/folder") as temporary:
                temporary.mkdir()
                save_file(tensors, temporary / "model.safetensors")
        except OSError as error:
            print(error.errno, error)
        try:
            with new_path("{tmp_path}/optimizer.pt") as temporary:
                torch.save(tensors, temporary)  # torch opens the path, and hides the reason
        except OSError as error:
            print(error.errno, error)
    """

    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )

    lines = result.stdout.splitlines()
    failed = "failed and nothing of it was left behind"
    assert lines == [
        f"27 Writing {tmp_path}/var.pth {failed}: File too large",
        f"27 Writing {tmp_path}/folder {failed}: File too large",
        f"5 Writing {tmp_path}/optimizer.pt {failed}: Input/output error",
    ]
    assert list(tmp_path.iterdir()) == []
