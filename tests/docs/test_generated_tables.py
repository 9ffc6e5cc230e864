import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["costs", "scale", "scaling"])
def test_the_tables_of_a_page_are_those_of_today(name):
    """If not: run the script."""
    script = runpy.run_path(str(DOCS / f"update_{name}.py"))
    page = script["PAGE"].read_text(encoding="utf-8")

    without_numbers = re.sub(r"\d", "#", page)
    assert re.search(r"\d", script["updated"](without_numbers))  # there are tables
    assert script["updated"](page) == page
