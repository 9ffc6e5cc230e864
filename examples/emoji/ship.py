"""Store what was trained in bfloat16, as it ships with the package: the tokenizer, then the whole pipeline.

    python examples/emoji/ship.py outputs/emoji/tokenizer/vqvae outputs/emoji/vqvae
    python examples/emoji/ship.py outputs/emoji/transformer/pipeline var_hf/assets/var-emoji-64 --results results.json

The transformer is trained on the tokens of the rounded tokenizer, so that rounding the pipeline changes no token of
its data. A folder that is there is replaced, at once.
"""

import argparse
from pathlib import Path

import torch

from var_hf import MultiScaleVQVAE, VARPipeline
from var_hf.files import new_folder
from var_hf.model_card import CardOptions, model_card, read_configs, read_results
from var_hf.provenance import PROVENANCE_FILE, read_provenance, write_provenance

TRAINING_DATA = (
    "24,000 pictures drawn from 40 glyphs of Noto Color Emoji (SIL Open Font License 1.1) on soft gradients, "
    "by `examples/emoji/draw.py` of var-hf"
)


def forget_source(loaded: MultiScaleVQVAE | VARPipeline) -> None:
    """Empty the path that loading leaves in a configuration, and that saving would write: it is one of this machine."""
    loaded.register_to_config(_name_or_path="")


def ship_tokenizer(source: Path, target: Path) -> None:
    """Save the multi-scale VQVAE of `source` in bfloat16."""
    vqvae = MultiScaleVQVAE.from_pretrained(source, torch_dtype=torch.bfloat16)
    forget_source(vqvae)
    with new_folder(target) as folder:
        vqvae.save_pretrained(folder)


def ship_pipeline(source: Path, target: Path, results: Path | None) -> None:
    """Save the pipeline of `source` in bfloat16, with its provenance and a model card."""
    pipe = VARPipeline.from_pretrained(source, dtype=torch.bfloat16)
    forget_source(pipe)
    forget_source(pipe.vqvae)
    card = CardOptions(
        license="mit",
        training_data=TRAINING_DATA,
        results=() if results is None else read_results(results),
    )

    with new_folder(target) as folder:
        pipe.save_pretrained(folder)
        write_provenance(
            folder,
            [],
            read_provenance(source)["options"] | {"dtype": "bfloat16"},
            lambda provenance: str(model_card(read_configs(folder), provenance, card, target.name)),
        )


def main() -> None:
    """Round what the source folder holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder of a trained tokenizer or pipeline")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--results", type=Path, help="JSON of measured numbers, for the card")
    arguments = parser.parse_args()
    if (arguments.source / PROVENANCE_FILE).exists():
        ship_pipeline(arguments.source, arguments.target, arguments.results)
    else:
        ship_tokenizer(arguments.source, arguments.target)
    print(arguments.target)


if __name__ == "__main__":
    main()
