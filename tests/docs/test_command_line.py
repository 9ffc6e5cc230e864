import re
import runpy
from pathlib import Path

import typer
from typer.testing import CliRunner

from var_hf.cli_app import app

SCRIPT = Path(__file__).parents[2] / "docs/update_help.py"


def test_the_help_texts_are_those_of_today():
    """If not: python docs/update_help.py."""
    script = runpy.run_path(str(SCRIPT))
    page = script["PAGE"].read_text(encoding="utf-8")

    assert script["updated"](page) == page


def test_every_command_has_its_section():
    page = SCRIPT.with_name("command-line.md").read_text(encoding="utf-8")
    commands = sorted(typer.main.get_command(app).commands)

    assert sorted(re.findall(r"^## `var-hf (.+)`$", page, re.MULTILINE)) == commands
    assert sorted(re.findall(r"^\$ var-hf (.+) --help$", page, re.MULTILINE)) == commands


def test_the_registry_is_shown_as_it_is():
    """If not: replace the block in docs/conversion.md by the output of `var-hf list`."""
    page = SCRIPT.with_name("conversion.md").read_text(encoding="utf-8")
    shown = CliRunner().invoke(app, ["list"]).stdout

    assert f"```text\n$ var-hf list\n{shown}```" in page
