"""ZeroGPU exists on the Hub alone: here a module of the same name and form stands for it."""

import json
import os
import subprocess
import sys

import pytest

from var_hf.demo.gpu import is_zero_gpu, on_gpu

# The form of the real one: `GPU(duration=...)` gives a decorator that keeps generators generators.
SPACES = """
import functools

lent = []

def GPU(duration):
    def decorate(function):
        lent.append((function.__name__, duration))
        @functools.wraps(function)
        def run(*arguments, **options):
            yield from function(*arguments, **options)
        return run
    return decorate
"""


def test_elsewhere_functions_stay_as_they_are(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")

    assert (
        on_gpu(test_elsewhere_functions_stay_as_they_are)
        is test_elsewhere_functions_stay_as_they_are
    )
    assert not is_zero_gpu()


@pytest.mark.slow
def test_on_a_space_all_that_uses_the_model_is_lent_the_gpu(model_folder, tmp_path):
    (tmp_path / "spaces.py").write_text(SPACES)
    code = f"""
import json, spaces
from var_hf.demo.facts import ModelFacts
from var_hf.demo.gpu import is_zero_gpu
from var_hf.demo.interface import build_demo
from var_hf.demo.models import StudioLoader
demo = build_demo(StudioLoader(ModelFacts.read({str(model_folder)!r})))
names = demo.get_api_info()["named_endpoints"]
print(json.dumps([is_zero_gpu(), spaces.lent, sorted(names), len(names["/generate"]["returns"])]))
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "SPACES_ZERO_GPU": "true"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    zero_gpu, lent, names, returns = json.loads(done.stdout.splitlines()[-1])

    assert zero_gpu and names == ["/classify", "/edit", "/generate"] and returns == 2
    assert {name for name, _ in lent} == {"generate", "edit", "classify", "look_inside", "prepare"}
    assert all(0 < seconds <= 120 for _, seconds in lent)
