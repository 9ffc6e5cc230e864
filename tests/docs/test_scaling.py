import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "docs/update_scaling.py"


def test_the_tables_of_scaling_laws_are_those_of_the_result():
    """If not: python docs/update_scaling.py."""
    script = runpy.run_path(str(SCRIPT))
    page = script["PAGE"].read_text(encoding="utf-8")

    assert script["TABLES"].search(page)
    assert script["updated"](page) == page
