"""A tiny real model, and the demo served with it by the real command."""

import os
import subprocess
import sys
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
