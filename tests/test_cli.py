"""The way into the command and its ways out: help, errors, interrupts."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from PIL import Image

from var_hf import __version__, cli_checkpoints
from var_hf.cli_app import app
from var_hf.cli_shared import resolve_model
from var_hf.pipelines.loading import has_fast_bfloat16

COMMAND = (sys.executable, "-m", "var_hf.cli")
HEAVY = ("torch", "transformers", "diffusers", "huggingface_hub", "numpy", "PIL")


# Help


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], []])
def test_help_loads_no_heavy_library(arguments):
    code = (
        "import atexit, sys; from var_hf.cli import main; atexit.register(lambda:"
        f" print(sorted({set(HEAVY)} & set(sys.modules)), file=sys.stderr)); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("Usage: var-hf")
    assert done.stderr == "[]\n"


def test_version(var_hf):
    assert var_hf("--version") == (0, f"var-hf {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["draw"], "var-hf: No such command 'draw'. See var-hf --help."),
        (
            ["generate", "--fast", "hen"],
            "var-hf: No such option: --fast. See var-hf generate --help.",
        ),
        (
            ["convert", "model.pth"],
            "var-hf: Missing option '--output' / '-o'. See var-hf convert --help.",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(fails, arguments, line):
    assert fails(*arguments, code=2) == line


# Errors


@pytest.fixture
def broken(monkeypatch):
    """`var-hf verify` with a fault of its own."""

    def fault(model):
        raise ZeroDivisionError("of a number\nby \x1b[2Jzero.")

    monkeypatch.setattr(cli_checkpoints, "resolve_model", fault)


def test_an_unforeseen_error_is_one_line(fails, broken):
    assert (
        fails("verify", "model")
        == "var-hf: unexpected ZeroDivisionError: of a number by \\x1b[2Jzero. "
        "Repeat the command with --debug to see where it happened."
    )


@pytest.mark.parametrize("arguments", [["--debug", "verify", "x"], ["verify", "x", "--debug"]])
def test_debug_shows_where_an_error_happened(var_hf, broken, arguments):
    code, out, err = var_hf(*arguments)

    assert (code, out) == (1, "")
    assert err.startswith("Traceback") and "in verify" in err
    assert err.splitlines()[-1].startswith("var-hf: unexpected ZeroDivisionError")


def test_the_environment_asks_for_tracebacks_too(var_hf, monkeypatch, broken):
    monkeypatch.setenv("VAR_HF_DEBUG", "1")
    assert var_hf("verify", "x")[2].startswith("Traceback")
    monkeypatch.setenv("VAR_HF_DEBUG", "0")
    assert not var_hf("verify", "x")[2].startswith("Traceback")


def test_a_reader_that_stops_reading_causes_no_message():
    """`var-hf --help | true`: the pipe is closed before anything is written."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*COMMAND, "generate", "--help"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)

    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path):
    """Offline, and nothing in the cache; a process of its own, as the Hub's client reads the
    environment once.
    """
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [*COMMAND, "generate", "hen", "--model", "someone/var-d16-256"],
        capture_output=True,
        text=True,
        env=offline,
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("var-hf: ")
    assert "Traceback" not in done.stderr


def no_large_files():
    """Writing more than 100 bytes to a file fails from here on, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_image(pipe_folder, tmp_path):
    (tmp_path / "out.png").write_bytes(b"old")
    done = subprocess.run(
        [*COMMAND, "generate", "hen", "--model", str(pipe_folder)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        preexec_fn=no_large_files,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr.splitlines()[-1]
        == "var-hf: Writing out.png failed and nothing of it was left behind: File too large"
    )
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("out.png", b"old")]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_quietly_and_leaves_whole_files(pipe_folder, tmp_path, number, code):
    """More images than any machine draws; the signal comes once the first are there."""
    process = subprocess.Popen(
        [*COMMAND, "generate", "hen", "-n", "100000", "--model", str(pipe_folder), "--separate"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    while not (tmp_path / "out-00009-hen.png").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate()

    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err
    files = list(tmp_path.glob("out-*"))  # a temporary folder, with a dot, may be left
    assert len(files) < 100000
    for file in files:
        Image.open(file).load()


# Interrupts

# Ctrl+C while a module is imported: raised there, turned into another error by a library, or in a
# destructor.
AT_IMPORT = """
import signal, sys, time
from var_hf import cli

