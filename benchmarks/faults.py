"""Kill `var-hf train`, fill its disk and damage its folders; count the runs that end wrong.

    python benchmarks/faults.py --kills 60 --damages 126 --full-disks 20 -o result.json

A tiny model trains for five steps, with a checkpoint after every second one and the last. Each run
is a process of its own, forked from one that has imported everything, and SIGKILL ends it: half of
the runs at a random time, half while the last checkpoint and the pipeline are written. Then the
same command runs again. A run ends right if it exits with 0 and its pipeline is, byte for byte, the
one of an undisturbed run.

The disk is a tmpfs of a random size, which only root can mount. The run has to end with one line,
and the same command has to finish when there is room. A damage changes one file of a killed run's
folder: the next run has to end right, or with one line.
"""

import argparse
import importlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import var_hf.training.transformer  # noqa: F401 - so that no fork has to import it
from var_hf import MultiScaleVQVAE
from var_hf.cli import main as var_hf_command
from var_hf.files import write_json

NUM_STEPS = 5
ROOM = 64  # MiB, more than a run needs
VQVAE = {
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
    "latent_channels": 6,
    "codebook_size": 29,
    "token_map_sizes": (1, 2, 3, 5),
    "norm_num_groups": 4,
}
SETTINGS = {
    "architecture": {"hidden_size": 28, "num_hidden_layers": 2, "num_attention_heads": 7},
    "global_batch_size": 8,
    "num_train_epochs": 2,
    "checkpoint_every": 2,
    "sample_every": 0,
    "log_every": 1,
}


