"""Write the static page, which runs a model in the browser, and push it to a Space.

The page consists of the files in `demo/browser`, an exported model (`var_hf.onnx`), and the files
of onnxruntime-web.
"""

import json
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, cached_assets_path

from var_hf import __version__
from var_hf.demo.film import mark
from var_hf.files import check_absent, new_path
from var_hf.hub.spaces import commit_space
from var_hf.onnx.metadata import (
    METADATA_FILE,
    browser_limit,
    check_files,
    file_digest,
    read_metadata,
)
from var_hf.text import printable

BROWSER = Path(__file__).with_name("browser")
DEFAULT_DTYPE = "float16"

RUNTIME = "onnxruntime-web"
RUNTIME_VERSION = "1.30.0"
RUNTIME_SHA512 = (
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca590a5cdc57bb2f35ce2b298de32f"
    "4d956fb42644c0ecd528a0a91e025c07ca61"
)
# Without WebGPU the code is half as large; each build is a script, the code and their glue.
RUNTIME_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
_REGISTRY = "https://registry.npmjs.org"
_LICENSE = "onnxruntime-web.LICENSE"  # the npm package has none: that of its repository


@dataclass(frozen=True)
class StaticPage:
    """A written page.

    Attributes:
        folder: The folder.
        name: Name of the model.
        dtype: Number format of its stored weights.
        size: Bytes of all files.
        download: Bytes that a browser without WebGPU downloads.
    """

    folder: Path
    name: str
    dtype: str
    size: int
    download: int


