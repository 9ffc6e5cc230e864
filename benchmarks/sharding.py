"""Prove and measure sharded training on CPU processes; docs/sharding.md quotes the results.

python benchmarks/sharding.py kills      # 50 kills of a random process at a random time
python benchmarks/sharding.py equality   # 1, 2 and 4 processes, DDP and FSDP2, resumed 2 to 3 to 1
python benchmarks/sharding.py memory     # peak memory of each process against the formula

Results are in benchmarks/results/sharding-NAME.json; kills and memory go on where they stopped. The
processes are forked from this one, which has imported torch already: starting costs no more than
connecting. Everything else is that of `accelerate launch`: gloo, environment variables, one process
for each rank.
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import resource
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

if "MALLOC_MMAP_THRESHOLD_" not in os.environ:  # malloc reads it when a process starts
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "MALLOC_MMAP_THRESHOLD_": "65536",  # memory that is freed goes back to the system
    }
    os.execv(sys.executable, [sys.executable, "-W", "ignore", *sys.argv])

import torch
from PIL import Image
from transformers import TrainerCallback

from var_hf import MultiScaleVQVAE, VARConfig, VARPipeline
from var_hf.costs import training_memory
from var_hf.training.transformer import make_trainer, run_trainer, train_transformer
from var_hf.training.transformer_config import TransformerTrainingConfig

RESULTS = Path(__file__).parent / "results"
BATCH = 12  # divided by 1, 2, 3 and 4 processes


def make_inputs(folder: Path) -> None:
    """Forty-eight images of three classes, and an untrained tokenizer for them."""
    generator = torch.Generator().manual_seed(0)
    for label in ("a", "b", "c"):
        (folder / "images" / label).mkdir(parents=True)
        for number in range(16):
            pixels = torch.randint(256, (16, 16, 3), dtype=torch.uint8, generator=generator)
            image = Image.fromarray(pixels.numpy())
            image.save(folder / "images" / label / f"{number:02d}.png")
    torch.manual_seed(0)
    MultiScaleVQVAE(
        codebook_size=61, latent_channels=8, base_channels=32, channel_multipliers=(1, 1),
        num_res_blocks=1, token_map_sizes=(1, 2, 3, 5, 8),
    ).save_pretrained(folder / "vqvae")  # fmt: skip


def settings(inputs: Path, **changes: Any) -> TransformerTrainingConfig:
    """Settings of a run of 24 steps with a checkpoint every third, every step logged."""
    values: dict[str, Any] = {
        "data": str(inputs / "images"),
        "tokenizer": str(inputs / "vqvae"),
        "token_cache": str(inputs / "tokens"),
        "architecture": {
            "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
            "drop_path_rate": 0.1,
        },
        "resize_factor": 1.0,
        "batch_size": BATCH,
        "num_train_epochs": 6,
        "learning_rate": 2e-3,
        "logging_steps": 1,
        "save_steps": 3,
        "sample_steps": 0,
        "shard": True,
    }  # fmt: skip
    return TransformerTrainingConfig(**{**values, **changes})


class Processes:
    """The processes of one start of a run.

    Args:
        count: How many.
        work: What each of them calls.
        log: Their standard output and error go there.
    """

    def __init__(self, count: int, work: Callable[[], Any], log: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = multiprocessing.get_context("fork")
        self.processes = [
            context.Process(target=self._enter, args=(rank, count, port, work, log))
            for rank in range(count)
        ]
        for process in self.processes:
            process.start()

    @staticmethod
    def _enter(rank: int, count: int, port: int, work: Callable[[], Any], log: Path) -> None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        if count > 1:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }  # fmt: skip
        warnings.simplefilter("ignore")
        work()
        os._exit(0)

    def finish(self) -> None:
        """Wait for all.

        Raises:
            RuntimeError: One of them failed.
        """
        for process in self.processes:
            process.join()
        codes = [process.exitcode for process in self.processes]
        if any(codes):
            raise RuntimeError(f"The processes ended with {codes}.")

    def kill_one(self, after: float, chance: random.Random) -> dict[str, Any] | None:
        """Kill a random process, and then the others as a launcher does.

        Returns:
            Which one, and after how many seconds; ``None`` if they had finished.
        """
        end = time.monotonic() + after
        while time.monotonic() < end and any(p.is_alive() for p in self.processes):
            time.sleep(0.005)
        rank = chance.randrange(len(self.processes))
        victim = self.processes[rank]
        if not victim.is_alive():
            self.finish()
            return None
        os.kill(victim.pid or 0, signal.SIGKILL)
        victim.join()
        time.sleep(0.2)
        for process in self.processes:
            process.kill()
            process.join()
        return {"processes": len(self.processes), "rank": rank, "seconds": round(after, 2)}


def lines(run: Path) -> list[dict[str, Any]]:
    """The training lines of a run's log."""
    entries = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [{"step": each["step"], **each["training"]} for each in entries if "training" in each]


