"""Serve the page on this machine or as a Space."""

import importlib
import logging
import threading
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from var_hf.assets import DEFAULT_MODEL
from var_hf.demo.facts import ModelFacts
from var_hf.demo.gpu import is_zero_gpu
from var_hf.demo.guard import Access, Guard, host_name, private_files
from var_hf.demo.interface import build_demo, launch_arguments
from var_hf.demo.models import StudioLoader
from var_hf.demo.settings import MOST_PIXELS
from var_hf.image_files import only_known_formats

logger = logging.getLogger(__name__)

MODEL_FOLDER = "model"  # in a Space that contains its model


def serve(
    loader: StudioLoader,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    allow_hosts: Sequence[str] = (),
    proxy_headers: bool = False,
    open_browser: bool = False,
    started: Callable[[str], None] = logger.info,
) -> None:
    """Serve the demo until an interrupt. The page appears before the model is loaded.

    Args:
        loader: Loader of the model, which this function starts.
        host: Address to listen on.
        port: Port to listen on. Default: the first free port from 7860.
        allow_hosts: Names under which the page is reached, besides IP addresses, `localhost` and
            this machine's name.
        proxy_headers: Trust the `X-Forwarded-*` headers of a reverse proxy.
        open_browser: Open the page in a browser.
        started: Called with the page's address.

    Raises:
        OSError: The port is taken, or the model could not be loaded.
        ValueError: The model is not a pipeline of this package.
    """
    hosts = frozenset(host_name(name) for name in (host, *allow_hosts))
    access = Access(hosts, proxy_headers)
    with private_files():
        demo = build_demo(loader)
        try:
            url = launch(demo, loader, access, host, port)
            started(url)
            if open_browser:
                webbrowser.open(url)
            loader.start()
            _ = loader.studio  # a model that cannot be loaded ends the command
            threading.Event().wait()
        finally:
            demo.close(verbose=False)


def launch(
    demo: gr.Blocks, loader: StudioLoader, access: Access, host: str | None, port: int | None
) -> str:
    """Start to serve in a thread.

    Returns:
        The address.

    Raises:
        OSError: The port is taken.
    """
    only_known_formats(MOST_PIXELS)  # Gradio opens the files in its editor without our checks
    try:
        _, url, _ = demo.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            app_kwargs={"middleware": [Middleware(Guard, access, loader.seconds_per_request)]},
            **launch_arguments(),
        )
    except OSError as error:
        if "empty port" not in str(error):
            raise
        where = "No port from 7860 on is free" if port is None else f"Port {port} is taken"
        raise OSError(f"{where} on {host}. Pass another one with --port.") from error
    return url


def serve_space(folder: Path) -> None:
    """Serve the demo as a Space, at the Space's address and port.

    Args:
        folder: The Space's files. The model is the folder `model`, or else the first model in
            README.md, or else the one that ships with the package.
    """
    if is_zero_gpu():
        importlib.import_module("spaces")  # before CUDA is touched
    facts = ModelFacts.read(model_of_space(folder))
    loader = StudioLoader(facts, device="cuda" if is_zero_gpu() else "auto")
    with private_files():
        demo = build_demo(loader)
        loader.load()  # first: ZeroGPU needs the model before the page appears
        _ = loader.studio
        launch(demo, loader, Access(proxy_headers=True, is_space=True), None, None)
        threading.Event().wait()


def model_of_space(folder: Path) -> str:
    """Return the folder, repository or name of a Space's model, as in `serve_space`."""
    from huggingface_hub import SpaceCard

    if (folder / MODEL_FOLDER).is_dir():
        return str(folder / MODEL_FOLDER)
    models = SpaceCard.load(folder / "README.md").data.models
    return models[0] if models else DEFAULT_MODEL.name