def write_page(
    folder: str | os.PathLike[str],
    exported: str | os.PathLike[str],
    *,
    runtime: str | os.PathLike[str] | None = None,
) -> StaticPage:
    """Write the page with a model; the folder appears complete or not at all.

    Args:
        folder: Folder to write; must not exist.
        exported: Folder of a model that `var-hf export-onnx` wrote.
        runtime: The npm package onnxruntime-web 1.30.0, as a folder or as the archive that ``npm
            pack`` downloads. By default it is downloaded once and kept in the cache of the Hub.

    Raises:
        FileExistsError: `folder` exists.
        OSError: A file of the model is damaged, or the runtime cannot be downloaded.
        ValueError: The model is too large for a browser, or `runtime` is another package.
    """
    folder, exported = Path(folder), Path(exported)
    check_absent(folder)
    metadata = read_metadata(exported)
    sizes = {name: entry["size"] for name, entry in metadata.files.items()}
    bytes_per_weight = {"float32": 4, "float16": 2, "int8": 1}[metadata.dtype]
    problem = browser_limit(sizes, sum(sizes.values()) // bytes_per_weight, metadata.dtype)
    if problem is not None:
        raise _too_large(exported, problem)
    check_files(exported, metadata)
    with runtime_files(runtime) as runtime_folder, new_path(folder) as temporary:
        for file in BROWSER.iterdir():
            if file.name != _LICENSE:
                _copy(file, temporary / file.name)
        for name in (METADATA_FILE, "README.md", *metadata.files):
            if (exported / name).is_file():
                _copy(exported / name, temporary / "model" / name)
        for name in RUNTIME_FILES:
            _copy(runtime_folder / name, temporary / "runtime" / name)
        _copy(BROWSER / _LICENSE, temporary / "runtime" / "LICENSE")
        (temporary / "mark.svg").write_text(_svg("0 0 146 32"), encoding="utf-8")
        (temporary / "icon.svg").write_text(_svg("114 0 32 32"), encoding="utf-8")
        files = {name: _entry(temporary / "runtime" / name) for name in RUNTIME_FILES}
        page: dict[str, Any] = {
            "var_hf": __version__,
            "runtime": {"version": RUNTIME_VERSION, "files": files},
        }
        (temporary / "page.json").write_text(json.dumps(page, indent=2) + "\n", encoding="utf-8")
        total = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
    of_webgpu = page["runtime"]["files"][RUNTIME_FILES[-1]]["size"]
    return StaticPage(folder, metadata.name, metadata.dtype, total, total - of_webgpu)


def push_page(
    page: StaticPage, repo_id: str, *, private: bool | None = None, token: str | None = None
) -> CommitInfo:
    """Push a written page as a static Space, in a single commit.

    The commit deletes all other files of the Space.

    Args:
        page: The page.
        repo_id: Repository such as ``"user/var"``. It is created if it does not exist.
        private: Whether a new Space is private. Default: the account's setting.
        token: Access token with write permission. Default: the stored token.

    Returns:
        The commit: ``commit_url`` and ``oid``.

    Raises:
        HubError: The Hub refuses the push, or cannot be reached.
        ValueError: The name is invalid.
    """
    files = {
        path.relative_to(page.folder).as_posix(): path
        for path in page.folder.rglob("*")
        if path.is_file()
    }
    return commit_space(
        repo_id,
        "static",
        files,
        lambda path: path != ".gitattributes",
        message="Upload the page",
        private=private,
        token=token,
    )


@contextmanager
def exported_model(model: str, dtype: str | None = None) -> Iterator[Path]:
    """Give the folder of an exported model; a pipeline is exported to a temporary one.

    Args:
        model: Folder that `var-hf export-onnx` wrote, or a pipeline: a folder or Hub repository.
        dtype: Number format of the stored weights of an export, by default float16.

    Raises:
        ImportError: The extra `onnx` is not installed.
        OSError: There is no such model, or it is damaged.
        ValueError: The model is too large for a browser, cannot be exported, or is exported
            already and `dtype` is given.
    """
    if (Path(model) / METADATA_FILE).is_file():
        if dtype is not None:
            raise ValueError(
                f"{printable(model)} is exported already; --weights is for pipelines. Leave it out."
            )
        yield Path(model)
        return
    from var_hf.hub.files import check_model

    check_model(model)  # before torch is imported
    from var_hf.onnx.export import browser_problem, export_onnx, model_license, model_provenance
    from var_hf.pipelines.loading import load_pipeline

    pipe = load_pipeline(model, "float32", "cpu")
    dtype = dtype or DEFAULT_DTYPE
    if (problem := browser_problem(pipe, dtype)) is not None:
        raise _too_large(model, problem)
    with TemporaryDirectory(prefix="var-hf-") as temporary:
        folder = Path(temporary) / "model"
        where = Path(model)
        export_onnx(
            pipe,
            folder,
            dtype=dtype,
            name=where.name,
            license=model_license(where),
            provenance=model_provenance(where),
        )
        yield folder


def _too_large(model: str | Path, problem: str) -> ValueError:
    return ValueError(
        f"{printable(model)} is too large for a browser: {printable(problem, limit=1000)}. Pass "
        "--weights int8, choose a smaller model, or run it with var_hf.onnx."
    )


@contextmanager
def runtime_files(runtime: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Give a folder with `RUNTIME_FILES`; arguments and errors as in `write_page`."""
    source = Path(runtime) if runtime is not None else _downloaded_runtime()
    if source.is_dir():
        yield _check_runtime(source)
        return
    if not source.is_file():
        raise FileNotFoundError(f"There is no folder or archive {printable(source)}.")
    _check_digest(source)
    with TemporaryDirectory(prefix="var-hf-") as folder:
        with tarfile.open(source) as archive:
            archive.extractall(folder, _runtime_members(archive), filter="data")
        yield _check_runtime(Path(folder) / "package")


def _downloaded_runtime() -> Path:
    """The archive of onnxruntime-web in the cache, downloaded if it is not there."""
    name = f"{RUNTIME}-{RUNTIME_VERSION}.tgz"
    path = cached_assets_path("var-hf", namespace=RUNTIME) / name
    if path.is_file() and file_digest(path, "sha512") == RUNTIME_SHA512:
        return path
    registry = os.environ.get("NPM_CONFIG_REGISTRY", _REGISTRY).rstrip("/")
    url = f"{registry}/{RUNTIME}/-/{name}"
    try:
        with (
            urllib.request.urlopen(url, timeout=60) as response,
            new_path(path, replace=True) as temporary,
        ):
            with temporary.open("wb") as file:
                shutil.copyfileobj(response, file)
            _check_digest(temporary, url)
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        raise OSError(
            f"{RUNTIME} could not be downloaded from {printable(url)} "
            f"({printable(getattr(error, 'reason', error))}). Download it elsewhere with `npm pack "
            f"{RUNTIME}@{RUNTIME_VERSION}`, and pass the file as --runtime."
        ) from error
    return path


def _runtime_members(archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    wanted = {"package/package.json", *(f"package/dist/{name}" for name in RUNTIME_FILES)}
    return [member for member in archive if member.name in wanted]


def _check_digest(path: Path, url: str | None = None) -> None:
    if file_digest(path, "sha512") != RUNTIME_SHA512:
        raise ValueError(
            f"{printable(url or path)} is not {RUNTIME} {RUNTIME_VERSION}, or it is damaged: its "
            f"SHA-512 differs. Download it with `npm pack {RUNTIME}@{RUNTIME_VERSION}`."
        )


def _check_runtime(folder: Path) -> Path:
    """The folder `dist` of an unpacked npm package, after a look at its name and version."""
    try:
        package = json.loads((folder / "package.json").read_bytes())
        found = f"{package['name']} {package['version']}"
    except (OSError, ValueError, KeyError, TypeError):
        found = "no npm package"
    missing = [name for name in RUNTIME_FILES if not (folder / "dist" / name).is_file()]
    if found != f"{RUNTIME} {RUNTIME_VERSION}" or missing:
        lacking = f", without dist/{missing[0]}" if missing else ""
        raise ValueError(
            f"{printable(folder)} must be the unpacked npm package {RUNTIME} {RUNTIME_VERSION}. "
            f"Got {printable(found)}{lacking}."
        )
    return folder / "dist"


def _svg(view_box: str) -> str:
    """The logo, or a part of it, as a file."""
    attributes = 'xmlns="http://www.w3.org/2000/svg" shape-rendering="crispEdges"'
    return (
        mark()
        .replace('class="mark"', attributes)
        .replace(' aria-hidden="true"', "")
        .replace('viewBox="0 0 146 32"', f'viewBox="{view_box}"')
    )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _entry(path: Path) -> dict[str, int | str]:
    return {"size": path.stat().st_size, "sha256": file_digest(path)}
