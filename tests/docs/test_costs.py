import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "docs/update_costs.py"


def test_the_table_of_costs_is_that_of_today():
    """If not: python docs/update_costs.py."""
    script = runpy.run_path(str(SCRIPT))
    page = script["PAGE"].read_text(encoding="utf-8")

    assert script["TABLE"].search(page)
    assert script["updated"](page) == page
