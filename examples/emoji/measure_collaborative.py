"""Judge images that var-emoji-64 drafts and a small sibling refines, for each number of scales.

    python examples/emoji/measure_collaborative.py outputs/emoji/data \
        outputs/emoji/refiner/pipeline outputs/emoji/classifier.safetensors \
        --output results.json --grid collaborative.png

Per number of drafted scales, over three seeds: the share of images that the classifier names
rightly, the Frechet distance of its features to those of the test images, the spread within a
class, and the processor time. The grid shows one seed: a row per number of drafted scales.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import make_image_grid
from judge_images import Judging

from var_hf import VARCollaborativePipeline, VARModel, VARPipeline
from var_hf.assets import VAR_EMOJI_64
from var_hf.files import write_json

SHOWN = 12  # classes in the grid


def main() -> None:
    """Draw, judge, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder written by draw.py")
    parser.add_argument("refiner", type=Path, help="pipeline folder of the sibling")
    parser.add_argument("classifier", type=Path, help="file written by train_classifier.py")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--grid", type=Path, help="PNG to write")
    parser.add_argument("--draft-scales", type=int, nargs="+", default=[7, 6, 5, 4, 0])
    parser.add_argument("--count", type=int, default=10, help="images per class and seed")
    parser.add_argument("--batch-size", type=int, default=40, help="default: %(default)s")
    arguments = parser.parse_args()
    judging = Judging(arguments.classifier, arguments.data)
    refiner = VARModel.from_pretrained(
        arguments.refiner, subfolder="transformer", dtype=torch.float32
    )
    pipe = VARCollaborativePipeline.from_pipe(
        VARPipeline.from_pretrained(VAR_EMOJI_64, dtype=torch.float32), refiner=refiner
    )
    results: dict[str, Any] = {"images_per_seed": 40 * arguments.count, "draft_scales": {}}
    shown = []
    for draft_scales in arguments.draft_scales:
        pipe.draft_scales = draft_scales
        measured, images = judging.measure(pipe, arguments.count, arguments.batch_size)
        shown += images[:SHOWN]
        results["draft_scales"][str(draft_scales)] = measured
        write_json(arguments.output, results)
    if arguments.grid is not None:
        grid = make_image_grid(shown, rows=len(arguments.draft_scales), cols=SHOWN)
        grid.save(arguments.grid)


if __name__ == "__main__":
    main()
