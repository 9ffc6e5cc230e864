"""The command `var-hf export-onnx`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from var_hf.cli_options import MODEL_HELP, JSONOption
from var_hf.cli_shared import load_pipeline, print_result, resolve_model
from var_hf.text import printable

app = typer.Typer()


class StoredType(StrEnum):
    """Number formats of stored weights."""

    float32 = "float32"
    float16 = "float16"
    int8 = "int8"


@app.command(
    epilog=(
        "\b\n"
        "Examples:\n"
        "  var-hf export-onnx var-emoji-64 -o var-emoji-64-onnx\n"
        "  var-hf export-onnx var-d16-256 -o var-d16-256-onnx --dtype int8"
    )
)
def export_onnx(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", show_default=False, help=f"A {MODEL_HELP}.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write; must not exist."),
    ],
    dtype: Annotated[
        StoredType,
        typer.Option(
            help=(
                "Number format of the stored weights; all arithmetic is float32. int8 changes the "
                "images, float16 hardly."
            )
        ),
    ] = StoredType.float32,
    opset: Annotated[
        int, typer.Option(min=1, help="Version of the ONNX operators, at least 18.")
    ] = 18,
    license_name: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="NAME",
            help=(
                "Licence of the weights as the Hub names it, such as mit.  [default: that of the "
                "model card]"
            ),
        ),
    ] = None,
    as_json: JSONOption = False,
) -> None:
    """Export a pipeline to ONNX graphs for onnxruntime and browsers; needs var-hf[onnx].

    The folder is written completely or not at all. var_hf.onnx draws from it without torch. A model
    that is too large for a browser is announced first, and exported all the same.
    """
    from var_hf.files import check_absent

    check_absent(output)
    where = Path(resolve_model(model))
    pipe = load_pipeline(model, "float32", "cpu")

    from var_hf.onnx.export import (
        browser_problem,
        export_onnx,
        model_license,
        model_provenance,
    )

    if (problem := browser_problem(pipe, str(dtype))) is not None:
        typer.echo(
            f"var-hf: No browser will run this export: {printable(problem, limit=1000)}. "
            "onnxruntime on a computer does.",
            err=True,
        )
    metadata = export_onnx(
        pipe,
        output,
        dtype=str(dtype),
        opset=opset,
        name=where.name,
        license=license_name or model_license(where),
        provenance=model_provenance(where),
    )
    print_result({"folder": str(output)} | metadata.to_json(), [output], as_json)