class Interrupt:
    module, how = sys.argv[1:3]

    def find_spec(self, name, path=None, target=None):
        if name == self.module:
            sys.meta_path.remove(self)
            getattr(self, self.how)()

    def raised(self):
        signal.raise_signal(signal.SIGINT)

    def renamed(self):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("the library is broken") from None

    def dropped(self):
        Destructor()
        time.sleep(60)

class Destructor:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.argv[1:] = sys.argv[3:]
cli.main()
"""


@pytest.mark.parametrize(
    ("module", "how"),
    [
        ("typer", "raised"),
        ("var_hf.cli_images", "raised"),
        ("var_hf.cli_images", "dropped"),
        ("PIL.Image", "raised"),
        ("PIL.Image", "renamed"),
        ("PIL.Image", "dropped"),
    ],
)
def test_an_interrupt_during_start_up_ends_quietly(tmp_path, module, how):
    done = subprocess.run(
        [sys.executable, "-c", AT_IMPORT, module, how, "edit", "x.png", "--strength", "1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=50,
    )

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


# Models


def test_the_shipped_model_has_its_name_in_every_command(var_hf):
    """Every command that takes a model asks `resolve_model`; those that are fast are tried."""
    code, out, _ = var_hf("verify", "var-emoji-64")
    assert code == 0 and out.startswith("var-emoji-64: all")
    code, out, err = var_hf("export-original", "var-emoji-64", "-o", "original")
    assert code == 0, err
    assert all(Path(name).is_file() for name in out.split())
    code, out, err = var_hf("bench", "--model", "var-emoji-64", "--rounds", 1)
    assert code == 0, err


def test_a_quantized_model_may_import_torchao(tmp_path, monkeypatch):
    (tmp_path / "transformer").mkdir()
    config = tmp_path / "transformer/config.json"
    for content, hidden in (("{}", True), ('{"quantization_config": {}}', False)):
        monkeypatch.setitem(sys.modules, "torchao", None)
        config.write_text(content)
        resolve_model(str(tmp_path))
        assert ("torchao" in sys.modules) == hidden


# Names and noise


@pytest.mark.slow
def test_a_plain_command_prints_its_bar_and_its_file_and_nothing_else(tmp_path):
    done = subprocess.run(
        [*COMMAND, "generate", "pizza", "--seed", "3"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )

    assert done.stdout == "out.png\n"
    states = [state for state in re.split(r"[\r\n]+", done.stderr) if state]
    dtype = "bfloat16" if has_fast_bfloat16() else "float32"
    assert states[-1].startswith(f"seed 3, cpu, {dtype}: 1/1 images 100%")
    assert all(state.startswith(f"seed 3, cpu, {dtype}: ") for state in states)


def test_options_have_the_names_of_the_python_arguments():
    """One name per thing: what the pipelines call `sampling` is `--sampling` here."""
    commands = typer.main.get_command(app).commands
    options = {
        name: {flag for parameter in command.params for flag in parameter.opts}
        for name, command in commands.items()
    }
    sampling = {
        *(
            "--guidance-scale",
            "--top-k",
            "--top-p",
            "--sampling",
            "--temperature",
            "--guided-scales",
        )
    }
    assert sampling <= options["generate"] & options["edit"] & options["sample"]
    assert {"--class-labels", "--padding-mask-crop", "--keep-coarsest"} <= options["edit"]
    assert all("--batch-size" in options[name] for name in ("generate", "bench", "sample"))
    old = {"--smooth", "--label", "--mask-crop", "--redraw-coarsest", "--batch", "--per-class"}
    assert not old & set().union(*options.values())
