"""Functions that the commands of ``var-hf`` share: resolve and load a model, print results."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from var_hf.assets import shipped_model
from var_hf.text import printable

if TYPE_CHECKING:
    from var_hf.pipelines.pipeline_var import VARPipeline


def resolve_model(model: str) -> str:
    """Resolve the name of a model for all commands.

    Args:
        model: Folder, Hub repository as user/name, or the name of a shipped model.

    Returns:
        A folder, or the name of a Hub repository.
    """
    where = shipped_model(model)
    if _may_be_quantized(Path(where)) and sys.modules.get("torchao", sys) is None:
        del sys.modules["torchao"]  # see `leave_torchao_out`
    return where


def load_pipeline(
    model: str,
    dtype: str,
    device: str,
    refiner: str | None = None,
    draft_scales: int | None = None,
) -> VARPipeline:
    """Load a pipeline by its name. A wrong name is an error before torch is imported.

    Arguments as in `var_hf.pipelines.loading.load_pipeline`.

    Raises:
        OSError: There is no such model, it is damaged, or the Hub could not be reached.
        ValueError: It is not a pipeline of this package, or there is no such device.
    """
    from var_hf.hub.files import check_model

    where = resolve_model(model)
    check_model(where)  # before torch is imported
    if refiner is not None:
        refiner = resolve_model(refiner)
        check_model(refiner)
    from var_hf.pipelines import loading

    return loading.load_pipeline(where, dtype, device, refiner=refiner, draft_scales=draft_scales)


def print_result(result: Any, lines: Iterable[str | Path], as_json: bool) -> None:
    """Print a result to stdout, as one JSON document or as lines without control characters."""
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    for line in lines:
        # Tabs separate columns. Tabs within names were escaped before.
        typer.echo("\t".join(printable(part, limit=10_000) for part in str(line).split("\t")))


def _may_be_quantized(folder: Path) -> bool:
    """Check whether a model has quantized weights. A model on the Hub may have them."""
    if not folder.is_dir():
        return True  # a Hub repository
    configs = [folder / "config.json", *folder.glob("*/config.json")]
    return any(
        b'"quantization_config"' in config.read_bytes() for config in configs if config.is_file()
    )
