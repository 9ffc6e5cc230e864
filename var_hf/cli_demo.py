"""The command `var-hf demo`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from var_hf.assets import DEFAULT_MODEL
from var_hf.cli_options import DeviceOption, DType, DTypeOption, ModelOption
from var_hf.cli_shared import print_result, resolve_model

app = typer.Typer()


class StoredType(StrEnum):
    """Number formats of the weights of a static page."""

    float32 = "float32"
    float16 = "float16"
    int8 = "int8"


@app.command(
    epilog=(
        "\b\n"
        "Examples:\n"
        "  var-hf demo\n"
        "  var-hf demo --model var-d16-256 --open\n"
        "  var-hf demo --push me/var --model me/var-d16-256\n"
        "  var-hf demo --static -o page"
    )
)
def demo(
    model: ModelOption = DEFAULT_MODEL.name,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Address to listen on; 0.0.0.0 accepts other machines."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, metavar="INT", help="Port.  [default: the first free one from 7860]"
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=(
                "Name under which browsers reach the page, besides IP addresses, localhost and "
                "the machine's own name. Repeatable."
            ),
        ),
    ] = None,
    proxy_headers: Annotated[
        bool,
        typer.Option(
            "--proxy-headers",
            help=(
                "Trust the X-Forwarded-* headers. Only for a server behind a reverse proxy that "
                "sets them."
            ),
        ),
    ] = False,
    open_browser: Annotated[
        bool, typer.Option("--open", help="Open the page in a browser.")
    ] = False,
    dtype: DTypeOption = DType.auto,
    device: DeviceOption = "auto",
    push: Annotated[
        str | None,
        typer.Option(
            metavar="SPACE",
            help="Push the demo to a Space on the Hub, user/name, instead of serving it.",
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the Space a private one, if it is new.")
    ] = False,
    static: Annotated[
        bool,
        typer.Option(
            "--static",
            help=(
                "Write (-o) or push (--push) a static page that runs the model in the browser "
                "itself; needs var-hf[onnx]."
            ),
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder of the static page; must not exist.",
        ),
    ] = None,
    weights: Annotated[
        StoredType | None,
        typer.Option(
            help="Number format of the weights of the static page.  [default: float16]",
        ),
    ] = None,
    runtime: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help=(
                "The npm package onnxruntime-web for the static page, as a folder or archive.  "
                "[default: downloaded once]"
            ),
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result of --push or --static as JSON.")
    ] = False,
) -> None:
    """Serve the demo until Ctrl+C, or push it to a Space: generate, edit and analyse images in a
    browser.

    The page has an API for gradio_client: /generate, /edit and /classify. The static page needs no
    server: it generates and edits in the browser, and has no API.
    """
    if static:
        _static_page(resolve_model(model), output, push, private, weights, runtime, as_json)
        return
    if output or weights or runtime:
        raise ValueError("--output, --weights and --runtime are about --static.")
    if push is None and (private or as_json):
        raise ValueError("--private and --json are about --push: pass the name of a Space.")
    if push is not None:
        _need_gradio()
        from var_hf.demo.space import push_space

        commit = push_space(push, resolve_model(model), private=private or None)
        result = {
            "space": commit.repo_url.repo_id,
            "commit": commit.oid,
            "url": str(commit.repo_url),
        }
        print_result(result, [result["url"]], as_json)
        return
    from var_hf.demo.facts import ModelFacts

    facts = ModelFacts.read(resolve_model(model))
    _need_gradio()
    from var_hf.demo.models import StudioLoader
    from var_hf.demo.server import serve

    loader = StudioLoader(facts, dtype, device)
    serve(
        loader,
        host=host,
        port=port,
        allow_hosts=allow_host or (),
        proxy_headers=proxy_headers,
        open_browser=open_browser,
        started=typer.echo,
    )


def _static_page(
    model: str,
    output: Path | None,
    push: str | None,
    private: bool,
    weights: StoredType | None,
    runtime: Path | None,
    as_json: bool,
) -> None:
    """Write the static page, push it, or both."""
    if output is None and push is None:
        raise ValueError("--static needs a folder to write (-o), or a Space (--push), or both.")
    if push is None and private:
        raise ValueError("--private is about --push: pass the name of a Space.")
    from tempfile import TemporaryDirectory

    from var_hf.demo.static import exported_model, push_page, write_page

    if push is not None:
        from var_hf.hub.spaces import check_before_push

        check_before_push(push)
    with TemporaryDirectory(prefix="var-hf-") as temporary:
        folder = output or Path(temporary) / "page"
        with exported_model(model, weights and str(weights)) as exported:
            page = write_page(folder, exported, runtime=runtime)
        result = {
            "folder": None if output is None else str(output),
            "model": page.name,
            "dtype": page.dtype,
            "size": page.size,
            "download": page.download,
        }
        lines: list[str | Path] = [] if output is None else [output]
        if push is not None:
            commit = push_page(page, push, private=private or None)
            result |= {
                "space": commit.repo_url.repo_id,
                "commit": commit.oid,
                "url": str(commit.repo_url),
            }
            lines.append(str(commit.repo_url))
        print_result(result, lines, as_json)


def _need_gradio() -> None:
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise ValueError(
            'The demo needs Gradio, which is not installed: pip install "var-hf[demo]".'
        )
