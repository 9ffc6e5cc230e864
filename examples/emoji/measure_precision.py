"""Judge the images of var-emoji-64 in float32, bfloat16 and int8, from the same seeds.

    python examples/emoji/measure_precision.py outputs/emoji/data \
        outputs/emoji/classifier.safetensors --output precision.json --grid precision.png

The qualities are those of `judge_images.Judging`, over three seeds. The error is the distance of
the logits from those in float32, for tokens that float32 drew.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import make_image_grid
from judge_images import Judging

from var_hf.assets import VAR_EMOJI_64
from var_hf.files import write_json
from var_hf.pipelines.loading import load_pipeline

PRECISIONS = ("float32", "bfloat16", "int8")
SHOWN = 12  # classes in the grid


def main() -> None:
    """Draw, judge, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder written by draw.py")
    parser.add_argument("classifier", type=Path, help="file written by train_classifier.py")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--grid", type=Path, help="PNG to write, a row per precision")
    parser.add_argument("--count", type=int, default=6, help="images per class and seed")
    parser.add_argument("--batch-size", type=int, default=40, help="default: %(default)s")
    arguments = parser.parse_args()
    judging = Judging(arguments.classifier, arguments.data)
    pipes = {name: load_pipeline(str(VAR_EMOJI_64), name, "cpu") for name in PRECISIONS}
    results: dict[str, Any] = {"images_per_seed": 40 * arguments.count, "precisions": {}}
    shown = []

    labels = list(range(40))
    pipes["float32"].set_progress_bar_config(disable=True)
    drawn = pipes["float32"].stream(labels, generator=torch.Generator().manual_seed(0))
    token_maps = [output.tokens for output in drawn]
    inputs = pipes["float32"].vqvae.quantizer.teacher_inputs(token_maps)
    logits = {}
    for name, pipe in pipes.items():
        with torch.no_grad():
            logits[name] = pipe.transformer(torch.tensor(labels), inputs).logits
        error = (logits[name] - logits["float32"]).abs()
        measured, images = judging.measure(pipe, arguments.count, arguments.batch_size)
        shown += images[:SHOWN]
        results["precisions"][name] = measured | {
            "logits_error": {"max": error.max().item(), "mean": error.mean().item()}
        }
        write_json(arguments.output, results)
    results["logits_std"] = logits["float32"].std().item()
    write_json(arguments.output, results)
    if arguments.grid is not None:
        make_image_grid(shown, rows=len(pipes), cols=SHOWN).save(arguments.grid)


if __name__ == "__main__":
    main()
