"""The entry point of a Space: runs the demo with the model that the Space names."""

import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent


def find_package() -> None:
    """Import the package from the wheel beside this file if it is not installed.

    A Space installs its requirements before its own files exist, so the requirements cannot name
    the wheel.
    """
    if find_spec("var_hf") is None:
        (wheel,) = HERE.glob("var_hf-*.whl")
        folder = tempfile.mkdtemp(prefix="var-hf-")
        zipfile.ZipFile(wheel).extractall(folder)
        sys.path.insert(0, folder)


def main() -> None:
    """Serve until stopped."""
    find_package()
    from var_hf.demo.server import serve_space

    serve_space(HERE)


if __name__ == "__main__":
    main()
