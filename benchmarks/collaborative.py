"""Measure collaborative decoding beside the drafter alone and the refiner alone.

    python benchmarks/collaborative.py --drafter d30 --refiner d16 --draft-scales 8 -o result.json

All of them share weights and run in turn in every round, with random weights of published sizes.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from tqdm import tqdm

from var_hf.benchmark import machine, now, peak_memory, pipeline_cost, random_pipeline
from var_hf.files import write_json
from var_hf.generation import transformer_uses
from var_hf.pipelines.pipeline_var_collaborative import VARCollaborativePipeline


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--drafter", default="d30")
    parser.add_argument("--refiner", default="d16")
    parser.add_argument("--draft-scales", type=int, nargs="+", default=[8])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", "-o", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    labels = [i * 7 % 1000 for i in range(options.batch)]

    pair = random_pipeline(options.drafter, dtype, device, refiner=options.refiner)
    pipes = {}
    for draft_scales in [pair.num_timesteps, *options.draft_scales, 0]:
        pipe = VARCollaborativePipeline.from_pipe(pair, draft_scales=draft_scales)
        pipe.set_progress_bar_config(disable=True)
        pipes[draft_scales] = pipe

    seconds = {number: [] for number in pipes}
    cpu_seconds = {number: [] for number in pipes}
    peaks = {}
    with tqdm(total=len(pipes) * (options.rounds + 1), unit="call") as progress:
        for round_number in range(options.rounds + 1):
            for number, pipe in pipes.items():
                generator = torch.Generator().manual_seed(0)
                with peak_memory(device) as memory:
                    start, cpu_start = now(device), time.process_time()
                    pipe(labels, generator=generator, output_type="pt")
                    taken, cpu = now(device) - start, time.process_time() - cpu_start
                if round_number > 0:  # the first round is a warm-up
                    seconds[number].append(taken)
                    cpu_seconds[number].append(cpu)
                    peaks[number] = memory["peak"]
                progress.update()

    def ratio(times):
        alone = times[pair.num_timesteps]
        return {
            number: statistics.median(a / b for a, b in zip(alone, values, strict=True))
            for number, values in times.items()
        }

    result = {
        "drafter": options.drafter,
        "refiner": options.refiner,
        "batch": options.batch,
        "dtype": options.dtype,
        "machine": machine(device),
        "seconds": seconds,
        "median_ratio": ratio(seconds),
        "median_cpu_ratio": ratio(cpu_seconds),
        "peak_bytes": peaks,
        "flops": {
            number: pipeline_cost(
                transformer_uses(pipe.schedule(), pipe.num_timesteps),
                pipe.vqvae.config,
                batch_size=options.batch,
            ).flops
            for number, pipe in pipes.items()
        },
    }
    write_json(options.output, result)


if __name__ == "__main__":
    main()
