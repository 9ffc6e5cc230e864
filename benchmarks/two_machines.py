"""Train, sample and evaluate on two machines, lose one of them in the middle, and go on.

    sudo python benchmarks/two_machines.py --work /tmp/two-machines --json results.json

The machines are two network namespaces of this one, joined by a virtual cable; each has a mount
namespace of its own, in which the folder of the results is either shared or its own. Commands are
started by `torchrun` and `accelerate launch` as on real machines. Needs Linux, root and iproute2.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from var_hf.modeling_vqvae import MultiScaleVQVAE

ADDRESSES = ("10.77.0.1", "10.77.0.2")
CLASSES = ("apple", "fox", "rocket")
STEPS = 60
KILL_AT = 25  # step after which a machine is lost
PATIENCE = 240  # seconds for one command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for data and results")
    parser.add_argument("--json", type=Path, help="file for the measurements")
    parser.add_argument("--timeout", type=int, default=10, help="VAR_HF_PROCESS_TIMEOUT")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    with machines() as names:
        trial = Trial(arguments.work, names, arguments.timeout)
        results = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
            "timeout_s": arguments.timeout,
            **trial.train(),
            **trial.sample(),
            **trial.evaluate(),
        }
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")


@contextmanager
def machines() -> Iterator[tuple[str, str]]:
    """Two network namespaces that reach each other through a virtual cable alone."""
    names = tuple(f"var-hf-{os.getpid()}-{letter}" for letter in "ab")
    try:
        for name in names:
            ip("netns", "add", name)
        ends = [f"ve{os.getpid()}{letter}" for letter in "ab"]
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(names, ends, ADDRESSES, strict=True):
            ip("link", "set", end, "netns", name, "name", "eth0")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "eth0", "up")
        yield names  # type: ignore[misc]
    finally:
        for name in names:
            kill(name)
            subprocess.run(["ip", "netns", "delete", name], check=False)


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def kill(machine: str) -> None:
    """End all processes of a machine at once, as a power cut does."""
    found = subprocess.run(["ip", "netns", "pids", machine], capture_output=True, text=True)
    for pid in found.stdout.split():
        os.kill(int(pid), signal.SIGKILL)


def cut(machine: str) -> None:
    ip("-n", machine, "link", "set", "eth0", "down")


def repair(machine: str) -> None:
    ip("-n", machine, "link", "set", "eth0", "up")


@dataclass
class Running:
    """A command on one machine, and when it said what."""

    process: subprocess.Popen[str]
    lines: list[tuple[float, str]] = field(default_factory=list)
    ended: float | None = None

    def __post_init__(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))
        self.process.wait()
        self.ended = time.monotonic()

    def wait(self, until: float) -> None:
        while self.ended is None and time.monotonic() < until:
            time.sleep(0.05)

    def said(self) -> tuple[float, str] | None:
        """The first line in which the command itself gives up."""
        for when, line in self.lines:
            if found := re.search(r"var-hf: (.*)", line):
                return when, found[1]
        return None

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)


class Trial:
    """The commands, and what came of them."""

    def __init__(self, work: Path, names: tuple[str, str], timeout: int):
        self.work, self.names, self.timeout = work, names, timeout
        self.port = 29500
        (work / "other-machine").mkdir(parents=True)
        write_images(work / "images")
        vqvae().save_pretrained(work / "vqvae")
        settings = {
            "num_train_epochs": STEPS * 8 / 36,
            "batch_size": 8,
            "resize_factor": 1.25,
            "copies": 2,
            "architecture": {
                "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
            },
            "base_learning_rate": 1e-2,
            "logging_steps": 1,
            "save_steps": 10,
            "sample_steps": 0,
        }  # fmt: skip
        (work / "recipe.json").write_text(json.dumps(settings))

    # Commands

    def one(self, *arguments: str) -> str:
        """A command in one process, on no machine in particular."""
        done = subprocess.run(
            [sys.executable, "-m", "var_hf.cli", *arguments],
            env=self._environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def start(
        self, shared: bool, *arguments: str, launcher: str = "torchrun"
    ) -> tuple[Running, Running]:
        """The same command on both machines; `shared`: with one folder of results for both."""
        self.port += 1
        both = []
        for number, name in enumerate(self.names):
            if launcher == "torchrun":
                launch = [
                    "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
                    "--node-rank", str(number), "--master-addr", ADDRESSES[0],
                    "--master-port", str(self.port), "--local-addr", ADDRESSES[number],
                    "-m", "var_hf.cli",
                ]  # fmt: skip
            else:
                launch = [
                    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2",
                    "--num_processes", "2", "--machine_rank", str(number),
                    "--main_process_ip", ADDRESSES[0], "--main_process_port", str(self.port),
                    "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "var_hf.cli",
                ]  # fmt: skip
            script = 'exec "$@"'
            if not shared and number:
                mount = f"mount --bind {self.work}/other-machine {self.work}/results"
                script = f"{mount} && {script}"
            (self.work / "results").mkdir(exist_ok=True)
            command = ["ip", "netns", "exec", name, "unshare", "-m", "sh", "-c", script, "sh"]
            process = subprocess.Popen(
                [*command, sys.executable, *launch, *arguments],
                env=self._environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            both.append(Running(process))
        return both[0], both[1]

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "eth0",
            "ACCELERATE_USE_CPU": "true",
            "VAR_HF_PROCESS_TIMEOUT": str(self.timeout),
            "HF_HUB_OFFLINE": "1",
        }

    def finish(self, both: tuple[Running, Running]) -> None:
        until = time.monotonic() + PATIENCE
        for running in both:
            running.wait(until)
            if running.ended is None or running.process.returncode:
                raise SystemExit(f"a command failed:\n{running.text[-4000:]}")

    def refused(self, both: tuple[Running, Running]) -> list[str]:
        """What both machines say, where the command is refused."""
        until = time.monotonic() + PATIENCE
        sentences = []
        for running in both:
            running.wait(until)
            found = running.said()
            if found is None:
                raise SystemExit(f"a command was not refused:\n{running.text[-4000:]}")
            sentences.append(found[1])
        for name in self.names:
            kill(name)
        return sentences

    def lose(
        self,
        both: tuple[Running, Running],
        lost: int,
        how: Callable[[str], None],
        is_time: Callable[[], bool],
    ) -> dict[str, Any]:
        """Lose a machine in the middle of a command, and measure when the other one stops."""
        until = time.monotonic() + PATIENCE
        while not is_time():
            if time.monotonic() > until or both[1 - lost].ended is not None:
                raise SystemExit(f"a command did not get far:\n{both[1 - lost].text[-4000:]}")
            time.sleep(0.05)
        moment = time.monotonic()
        how(self.names[lost])
        other = both[1 - lost]
        other.wait(moment + PATIENCE)
        found = other.said()
        if found is None:
            raise SystemExit(f"the other machine says nothing:\n{other.text[-4000:]}")
        launcher = None if other.ended is None else round(other.ended - moment, 1)
        for name in self.names:
            kill(name)
        for name in self.names:
            repair(name)
        return {
            "lost": "ab"[lost],
            "how": how.__name__,
            "seconds_until_the_other_stops": round(found[0] - moment, 1),
            "seconds_until_its_launcher_ends": launcher,
            "sentence": found[1],
        }

    # What is tried

    def train(self) -> dict[str, Any]:
        results = self.work / "results"

        def command(name: str) -> list[str]:
            return [
                "train", "--data", f"{self.work}/images", "--tokenizer", f"{self.work}/vqvae",
                "--recipe", f"{self.work}/recipe.json", "-o", f"{results}/{name}",
            ]  # fmt: skip

        def reached(name: str) -> Callable[[], bool]:
            return lambda: last_step(results / name) >= KILL_AT

        self.one(*command("one"))
        expected = losses(results / "one")
        found: dict[str, Any] = {}
        for launcher in ("torchrun", "accelerate"):
            self.finish(self.start(True, *command(launcher), launcher=launcher))
            found[f"{launcher}, shared"] = apart(expected, losses(results / launcher))
        self.finish(self.start(False, *command("own")))
        found["torchrun, not shared"] = apart(expected, losses(results / "own"))

        stops = []
        for name, lost, how in (
            ("kill-b", 1, kill), ("kill-a", 0, kill), ("cut-b", 1, cut),
        ):  # fmt: skip
            stop = self.lose(self.start(True, *command(name)), lost, how, reached(name))
            self.finish(self.start(True, *command(name)))
            stops.append(stop | {"continued": apart(expected, losses(results / name))})

        name = "own-killed"
        stop = self.lose(self.start(False, *command(name)), 1, kill, reached(name))
        refusal = self.refused(self.start(False, *command(name)))
        shutil.copytree(results / name, self.work / "other-machine" / name, dirs_exist_ok=True)
        self.finish(self.start(False, *command(name)))
        own = stop | {
            "refused_without_the_checkpoint": refusal,
            "continued_after_copying": apart(expected, losses(results / name)),
        }
        return {
            "train": {
                "steps": STEPS,
                "largest_relative_difference_of_losses": found,
                "lost_machine": stops,
                "lost_machine_without_shared_folder": own,
            }
        }

    def sample(self) -> dict[str, Any]:
        results = self.work / "results"

        def command(name: str) -> list[str]:
            return [
                "sample", "--images-per-class", "4", "--batch-size", "4", "--shard-size", "8",
                "--format", "tar", "--device", "cpu", "--dtype", "float32",
                "-o", f"{results}/{name}",
            ]  # fmt: skip

        self.one(*command("samples"))
        self.one(*command("samples-2"), "--seed", "1")
        expected = files_of(results / "samples")
        self.finish(self.start(True, *command("samples-both")))
        same = files_of(results / "samples-both") == expected
        stop = self.lose(
            self.start(True, *command("samples-killed")),
            1,
            kill,
            lambda: len(list((results / "samples-killed").glob("*.tar"))) >= 4,
        )
        left = len(list((results / "samples-killed").glob("*.tar")))
        self.finish(self.start(True, *command("samples-killed")))
        stop |= {"shards_kept": left, "same": files_of(results / "samples-killed") == expected}
        return {
            "sample": {
                "images": len(json.loads((results / "samples/manifest.json").read_text())["shards"])
                * 8,
                "same_bytes_as_one_process": same,
                "lost_machine": stop,
                "refused_without_shared_folder": self.refused(
                    self.start(False, *command("samples-own"))
                ),
            }
        }

    def evaluate(self) -> dict[str, Any]:
        results = self.work / "results"

        def command(name: str) -> list[str]:
            return [
                "evaluate", f"{results}/samples", "--reference", f"{results}/samples-2",
                "--features", "emoji", "--min-images", "2", "--feature-batch-size", "16",
                "--device", "cpu", "-o", f"{results}/{name}",
            ]  # fmt: skip

        self.one(*command("report"))
        self.finish(self.start(True, *command("report-both")))
        for name in ("samples", "samples-2"):
            shutil.copytree(results / name, self.work / "other-machine" / name)
        self.finish(self.start(False, *command("report-own")))
        one, both, own = (
            json.loads((results / name / "result.json").read_text())
            for name in ("report", "report-both", "report-own")
        )
        # Another reference lies on the other machine.
        shutil.rmtree(self.work / "other-machine/samples-2")
        shutil.copytree(results / "samples", self.work / "other-machine/samples-2")
        return {
            "evaluate": {
                "fid": one["fid"],
                "same_numbers_as_one_process": one == both,
                "same_without_shared_folder": one == own,
                "refused_with_other_data": self.refused(
                    self.start(False, *command("report-other"))
                ),
            }
        }


def write_images(folder: Path) -> None:
    random = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(12):
            pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize((12, 12), Image.Resampling.BICUBIC)
            image.save(folder / name / f"{number:02d}.png")


def vqvae() -> MultiScaleVQVAE:
    torch.manual_seed(0)
    return MultiScaleVQVAE(
        base_channels=8,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        latent_channels=6,
        codebook_size=61,
        token_map_sizes=(1, 2, 3, 6),
        norm_num_groups=4,
    )


def last_step(run: Path) -> int:
    log = run / "log.jsonl"
    found = re.findall(r'^{"step": (\d+)', log.read_text() if log.exists() else "", re.MULTILINE)
    return int(found[-1]) if found else -1


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["training"]["loss"] for line in lines if "training" in line]


def apart(expected: list[float], found: list[float]) -> float:
    """Largest relative difference of two lists of losses."""
    if len(expected) != len(found):
        raise SystemExit(f"{len(found)} losses instead of {len(expected)}")
    return max(abs(a - b) / abs(a) for a, b in zip(expected, found, strict=True))


def files_of(folder: Path) -> dict[str, str]:
    """Digests of the shards of a sample set."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return {str(shard["shard"]): shard["sha256"] for shard in manifest["shards"]}


if __name__ == "__main__":
    main()
