"""The Space's files, and pushing them to a Hub on the loopback interface."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from configparser import ConfigParser
from pathlib import Path

import httpx
import pytest
from hub_server import HubServer
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement

from var_hf.demo import server, space

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "demo"


@pytest.fixture(scope="module")
def setup_cfg():
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser["options"], parser["options.extras_require"]


def requirements(text):
    return {line for line in text.strip().splitlines() if not line.startswith("#")}


# The files


def test_the_header_is_what_a_space_needs(setup_cfg):
    data = SpaceCard.load(DEMO / "README.md").data

    assert (data.sdk, data.app_file, data.python_version) == ("gradio", "app.py", "3.11")
    assert data.license == "mit" and data.models == [] and "arxiv:2404.02905" in data.tags
    assert {data.colorFrom, data.colorTo} <= {
        "red",
        "yellow",
        "green",
        "blue",
        "indigo",
        "purple",
        "pink",
        "gray",
    }
    assert len(data.short_description) <= 60
    assert (DEMO / data.app_file).is_file()
    (gradio,) = (Requirement(one) for one in requirements(setup_cfg[1]["demo"]))
    assert gradio.name == "gradio" and data.sdk_version in gradio.specifier


def test_the_gradio_of_the_space_is_the_one_of_the_tests():
    pinned = re.search(r"^gradio==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)

    assert SpaceCard.load(DEMO / "README.md").data.sdk_version == pinned[1]


def test_the_requirements_are_those_of_the_package(setup_cfg):
    assert requirements((DEMO / "requirements.txt").read_text()) == requirements(
        setup_cfg[0]["install_requires"]
    )


# The wheel


def modules(wheel):
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        return {name for name in archive.namelist() if not name.endswith("/")}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel of the checkout."""
    before = set(ROOT.iterdir())
    wheel = space.build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))
    assert set(ROOT.iterdir()) == before  # no build folder is left behind
    return wheel


def test_the_wheel_holds_every_package_and_its_data(built):
    names = modules(built)

    folders = {
        "var_hf": "",
        "pipelines": "pipelines/",
        "conversion": "conversion/",
        "demo": "demo/",
    }
    for folder, place in folders.items():
        sources = {
            f"var_hf/{place}{path.relative_to(ROOT / folder).as_posix()}"
            for path in (ROOT / folder).rglob("*.py")
            if "__pycache__" not in path.parts
        }
        assert sources <= names
    assert {
        "var_hf/demo/style.css",
        "var_hf/demo/README.md",
        "var_hf/demo/requirements.txt",
    } <= names


def test_an_installed_package_goes_back_into_the_same_wheel(built, tmp_path):
    """Where there is no source, the record of the installation says what belongs to the package."""
    site = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(site),
    ]
    subprocess.run([*command, str(built)], check=True)
    (distribution,) = importlib.metadata.distributions(path=[str(site)])

    assert space.editable_source(distribution) is None
    packed = space.pack_wheel(distribution, tmp_path)
    assert packed.name == built.name
    assert modules(packed) == modules(built)


def test_an_editable_installation_knows_its_source():
    distribution = importlib.metadata.distribution("var-hf")

    if (source := space.editable_source(distribution)) is None:
        pytest.skip("the package is not installed editable here")
    assert source == ROOT


def test_a_wheel_that_cannot_be_built_is_one_error(tmp_path):
    (tmp_path / "source").mkdir()

    with pytest.raises(OSError, match="could not be built"):
        space.build_wheel(tmp_path / "source", tmp_path)


# Which model a Space shows


def test_the_model_of_a_space(tmp_path):
    def header(models):
        (tmp_path / "README.md").write_text(f"---\nsdk: gradio\nmodels: {models}\n---\n")

    header([])
    assert server.model_of_space(tmp_path) == "var-emoji-128"
    header(["user/var"])
    assert server.model_of_space(tmp_path) == "user/var"
    (tmp_path / "model").mkdir()
    assert server.model_of_space(tmp_path) == str(tmp_path / "model")


