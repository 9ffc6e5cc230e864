"""Provenance and integrity of a pipeline folder: ``provenance.json``."""

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from var_hf import __version__
from var_hf.text import printable

PROVENANCE_FILE = "provenance.json"

_TOOLS = ("torch", "transformers", "diffusers", "safetensors", "huggingface_hub")
_ABOUT = ("checkpoint", "license", "base_model")  # of a source, if known
Part = Literal["transformer", "vqvae"]
_CHUNK = 1 << 20  # bytes read at a time

# Added by a clone or a download from the Hub; they contain no code.
_ADDED_BY_OTHERS = (".git", ".cache", ".gitattributes")
# Suffixes of code.
CODE_SUFFIXES = frozenset(
    [
        ".bash",
        ".bat",
        ".cmd",
        ".com",
        ".dll",
        ".dylib",
        ".egg",
        ".exe",
        ".ipynb",
        ".jar",
        ".js",
        ".mjs",
        ".msi",
        ".php",
        ".pl",
        ".ps1",
        ".py",
        ".pyc",
        ".pyd",
        ".pyw",
        ".pyz",
        ".rb",
        ".sh",
        ".so",
        ".vbs",
        ".wasm",
        ".whl",
        ".zsh",
    ]
)
PICKLE_SUFFIXES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")


