"""A process with the real clients of a Hub, and code to run in it."""

import json
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import diffusers
import pytest

TESTS = Path(__file__).parent

# What every piece of code finds ready. The package's own client has a small real pipeline.
PACKAGE = """
import json, shutil
from pathlib import Path
import torch
torch.set_num_threads(1)
import conftest
torch.set_num_threads(1)
from conftest import make_pipe, make_transformer, make_vqvae, quiet, seeded
from var_hf import MultiScaleVQVAE, VARModel, VARPipeline
from var_hf.hub import HubError, pull_everything, push_folder
from var_hf.model_card import CardOptions, Result

def draw(pipe):
    return quiet(pipe)([3, "tench"], generator=seeded(0), output_type="pt").images

def same(model, other=None):  # whether all weights are equal, to the last bit
    if isinstance(model, VARPipeline):
        return same(model.transformer, pipe.transformer) and same(model.vqvae, pipe.vqvae)
    ours, theirs = model.state_dict(), other.state_dict()
    if ours.keys() != theirs.keys():
        return False
    return all(torch.equal(ours[name], theirs[name]) for name in ours)

pipe = make_pipe()
"""
# diffusers and transformers, with var_hf nowhere on the path.
PLAIN = """
import importlib.util
assert importlib.util.find_spec("var_hf") is None
import torch
torch.set_num_threads(1)
import diffusers, transformers
"""


class ClientError(Exception):
    """What a piece of code raised in the client's process."""

    def __init__(self, error: dict[str, Any]):
        super().__init__(error["message"])
        self.kinds, self.trace = error["kinds"], error["trace"]


class Client:
    """A process with the real clients of a Hub.

    Attributes:
        log: What the package logged in the last run.
        home: Where its cache lies.
    """

    def __init__(self, environment: dict[str, str], folder: Path, *, package: bool):
        if package:
            command = [sys.executable, "-P"]
            environment = environment | {"PYTHONPATH": str(TESTS)}
        else:
            # Without site, the path has the libraries but not an editable installation.
            command = [sys.executable, "-P", "-S"]
            environment = environment | {"PYTHONPATH": str(Path(diffusers.__file__).parents[1])}
        self.log, self.home = "", Path(environment["HF_HOME"])
        self.errors = (folder / "stderr.txt").open("w+")
        self.process = subprocess.Popen(
            [*command, str(TESTS / "hub" / "client_process.py")],
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        try:
            self.run(PACKAGE if package else PLAIN)
        except BaseException:
            self.close()
            raise

    def run(self, code: str, **values: Any) -> Any:
        """Run code; its variable `result`, which must be plain data, comes back."""
        values = {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}
        request = {"code": textwrap.dedent(code), "values": values}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        watch = threading.Timer(300, self.process.kill)
        watch.start()
        line = self.process.stdout.readline()
        watch.cancel()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(f"The client's process has ended:\n{self.errors.read()[-4000:]}")
        answer = json.loads(line)
        self.log = answer["log"]
        if answer["error"]:
            raise ClientError(answer["error"])
        return answer["result"]

    def fails(self, code: str, kind: str = "HubError", **values: Any) -> str:
        """Run code that must raise an error of this kind with one line; return the line."""
        with pytest.raises(ClientError) as caught:
            self.run(code, **values)
        assert kind in caught.value.kinds, caught.value.trace
        assert "\n" not in caught.value.args[0]
        return caught.value.args[0]

    def fails_somehow(self, code: str, **values: Any) -> str:
        """Run code of other libraries that must raise any error; returns its message."""
        with pytest.raises(ClientError) as caught:
            self.run(code, **values)
        return caught.value.args[0]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()
        self.errors.close()
