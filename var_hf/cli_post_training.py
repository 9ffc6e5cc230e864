"""The command `var-hf merge`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from var_hf.cli_options import MODEL_HELP, JSONOption
from var_hf.cli_shared import load_pipeline, print_result
from var_hf.files import check_absent

app = typer.Typer()


@app.command(
    epilog=(
        "\b\n"
        "Examples:\n"
        "  var-hf merge base self-trained --weight 1.5 -o neon\n"
        "  var-hf generate 207 --model neon"
    )
)
def merge(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE", show_default=False, help=f"Model before self-training: {MODEL_HELP}."
        ),
    ],
    self_trained: Annotated[
        str,
        typer.Argument(
            metavar="SELF_TRAINED",
            show_default=False,
            help="The same model, fine-tuned shortly on its own samples.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write; must not exist."),
    ],
    weight: Annotated[
        float,
        typer.Option(
            metavar="FLOAT",
            help=(
                "Length of the step away from SELF_TRAINED, in units of the distance between the "
                "two; 0 is BASE."
            ),
        ),
    ] = 1.0,
    as_json: JSONOption = False,
) -> None:
    """Extrapolate a model away from what self-training made of it: (1 + weight) * BASE - weight *
    SELF_TRAINED.

    This is the last step of Neon (arXiv 2510.03597). The best weight is found by measuring several
    of them on held-out images. The result has the VQVAE, the sampling defaults and the class names
    of BASE, and float32 weights.
    """
    if not math.isfinite(weight):
        raise ValueError(f"--weight must be a finite number. Got {weight}.")
    check_absent(output)
    base_pipe = load_pipeline(base, "float32", "cpu")
    other_pipe = load_pipeline(self_trained, "float32", "cpu")
    from var_hf.hub.files import is_hub_name
    from var_hf.model_card import CardOptions
    from var_hf.pipelines.loading import no_loading_bars
    from var_hf.training.merging import merge_to_folder

    card = CardOptions(base_model=base if is_hub_name(base) else None)
    with no_loading_bars():
        merge_to_folder(base_pipe, other_pipe, weight, output, card=card)
    result: dict[str, Any] = {"pipeline": str(output), "weight": weight}
    print_result(result, [output], as_json)
