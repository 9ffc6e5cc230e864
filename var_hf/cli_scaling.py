"""The command `var-hf scaling`."""

from __future__ import annotations

from typing import Annotated

import typer

from var_hf.cli_training import (
    AccumulationOption,
    BatchSizeOption,
    DataOption,
    EpochsOption,
    JSONOption,
    LearningRateOption,
    OutputOption,
    PrecisionOption,
    SeedOption,
    SetOption,
    SplitOption,
    StrictOption,
    ValidationOption,
    ValidationSplitOption,
    WorkersOption,
    collect_overrides,
    print_training,
    send_messages_to_stderr,
)

app = typer.Typer()


@app.command(
    epilog="\b\nExamples:\n"
    "  var-hf scaling --data photos --validation more-photos --tokenizer var-d16-256 -o "
    "runs/scaling\n"
    "  var-hf scaling ... --size 384x6x6 --size 512x8x8 --size 640x10x10 --size 768x12x12 "
    "--held-out 1024x16x16\n"
    "  accelerate launch --num_processes 8 $(which var-hf) scaling ..."
)
def scaling(
    output: OutputOption,
    data: DataOption = None,
    split: SplitOption = None,
    validation: ValidationOption = None,
    validation_split: ValidationSplitOption = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Multi-scale VQVAE, or a pipeline that holds one: folder or Hub repository.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="scaling, or a JSON file of settings.  [default: scaling]"
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WxLxH",
            help="Model to fit the laws to: width x layers x heads, such as 384x6x6; repeatable, "
            "at least four.",
        ),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="WxLxH",
            help="Model whose loss is predicted first and trained last.  [default: with --size "
            "none]",
        ),
    ] = None,
    num_train_epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    gradient_accumulation_steps: AccumulationOption = None,
    learning_rate: LearningRateOption = None,
    mixed_precision: PrecisionOption = None,
    seed: SeedOption = None,
    strict: StrictOption = None,
    dataloader_num_workers: WorkersOption = None,
    settings: SetOption = None,
    as_json: JSONOption = False,
) -> None:
    """Train transformers of several sizes on the same tokens and fit power laws to their losses.

    An interrupted ladder continues where it stopped; a finished size is not trained again.
    FOLDER/report.html shows the laws beside those of the VAR paper, the compute frontier, and the
    prediction for a size that was not fitted beside its loss. It is written anew after each size.
    """
    from var_hf.training.scaling import ScalingConfig, train_ladder

    given = {
        "data": data, "split": split, "validation": validation,
        "validation_split": validation_split,
        "tokenizer": tokenizer, "sizes": tuple(size) if size else None, "held_out": held_out,
        "num_train_epochs": num_train_epochs, "batch_size": batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps, "learning_rate": learning_rate,
        "mixed_precision": mixed_precision and mixed_precision.value, "seed": seed,
        "strict": strict,
        "dataloader_num_workers": dataloader_num_workers,
    }  # fmt: skip
    overrides = collect_overrides(given, settings)
    if size:
        overrides.setdefault("held_out", None)  # the recipe's belongs to the recipe's sizes
    config = ScalingConfig.from_recipe(recipe, **overrides)
    send_messages_to_stderr()
    print_training(train_ladder(config, output), "report", as_json)
