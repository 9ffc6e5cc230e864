"""The command `var-hf scaling`: options to a ladder of trainings, and nothing else."""

import json
from typing import Annotated

import typer

from var_hf.cli_options import JSONOption
from var_hf.cli_training import (
    DataOption,
    OutputOption,
    SetOption,
    SplitOption,
    ValidationOption,
    ValidationSplitOption,
    overrides_of,
    talk,
)

app = typer.Typer()


@app.command(
    epilog="\b\nExamples:\n"
    "  var-hf scaling --data photos --validation held-out --tokenizer var-d16-256 -o runs/scaling\n"
    "  var-hf scaling --recipe small.json --data photos --validation held-out --size 2x64 --size 3x128 \\\n"
    "      --size 4x192 --size 6x256 -o runs/scaling"
)
def scaling(
    output: OutputOption,
    data: DataOption = None,
    split: SplitOption = None,
    validation: ValidationOption = None,
    validation_split: ValidationSplitOption = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Multi-scale VQVAE, or a pipeline with one."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A JSON file of settings of var-hf train, or a recipe's name."
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYERSxWIDTH",
            help="A size of the ladder; can be repeated.  [default: seven sizes, 0.15M to 18M parameters]",
        ),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(metavar="LAYERSxWIDTH", help="A size to predict, then to train as a check."),
    ] = None,
    settings: SetOption = None,
    as_json: JSONOption = False,
) -> None:
    """Train transformers of several sizes on the same tokens and fit the scaling laws of the paper.

    The same command continues an interrupted ladder. FOLDER/report.md is the report, with the plots
    parameters.png and compute.png and the numbers in scaling.json.
    """
    from var_hf.evaluation.report import check_matplotlib
    from var_hf.training.power_law import check_scipy
    from var_hf.training.scaling import (
        DEFAULT_HELD_OUT,
        DEFAULT_SIZES,
        check_sizes,
        train_ladder,
    )
    from var_hf.training.transformer_config import TransformerTrainingConfig

    sizes = size or list(DEFAULT_SIZES)
    held_out = held_out or (None if size else DEFAULT_HELD_OUT)
    check_sizes(sizes, held_out)
    check_matplotlib()
    check_scipy()
    given = {
        "data": data, "split": split, "validation": validation,
        "validation_split": validation_split, "tokenizer": tokenizer,
    }  # fmt: skip
    config = TransformerTrainingConfig.from_recipe(recipe, **overrides_of(given, settings))
    talk()
    result = train_ladder(config, sizes, held_out, output)
    typer.echo(json.dumps(result, indent=2) if as_json else output / "report.md")
