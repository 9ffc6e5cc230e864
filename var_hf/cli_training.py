"""The commands `var-hf train` and `var-hf train-tokenizer`: they turn options into settings."""

import json
import logging
import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from var_hf.assets import DEFAULT_MODEL

app = typer.Typer()

#: Earlier names of options, which are still read.
OLD_OPTIONS = {
    "accumulate": "gradient-accumulation-steps",
    "epochs": "num-train-epochs",
    "steps": "max-steps",
    "workers": "dataloader-num-workers",
}


def current_option(name: str) -> str:
    """Return today's name of an option, given its name without the leading hyphens."""
    return OLD_OPTIONS.get(name, name)


CONTEXT_SETTINGS = {"token_normalize_func": current_option}


class MixedPrecision(StrEnum):
    """Number formats of the computation; weights stay float32."""

    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"


OutputOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="Run folder. The same command continues the run in it.",
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="Folder of images with one sub-folder per class; Parquet, Arrow or webdataset file, "
        "folder or address (hf://...) of such files; or data set name.",
    ),
]
SplitOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Split of the data, or sub-folder.")
]
ValidationOption = Annotated[
    str | None, typer.Option(metavar="SOURCE", help="Validation images, opened like the data.")
]
ValidationSplitOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Split of the validation images, or sub-folder.")
]
StrictOption = Annotated[
    bool | None,
    typer.Option("--strict", help="Stop at an unreadable image instead of skipping it."),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(metavar="INT", help="Images per step, over all processes and accumulation steps."),
]
AccumulationOption = Annotated[
    int | None, typer.Option(metavar="INT", help="Gradient accumulation steps.")
]
LearningRateOption = Annotated[
    float | None, typer.Option(metavar="FLOAT", help="Peak learning rate.")
]
PrecisionOption = Annotated[
    MixedPrecision | None, typer.Option(help="Number format of the computation (autocast).")
]
SeedOption = Annotated[
    int | None,
    typer.Option(min=0, metavar="INT", help="Seed of weights, order, crops and dropout."),
]
WorkersOption = Annotated[
    int | None, typer.Option(metavar="INT", help="Data-loading workers per process.")
]
EpochsOption = Annotated[float | None, typer.Option(metavar="FLOAT", help="Passes over the data.")]
ShardOption = Annotated[
    bool | None,
    typer.Option(
        "--shard",
        help="Keep one part of the weights, gradients and optimizer state in each process (FSDP2).",
    ),
]
LoRAOption = Annotated[
    int | None,
    typer.Option(
        metavar="INT", help="Rank of LoRA adapters; they are merged into the saved pipeline."
    ),
]
FreezeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN", help="Parameters to freeze, such as 'layers.[0-7].*'; repeatable."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any other setting, as JSON or text; repeatable."
    ),
]
JSONOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command(
    context_settings=CONTEXT_SETTINGS,
    epilog="\b\nExamples:\n"
    "  var-hf train --data photos --model var-d16-256 --new-classes -o runs/photos\n"
    "  var-hf train --data photos --model var-d16-256 --new-classes --lora-rank 16 -o runs/lora\n"
    "  accelerate launch --num_processes 8 $(which var-hf) train --recipe d16 ...",
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
            help="Multi-scale VQVAE, or a pipeline that holds one: folder or Hub repository.  "
            "[default: the one in --model]",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="d16, d20, d24, d30, d36, fine-tune, lora, or a JSON file of settings.  "
            "[default: with --model fine-tune, with --lora-rank lora]",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Pipeline to fine-tune: folder, Hub repository as user/name, or "
            f"{DEFAULT_MODEL.name}, which ships with the package.",
        ),
    ] = None,
    new_classes: Annotated[
        bool | None,
        typer.Option("--new-classes", help="Replace the model's classes by those of the data."),
    ] = None,
    lora_rank: LoRAOption = None,
    decoder_steps: Annotated[
        int | None,
        typer.Option(
            metavar="INT",
            help="Steps that first train the tokenizer's decoder on the images.  "
            "[default: 120 with --new-classes and a small tokenizer, else 0]",
        ),
    ] = None,
    freeze: FreezeOption = None,
    image_size: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Expected side of the images (a check).")
    ] = None,
    num_train_epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    gradient_accumulation_steps: AccumulationOption = None,
    learning_rate: LearningRateOption = None,
    mixed_precision: PrecisionOption = None,
    shard: ShardOption = None,
    seed: SeedOption = None,
    strict: StrictOption = None,
    dataloader_num_workers: WorkersOption = None,
    settings: SetOption = None,
    as_json: JSONOption = False,
) -> None:
    """Train a VAR transformer on images, or fine-tune one (--model).

    Images are encoded once. An interrupted run continues exactly where it stopped. FOLDER/pipeline
    is the result, complete at every checkpoint. FOLDER/samples holds grids of samples.
    FOLDER/log.jsonl holds loss and accuracy of every scale.
    """
    from var_hf.training.transformer import train_transformer
    from var_hf.training.transformer_config import TransformerTrainingConfig

    given = {
        "data": data, "split": split, "validation": validation,
        "validation_split": validation_split,
        "tokenizer": tokenizer, "model": model, "new_classes": new_classes, "lora_rank": lora_rank,
        "freeze": tuple(freeze) if freeze else None, "image_size": image_size,
        "decoder_steps": decoder_steps,
        "num_train_epochs": num_train_epochs, "batch_size": batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps, "learning_rate": learning_rate,
        "mixed_precision": mixed_precision and mixed_precision.value, "shard": shard,
        "seed": seed, "strict": strict,
        "dataloader_num_workers": dataloader_num_workers,
    }  # fmt: skip
    config = TransformerTrainingConfig.from_recipe(recipe, **collect_overrides(given, settings))
    send_messages_to_stderr()
    print_training(train_transformer(config, output), "pipeline", as_json)


