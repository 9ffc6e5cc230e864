"""The commands `var-hf train` and `var-hf train-tokenizer`: options to settings, and nothing else."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer()


class MixedPrecision(StrEnum):
    """Number formats to compute in; weights stay float32."""

    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"


OutputOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="Run folder; the same command continues the run in it.",
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="Folder of images with one sub-folder per class, Parquet or Arrow file, or data set name.",
    ),
]
SplitOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Split of the data, or sub-folder.")
]
ValidationOption = Annotated[
    str | None, typer.Option(metavar="SOURCE", help="Images to measure on, opened like the data.")
]
ValidationSplitOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Split of these, or sub-folder.")
]
StrictOption = Annotated[
    bool | None,
    typer.Option("--strict", help="Stop at an unreadable image instead of leaving it out."),
]
BatchOption = Annotated[
    int | None,
    typer.Option(metavar="INT", help="Images per step, over all processes."),
]
AccumulateOption = Annotated[
    int | None,
    typer.Option(
        "--accumulate", metavar="INT", help="Parts in which a process works through its share."
    ),
]
PrecisionOption = Annotated[
    MixedPrecision | None, typer.Option(help="Number format to compute in (autocast).")
]
SeedOption = Annotated[
    int | None,
    typer.Option(min=0, metavar="INT", help="Seeds weights, order and all that is drawn."),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", metavar="INT", help="Processes that read, per training process."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any other setting, as JSON or text; repeatable."
    ),
]
JSONOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command(
    epilog="\b\nExamples:\n"
    "  var-hf train --data photos --tokenizer var-d16-256 --recipe d16 -o runs/photos\n"
    "  var-hf train --data photos --model var-d16-256 --new-classes --lora-rank 16 -o runs/lora\n"
    "  accelerate launch --num_processes 8 $(which var-hf) train --recipe d16 ..."
)
def train(
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
        typer.Option(metavar="NAME", help="d16, d20, d24, d30, d36, or a JSON file of settings."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Pipeline to start from (fine-tuning): folder or Hub repository."
        ),
    ] = None,
    new_classes: Annotated[
        bool | None,
        typer.Option(
            "--new-classes", help="Give it a new class table for the classes of the data."
        ),
    ] = None,
    lora_rank: Annotated[
        int | None,
        typer.Option(
            metavar="INT", help="Train adapters of this rank (LoRA), merged in the result."
        ),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Parameters not to train: 'layers.[0-7].*'; repeatable."
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Side of the images, as a check.")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(metavar="FLOAT", help="Passes over the data.")
    ] = None,
    batch_size: BatchOption = None,
    accumulate: AccumulateOption = None,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="FLOAT", help="Peak per 256 images of the batch.")
    ] = None,
    mixed_precision: PrecisionOption = None,
    seed: SeedOption = None,
    strict: StrictOption = None,
    workers: WorkersOption = None,
    settings: SetOption = None,
    as_json: JSONOption = False,
) -> None:
    """Train a VAR transformer on images, from scratch or from a trained one.

    Images are encoded once; the run goes on exactly where it was cut off. FOLDER/pipeline is the result, complete at
    every checkpoint; FOLDER/samples holds grids, FOLDER/log.jsonl loss and accuracy of every scale.
    """
    from var_hf.training.transformer import train_transformer
    from var_hf.training.transformer_config import TransformerTrainingConfig

    given = {
        "data": data, "split": split, "validation": validation, "validation_split": validation_split,
        "tokenizer": tokenizer, "model": model, "new_classes": new_classes, "lora_rank": lora_rank,
        "freeze": tuple(freeze) if freeze else None, "image_size": image_size, "num_train_epochs": epochs,
        "global_batch_size": batch_size, "gradient_accumulation_steps": accumulate,
        "base_learning_rate": learning_rate, "mixed_precision": mixed_precision and mixed_precision.value,
        "seed": seed, "strict": strict, "num_workers": workers,
    }  # fmt: skip
    overrides = overrides_of(given, settings)
    config = TransformerTrainingConfig.from_recipe(recipe, **overrides)
    talk()
    _print(train_transformer(config, output), "pipeline", as_json)


@app.command(
    epilog="\b\nExamples:\n"
    "  var-hf train-tokenizer --data photos --recipe tokenizer.json -o runs/tokenizer\n"
    "  var-hf train-tokenizer --data photos --model var-d16-256/vqvae -o runs/tuned"
)
def train_tokenizer(
    output: OutputOption,
    data: DataOption = None,
    split: SplitOption = None,
    validation: ValidationOption = None,
    validation_split: ValidationSplitOption = None,
    recipe: Annotated[Path | None, typer.Option(metavar="JSON", help="File of settings.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Tokenizer to start from (fine-tuning): folder or Hub repository."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="INT", help="Optimisation steps.")] = None,
    batch_size: BatchOption = None,
    accumulate: AccumulateOption = None,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="FLOAT", help="Peak of the cosine.")
    ] = None,
    mixed_precision: PrecisionOption = None,
    seed: SeedOption = None,
    strict: StrictOption = None,
    workers: WorkersOption = None,
    settings: SetOption = None,
    as_json: JSONOption = False,
) -> None:
    """Train a multi-scale VQVAE on images, or fine-tune one.

    The recipe of the released tokenizer is unpublished; the defaults follow a relative by the same authors. The run
    goes on exactly where it was cut off. FOLDER/vqvae is the result, FOLDER/reconstructions holds grids,
    FOLDER/log.jsonl PSNR, SSIM and the use of codes at every scale.
    """
    from var_hf.training.tokenizer import train_tokenizer as run
    from var_hf.training.tokenizer_config import TokenizerTrainingConfig

    given = {
        "data": data, "split": split, "validation": validation, "validation_split": validation_split,
        "model": model, "steps": steps, "batch_size": batch_size, "gradient_accumulation_steps": accumulate,
        "learning_rate": learning_rate, "mixed_precision": mixed_precision and mixed_precision.value,
        "seed": seed, "strict": strict, "num_workers": workers,
    }  # fmt: skip
    overrides = overrides_of(given, settings)
    if recipe is not None:
        config = TokenizerTrainingConfig.from_json(recipe, **overrides)
    else:
        unknown = sorted(overrides.keys() - {each.name for each in fields(TokenizerTrainingConfig)})
        if unknown:
            raise ValueError(f"unknown settings {', '.join(unknown)}.")
        config = TokenizerTrainingConfig(**overrides)
    talk()
    _print(run(config, output), "tokenizer", as_json)


def overrides_of(given: dict[str, Any], pairs: Sequence[str] | None) -> dict[str, Any]:
    """The settings that were given, by an option of their own or by ``--set``; the latter are JSON or else text."""
    overrides = {name: value for name, value in given.items() if value is not None}
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"--set takes NAME=VALUE, such as optimizer=muon. Got {pair}.")
        try:
            overrides[name] = json.loads(text)
        except json.JSONDecodeError:
            overrides[name] = text
    return overrides


def talk() -> None:
    """What training has to say goes to stderr, by the first process only."""
    is_first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(message)s")
    logging.getLogger("var_hf").setLevel(logging.INFO if is_first else logging.ERROR)


def _print(result: dict[str, Any], what: str, as_json: bool) -> None:
    if os.environ.get("RANK", "0") == "0":
        typer.echo(json.dumps(result, indent=2) if as_json else result[what])
