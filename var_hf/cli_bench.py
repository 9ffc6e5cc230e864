"""The command `var-hf bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from var_hf.cli_options import (
    AUTO_DTYPE_HELP,
    MODEL_HELP,
    CfgOption,
    DeviceOption,
    DraftScalesOption,
    DType,
    GuidanceOption,
    JSONOption,
    choose_guidance,
)
from var_hf.cli_shared import load_pipeline, print_result

app = typer.Typer()


@app.command(
    epilog=(
        "\b\n"
        "Examples:\n"
        "  var-hf bench --size d16 --batch-size 1 --batch-size 4 --dtype bfloat16\n"
        "  var-hf bench --model var-d16-256 --rounds 10 -o bench.json\n"
        "  var-hf bench --plan d30 --batch-size 64"
    )
)
def bench(
    size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help=(
                "Measure this published size, d16 to d36, with random weights: nothing is "
                "downloaded."
            ),
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help=f"Measure this model: {MODEL_HELP}.",
        ),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Measure nothing; print the costs of this published size by formula.",
        ),
    ] = None,
    refiner: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE|MODEL",
            help=(
                "Second, smaller model for the fine scales (collaborative decoding): a published "
                "size with --size and --plan, a model with --model."
            ),
        ),
    ] = None,
    draft_scales: DraftScalesOption = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="INT", help="Images per call; repeatable.  [default: 1]"),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, metavar="INT", help="Timed calls, after one warm-up call.")
    ] = 5,
    dtype: Annotated[
        list[DType] | None,
        typer.Option(
            metavar="TYPE",
            help=(
                "Number format of the weights: float32, bfloat16, float16, int8 or auto; "
                f"{AUTO_DTYPE_HELP}. Repeatable.  [default: auto]"
            ),
        ),
    ] = None,
    device: DeviceOption = "auto",
    guidance_scale: GuidanceOption = None,
    cfg: CfgOption = None,
    guided_scales: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="INT", help="Scales to guide, from the coarsest.  [default: all]"
        ),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the pipeline first (a GPU's fast path).")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Also write the result to this JSON file."
        ),
    ] = None,
    as_json: JSONOption = False,
) -> None:
    """Measure generation: seconds per call, images per second, peak memory, and the time of every
    part.

    The output relates each figure to the limit that follows from the machine's speed in a large
    matrix product. Other work on the machine distorts the figures.
    """
    if (size is None) + (model is None) + (plan is None) != 2:
        raise ValueError("Pass one of --size, --model and --plan.")
    batches = batch_size or [1]
    dtypes = dtype or [DType.auto]
    guidance_scale = choose_guidance(guidance_scale, cfg)
    from var_hf import benchmark
    from var_hf.conversion import PUBLISHED_TRANSFORMERS

    for name in (size, plan, None if model else refiner):
        if name is not None and name not in PUBLISHED_TRANSFORMERS:
            raise ValueError(
                f"The published sizes are {', '.join(PUBLISHED_TRANSFORMERS)}. Got {name}."
            )
    if draft_scales is not None and refiner is None and model is None:
        raise ValueError("--draft-scales counts the scales of two models: pass --refiner as well.")
    pair: dict[str, Any] = {"refiner": refiner, "draft_scales": draft_scales}
    if plan is not None:
        if DType.int8 in dtypes:
            raise ValueError("--plan computes floating point only. Measure int8 with --size.")
        if guidance_scale is not None and guidance_scale <= 1:
            guided_scales = 0
        plans = [
            benchmark.plan(
                plan,
                count,
                bytes_per_number=4 if one is DType.float32 else 2,
                guided_scales=guided_scales,
                **pair,
            )
            for one in dtypes
            for count in batches
        ]
        lines = [line for planned in plans for line in [*benchmark.plan_lines(planned), ""]][:-1]
        _finish({"plans": plans}, lines, output, as_json)
        return

    from var_hf.pipelines.loading import choose_device, choose_dtype
    from var_hf.pipelines.pipeline_var_collaborative import pair_settings

    torch_device = choose_device(device)
    typer.echo(f"measuring on {torch_device}; the first call of a batch size warms up", err=True)
    results = []
    for one in dtypes:
        if size is not None:
            chosen = choose_dtype(one, torch_device)
            pipe = benchmark.random_pipeline(size, chosen, torch_device, **pair)
            if one is DType.int8:
                pipe.enable_int8()
        else:
            pipe = load_pipeline(str(model), one, device, **pair)
            pipe.set_progress_bar_config(disable=True)
        if compiled:
            pipe.compile()
        for count in batches:
            results.append(
                benchmark.benchmark(
                    pipe,
                    count,
                    rounds=rounds,
                    guided_scales=guided_scales,
                    guidance_scale=guidance_scale,
                )
            )
        drawn_by = {"model": size or model}
        if refiner is not None:
            drawn_by["refiner"] = refiner
        drawn_by |= pair_settings(pipe)
        del pipe
    result = {
        **drawn_by,
        "random_weights": size is not None,
        "compiled": compiled,
        "machine": benchmark.machine(torch_device),
        "results": results,
    }
    _finish(result, benchmark.result_lines(results), output, as_json)


def _finish(result: dict[str, Any], lines: list[str], output: Path | None, as_json: bool) -> None:
    if output is not None:
        from var_hf.files import write_json

        write_json(output, result)
    print_result(result, lines, as_json)
