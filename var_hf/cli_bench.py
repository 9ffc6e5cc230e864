"""The command `var-hf bench`: options to a benchmark or a plan, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from var_hf.cli_options import (
    CfgOption,
    DeviceOption,
    DType,
    GuidanceOption,
    JSONOption,
    choose_guidance,
)

app = typer.Typer()


@app.command(
    epilog="\b\nExamples:\n"
    "  var-hf bench --size d16 --batch 1 --batch 4 --dtype bfloat16\n"
    "  var-hf bench --model var-d16-256 --rounds 10 -o bench.json\n"
    "  var-hf bench --plan d30 --batch 64"
)
def bench(
    size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Measure this published size, d16 to d36, with random weights: nothing is downloaded.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Measure this pipeline: a folder, or a Hub repository as user/name.",
        ),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Measure nothing; print what this published size costs by formula."
        ),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="INT", help="Images per call; can be repeated.  [default: 1]"),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, metavar="INT", help="Calls to time, after one to warm up.")
    ] = 5,
    dtype: Annotated[
        list[DType] | None,
        typer.Option(
            metavar="TYPE",
            help="Number format of the weights: float32, bfloat16, float16, or auto, which is bfloat16 where the device "
            "computes it, else float32. Can be "
            "repeated.  [default: auto]",
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
    """Measure generation: seconds per call, images per second, peak memory, and the time of every part.

    Beside each figure stands the limit that follows from what this machine reaches in a large matrix product. Quiet
    machines give better numbers than busy ones.
    """
    if (size is None) + (model is None) + (plan is None) != 2:
        raise ValueError("Pass one of --size, --model and --plan.")
    batches = batch or [1]
    dtypes = dtype or [DType.auto]
    guidance_scale = choose_guidance(guidance_scale, cfg)
    from var_hf import benchmark
    from var_hf.conversion import PUBLISHED_TRANSFORMERS

    for name in (size, plan):
        if name is not None and name not in PUBLISHED_TRANSFORMERS:
            raise ValueError(
                f"The published sizes are {', '.join(PUBLISHED_TRANSFORMERS)}. Got {name}."
            )
    if plan is not None:
        if guidance_scale is not None and guidance_scale <= 1:
            guided_scales = 0
        plans = [
            benchmark.plan(
                plan,
                count,
                bytes_per_number=4 if one is DType.float32 else 2,
                guided_scales=guided_scales,
            )
            for one in dtypes
            for count in batches
        ]
        lines = [line for planned in plans for line in [*benchmark.plan_lines(planned), ""]][:-1]
        _finish({"plans": plans}, lines, output, as_json)
        return

    from var_hf.pipelines.loading import choose_device, choose_dtype, load_pipeline

    torch_device = choose_device(device)
    typer.echo(f"measuring on {torch_device}; the first call of a batch size warms up", err=True)
    results = []
    for one in dtypes:
        if size is not None:
            pipe = benchmark.random_pipeline(size, choose_dtype(one, torch_device), torch_device)
        else:
            pipe = load_pipeline(str(model), one, device)
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
        del pipe
    result = {
        "model": size or model,
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
    for line in [json.dumps(result, indent=2)] if as_json else lines:
        typer.echo(line)