def differences(run: Path, other: Path) -> dict[str, Any]:
    """The largest differences of two finished runs: losses, gradient norms, final weights."""
    one, two = lines(run), lines(other)
    assert [line["step"] for line in one] == [line["step"] for line in two]
    weights, others = (
        VARPipeline.from_pretrained(folder / "pipeline").transformer.state_dict()
        for folder in (run, other)
    )
    return {
        "steps": len(one),
        "loss": max(abs(a["loss"] - b["loss"]) for a, b in zip(one, two, strict=True)),
        "grad_norm": max(
            abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in zip(one, two, strict=True)
        ),
        "weights": max((weights[name] - others[name]).abs().max().item() for name in weights),
    }


def store(name: str, result: dict[str, Any]) -> None:
    """Write the result so far."""
    result["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    file = RESULTS / f"sharding-{name}.json"
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def stored(name: str) -> dict[str, Any]:
    """The result of earlier starts."""
    file = RESULTS / f"sharding-{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def kills(work: Path, count: int) -> None:
    """Kill runs five times each, until there are `count` kills; then compare with a whole run."""
    inputs = work / "inputs"
    if not inputs.exists():
        make_inputs(inputs)
    whole = work / "whole"
    start = time.monotonic()
    config = settings(inputs)
    Processes(2, lambda: train_transformer(config, whole), work / "log.txt").finish()
    seconds = time.monotonic() - start
    result = stored("kills") or {"whole_run_seconds": round(seconds, 1), "runs": []}
    while sum(len(run["kills"]) for run in result["runs"]) < count:
        number = len(result["runs"])
        chance = random.Random(number)
        changing = number % 2 == 1  # every second run goes on with another number of processes
        run = work / f"run-{number}-{os.getpid()}"
        killed: list[dict[str, Any]] = []
        finished = False
        while not finished:
            processes = Processes(
                chance.randint(1, 4) if changing else 2,
                lambda run=run: train_transformer(config, run),
                work / "log.txt",
            )
            if len(killed) == 5:
                processes.finish()
                finished = True
                continue
            kill = processes.kill_one(chance.uniform(0, 0.8 * seconds), chance)
            finished = kill is None
            if kill is not None:
                log = run / "log.jsonl"
                kill["step"] = log.read_text().count('"training"') if log.exists() else 0
                killed.append(kill)
        found = differences(run, whole)
        leftovers = [str(p.relative_to(run)) for p in run.rglob("*.partial")]
        result["runs"].append(
            {"same_number": not changing, "kills": killed, **found, "leftovers": leftovers}
        )
        store("kills", result)
        sys.stderr.write(f"run {number}: {len(killed)} kills, {found}\n")


def equality(work: Path) -> None:
    """Compare engines and numbers of processes with one process that is not sharded."""
    inputs = work / "inputs"
    if not inputs.exists():
        make_inputs(inputs)
    reference = work / "one"
    log = work / "log.txt"
    plain = settings(inputs, shard=False)
    Processes(1, lambda: train_transformer(plain, reference), log).finish()
    result: dict[str, Any] = {"comparisons": []}
    for count, shard in [(2, False), (4, False), (1, True), (2, True), (4, True)]:
        config = settings(inputs, shard=shard)
        run = work / f"{'shard' if shard else 'ddp'}-{count}"
        Processes(count, lambda: train_transformer(config, run), log).finish()  # noqa: B023
        engine = json.loads((run / "log.jsonl").read_text().splitlines()[0])["engine"]
        result["comparisons"].append({**engine, **differences(run, reference)})
    result["comparisons"].append(resumed(inputs, work, reference, log))
    store("equality", result)
    sys.stderr.write(json.dumps(result, indent=1) + "\n")


def resumed(inputs: Path, work: Path, reference: Path, log: Path) -> dict[str, Any]:
    """A run that is killed at about a third on two processes, and again on three."""
    run, config = work / "resumed", settings(inputs)
    for count, until in ((2, 8), (3, 16)):
        processes = Processes(count, lambda: train_transformer(config, run), log)
        while not (run / "log.jsonl").exists() or len(lines_so_far(run)) < until:
            time.sleep(0.01)
        for process in processes.processes:
            process.kill()
            process.join()
    Processes(1, lambda: train_transformer(config, run), log).finish()
    engines = [
        json.loads(line)
        for line in (run / "log.jsonl").read_text().splitlines()
        if "engine" in line
    ]
    counts = [(entry["step"], entry["engine"]["processes"]) for entry in engines]
    return {"name": "resumed", "processes_from_step": counts, **differences(run, reference)}


def lines_so_far(run: Path) -> list[str]:
    """The training lines of a file that is being written."""
    text = (run / "log.jsonl").read_text()
    return [line for line in text.splitlines() if '"training"' in line and line.endswith("}")]


class PeakMemory(TrainerCallback):
    """Notes the largest resident memory of the process between the second and the last step."""

    def __init__(self, file: Path, before: int):
        self.file, self.before = file, before

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget what was larger before."""
        if state.global_step == 1:
            Path("/proc/self/clear_refs").write_text("5")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the peak before anything is saved."""
        if state.global_step == state.max_steps:
            self.file.write_text(str(resident("VmHWM") - self.before))


def resident(name: str) -> int:
    """A value of /proc/self/status in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(
        next(line for line in status.splitlines() if line.startswith(name)).split()[1]
    )


#: A scaled-down d30: a quarter of its width, two fifths of its depth, a short schedule.
SCALED_DOWN = {
    "hidden_size": 480, "num_hidden_layers": 12, "num_attention_heads": 8, "drop_path_rate": 0.0,
}  # fmt: skip


#: Numbers of processes, and whether the model is sharded.
ENGINES = [(1, False), (2, False), (4, False), (2, True), (4, True)]


def memory(work: Path) -> None:
    """Measure the peak of each process, and compute it."""
    inputs = work / "inputs"
    if not inputs.exists():
        make_inputs(inputs)
    log = work / "log.txt"
    result = stored("memory") or {"model": SCALED_DOWN, "images_per_process": 3, "runs": []}
    runs = [(count, shard, True) for count, shard in ENGINES]
    runs += [(1, False, False), (2, True, False)]
    for count, shard, checkpointing in runs[len(result["runs"]) :]:
        config = settings(
            inputs, shard=shard, architecture=SCALED_DOWN, batch_size=3 * count,
            num_train_epochs=4 * 3 * count / 48, save_steps=1000,
            gradient_checkpointing=checkpointing,
        )  # fmt: skip
        name = f"{'shard' if shard else 'ddp'}-{count}-{checkpointing}"

        def measure(config: Any = config, name: str = name) -> None:
            before = resident("VmRSS")
            trainer = make_trainer(config, work / name)
            rank = os.environ.get("RANK", "0")
            trainer.add_callback(PeakMemory(work / f"{name}-{rank}.txt", before))
            run_trainer(trainer)

        Processes(count, measure, log).finish()
        peaks = [int(file.read_text()) for file in work.glob(f"{name}-*.txt")]
        computed = training_memory(
            VARConfig(
                **SCALED_DOWN, num_classes=3, vocab_size=61, latent_channels=8,
                token_map_sizes=(1, 2, 3, 5, 8),
            ),
            images=3, processes=count, shard=shard, gradient_checkpointing=checkpointing,
        )  # fmt: skip
        result["runs"].append(
            {
                "engine": "FSDP2" if shard else "DDP" if count > 1 else "one process",
                "processes": count,
                "gradient_checkpointing": checkpointing,
                "measured_mb": [round(peak / 1e6) for peak in peaks],
                "computed_mb": round(computed.total / 1e6),
            }
        )
        sys.stderr.write(f"{result['runs'][-1]}\n")
        store("memory", result)


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("name", choices=["kills", "equality", "memory"])
    parser.add_argument("--count", type=int, default=50, help="number of kills (default: 50)")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sharding-") as folder:
        work = Path(folder)
        if arguments.name == "kills":
            kills(work, arguments.count)
        else:
            {"equality": equality, "memory": memory}[arguments.name](work)


if __name__ == "__main__":
    main()
