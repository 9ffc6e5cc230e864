"""The commands `var-hf post-train` and `var-hf merge`."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from var_hf.cli_options import MODEL_HELP, JSONOption
from var_hf.cli_shared import load_pipeline, print_result
from var_hf.cli_training import (
    AccumulationOption,
    BatchSizeOption,
    DataOption,
    EpochsOption,
    FreezeOption,
    LearningRateOption,
    LoRAOption,
    OutputOption,
    PrecisionOption,
    SeedOption,
    SetOption,
    ShardOption,
    SplitOption,
    StrictOption,
    ValidationOption,
    ValidationSplitOption,
    WorkersOption,
    collect_overrides,
    print_training,
    send_messages_to_stderr,
)
from var_hf.files import check_absent

app = typer.Typer()


class Method(StrEnum):
    """Methods of post-training."""

    neon = "neon"
    cca = "cca"
    ddo = "ddo"


@app.command(
    epilog=(
        "\b\n"
        "Examples:\n"
        "  var-hf post-train cca --model var-d16-256 --data imagenet/train -o runs/cca\n"
        "  var-hf post-train ddo --model var-d16-256 --data imagenet/train --rounds 2 -o "
        "runs/ddo\n"
        "  var-hf post-train neon --model var-d16-256 --validation imagenet/val -o runs/neon\n"
        "  var-hf generate 207 --model runs/cca/pipeline"
    )
)
def post_train(
    method: Annotated[
        Method,
        typer.Argument(
            metavar="METHOD",
            show_default=False,
            help=(
                "neon: away from a model trained on its own samples (arXiv 2510.03597). cca: "
                "images of the class against other classes (arXiv 2410.09347). ddo: real images "
                "against drawn ones (arXiv 2503.01103)."
            ),
        ),
    ],
    output: OutputOption,
    model: Annotated[
        str,
        typer.Option("--model", "-m", metavar="MODEL", show_default=False, help=f"A {MODEL_HELP}."),
    ],
    data: DataOption = None,
    split: SplitOption = None,
    validation: ValidationOption = None,
    validation_split: ValidationSplitOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="neon, cca, ddo, or a JSON file of settings.  [default: that of the method]",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="cca, ddo: frozen reference.  [default: the one in --model]"
        ),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(metavar="FLOAT", help="cca, ddo: factor on the log-ratios to the reference."),
    ] = None,
    lambda_: Annotated[
        float | None,
        typer.Option("--lambda", metavar="FLOAT", help="cca: weight of the other classes."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(metavar="FLOAT", help="ddo: weight of the drawn images.")
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            metavar="INT", help="ddo: rounds; the result of one is the reference of the next."
        ),
    ] = None,
    samples_per_class: Annotated[
        int | None,
        typer.Option(metavar="INT", help="neon, ddo: images of each class to draw."),
    ] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option(
            metavar="FLOAT", help="neon: length of the step, as of var-hf merge; repeatable."
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="neon: features that choose the step: inception, emoji, emoji-128, or the file of "
            "a classifier.",
        ),
    ] = None,
    feature_weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="neon: weights of Inception."),
    ] = None,
    lora_rank: LoRAOption = None,
    freeze: FreezeOption = None,
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
    """Train a finished model further for better images of the classes that it knows.

    An interrupted run continues exactly where it stopped. FOLDER/pipeline is the result. That of
    cca and ddo is meant for images without guidance, which take half the time.
    """
    from var_hf.training.cca import CCAConfig, train_cca
    from var_hf.training.ddo import DDOConfig, train_ddo
    from var_hf.training.neon import NeonConfig, train_neon

    config_class, train = {
        Method.cca: (CCAConfig, train_cca),
        Method.ddo: (DDOConfig, train_ddo),
        Method.neon: (NeonConfig, train_neon),
    }[method]
    given = {
        "data": data, "split": split, "validation": validation,
        "validation_split": validation_split, "model": model, "reference": reference,
        "beta": beta, "lambda_": lambda_, "alpha": alpha, "rounds": rounds,
        "samples_per_class": samples_per_class, "weights": tuple(weight) if weight else None,
        "features": features, "feature_weights": feature_weights, "lora_rank": lora_rank,
        "freeze": tuple(freeze) if freeze else None, "num_train_epochs": num_train_epochs,
        "batch_size": batch_size, "gradient_accumulation_steps": gradient_accumulation_steps,
        "learning_rate": learning_rate,
        "mixed_precision": mixed_precision and mixed_precision.value, "shard": shard, "seed": seed,
        "strict": strict, "dataloader_num_workers": dataloader_num_workers,
    }  # fmt: skip
    config = config_class.from_recipe(recipe, **collect_overrides(given, settings))  # type: ignore[attr-defined]
    send_messages_to_stderr()
    print_training(train(config, output), "pipeline", as_json)  # type: ignore[operator]


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
