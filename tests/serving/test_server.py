"""The command `var-hf serve` as a user runs it: Ray Serve on this machine, a client that leaves, a
replica that dies, and an end without losses.
"""

import asyncio
import base64
import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import seeded
from PIL import Image

from var_hf import VARPipeline

ROOT = Path(__file__).parents[2]
PATH = "/v1/images/generations"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(pipe_folder):
    options = ["--model", str(pipe_folder), "--port", str(free_port()), "--threads", "1"]
    options += ["--dtype", "float32", "--drain-seconds", "30"]
    process = subprocess.Popen(
        [sys.executable, "-m", "var_hf.cli", "serve", *options], stdout=subprocess.PIPE, text=True
    )
    url = process.stdout.readline().strip()  # or nothing, if it ended
    assert url, process.wait()
    yield process, url
    process.kill()
    process.wait()
    process.stdout.close()


def seeds_drawn(pipe, answer):
    """The seeds of an answer, after its pictures were compared with those of the pipeline."""
    data = answer.json()["data"]
    for one in data:
        drawn = pipe("hen", generator=seeded(one["seed"])).images[0]
        image = Image.open(io.BytesIO(base64.b64decode(one["b64_json"])))
        assert image.tobytes() == drawn.tobytes()
    return [one["seed"] for one in data]


def ask_all(url, bodies, meanwhile):
    """Answers to many requests at once; `meanwhile` runs while they are under way."""

    async def work():
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            calls = [asyncio.create_task(client.post(PATH, json=body)) for body in bodies]
            await meanwhile(client)
            return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(work())


@pytest.mark.slow
def test_a_server_from_its_start_to_its_end(server, pipe_folder, tmp_path):
    """One test: to start Ray takes longer than all else."""
    process, url = server
    pipe = VARPipeline.from_pretrained(pipe_folder)
    pipe.set_progress_bar_config(disable=True)
    assert httpx.get(f"{url}/readyz").json() == {"status": "ok"}
    bodies = [{"prompt": "hen", "n": 1 + i % 3, "seed": 10 * i} for i in range(12)]

    # The example with the openai package.
    example = [sys.executable, ROOT / "examples/serving/openai_client.py", "--url", url]
    done = subprocess.run(
        [*example, "--prompt", "hen", "--out", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "There is no class" in done.stdout
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["0.png", "1.png", "edited.png", *(f"scale-{k}.png" for k in range(4))]

    # An error of the model comes through as one sentence.
    refused = httpx.post(f"{url}/v1/images/edits", files={"image": ("a.png", b"none")})
    assert refused.status_code == 400 and "image" in refused.json()["error"]["message"]

    # A body that is too large is refused before it is sent.
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {10**9}\r\n\r\n"
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(100)

    # A client leaves, and a replica dies: the others get the pictures of their seeds.
    async def harm(client):
        with pytest.raises(httpx.TimeoutException):
            await client.post(PATH, json={"prompt": "hen", "n": 16}, timeout=0.01)
        for child in psutil.Process(process.pid).children(recursive=True):
            if "ServeReplica:var-hf:Model" in "".join(child.cmdline()):
                child.kill()

    answers = ask_all(url, bodies, harm)
    for body, answer in zip(bodies, answers, strict=True):
        assert seeds_drawn(pipe, answer) == [body["seed"] + i for i in range(body["n"])]

    children = psutil.Process(process.pid).children(recursive=True)

    # The end: what was accepted is finished.
    async def end(client):
        while b"var_hf_pending_images 24.0" not in (await client.get("/metrics")).content:
            await asyncio.sleep(0.01)
        os.kill(process.pid, signal.SIGTERM)

    many = [{"prompt": "hen", "n": 12, "seed": 100 * i, "stream": False} for i in range(2)]
    answers = ask_all(url, many, end)
    assert [len(seeds_drawn(pipe, answer)) for answer in answers] == [12, 12]
    assert process.wait(timeout=120) == 0
    assert not any(child.is_running() for child in children)


def test_a_port_in_use_is_named_before_anything_starts(fails, pipe_folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = fails("serve", "--model", pipe_folder, "--port", port)
    assert f"Port {port} on 127.0.0.1 cannot be used" in error and "--port" in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "nobody/nothing/at-all"], "nothing"),
        (["--host", "300.1.2.3", "--port", "9"], "300.1.2.3"),
        (["--min-replicas", "3", "--replicas", "2"], "--min-replicas 3"),
        (["--device", "cuda:9"], "cuda:9"),
    ],
)
def test_a_command_that_cannot_serve_says_why_in_one_sentence(fails, pipe_folder, options, words):
    options = options if "--model" in options else ["--model", pipe_folder, *options]
    assert words in fails("serve", *options)