def write_inputs(folder: Path) -> None:
    """Eighteen images in three classes, a tokenizer, and a recipe."""
    generator = np.random.default_rng(0)
    for name in ("apple", "fox", "rocket"):
        (folder / "images" / name).mkdir(parents=True)
        for index in range(6):
            pixels = generator.integers(0, 256, (12, 12, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{index}.png")
    torch.manual_seed(0)
    MultiScaleVQVAE(**VQVAE).save_pretrained(folder / "vqvae")
    write_json(folder / "recipe.json", SETTINGS)


class Training:
    """The command, as often as it is wanted.

    Args:
        inputs: What `write_inputs` wrote.
    """

    def __init__(self, inputs: Path):
        self.arguments = [
            *("var-hf", "train", "--recipe", str(inputs / "recipe.json")),
            *("--data", str(inputs / "images"), "--tokenizer", str(inputs / "vqvae"), "-o"),
        ]
        self.log = inputs / "stderr.txt"

    def start(self, run: Path) -> int:
        """Start it in a forked process; returns its id."""
        process = os.fork()
        if process:
            return process
        code, before = 70, set(sys.modules)
        try:
            with self.log.open("w") as log:
                os.dup2(log.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                sys.stdout, sys.stderr = (
                    io.StringIO(),
                    os.fdopen(2, "w", buffering=1, closefd=False),
                )
                sys.argv = [*self.arguments, str(run)]
                var_hf_command()
        except SystemExit as ended:
            code = 0 if ended.code is None else int(ended.code)
        except BaseException:
            traceback.print_exc()
        finally:
            new = sorted(name for name in set(sys.modules) - before if "<" not in name)
            (self.log.parent / "modules.txt").write_text("\n".join(new))
            os._exit(code)

    def finish(self, run: Path) -> int:
        """Run it to its end; returns the exit code, negative for a signal."""
        _, status = os.waitpid(self.start(run), 0)
        return os.waitstatus_to_exitcode(status)

    def error(self) -> str:
        """The line in which the last run failed; anything else is a fault."""
        text = self.log.read_text()
        lines = [line for line in text.splitlines() if line.startswith("var-hf: ")]
        return lines[0] if len(lines) == 1 and "Traceback" not in text else text


def pipeline_of(run: Path) -> dict[str, bytes]:
    """The files of a run's pipeline; its card names the run folder, so all have one name."""
    folder = run / "pipeline"
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def kill(training: Training, run: Path, wait: Callable[[], None]) -> bool:
    """Start a run, wait, and kill it; whether it was still alive."""
    process = training.start(run)
    wait()
    os.kill(process, signal.SIGKILL)  # a zombie until it is waited for, so the id is still its own
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status)


def until_the_last_checkpoint(run: Path, delay: float) -> None:
    """Wait until Trainer has begun to write the last checkpoint, and a moment longer."""
    draft = run / "trainer" / f"checkpoint-{NUM_STEPS}"
    final = run / "checkpoints" / f"step-{NUM_STEPS:08d}"
    deadline = time.monotonic() + 120
    while not draft.exists() and not final.exists() and time.monotonic() < deadline:
        time.sleep(0.0005)
    time.sleep(delay)


def run_kills(
    training: Training,
    folder: Path,
    expected: dict[str, bytes],
    seed: int,
    count: int,
    seconds: float,
) -> dict:
    """Kill, start again, compare."""
    chance, outcomes, wrong = random.Random(seed), Counter(), []
    for number in tqdm(range(count), mininterval=30):
        run = folder / "killed" / "run"
        shutil.rmtree(run, ignore_errors=True)
        at_the_last = number % 2 == 1
        delay = chance.uniform(0, seconds / 32 if at_the_last else seconds * 0.8)
        wait = partial(until_the_last_checkpoint, run) if at_the_last else time.sleep
        was_alive = kill(training, run, partial(wait, delay))
        names = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
        state = "finished" if not was_alive else names[-1] if names else "no checkpoint"
        if (
            was_alive
            and names
            and names[-1].endswith(f"{NUM_STEPS}")
            and pipeline_of(run) != expected
        ):
            state = "last checkpoint without its pipeline"
        outcomes[("last checkpoint: " if at_the_last else "any time: ") + state] += 1
        code = training.finish(run)
        if code != 0 or pipeline_of(run) != expected:
            wrong.append(
                {"number": number, "code": code, "state": state, "error": training.error()}
            )
    return {"count": count, "found": dict(sorted(outcomes.items())), "wrong": wrong}


def run_full_disks(
    training: Training, folder: Path, expected: dict[str, bytes], seed: int, count: int, used: int
) -> dict:
    """Fill the disk at a random place, make room, compare."""
    chance, outcomes, wrong = random.Random(seed), Counter(), []
    disk = folder / "disk"
    disk.mkdir()
    for number in tqdm(range(count), mininterval=30):
        size = chance.randrange(16, used // 1024)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(disk)]
        subprocess.run(mount, check=True)
        try:
            run = disk / "run"
            first = training.finish(run)
            error = training.error() if first else ""
            outcomes["finished" if first == 0 else "refused"] += 1
            one_line = first == 0 or (first == 1 and "\n" not in error and str(disk) in error)
            subprocess.run(["mount", "-o", f"remount,size={ROOM}m", "none", str(disk)], check=True)
            code = training.finish(run)
            if not one_line or code != 0 or pipeline_of(run) != expected:
                wrong.append(
                    {"number": number, "kib": size, "codes": [first, code], "error": error}
                )
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    return {"count": count, "found": dict(outcomes), "wrong": wrong}


def damage(file: Path, chance: random.Random) -> str:
    """Change a file in one of seven ways; returns which."""
    content = file.read_bytes()
    kind = chance.choice(["flip", "cut", "empty", "remove", "text", "json", "pipe"])
    if kind == "flip" and content:
        place = chance.randrange(len(content))
        flipped = content[place] ^ (1 << chance.randrange(8))
        file.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
    elif kind == "cut":
        file.write_bytes(content[: chance.randrange(len(content) + 1)])
    elif kind in ("remove", "pipe"):
        file.unlink()
        if kind == "pipe":
            os.mkfifo(file)
    else:
        texts = {
            "empty": "",
            "text": "thesis",
            "json": json.dumps({"step": -1, "global_step": 1e9}),
        }
        file.write_text(texts.get(kind, ""))
    return kind


def run_damages(
    training: Training,
    folder: Path,
    expected: dict[str, bytes],
    seed: int,
    count: int,
    killed: Path,
) -> dict:
    """Damage one file of a run that was cut off, start it again, compare."""
    chance, outcomes, wrong = random.Random(seed), Counter(), []
    names = sorted(
        path.relative_to(killed).as_posix()
        for path in killed.rglob("*")
        if path.is_file() and path.name != ".lock"
    )
    for number in tqdm(range(count), mininterval=30):
        run = folder / "damaged" / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(killed, run)
        name = names[number % len(names)]
        kind = damage(run / name, chance)
        process = training.start(run)
        code = _wait(process, 600)
        error = training.error()
        outcomes["finished" if code == 0 else "refused"] += 1
        right = pipeline_of(run) == expected if code == 0 else code == 1 and "\n" not in error
        if not right:
            wrong.append(
                {"number": number, "file": name, "kind": kind, "code": code, "error": error[-800:]}
            )
    return {"count": count, "found": dict(outcomes), "wrong": wrong}


def _wait(process: int, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return 124


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--full-disks", type=int, default=0, help="needs root")
    parser.add_argument("--damages", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0, help="of the moments, places and sizes")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_inputs(folder)
        training = Training(folder)
        code = training.finish(folder / "whole" / "run")
        if code != 0:
            sys.exit(training.error())
        for name in (folder / "modules.txt").read_text().split():  # what every fork would import
            with suppress(Exception):
                importlib.import_module(name)
        shutil.rmtree(folder / "whole" / "run")
        started = time.monotonic()
        training.finish(folder / "whole" / "run")
        seconds = time.monotonic() - started
        expected = pipeline_of(folder / "whole" / "run")
        used = sum(
            path.stat().st_size for path in (folder / "whole" / "run").rglob("*") if path.is_file()
        )
        # The damaged runs start from a run that was cut off before its last checkpoint.
        kill(
            training,
            folder / "cut" / "run",
            lambda: until_the_last_checkpoint(folder / "cut" / "run", 0),
        )
        result = {}
        for name, run_part in (
            ("kills", partial(run_kills, seed=options.seed, count=options.kills, seconds=seconds)),
            (
                "damages",
                partial(
                    run_damages,
                    seed=options.seed,
                    count=options.damages,
                    killed=folder / "cut" / "run",
                ),
            ),
            (
                "full disks",
                partial(run_full_disks, seed=options.seed, count=options.full_disks, used=used),
            ),
        ):
            result[name] = part = run_part(training, folder, expected)
            print(f"{name}: {part['count']} tried, {len(part['wrong'])} wrong; {part['found']}")
    if options.output:
        write_json(options.output, result)
    sys.exit(any(part["wrong"] for part in result.values()))


if __name__ == "__main__":
    main()
