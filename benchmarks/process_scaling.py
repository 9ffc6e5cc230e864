"""Measure how the speed of training grows with the number of CPU processes (docs/scale.md).

    python benchmarks/process_scaling.py

Trains the transformer of var-emoji-64 for a few steps with 1, 2 and 4 processes of one thread each,
DDP and FSDP2, in turns. Writes benchmarks/results/process-scaling.json. Speed does not depend on
what the images show, so that they are noise.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from var_hf.assets import VAR_EMOJI_64
from var_hf.benchmark import machine
from var_hf.configuration_var import VARConfig
from var_hf.files import new_path

RESULT = Path(__file__).parent / "results/process-scaling.json"
ENGINES = [("one process", 1), ("DDP", 2), ("FSDP2", 2), ("DDP", 4), ("FSDP2", 4)]
BATCH, STEPS, FIRST_STEPS = 32, 14, 4  # the first steps of a process are slower


def make_images(folder: Path) -> None:
    """Write 64 images of noise in two classes."""
    generator = torch.Generator().manual_seed(0)
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for number in range(32):
            pixels = torch.randint(256, (64, 64, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(folder / label / f"{number:02d}.png")


def speed(inputs: Path, engine: str, processes: int) -> float:
    """Train, and return the median of images per second after the first steps."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    if processes > 1:
        launch += ["--multi_gpu", "--num_machines", "1"]  # the way to several CPU processes, too
    config = VARConfig.from_pretrained(VAR_EMOJI_64 / "transformer")
    architecture = {
        name: getattr(config, name)
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    }
    settings = {
        "architecture": architecture,
        "data": str(inputs / "images"),
        "tokenizer": str(VAR_EMOJI_64 / "vqvae"),
        "token_cache": str(inputs / "tokens"),
        "resize_factor": 1.0,
        "batch_size": BATCH,
        "num_train_epochs": STEPS * BATCH / 64,
        "logging_steps": 1,
        "sample_steps": 0,
        "shard": engine == "FSDP2",
    }
    recipe = inputs / "recipe.json"
    recipe.write_text(json.dumps(settings))
    with tempfile.TemporaryDirectory(dir=inputs) as output:
        run = Path(output) / "run"
        command = [*launch, "-m", "var_hf.cli", "train", "--recipe", recipe, "--output", run]
        done = subprocess.run(
            [str(word) for word in command],
            env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    engines = [line["engine"]["name"] for line in lines if "engine" in line]
    if engines != [engine]:
        raise RuntimeError(f"Asked for {engine}, trained with {engines}.")
    speeds = [
        line["images_per_second"]
        for line in lines
        if "images_per_second" in line and line["step"] > FIRST_STEPS
    ]
    return statistics.median(speeds)


def main() -> None:
    """Read the command line, measure in turns and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    speeds: dict[tuple[str, int], list[float]] = {each: [] for each in ENGINES}
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder)
        make_images(inputs / "images")
        turns = [each for _ in range(rounds) for each in ENGINES]
        for engine, processes in tqdm(turns, desc="measure"):
            speeds[engine, processes].append(speed(inputs, engine, processes))
    single = statistics.median(speeds[ENGINES[0]])
    rows: list[dict[str, Any]] = []
    for (engine, processes), values in speeds.items():
        ratio = statistics.median(values) / single
        workers = min(processes, os.cpu_count() or 1)
        rows.append(
            {
                "engine": engine,
                "processes": processes,
                "images_per_second": [round(value, 2) for value in values],
                "ratio": round(ratio, 3),
                "efficiency": round(ratio / workers, 3),
            }
        )
    result = {
        "machine": machine(torch.device("cpu")),
        "batch": BATCH,
        "steps": STEPS - FIRST_STEPS,
        "runs": rows,
    }
    with new_path(RESULT, replace=True) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
