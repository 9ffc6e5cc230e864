import importlib
import sys
from pathlib import Path

import pytest

EMOJI = Path(__file__).parents[2] / "examples" / "emoji"


@pytest.fixture
def example(monkeypatch):
    """Imports a script of examples/emoji anew, and `judge_images`, which others build on."""

    def load(name):
        monkeypatch.syspath_prepend(EMOJI)
        for each in (name, "judge_images"):
            monkeypatch.delitem(sys.modules, each, raising=False)
        return importlib.import_module(name)

    return load
