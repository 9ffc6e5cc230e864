"""A tiny real model, and the demo served with it by the real command."""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from conftest import make_pipe

from var_hf.demo.facts import ModelFacts
from var_hf.demo.models import StudioLoader

# "crane" stands for two classes, as it does in ImageNet; class 10 has no name.
NAMES = {
    0: "tench, Tinca tinca",
    1: "crane",
    2: "crane",
    3: "pizza",
    4: "cookie",
    5: "panda",
    6: "penguin",
    7: "fox",
    8: "<b>bold</b>",
    9: "octopus",
}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "tiny"
    make_pipe(id2label=NAMES).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def facts(model_folder) -> ModelFacts:
    return ModelFacts.read(str(model_folder))


@pytest.fixture(scope="session")
def loader(facts) -> StudioLoader:
    loader = StudioLoader(facts, "float32", "cpu")
    loader.load()
    return loader


@pytest.fixture(scope="session")
def studio(loader):
    return loader.studio


@dataclass
class Served:
    """The command at work.

    Attributes:
        url: Of the page.
        process: The command.
        log: What it writes to stderr.
    """

    url: str
    process: psutil.Process
    log: Path

    def memory(self) -> int:
        """Resident memory in bytes."""
        return self.process.memory_info().rss


@pytest.fixture(scope="session")
def served(model_folder, tmp_path_factory):
    """`var-hf demo` with the tiny model, until the tests are over."""
    folder = tmp_path_factory.mktemp("served")
    options = ["--model", str(model_folder), "--device", "cpu", "--dtype", "float32"]
    command = [sys.executable, "-m", "var_hf.cli", "demo", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(folder / "files")}
    with (folder / "stderr.txt").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), (folder / "stderr.txt").read_text()
        yield Served(url, psutil.Process(process.pid), folder / "stderr.txt")
    finally:
        process.terminate()
        process.wait(600)
        process.stdout.close()


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    """The tiny model as ONNX graphs."""
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    from var_hf.onnx import export_onnx

    folder = tmp_path_factory.mktemp("exported") / "tiny"
    export_onnx(make_pipe(id2label=NAMES), folder, name="tiny", license="mit")
    return folder


@pytest.fixture(scope="session")
def onnxruntime_web(request) -> Path:
    """The npm package onnxruntime-web as an archive, downloaded once by npm."""
    from var_hf.demo.static import RUNTIME, RUNTIME_VERSION

    name = f"{RUNTIME}-{RUNTIME_VERSION}.tgz"
    path = request.config.cache.mkdir(RUNTIME) / name
    if not path.is_file():
        if (npm := shutil.which("npm")) is None:
            pytest.skip("npm is not installed")
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            command = [npm, "pack", f"{RUNTIME}@{RUNTIME_VERSION}", "--pack-destination", folder]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if done.returncode:
                pytest.skip(f"{RUNTIME} cannot be downloaded: {done.stderr.strip()[-200:]}")
            os.replace(Path(folder) / name, path)
    return path