# Pushing


@pytest.fixture(scope="module")
def hub():
    with HubServer() as hub:
        yield hub


@pytest.fixture
def push(hub, tmp_path):
    """`var-hf demo --push` in its own process, because clients read the Hub's address at import."""

    def run(*arguments, token="hf_writer"):
        return subprocess.run(
            [sys.executable, "-m", "var_hf.cli", "demo", "--push", *map(str, arguments)],
            env=hub.environment(tmp_path / "home", token=token),
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.slow
def test_a_space_goes_up_in_one_commit_and_again_without_leftovers(hub, push, model_folder):
    first = push("user/space", "--model", model_folder)
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip().endswith("/spaces/user/space")
    repo = hub.repos["space", "user/space"]
    files = repo.files()
    (wheel,) = (name for name in files if name.endswith(".whl"))
    assert {"app.py", "README.md", "requirements.txt", "model/model_index.json"} <= set(files)
    assert files["app.py"] == (DEMO / "app.py").read_bytes()
    assert len(repo.commits) == 2  # the one that made the repository, and ours

    repo.commit({**files, "var_hf-0.0.1-py3-none-any.whl": b"old"}, "Outside", None, "main")
    second = push("user/space", "--model", "user/var", "--json")
    assert second.returncode == 0, second.stderr
    files = repo.files()
    assert [name for name in files if name.endswith(".whl")] == [wheel]
    assert not [name for name in files if name.startswith("model/")]
    header = SpaceCard(files["README.md"].decode()).data
    assert header.models == ["user/var"] and header.sdk_version and header.app_file == "app.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "token", "line"),
    [
        (["user/space", "--model", "nowhere"], "hf_writer", "There is no folder nowhere"),
        (["not a name"], "hf_writer", "cannot be the name of a Hub repository"),
        (["user/other"], None, "needs an access token"),
        (["user/other"], "hf_expired", "does not accept the access token"),
    ],
)
def test_a_push_that_cannot_be_is_one_line(push, arguments, token, line):
    done = push(*arguments, token=token)

    assert done.returncode == 1 and done.stdout == ""
    (message,) = (one for one in done.stderr.splitlines() if one.startswith("var-hf: "))
    assert line in message


@pytest.mark.slow
def test_the_pushed_files_run_where_the_package_is_not_installed(built, model_folder, tmp_path):
    """As on the Hub: the files of the Space, what requirements.txt asks for, and nothing else."""
    folder = tmp_path / "space"
    folder.mkdir()
    for name in ("app.py", "README.md", "requirements.txt"):
        shutil.copy(DEMO / name, folder)
    shutil.copy(built, folder)
    shutil.copytree(model_folder, folder / "model")
    # Without site, an editable installation is not on the path; the libraries beside it are.
    environment = os.environ | {
        "PYTHONPATH": sysconfig.get_paths()["purelib"],
        "OMP_NUM_THREADS": "1",
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_TEMP_DIR": str(tmp_path / "files"),
    }
    with (tmp_path / "log.txt").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", SERVED_APP],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=log,
        )
        try:
            url = wait_for_address(tmp_path / "log.txt", process)
            assert "VAR, coarse to fine" in httpx.get(url, timeout=300).text
        finally:
            process.terminate()
            process.wait(600)


# Runs app.py as `python app.py` does, and says where its wheel was taken from and where it listens.
SERVED_APP = """
import runpy, sys, importlib.util
sys.path.insert(0, ".")
assert importlib.util.find_spec("var_hf") is None
import gradio
launch = gradio.Blocks.launch
def told(*arguments, **options):
    result = launch(*arguments, **options)
    print("ADDRESS", result[1], flush=True)
    return result
gradio.Blocks.launch = told
runpy.run_path("app.py", run_name="__main__")
"""


def wait_for_address(log, process):
    while process.poll() is None:
        if found := re.search(r"^ADDRESS (\S+)$", log.read_text(), re.MULTILINE):
            return found[1]
    raise AssertionError(log.read_text())
