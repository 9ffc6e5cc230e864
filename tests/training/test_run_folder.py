import errno
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from var_hf.files import FolderInUseError
from var_hf.training.run_folder import RunFolder

SETTINGS = {"steps": 5, "betas": (0.5, 0.9), "logging_steps": 2}


def read_log(run):
    return [json.loads(line) for line in run.log_file.read_text().splitlines()]


def fill(folder):
    (folder / "weights").write_text("whole")


def test_the_same_configuration_may_continue(tmp_path):
    RunFolder(tmp_path / "run", SETTINGS)

    RunFolder(tmp_path / "run", SETTINGS).close()
    run = RunFolder(tmp_path / "run", SETTINGS | {"logging_steps": 3}, free=["logging_steps"])
    with pytest.raises(FolderInUseError, match="run is being written by another process"):
        RunFolder(tmp_path / "run", SETTINGS)
    run.close()


def test_a_configuration_that_was_stored_before_is_completed(tmp_path):
    RunFolder(tmp_path / "run", {"data": "images", "rate": 2})

    RunFolder(
        tmp_path / "run",
        {"data": "images", "speed": 2, "copies": 1},
        complete=lambda stored: {"copies": 1, "data": stored["data"], "speed": stored["rate"]},
    )


def test_another_configuration_is_refused_by_name_and_value(tmp_path):
    RunFolder(tmp_path / "run", SETTINGS)

    with pytest.raises(ValueError, match="was made with other settings: steps was 5, is 6"):
        RunFolder(tmp_path / "run", SETTINGS | {"steps": 6})


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")

    with pytest.raises(ValueError, match="not empty and holds no run"):
        RunFolder(tmp_path, SETTINGS)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    run = RunFolder(tmp_path / "run", SETTINGS, keep=2)

    for step in (9, 10, 200):
        run.save_checkpoint(step, fill)

    assert [folder.name for folder in run.checkpoints()] == ["step-00000010", "step-00000200"]
    assert run.latest_checkpoint() == run.checkpoints()[-1]


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    run = RunFolder(tmp_path / "run", SETTINGS)
    good = run.save_checkpoint(1, fill)

    def write(folder):
        (folder / "weights").write_text("hal")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        OSError, match=r"step 2 could not be written: .*No space left.*step-00000001"
    ):
        run.save_checkpoint(2, write)
    assert [folder.name for folder in (run.path / "checkpoints").iterdir()] == [good.name]


def test_what_a_kill_left_behind_is_no_checkpoint(tmp_path):
    run = RunFolder(tmp_path / "run", SETTINGS)
    torn = run.path / "checkpoints" / ".step-00000004.abc.partial"
    torn.mkdir(parents=True)
    (torn / "weights").write_text("hal")
    (run.path / "checkpoints" / "step-99999999").mkdir()

    assert run.latest_checkpoint() is None
    final = run.save_checkpoint(4, fill)
    assert sorted(file.name for file in final.iterdir()) == ["checksums.json", "weights"]
    assert run.latest_checkpoint() == final
    assert not torn.exists()


def test_rewinding_drops_later_lines_and_a_torn_one(tmp_path):
    run = RunFolder(tmp_path / "run", SETTINGS)
    for step in (1, 2, 3):
        run.log(step, loss=step / 2)
    with run.log_file.open("a") as file:
        file.write('{"step": 2, "lo')

    run.rewind_log(2)

    assert read_log(run) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}]
    # What others wrote into it is no line of ours.
    with run.log_file.open("ab") as file:
        file.write(b'[]\n7\n{"loss": 1}\n{"step": "x"}\n\xff\xfe\n')
    assert run.read_log() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}]


# Digests


def write_checkpoint(folder):
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / "vqvae").mkdir()
    (folder / "vqvae" / "config.json").write_text("{}")


def test_a_checkpoint_that_is_as_it_was_written_is_gone_on_from(tmp_path):
    run = RunFolder(tmp_path / "run", SETTINGS)
    assert run.resume_point(5) == (None, -1)

    final = run.save_checkpoint(4, write_checkpoint)

    assert run.resume_point(5) == (final, 4)
    with pytest.raises(ValueError, match=r"step-00000004 is beyond the 3 steps of this run"):
        run.resume_point(3)


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (
            lambda f: flip_a_bit(f / "model.safetensors"),
            "model.safetensors is not as it was written",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "optimizer.pt").touch(), "optimizer.pt was not written with it"),
        (lambda f: os.mkfifo(f / "pipe"), "pipe was not written with it"),
        (lambda f: (f / "link").symlink_to("nowhere"), "link was not written with it"),
        (lambda f: (f / "checksums.json").write_text("[1]"), "checksums.json is damaged"),
        (lambda f: (f / "checksums.json").write_text('{"step": 4, "files": 7}'), "is damaged"),
        (lambda f: f.rename(f.with_name("step-00000005")), "holds step 4: it was renamed"),
    ],
)
def test_a_checkpoint_that_was_changed_is_refused_in_one_line(tmp_path, tamper, message):
    run = RunFolder(tmp_path / "run", SETTINGS)
    tamper(run.save_checkpoint(4, write_checkpoint))

    with pytest.raises(ValueError, match=message) as caught:
        run.resume_point(5)
    assert "\n" not in str(caught.value)


@given(data=st.data())
@settings(max_examples=130)
def test_no_damage_to_a_run_folder_is_a_traceback(tmp_path_factory, data):
    """A damaged or missing file: the run continues unchanged, or is refused in one line."""
    path = tmp_path_factory.mktemp("damaged") / "run"
    run = RunFolder(path, SETTINGS)
    run.log(4, loss=0.5)
    run.save_checkpoint(4, write_checkpoint)
    run.close()
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != ".lock")
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "remove", "json", "bytes"]))
    if kind == "flip":
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del content[place:]
    elif kind == "json":
        value = st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5)
        content = json.dumps(data.draw(st.dictionaries(st.text(), value) | value)).encode()
    elif kind == "bytes":
        content = data.draw(st.binary())
    file.unlink() if kind == "remove" else file.write_bytes(content)

    try:
        run = RunFolder(path, SETTINGS)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    try:
        run.rewind_log(4)
        assert run.read_log() in ([], [{"step": 4, "loss": 0.5}]) or file == run.log_file
        checkpoint, step = run.resume_point(5)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        if checkpoint is not None:
            assert step == 4
            assert (checkpoint / "model.safetensors").read_bytes() == bytes(range(256))
    finally:
        run.close()
