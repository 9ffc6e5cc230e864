"""The commands of ``var-hf``, put together from their groups."""

from __future__ import annotations

from typing import Annotated

import typer

from var_hf import (
    __version__,
    cli_bench,
    cli_checkpoints,
    cli_demo,
    cli_evaluation,
    cli_images,
    cli_onnx,
    cli_post_training,
    cli_registry,
    cli_scaling,
    cli_serve,
    cli_training,
)

app = typer.Typer(
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help needs half the time of boxes, and stays plain in a pipe
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"var-hf {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug",
            help=(
                "Show the traceback of an error. Any command accepts it; VAR_HF_DEBUG=1 does the "
                "same."
            ),
        ),
    ] = False,
) -> None:
    """Generate images with visual autoregressive (VAR) models, edit images, train models, and
    convert checkpoints.
    """


for group in (
    cli_images,
    cli_checkpoints,
    cli_onnx,
    cli_registry,
    cli_training,
    cli_post_training,
    cli_scaling,
    cli_evaluation,
    cli_demo,
    cli_serve,
    cli_bench,
):
    app.add_typer(group.app)
