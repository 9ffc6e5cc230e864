import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "docs/update_scale.py"


def test_the_tables_of_scale_are_those_of_today():
    """If not: python docs/update_scale.py."""
    script = runpy.run_path(str(SCRIPT))
    page = script["PAGE"].read_text(encoding="utf-8")

    assert len(script["TABLE"].findall(page)) == 3
    assert script["updated"](page) == page
