"""A training run on disk: one configuration, a log, and checkpoints that are complete or absent."""

import errno
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from var_hf.files import (
    LOCK_NAME,
    WriteError,
    claim_folder,
    new_folder,
    read_json,
    sync,
    write_json,
    write_text,
    writing_errors,
)
from var_hf.processes import companions, process_state
from var_hf.provenance import describe_files

logger = logging.getLogger(__name__)

LOG_NAME = "log.jsonl"
CHECKSUMS_NAME = "checksums.json"


class RunFolder:
    """The folder of one run.

        run/
            config.json          what the run was started with
            log.jsonl            one JSON object per line, each with its "step"
            checkpoints/step-00001000/
                checksums.json   size and SHA-256 of every other file; a checkpoint has one

    Starting a run in its own folder continues it after the newest checkpoint; lines that were
    logged after that checkpoint are dropped, because the continued run writes them again. The first
    process of a run locks the folder until `close`.

    Args:
        path: The folder; made if it does not exist.
        configuration: What defines the run, as JSON values.
        free: Names in `configuration` that may change when the run is continued, because they do
            not change its result.
        keep: How many checkpoints to keep, newest first.
        complete: Brings a configuration that was stored before to the names of today.

    Raises:
        ValueError: The folder belongs to a run with another configuration, or to no run at all.
        FolderInUseError: Another process runs in it.
    """

    def __init__(
        self,
        path: str | Path,
        configuration: Mapping[str, Any],
        free: Collection[str] = (),
        keep: int = 2,
        complete: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    ):
        self.path = Path(path)
        self.keep = keep
        lock = LOCK_NAME if process_state().is_main_process else None
        _, self._lock = claim_folder(
            self.path, configuration, kind="run", free=free, lock=lock, complete=complete
        )

    def close(self) -> None:
        """Let others write to the folder."""
        if self._lock is not None:
            self._lock.release()

    @property
    def log_file(self) -> Path:
        """The log, one JSON object per line."""
        return self.path / LOG_NAME

    def log(self, step: int, **values: Any) -> None:
        """Append one line to the log."""
        with writing_errors(self.log_file), self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of the log, see `read_log`."""
        return read_log(self.log_file)

    def rewind_log(self, step: int) -> None:
        """Drop what was logged after `step`, and a line that a kill cut short."""
        if self.log_file.exists():
            kept = [entry for entry in self.read_log() if entry["step"] <= step]
            write_text(self.log_file, "".join(json.dumps(entry) + "\n" for entry in kept))

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step lies, or is to lie."""
        return self.path / "checkpoints" / f"step-{step:08d}"

    def checkpoints(self) -> list[Path]:
        """All complete checkpoints, oldest first."""
        folders = [folder for folder in self._step_folders() if (folder / CHECKSUMS_NAME).is_file()]
        return sorted(folders, key=_step_of)

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        return next(iter(reversed(self.checkpoints())), None)

    def resume_point(self, last_step: int) -> tuple[Path | None, int]:
        """The newest checkpoint, checked by its digests, and its step; else ``None`` and -1.

        Args:
            last_step: Steps of the whole run.

        Raises:
            ValueError: It is not as it was written, or of a step that the run does not have; or
                the processes have other checkpoints, in folders that they do not share.
        """
        complete = self.checkpoints()
        for folder in set(self._step_folders()) - set(complete):
            logger.warning("%s is incomplete (%s is missing): left aside", folder, CHECKSUMS_NAME)
        own = (
            f"{complete[-1].name} {self.weights_digest(complete[-1])[:12]}" if complete else "none"
        )
        companions().compare({f"checkpoints in {self.path}": own})
        if not complete:
            return None, -1
        newest = complete[-1]
        if (step := _step_of(newest)) > last_step:
            raise ValueError(
                f"{newest} is beyond the {last_step} steps of this run. Delete it to continue from "
                "an earlier one."
            )
        if process_state().is_local_main_process:
            _check(newest)
        if process_state().is_main_process:
            self._drop_old_checkpoints()  # a kill may have come first
        return newest, step

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> Path:
        """Make a checkpoint that appears complete or not at all, then drop the oldest ones.

        Args:
            step: Number of finished steps.
            write: Called with an empty folder to fill.

        Raises:
            OSError: Writing failed, on a full disk for example; earlier checkpoints are untouched.
        """
        final = self.checkpoint(step)
        latest = self.latest_checkpoint()
        size = None if latest is None else sum(entry["size"] for entry in _files(latest).values())
        try:
            if self.log_file.exists():
                with writing_errors(self.log_file):
                    sync(self.log_file)  # a checkpoint on the disk has its lines there
            with new_folder(final, size=size) as folder:
                write(folder)
                write_json(folder / CHECKSUMS_NAME, {"step": step, "files": _describe(folder)})
        except OSError as error:
            raise self.checkpoint_error(step, error) from error
        self._drop_old_checkpoints()
        return final

    def checkpoint_error(self, step: int, error: OSError) -> WriteError:
        """The error of a checkpoint that could not be written, in one line."""
        latest = self.latest_checkpoint() or "none"
        return WriteError(
            error.errno or errno.EIO,
            f"The checkpoint of step {step} could not be written: {error}. The last good one is "
            f"{latest}; the same command goes on from it.",
        )

    def weights_digest(self, checkpoint: Path) -> str:
        """One SHA-256 for all weights of a checkpoint; the folder made from them records it."""
        weights = {
            name: entry["sha256"]
            for name, entry in _files(checkpoint).items()
            if name.endswith(".safetensors")
        }
        return hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()

    def _drop_old_checkpoints(self) -> None:
        kept = self.checkpoints()[-self.keep :]
        for old in self._step_folders():
            if old not in kept and _step_of(old) < _step_of(kept[-1]):
                (old / CHECKSUMS_NAME).unlink(missing_ok=True)  # from now on it is none
                shutil.rmtree(old)

    def _step_folders(self) -> list[Path]:
        folders = (self.path / "checkpoints").glob("step-*")
        return [folder for folder in folders if re.fullmatch(r"step-\d+", folder.name)]


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of a log, without any that a kill cut short or that is not a log entry."""
    if not file.exists():
        return []
    if not file.is_file():  # a pipe would never end
        raise ValueError(f"{file} is no regular file. Remove it.")
    entries = []
    for line in file.read_bytes().splitlines():
        try:
            entry = json.loads(line)
            entry["step"] + 0
        except (ValueError, LookupError, TypeError, RecursionError):
            logger.warning("%s: dropped an incomplete line", file)
        else:
            entries.append(entry)
    return entries


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _describe(folder: Path) -> dict[str, dict[str, Any]]:
    entries = (entry for entry in sorted(folder.rglob("*")) if not entry.is_dir())
    names = {entry.relative_to(folder).as_posix(): entry for entry in entries}
    names.pop(CHECKSUMS_NAME, None)
    # A pipe would never end, and a dangling link has no content.
    odd: dict[str, dict[str, Any]] = {name: {} for name in names if not names[name].is_file()}
    return describe_files({name: names[name] for name in names if name not in odd}) | odd


def _files(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """What the checksums of a checkpoint list."""
    checksums = read_json(checkpoint / CHECKSUMS_NAME)
    try:
        files = {
            str(name): {"size": int(entry["size"]), "sha256": str(entry["sha256"])}
            for name, entry in checksums["files"].items()
        }
        step = checksums["step"]
    except (LookupError, TypeError, ValueError, AttributeError):
        raise ValueError(f"{checkpoint / CHECKSUMS_NAME} is damaged. {_ADVICE}") from None
    if step != _step_of(checkpoint):
        raise ValueError(f"{checkpoint} holds step {step!r}: it was renamed. {_ADVICE}")
    return files


def _check(checkpoint: Path) -> None:
    recorded, present = _files(checkpoint), _describe(checkpoint)
    for name in sorted(recorded.keys() | present.keys()):
        if recorded.get(name) != present.get(name):
            fault = "is missing" if name not in present else "was not written with it"
            if name in recorded and name in present:
                fault = "is not as it was written"
            raise ValueError(f"{checkpoint}: {name} {fault}. {_ADVICE}")


_ADVICE = "Delete the checkpoint to continue from an earlier one."