@dataclass(frozen=True)
class Source:
    """A source file of a pipeline folder.

    Attributes:
        part: The model that it holds, ``"transformer"`` or ``"vqvae"``.
        path: Its path. Only the name is recorded.
        repository: Hub repository it was downloaded from.
        revision: Commit of that repository.
        checkpoint: Its name in the registry of published checkpoints.
        license: The Hub's name of its licence.
        base_model: Hub repository of the weights that its training started from.
        sha256: Its SHA-256, if already computed.
    """

    part: Part
    path: Path
    repository: str | None = None
    revision: str | None = None
    checkpoint: str | None = None
    license: str | None = None
    base_model: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Verification:
    """The findings of `verify`; paths are relative to the folder, with forward slashes.

    Attributes:
        changed: Recorded files with other content, and recorded names of other types, such as a
            FIFO.
        missing: Recorded files, and files in a list of shards, that are not in the folder.
        extra: Files that are not recorded; code in ``.git`` and ``.cache``; links to folders,
            dangling links, FIFOs, sockets and devices.
        pickles: Files that may execute code when they are loaded. A pipeline folder has none.
        lacking: Tensors of the published source file that are missing here or have another shape,
            by part of the pipeline.
    """

    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    pickles: list[str] = field(default_factory=list)
    lacking: dict[str, list[str]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there are no findings."""
        return not any(asdict(self).values())


def sha256(path: str | os.PathLike[str]) -> str:
    """Compute the hexadecimal SHA-256 of a file, read in chunks."""
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
    """Return size and SHA-256 of files, or of their future content, by name."""
    return {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if isinstance(content, bytes)
        else {"size": content.stat().st_size, "sha256": sha256(content)}
        for name, content in files.items()
    }


def new_provenance(sources: Sequence[Source], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a ``provenance.json`` without files.

    Args:
        sources: The source files of the model.
        options: The options that affect the result, as plain data.
    """
    digests = {source.path: source.sha256 or sha256(source.path) for source in sources}
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
                for name in ("repository", "revision", *_ABOUT)
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

    It holds the names, sizes and SHA-256 of the source files, the options of the conversion, the
    versions of the tools, and size and SHA-256 of every file in the folder. It holds no date and no
    absolute path, so the same files converted by the same tools give the same bytes.

    Args:
        folder: The folder, complete except for this file.
        sources: The source files of the model.
        options: The options that affect the result, as plain data.
        write_card: Returns the text of ``README.md``, given the provenance of all other files.
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
    """Read the ``provenance.json`` of a folder.

    Raises:
        FileNotFoundError: The file or the folder does not exist.
        ValueError: The file does not have the format of `write_provenance`.
    """
    path = Path(folder) / PROVENANCE_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{Path(folder)} has no {PROVENANCE_FILE}, so there is nothing to verify it against. "
            "var-hf convert writes one."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        valid = _is_valid(content)
    except (ValueError, RecursionError):
        valid = False
    if not valid:
        raise ValueError(f"{printable(path)} is damaged: it does not list sources and files.")
    return dict(content)


def _is_valid(content: Any) -> bool:
    """Check that a ``provenance.json`` has the parts that this package reads."""
    if not isinstance(content, dict):
        return False
    sources, files = content.get("sources"), content.get("files")
    if not isinstance(sources, list) or not isinstance(files, dict):
        return False
    return (
        all(
            isinstance(source, dict)
            and all(isinstance(source.get(key), str) for key in ("part", "name", "sha256"))
            and all(
                isinstance(source.get(key), str | None)
                for key in ("repository", "revision", *_ABOUT)
            )
            for source in sources
        )
        and all(
            isinstance(entry, dict)
            and isinstance(entry.get("sha256"), str)
            and isinstance(entry.get("size"), int)
            for entry in files.values()
        )
        and isinstance(content.get("options", {}), dict)
        and isinstance(content.get("tools", {}), dict)
    )


def verify(folder: str | os.PathLike[str]) -> Verification:
    """Compute the digest of every file and compare it with ``provenance.json``.

    Args:
        folder: A folder with a ``provenance.json``.

    Raises:
        FileNotFoundError: There is no ``provenance.json``.
        ValueError: The ``provenance.json`` is damaged.
    """
    folder = Path(folder)
    recorded = read_provenance(folder)["files"]
    present, others = _entries(folder)
    in_place = [name for name in recorded if name in others and not _is_dangling(folder / name)]
    missing = [name for name in recorded if name not in present and name not in in_place]
    missing += [name for name in _named_shards(present) if name not in {*present, *missing}]
    return Verification(
        changed=[
            *(
                name
                for name, path in present.items()
                if name in recorded and sha256(path) != recorded[name]["sha256"]
            ),
            *in_place,
        ],
        missing=missing,
        extra=[
            *(
                name
                for name, path in present.items()
                if name not in recorded and not _belongs_to_others(name, path)
            ),
            *(name for name in others if name not in recorded),
        ],
        pickles=[name for name, path in present.items() if _may_run_code(path)],
    )


def _files(folder: Path) -> dict[str, Path]:
    """Return all regular files below the folder except the provenance, by relative name."""
    return _entries(folder)[0]


def _entries(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """List all entries below a folder, without following links to folders.

    Returns:
        The regular files and links to files except the provenance, by relative name, sorted. Then
        the names of all other entries that are not folders: links to folders, dangling links,
        FIFOs, sockets, devices.
    """
    files: dict[str, Path] = {}
    others: list[str] = []
    for place, folders, names in os.walk(folder, onerror=_raise):
        for path in (Path(place, name) for name in [*folders, *names]):
            name = path.relative_to(folder).as_posix()
            if path.is_file():
                files[name] = path
            elif path.is_symlink() or not path.is_dir():
                others.append(name)
    files.pop(PROVENANCE_FILE, None)
    return dict(sorted(files.items())), sorted(others)


def _raise(error: OSError) -> None:
    raise error  # by default, os.walk skips unreadable folders


def _is_dangling(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _belongs_to_others(name: str, path: Path) -> bool:
    """Check whether a file comes from Git or a client of the Hub and is not code.

    Git executes its hooks, which have no suffix. The hooks that every clone has are samples, which
    it does not execute.
    """
    if name.split("/")[0] not in _ADDED_BY_OTHERS:
        return False
    if path.suffix.lower() in CODE_SUFFIXES:
        return False
    return path.suffix == ".sample" or _head(path, 2) != b"#!"


def _named_shards(present: Mapping[str, Path]) -> list[str]:
    """Return the weight files that the lists of shards name."""
    named: list[str] = []
    for name, path in present.items():
        if not re.fullmatch(r".+\.safetensors\.index(\.\w+)?\.json", name):
            continue
        try:
            shards = json.loads(path.read_bytes())["weight_map"].values()
            named += [f"{name.rpartition('/')[0]}/{shard}".lstrip("/") for shard in set(shards)]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue  # its digest differs, and loading it reports the error
    return sorted(named)


def _may_run_code(path: Path) -> bool:
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return True
    head = _head(path, 9)
    # A pickle of protocol 2 to 5 starts like this. So may a safetensors file, which starts with the
    # length of its header.
    if len(head) < 2 or head[0] != 0x80 or not 2 <= head[1] <= 5:
        return False
    header = int.from_bytes(head[:8], "little")
    return not (head[8:] == b"{" and header + 8 <= path.stat().st_size)


def _head(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        return file.read(length)
