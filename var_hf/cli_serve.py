"""The command `var-hf serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from var_hf.assets import DEFAULT_MODEL
from var_hf.cli_options import DeviceOption, DType, DTypeOption, ModelOption
from var_hf.cli_shared import resolve_model

app = typer.Typer()


@app.command(
    epilog=(
        "\b\n"
        "Examples:\n"
        "  var-hf serve\n"
        "  var-hf serve --model var-d16-256 --port 9000\n"
        "  VAR_HF_API_KEYS=secret var-hf serve --host 0.0.0.0"
    )
)
def serve(
    model: ModelOption = DEFAULT_MODEL.name,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Address to listen on; 0.0.0.0 accepts other machines."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=1, max=65535, metavar="INT", help="Port to listen on.")
    ] = 8000,
    max_batch: Annotated[
        int,
        typer.Option(
            min=1, max=1024, metavar="INT", help="Images under way at a time in each replica."
        ),
    ] = 16,
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            metavar="INT",
            help="Most replicas of the model.  [default: one per GPU; 1 on a CPU]",
        ),
    ] = None,
    min_replicas: Annotated[
        int,
        typer.Option(
            min=1, max=1024, metavar="INT", help="Replicas without load; the queue starts more."
        ),
    ] = 1,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            metavar="INT",
            help="CPU threads of each replica.  [default: the cores, divided by the replicas]",
        ),
    ] = None,
    max_images: Annotated[
        int, typer.Option(min=1, max=1024, metavar="INT", help="Images that a request may ask for.")
    ] = 16,
    max_queue: Annotated[
        int,
        typer.Option(
            min=1,
            max=65536,
            metavar="INT",
            help="Images accepted and not yet answered; further requests get status 429.",
        ),
    ] = 128,
    max_body: Annotated[
        int, typer.Option(min=1, max=1024, metavar="MIB", help="Size of a request.")
    ] = 40,
    drain_seconds: Annotated[
        float,
        typer.Option(
            min=0, max=3600, metavar="SECONDS", help="Time for accepted requests at the end."
        ),
    ] = 60.0,
    dtype: DTypeOption = DType.auto,
    device: DeviceOption = "auto",
) -> None:
    """Serve images over HTTP until SIGTERM or Ctrl+C: the OpenAI images API, on Ray Serve.

    Images that stand at the same scale share a pass. Every image equals that of generate with its
    seed. VAR_HF_API_KEYS, with commas between keys, makes the server ask for one of them.
    """
    from var_hf.hub.files import check_model

    where = resolve_model(model)
    check_model(where)
    _need_ray()
    from var_hf.serving.server import run_server, serve_options

    options = serve_options(
        where,
        name=model,
        dtype=str(dtype),
        device=device,
        max_batch=max_batch,
        max_replicas=replicas,
        min_replicas=min_replicas,
        threads=threads,
        max_images=max_images,
        max_pending=max_queue,
        max_body=max_body * 2**20,
        drain_seconds=drain_seconds,
    )
    unfinished = run_server(options, host=host, port=port, started=typer.echo)
    if unfinished:
        raise ValueError(
            f"{unfinished} requests were not finished in {drain_seconds:g} seconds. Raise "
            "--drain-seconds."
        )


def _need_ray() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("ray", "fastapi", "multipart") if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"The server needs {', '.join(missing)}, which is not installed: pip install "
            '"var-hf[serve]".'
        )
