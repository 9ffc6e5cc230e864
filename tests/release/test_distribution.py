"""The release works outside the repository: it is built, checked, installed and used."""

import os
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from test_packaging import folder_of_package, read_setup_cfg

import var_hf

ROOT = Path(__file__).parents[2]
LARGEST_WHEEL = 60e6  # bytes


def run(*command, **options):
    done = subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The sdist of a clean copy of what git knows, and the wheel made from that sdist."""
    folder = tmp_path_factory.mktemp("release")
    source = folder / "source"
    run("git", "clone", "--quiet", "--no-hardlinks", "--depth", 1, f"file://{ROOT}", source)
    built = folder / "dist"
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", built, source)
    return next(built.glob("*.tar.gz")), next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def outside(distributions, tmp_path_factory):
    """An environment without this repository: the wheel, and this environment's libraries."""
    folder = tmp_path_factory.mktemp("outside")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", distributions[1])
    site = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])").strip())
    # A line of a .pth file adds a folder without running the .pth files in it, such as that of an
    # editable install.
    libraries = [path for path in sys.path if path.endswith("-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries))
    return folder / "bin"


@pytest.mark.slow
def test_twine_finds_nothing(distributions):
    checked = run(sys.executable, "-m", "twine", "check", "--strict", *distributions)

    assert checked.count("PASSED") == 2


@pytest.mark.slow
def test_every_package_and_its_data_is_in_both(distributions):
    sdist, wheel = distributions
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}

    tracked = run("git", "ls-files", cwd=ROOT).splitlines()
    folders = folder_of_package(read_setup_cfg())
    for package, folder in folders.items():
        for file in tracked:
            if (ROOT / file).parent == folder:
                assert f"{package.replace('.', '/')}/{Path(file).name}" in in_wheel, file
                assert file in in_sdist, file
    assert not [name for name in in_wheel if name.startswith(("tests/", "docs/", "examples/"))]


@pytest.mark.slow
def test_the_metadata_say_what_it_is_and_whose(distributions):
    wheel = distributions[1]
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(archive.read(name))
        names = archive.namelist()

    assert wheel.stat().st_size < LARGEST_WHEEL
    assert metadata["Version"] == var_hf.__version__
    assert metadata["License-Expression"] == "MIT"
    assert set(metadata.get_all("License-File")) == {"LICENSE", "THIRD_PARTY_NOTICES.md"}
    assert any(each.endswith("licenses/THIRD_PARTY_NOTICES.md") for each in names)


@pytest.mark.slow
def test_the_command_runs_where_the_repository_is_not(outside, tmp_path):
    where = "import var_hf.pipelines.original as module; print(module.__file__)"
    file = Path(run(outside / "python", "-c", where, cwd=tmp_path).strip())
    assert file.is_relative_to(outside.parent)

    assert run(outside / "var-hf", "--version", cwd=tmp_path).strip().endswith(var_hf.__version__)
    planned = run(outside / "var-hf", "bench", "--plan", "d16", cwd=tmp_path)
    assert "680 tokens" in planned


@pytest.mark.slow
def test_it_draws_an_image_where_the_repository_is_not(outside, tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run(outside / "var-hf", "generate", "fox", "-o", "fox.png", cwd=tmp_path, env=environment)

    assert (tmp_path / "fox.png").read_bytes().startswith(b"\x89PNG")
