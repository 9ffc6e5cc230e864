"""The command `var-hf list`, and names and licences of published checkpoints for other commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from var_hf.cli_options import JSONOption
from var_hf.cli_shared import print_result

if TYPE_CHECKING:
    from var_hf.conversion import Checkpoint

app = typer.Typer()

AcceptLicenseOption = Annotated[
    bool,
    typer.Option(
        "--accept-license",
        help=(
            "Push weights whose licence sets conditions on sharing them, such as no commercial use."
        ),
    ),
]


@app.command("list", epilog="\b\nExamples:\n  var-hf list\n  var-hf list --size d16 --license mit")
def list_checkpoints(
    family: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", show_default=False, help="Only this family. Repeatable."),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="SIZE", show_default=False, help="Only this size. Repeatable."),
    ] = None,
    license_name: Annotated[
        list[str] | None,
        typer.Option(
            "--license",
            metavar="NAME",
            show_default=False,
            help="Only this licence, as the Hub names it. Repeatable.",
        ),
    ] = None,
    as_json: JSONOption = False,
) -> None:
    """List the published checkpoints that var-hf convert downloads and converts by name.

    FID is the authors' number, for the settings in the table where they state it so; --json has all
    numbers, their sources, and notes.
    """
    from var_hf.conversion import registry

    entries = list(registry().checkpoints.values())
    for option, wanted, value_of in (
        ("--family", family, lambda entry: entry.family.name),
        ("--size", size, lambda entry: entry.size),
        ("--license", license_name, lambda entry: entry.license.name),
    ):
        known = list(dict.fromkeys(value_of(e) for e in registry().checkpoints.values()))
        if unknown := sorted(set(wanted or ()) - set(known)):
            raise ValueError(f"{option} takes {', '.join(known)}. Got {', '.join(unknown)}.")
        entries = [entry for entry in entries if not wanted or value_of(entry) in wanted]
    print_result([as_data(entry) for entry in entries], _table(entries), as_json)


def as_data(entry: Checkpoint) -> dict[str, Any]:
    """Convert an entry of the registry to plain data."""
    return {
        "name": entry.name,
        "family": entry.family.name,
        "about": f"{entry.family.title}: {entry.family.about}",
        "size": entry.size,
        "image_size": entry.image_size,
        "parameters": entry.file.parameters,
        "repository": entry.family.repository,
        "file": entry.file.name,
        "bytes": entry.file.size,
        "sha256": entry.file.sha256,
        "base_model": entry.family.base_model,
        "license": entry.license.name,
        "license_source": entry.family.license_source,
        "restrictions": entry.license.restrictions,
        "paper": entry.family.paper,
        "code": entry.family.code,
        "code_commit": entry.family.commit,
        "sampling": dict(entry.sampling),
        "sampling_source": entry.sampling_source,
        "metrics": [vars(report) | {"values": dict(report.values)} for report in entry.metrics],
        "note": entry.note,
    }


def published_name(source: str) -> str | None:
    """Return the name of a published checkpoint if an argument is one.

    Returns:
        The name, or ``None`` if the argument is an existing file or has the form of a path or
        repository.

    Raises:
        ValueError: The argument has the form of a name, and there is no such checkpoint.
    """
    if Path(source).exists() or "/" in source or "\\" in source or "." in source:
        return None
    from var_hf.conversion import find_checkpoint

    return find_checkpoint(source).name


def check_license(name: str, accepted: bool) -> None:
    """Refuse to push a checkpoint whose licence has conditions, unless they were accepted."""
    from var_hf.conversion import find_checkpoint

    if not accepted and (notice := find_checkpoint(name).notice()):
        raise ValueError(f"{notice} If you may share it, pass --accept-license.")


def _table(entries: Sequence[Checkpoint]) -> list[str]:
    """Format entries as aligned columns, with numbers right-aligned."""
    head = [
        "name",
        "size",
        "pixels",
        "parameters",
        "FID",
        "guidance",
        "top-k",
        "top-p",
        "licence",
        "repository",
    ]
    rows = [head]
    for entry in entries:
        sampling = entry.sampling
        rows.append(
            [
                entry.name,
                entry.size,
                str(entry.image_size),
                f"{entry.file.parameters / 1e6:,.0f}M",
                f"{entry.metrics[0].values['FID']:.2f}",
                f"{sampling['guidance_scale']:g}",
                str(sampling["top_k"] or "off"),
                "off" if sampling["top_p"] == 1 else f"{sampling['top_p']:g}",
                entry.license.name,
                entry.family.repository,
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    right = range(head.index("pixels"), head.index("licence"))
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
