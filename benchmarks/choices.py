"""Measure optional trade-offs: no guidance on the last scales, and int8 weights.

    python benchmarks/choices.py --size d16 --batch 1 -o result.json

All variants and the plain pipeline run in turn in every round, with random weights of a published
size.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)
from tqdm import tqdm

from var_hf.benchmark import machine, now, random_pipeline
from var_hf.files import write_json

GUIDED_SCALES = (8, 7)
QUANTISED = {
    "int8 weights": Int8WeightOnlyConfig(),
    "int8 weights and activations": Int8DynamicActivationInt8WeightConfig(),
}


def is_quantised(module: torch.nn.Module, name: str) -> bool:
    """Select the layers of transformers' own quantization: all linear layers except the head."""
    return isinstance(module, torch.nn.Linear) and not name.startswith("lm_head")


def first_logits(pipe, labels) -> torch.Tensor:
    """Compute the logits of the first scale, which show the effect before tokens differ."""
    return next(pipe.stream(labels, generator=torch.Generator().manual_seed(0))).logits


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="d16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", "-o", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    labels = [i * 7 % 1000 for i in range(options.batch)]

    plain = random_pipeline(options.size, dtype, device)
    reference = first_logits(plain, labels)
    variants = {"plain": (plain, {})}
    for guided_scales in GUIDED_SCALES:
        variants[f"{guided_scales} scales guided"] = (plain, {"guided_scales": guided_scales})
    moved = {}
    for name, config in QUANTISED.items():
        pipe = random_pipeline(options.size, dtype, device)
        quantize_(pipe.transformer, config, filter_fn=is_quantised)
        moved[name] = (first_logits(pipe, labels) - reference).abs().mean().item()
        variants[name] = (pipe, {})

    seconds = {name: [] for name in variants}
    cpu_seconds = {name: [] for name in variants}
    with tqdm(total=len(variants) * (options.rounds + 1), unit="call") as progress:
        for number in range(options.rounds + 1):
            for name, (pipe, settings) in variants.items():
                start, cpu_start = now(device), time.process_time()
                generator = torch.Generator().manual_seed(0)
                pipe(labels, generator=generator, output_type="pt", **settings)
                cpu = time.process_time() - cpu_start
                if number > 0:  # the first round is a warm-up
                    seconds[name].append(now(device) - start)
                    cpu_seconds[name].append(cpu)
                progress.update()

    def ratio(times):
        return {
            name: statistics.median(
                plain / other for plain, other in zip(times["plain"], values, strict=True)
            )
            for name, values in times.items()
        }

    result = {
        "size": options.size,
        "batch": options.batch,
        "dtype": options.dtype,
        "machine": machine(device),
        "seconds": seconds,
        "median_ratio": ratio(seconds),
        "median_cpu_ratio": ratio(cpu_seconds),
        "logits_std": reference.std().item(),
        "logits_moved_by": moved,
    }
    write_json(options.output, result)


if __name__ == "__main__":
    main()