@app.command(
    context_settings=CONTEXT_SETTINGS,
    epilog="\b\nExamples:\n"
    "  var-hf train-tokenizer --data photos --recipe tokenizer.json -o runs/tokenizer\n"
    "  var-hf train-tokenizer --data photos --model var-d16-256/vqvae -o runs/tuned",
)
def train_tokenizer(
    output: OutputOption,
    data: DataOption = None,
    split: SplitOption = None,
    validation: ValidationOption = None,
    validation_split: ValidationSplitOption = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="JSON", help="JSON file of settings.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Multi-scale VQVAE to fine-tune, or a pipeline that holds one: folder, Hub "
            f"repository as user/name, or {DEFAULT_MODEL.name}.",
        ),
    ] = None,
    max_steps: Annotated[int | None, typer.Option(metavar="INT", help="Training steps.")] = None,
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
    """Train a multi-scale VQVAE on images, or fine-tune one (--model).

    The recipe of the released tokenizer is unpublished. The defaults follow a related trainer by
    the same authors. An interrupted run continues exactly where it stopped. FOLDER/vqvae is the
    result. FOLDER/reconstructions holds grids. FOLDER/log.jsonl holds PSNR, SSIM and the codes in
    use at every scale.
    """
    from var_hf.training.tokenizer import train_tokenizer as run
    from var_hf.training.tokenizer_config import TokenizerTrainingConfig

    given = {
        "data": data, "split": split, "validation": validation,
        "validation_split": validation_split,
        "model": model, "max_steps": max_steps, "batch_size": batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps, "learning_rate": learning_rate,
        "mixed_precision": mixed_precision and mixed_precision.value, "seed": seed,
        "strict": strict,
        "dataloader_num_workers": dataloader_num_workers,
    }  # fmt: skip
    config = TokenizerTrainingConfig.from_recipe(recipe, **collect_overrides(given, settings))
    send_messages_to_stderr()
    print_training(run(config, output), "tokenizer", as_json)


def collect_overrides(given: dict[str, Any], pairs: Sequence[str] | None) -> dict[str, Any]:
    """The given settings by name: from options, and from ``--set`` as JSON or else text."""
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


def send_messages_to_stderr() -> None:
    """Send the messages of training to stderr; only the first process writes them."""
    is_first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(message)s")
    logging.getLogger("var_hf").setLevel(logging.INFO if is_first else logging.ERROR)


def print_training(result: dict[str, Any], name: str, as_json: bool) -> None:
    """Print one value of the result, or all of it as JSON; only the first process prints."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(json.dumps(result, indent=2) if as_json else result[name])
