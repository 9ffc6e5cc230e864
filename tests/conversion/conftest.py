import json
from pathlib import Path

import pytest
from original_release import original_transformer, original_vqvae

LAYOUTS = sorted((Path(__file__).parents[1] / "golden" / "layouts").glob("*.json"))


@pytest.fixture(params=LAYOUTS, ids=lambda path: path.stem)
def published_layout(request):
    """One published file: its release name, parameter count and tensors."""
    return json.loads(request.param.read_text())


@pytest.fixture
def transformer():
    return original_transformer()


@pytest.fixture
def vqvae():
    return original_vqvae()
