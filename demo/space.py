"""Push the demo to a Space on the Hub, in one commit."""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from huggingface_hub import CommitInfo, SpaceCard

from var_hf.assets import DEFAULT_MODEL, shipped_model
from var_hf.demo.server import MODEL_FOLDER
from var_hf.hub.files import check_model
from var_hf.hub.push import read_folder
from var_hf.hub.spaces import check_before_push, commit_space

HERE = Path(__file__).parent
FILES = ("app.py", "requirements.txt")  # and README.md, whose header names the model


def push_space(
    repo_id: str,
    model: str = DEFAULT_MODEL.name,
    *,
    private: bool | None = None,
    token: str | None = None,
) -> CommitInfo:
    """Push the demo as a Gradio Space: its files, the wheel of this package, and the model.

    The push is a single commit. It deletes model files and wheels of former pushes.

    Args:
        repo_id: Repository such as ``"user/var"``. It is created if it does not exist.
        model: A Hub repository, which the Space loads; a folder, which is uploaded with the Space;
            or the name of a shipped model.
        private: Whether a new Space is private. Default: the account's setting.
        token: Access token with write permission. Default: the stored token.

    Returns:
        The commit: ``commit_url`` and ``oid``.

    Raises:
        FileNotFoundError: There is no such model folder.
        HubError: The Hub refuses the push, or cannot be reached.
        ValueError: The name is invalid, or the model is incomplete.
    """
    source = Path(shipped_model(model))
    check_model(str(source))
    check_before_push(repo_id, token)
    brought = {}
    if source.is_dir() and source != DEFAULT_MODEL:
        files, _ = read_folder(source)
        brought = {f"{MODEL_FOLDER}/{path}": content for path, content in files.items()}
    card = SpaceCard.load(HERE / "README.md")
    card.data.models = [] if source.is_dir() else [model]
    with package_wheel() as wheel:
        pushed = {
            **{name: HERE / name for name in FILES},
            "README.md": str(card).encode(),
            wheel.name: wheel,
            **brought,
        }
        return commit_space(
            repo_id,
            "gradio",
            pushed,
            lambda path: path.startswith(f"{MODEL_FOLDER}/") or path.endswith(".whl"),
            message="Upload the demo",
            private=private,
            token=token,
        )


@contextmanager
def package_wheel() -> Iterator[Path]:
    """Build the wheel of this package: from its source if the installation is editable.

    Raises:
        OSError: The wheel could not be built.
    """
    distribution = importlib.metadata.distribution("var-hf")
    source = editable_source(distribution)
    with tempfile.TemporaryDirectory(prefix="var-hf-") as folder:
        yield (
            build_wheel(source, Path(folder)) if source else pack_wheel(distribution, Path(folder))
        )


def editable_source(distribution: importlib.metadata.Distribution) -> Path | None:
    """Return the source folder of an editable installation (PEP 610), or `None`."""
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(url2pathname(urlsplit(origin["url"]).path))


def build_wheel(source: Path, folder: Path) -> Path:
    """Build a wheel from source with pip, without leftovers in the source folder."""
    # By default, setuptools builds in source/build, which may contain deleted modules.
    settings = folder / "build.cfg"
    settings.write_text(
        f"[build]\nbuild_base = {folder / 'build'}\n[egg_info]\negg_base = {folder}\n"
    )
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(source)],
        env=os.environ | {"DIST_EXTRA_CONFIG": str(settings)},
        capture_output=True,
        text=True,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise OSError(f"The wheel of {source} could not be built: {done.stderr.strip()[-500:]}")
    return wheels[0]


def pack_wheel(distribution: importlib.metadata.Distribution, folder: Path) -> Path:
    """Pack the files of an installed package, listed in its record, into a wheel."""
    wheel = (
        folder / f"{distribution.name.replace('-', '_')}-{distribution.version}-py3-none-any.whl"
    )
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in distribution.files or ():
            # Commands lie outside; compiled files and installer notes belong to this machine.
            is_ours = ".." not in file.parts and "__pycache__" not in file.parts
            if is_ours and file.name not in {"INSTALLER", "REQUESTED", "direct_url.json"}:
                archive.write(str(file.locate()), file.as_posix())
    return wheel
