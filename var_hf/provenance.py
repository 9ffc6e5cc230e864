"""Where a pipeline folder comes from and whether it is still as it was written: ``provenance.json``."""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from var_hf import __version__

PROVENANCE_FILE = "provenance.json"

_TOOLS = ("torch", "transformers", "diffusers", "safetensors", "huggingface_hub")
_CHUNK = 1 << 20  # bytes read at a time

# What a clone or a download from the Hub adds beside the files themselves.
_ADDED_BY_OTHERS = (".git", ".cache", ".gitattributes")
PICKLE_SUFFIXES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")


@dataclass(frozen=True)
class Source:
    """A file that a pipeline folder was made from.

    Attributes:
        part: What was taken from it, ``"transformer"`` or ``"vqvae"``.
        path: Where it lies; only its name is recorded.
        repository: Hub repository it was downloaded from.
        revision: Commit of that repository.
    """

    part: str
    path: Path
    repository: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Verification:
    """What `verify` found; paths are relative to the folder, with forward slashes.

    Attributes:
        changed: Files whose content is not what was written.
        missing: Files that were written and are gone.
        extra: Files that were not written.
        pickles: Files that may run code when they are loaded; a pipeline folder has none.
        lacking: Part of the pipeline to the tensors that the published file it comes from has and that it lacks,
            or holds in another shape.
    """

    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    pickles: list[str] = field(default_factory=list)
    lacking: dict[str, list[str]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not any(asdict(self).values())


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file in hexadecimal, read piece by piece."""
    path = Path(path)
    total, digest = path.stat().st_size, hashlib.sha256()
    with (
        path.open("rb") as file,
        tqdm(
            total=total,
            desc=f"SHA-256 of {path.name}",
            unit="B",
            unit_scale=True,
            leave=False,
            delay=2,
        ) as progress,
    ):
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress.update(len(chunk))
    return digest.hexdigest()


def describe_files(files: Mapping[str, Path | bytes]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of files, or of what is going to stand in them, by name."""
    return {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if isinstance(content, bytes)
        else {"size": content.stat().st_size, "sha256": sha256(content)}
        for name, content in files.items()
    }


def new_provenance(sources: Sequence[Source], options: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a ``provenance.json`` that does not yet list any files.

    Args:
        sources: The files that the model was made from.
        options: What else decided the result; plain data.
    """
    digests = {path: sha256(path) for path in {source.path for source in sources}}
    return {
        "sources": [
            {
                "part": source.part,
                "name": source.path.name,
                "size": source.path.stat().st_size,
                "sha256": digests[source.path],
            }
            | {
                name: value
                for name in ("repository", "revision")
                if (value := getattr(source, name)) is not None
            }
            for source in sources
        ],
        "options": dict(options),
        "tools": {
            "var-hf": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _TOOLS},
        },
        "files": {},
    }


def write_provenance(
    folder: str | os.PathLike[str],
    sources: Sequence[Source],
    options: Mapping[str, Any],
    write_card: Callable[[dict[str, Any]], str] | None = None,
) -> None:
    """Write ``provenance.json`` into a finished folder.

    It holds the names, sizes and SHA-256 of the source files, the options of the conversion, the versions of the
    tools, and size and SHA-256 of every file in the folder. It holds no date and no absolute path, so that the same
    files converted by the same tools give the same bytes.

    Args:
        folder: The folder, complete but for this file.
        sources: The files it was made from.
        options: What else decided the result; plain data.
        write_card: Makes the text of ``README.md`` from the provenance of all other files.
    """
    folder = Path(folder)
    content = new_provenance(sources, options)
    content["files"] = describe_files(_files(folder))
    if write_card is not None:
        card = write_card(content).encode()
        (folder / "README.md").write_bytes(card)
        content["files"] = dict(
            sorted((content["files"] | describe_files({"README.md": card})).items())
        )
    text = json.dumps(content, indent=2) + "\n"
    (folder / PROVENANCE_FILE).write_text(text, encoding="utf-8")


def read_provenance(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a folder's ``provenance.json``.

    Raises:
        FileNotFoundError: The folder has none, or is none.
        ValueError: The file is not what `write_provenance` writes.
    """
    path = Path(folder) / PROVENANCE_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{Path(folder)} has no {PROVENANCE_FILE}, so there is nothing to verify it against. var-hf convert writes one."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digests = {name: entry["sha256"] for name, entry in content["files"].items()}
        names = [(source["part"], source["name"]) for source in content["sources"]]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged: it does not list sources and files as it should."
        ) from error
    if not all(isinstance(value, str) for value in (*digests.values(), *sum(names, ()))):
        raise ValueError(f"{path} is damaged: a name or digest is no text.")
    return content


def verify(folder: str | os.PathLike[str]) -> Verification:
    """Compute the digest of every file again and compare with ``provenance.json``.

    Args:
        folder: A folder that `write_provenance` was called on.

    Raises:
        FileNotFoundError: There is no ``provenance.json``.
        ValueError: It is damaged.
    """
    folder = Path(folder)
    recorded = read_provenance(folder)["files"]
    present = _files(folder)
    return Verification(
        changed=[
            name
            for name, path in present.items()
            if name in recorded and sha256(path) != recorded[name]["sha256"]
        ],
        missing=[name for name in recorded if name not in present],
        extra=[
            name
            for name in present
            if name not in recorded and name.split("/")[0] not in _ADDED_BY_OTHERS
        ],
        pickles=[name for name, path in present.items() if _may_run_code(path)],
    )


def _files(folder: Path) -> dict[str, Path]:
    """Every file below the folder but the provenance itself, by its relative name, sorted."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    names.pop(PROVENANCE_FILE, None)
    return dict(sorted(names.items()))


def _may_run_code(path: Path) -> bool:
    if path.suffix in PICKLE_SUFFIXES:
        return True
    with path.open("rb") as file:
        head = file.read(2)
    # A pickle of protocol 2 to 5 starts so, and no other file of a pipeline does.
    return len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5
