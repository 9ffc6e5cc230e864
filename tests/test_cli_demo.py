import shutil
import signal
import subprocess
import sys

import httpx
import pytest


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model", "nowhere"], "There is no folder nowhere"),
        (["--private"], "--private and --json are about --push"),
        (["--static"], "--static needs a folder to write (-o), or a Space (--push), or both"),
        (["--static", "-o", "page", "--private"], "--private is about --push"),
        (["--static", "-o", "page", "--model", "nowhere"], "There is no folder nowhere"),
        (["-o", "page"], "--output, --weights and --runtime are about --static"),
    ],
)
def test_bad_input_is_one_line(fails, arguments, line):
    assert line in fails("demo", *arguments)


def test_a_value_out_of_range_is_a_wrong_command_line(fails):
    assert "--port" in fails("demo", "--port", "70000", code=2)
    assert "--dtype" in fails("demo", "--dtype", "float8", code=2)


@pytest.mark.slow
def test_the_page_is_served_until_an_interrupt(pipe_folder, tmp_path):
    command = [
        sys.executable,
        "-m",
        "var_hf.cli",
        "demo",
        "--model",
        str(pipe_folder),
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    url = process.stdout.readline().strip()
    assert httpx.get(url, timeout=300).status_code == 200

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert out == "" and "Traceback" not in err


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_the_command(pipe_folder, tmp_path):
    """The page is there before the model; when the model fails, so does the command."""
    folder = tmp_path / "broken"
    shutil.copytree(pipe_folder, folder)
    (folder / "transformer/model.safetensors").write_bytes(b"no weights")
    done = subprocess.run(
        [sys.executable, "-m", "var_hf.cli", "demo", "--model", str(folder), "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert done.returncode == 1
    assert f"var-hf: {folder}/transformer/model.safetensors is truncated" in done.stderr
