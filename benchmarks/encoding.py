"""Measure encoding on a CPU: few images at a time in channels-last format, as the package does,
against the whole batch at once.

    python benchmarks/encoding.py -o benchmarks/results/encoding.json

Both run in turn in every round. The weights of the release's VQVAE are random, those of
var-emoji-128 are the shipped ones; the time does not depend on them.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from tqdm import tqdm

from var_hf import MultiScaleVQVAE
from var_hf.assets import VAR_EMOJI_128
from var_hf.benchmark import machine, peak_memory
from var_hf.files import write_json


def at_once(vqvae: MultiScaleVQVAE, images: torch.Tensor) -> list[torch.Tensor]:
    """Encode the whole batch at once."""
    return vqvae.quantizer.encode(vqvae.quant_conv(vqvae.encoder(images)).float())[0]


def few_at_a_time(vqvae: MultiScaleVQVAE, images: torch.Tensor) -> list[torch.Tensor]:
    """Encode as the package does."""
    return vqvae.encode(images).token_maps


@torch.inference_mode()
def compare(vqvae: MultiScaleVQVAE, batch: int, rounds: int) -> dict:
    """Time both ways on the same images, and compare their tokens."""
    side = vqvae.image_size
    images = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ways = {"at once": at_once, "few at a time": few_at_a_time}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict = {"batch": batch, "image_size": side}
    tokens = {}
    for number in tqdm(range(rounds + 1), desc=f"{side} px"):
        for name, way in ways.items():
            start = time.process_time()
            with peak_memory(torch.device("cpu")) as memory:
                tokens[name] = torch.cat(way(vqvae, images), dim=1)
            if number > 0:  # the first round is a warm-up
                cpu_seconds[name].append((time.process_time() - start) / batch)
                found[f"peak bytes, {name}"] = memory["peak"]
    found["cpu seconds per image"] = cpu_seconds
    pairs = zip(*cpu_seconds.values(), strict=True)
    found["ratio"] = statistics.median(before / after for before, after in pairs)
    found["same tokens"] = (tokens["at once"] == tokens["few at a time"]).float().mean().item()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", "-o", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    torch.manual_seed(0)
    emoji = MultiScaleVQVAE.from_pretrained(VAR_EMOJI_128 / "vqvae", torch_dtype=torch.float32)
    models = {"var-emoji-128": (emoji, 64), "release": (MultiScaleVQVAE(), 4)}
    found = {name: compare(m.eval(), batch, options.rounds) for name, (m, batch) in models.items()}
    write_json(options.output, {"machine": machine(torch.device("cpu")), "models": found})


if __name__ == "__main__":
    main()
