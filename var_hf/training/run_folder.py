"""A training run on disk: one configuration, a log, and checkpoints that are complete or absent."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.json"
LOG_NAME = "log.jsonl"


class RunFolder:
    """The folder of one run.

        run/
            config.json          what the run was started with
            log.jsonl            one JSON object per line, each with its "step"
            checkpoints/step-00001000/

    Starting a run in its own folder continues it after the newest checkpoint; lines that were logged
    after that checkpoint are dropped, because the continued run writes them again.

    Args:
        path: The folder; made if it does not exist.
        configuration: What defines the run, as JSON values.
        free: Names in `configuration` that may change when the run is continued, because they do
            not change its result.
        keep: How many checkpoints to keep, newest first.
        complete: Brings a configuration that was stored before to the names of today.

    Raises:
        ValueError: The folder belongs to a run with another configuration, or to no run at all.
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
        # As it will be read back: tuples become lists.
        configuration = json.loads(json.dumps(configuration))
        config_file = self.path / CONFIG_NAME
        if config_file.exists():
            stored = complete(json.loads(config_file.read_text("utf-8")))
            self._check_same(json.loads(json.dumps(stored)), configuration, free)
        elif self.path.exists() and any(self.path.iterdir()):
            raise ValueError(
                f"{self.path} is not empty and holds no run ({CONFIG_NAME} is missing). "
                "Choose another folder."
            )
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(config_file, json.dumps(configuration, indent=2) + "\n")

    def _check_same(
        self, stored: Mapping[str, Any], given: Mapping[str, Any], free: Collection[str]
    ) -> None:
        names = sorted((stored.keys() | given.keys()) - set(free))
        changed = [name for name in names if stored.get(name) != given.get(name)]
        if changed:
            changes = "; ".join(
                f"{name} was {stored.get(name)!r}, is {given.get(name)!r}" for name in changed
            )
            raise ValueError(
                f"{self.path} belongs to a run with another configuration: {changes}. "
                "Choose another folder, or give the same settings to continue that run."
            )

    @property
    def log_file(self) -> Path:
        """The log, one JSON object per line."""
        return self.path / LOG_NAME

    def log(self, step: int, **values: Any) -> None:
        """Append one line to the log."""
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def rewind_log(self, step: int) -> None:
        """Drop what was logged after `step`, and a line that a kill cut short."""
        if not self.log_file.exists():
            return
        kept = []
        for line in self.log_file.read_text("utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except json.JSONDecodeError:
                logger.warning("%s: dropped an incomplete line", self.log_file)
        write_atomically(self.log_file, "".join(kept))

    def checkpoints(self) -> list[Path]:
        """All complete checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("step-*"))

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        return next(iter(reversed(self.checkpoints())), None)

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> Path:
        """Make a checkpoint that appears complete or not at all, then drop the oldest ones.

        Args:
            step: Number of finished steps.
            write: Called with an empty folder to fill.

        Raises:
            OSError: Writing failed, on a full disk for example; earlier checkpoints are untouched.
        """
        final = self.path / "checkpoints" / f"step-{step:08d}"
        try:
            write_folder_atomically(final, write)
        except OSError as error:
            latest = self.latest_checkpoint()
            raise OSError(
                f"The checkpoint of step {step} could not be written: {error}. "
                f"The last good one is {latest or 'none'}; make room and start the same command again."
            ) from error
        for old in self.checkpoints()[: -self.keep]:
            shutil.rmtree(old)
        return final


def write_atomically(file: Path, text: str) -> None:
    """Write a text file that appears complete or not at all."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def write_folder_atomically(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder that appears complete or not at all; an earlier one of that name is replaced."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left behind by a kill
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        # Bytes must be on the disk before the name is, or a power cut leaves a complete-looking ruin.
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
