import errno
import json

import pytest

from var_hf.training.run_folder import RunFolder

SETTINGS = {"steps": 5, "betas": (0.5, 0.9), "logging_steps": 2}


def read_log(run):
    return [json.loads(line) for line in run.log_file.read_text().splitlines()]


def fill(folder):
    (folder / "weights").write_text("whole")


def test_the_same_configuration_may_continue(tmp_path):
    RunFolder(tmp_path / "run", SETTINGS)

    RunFolder(tmp_path / "run", SETTINGS)
    RunFolder(tmp_path / "run", SETTINGS | {"logging_steps": 3}, free=["logging_steps"])


def test_a_configuration_that_was_stored_before_is_completed(tmp_path):
    RunFolder(tmp_path / "run", {"data": "images", "rate": 2})

    RunFolder(
        tmp_path / "run",
        {"data": "images", "speed": 2, "copies": 1},
        complete=lambda stored: {"copies": 1, "data": stored["data"], "speed": stored["rate"]},
    )


def test_another_configuration_is_refused_by_name_and_value(tmp_path):
    RunFolder(tmp_path / "run", SETTINGS)

    with pytest.raises(ValueError, match="another configuration: steps was 5, is 6"):
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
    torn = run.path / "checkpoints" / ".step-00000004.tmp"
    torn.mkdir(parents=True)
    (torn / "weights").write_text("hal")

    assert run.latest_checkpoint() is None
    final = run.save_checkpoint(4, fill)
    assert [file.name for file in final.iterdir()] == ["weights"]
    assert not torn.exists()


def test_rewinding_drops_later_lines_and_a_torn_one(tmp_path):
    run = RunFolder(tmp_path / "run", SETTINGS)
    for step in (1, 2, 3):
        run.log(step, loss=step / 2)
    with run.log_file.open("a") as file:
        file.write('{"step": 2, "lo')

    run.rewind_log(2)

    assert read_log(run) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}]
