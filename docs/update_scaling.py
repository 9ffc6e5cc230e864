"""Update the result in docs/scaling.md from examples/emoji/scaling.json, made by var-hf scaling.

python docs/update_scaling.py
"""

import json
import re
from pathlib import Path

from var_hf.evaluation.scaling_report import result_tables, summary

PAGE = Path(__file__).with_name("scaling.md")
RESULT = Path(__file__).parents[1] / "examples/emoji/scaling.json"
TABLES = re.compile(r"(?<=<!-- result -->\n).*?(?=<!-- end of result -->)", re.DOTALL)


def tables() -> str:
    """Format the result in Markdown."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    parts = [summary(result), *(f"**Warning.** {each}" for each in result["warnings"])]
    for table in result_tables(result):
        lines = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
        rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"**{table['heading']}.** {table['text']}\n\n{rows}")
    return "\n\n".join(parts) + "\n"


def updated(page: str) -> str:
    """Return the page with the current tables."""
    return TABLES.sub(lambda _: tables(), page)


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
