"""Build the tokenizer that var-emoji-128 starts from: the convolutions of var-emoji-64 with the
scales and codebook size of a larger one.

    python examples/emoji/enlarge.py var_hf/assets/var-emoji-64/vqvae outputs/emoji-128/start \
        --like examples/emoji/128/start.json

The convolutions work on images of any size. The codebook holds nothing useful: training must make
it from data (`refit_codebook`). A folder that is there is replaced, at once.
"""

import argparse
import json
from pathlib import Path

import torch

from var_hf import MultiScaleVQVAE
from var_hf.files import new_folder

MADE_FROM_DATA = ("quantizer.codebook.weight", "quantizer.codebook_usage")


def enlarge(source: Path, target: Path, architecture: dict) -> None:
    """Save a tokenizer with the settings of `architecture` and the convolutions of `source`."""
    small = MultiScaleVQVAE.from_pretrained(source, torch_dtype=torch.float32)
    large = MultiScaleVQVAE(**architecture)
    weights = small.state_dict()
    for name in MADE_FROM_DATA:
        weights[name] = large.state_dict()[name]
    large.load_state_dict(weights)
    with new_folder(target) as folder:
        large.save_pretrained(folder)


def main() -> None:
    """Read the command line and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("source", type=Path, help="folder of the trained tokenizer")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--like", type=Path, required=True, help="JSON file of the architecture")
    options = parser.parse_args()
    enlarge(options.source, options.target, json.loads(options.like.read_text("utf-8")))


if __name__ == "__main__":
    main()
