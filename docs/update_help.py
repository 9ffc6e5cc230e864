"""Update the help texts in docs/command-line.md: all blocks that start with `$ var-hf ... --help`.

python docs/update_help.py
"""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("command-line.md")
BLOCK = re.compile(
    r"(?<=^```text\n)\$ var-hf(?P<arguments>[^\n]* --help)\n.*?(?=^```$)", re.DOTALL | re.MULTILINE
)


def help_text(arguments: str) -> str:
    """Return the output of the command, in lines of 80 characters."""
    done = subprocess.run(
        [sys.executable, "-m", "var_hf.cli", *arguments.split()],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "80"},
    )
    return f"$ var-hf{arguments}\n{done.stdout}"


def updated(page: str) -> str:
    """Return the page with the current help texts."""
    return BLOCK.sub(lambda match: help_text(match["arguments"]), page)


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
