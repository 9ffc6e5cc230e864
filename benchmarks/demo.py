"""Measure the demo: time to the first page and the first image, and memory under load.

python benchmarks/demo.py [--model MODEL] [--requests 50] [--clients 8] [--rounds 3]

Run it on an idle machine. The load consists of requests for images of all classes. The memory is
the server's after each round. Prints JSON.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil

from var_hf.assets import DEFAULT_MODEL

PATIENCE = 600  # seconds


def get(url: str) -> int:
    """Return the HTTP status of a page; 0 if no server listens."""
    try:
        return httpx.get(url, timeout=PATIENCE).status_code
    except httpx.TransportError:
        return 0


def generate(url: str, class_id: int, seed: int) -> float:
    """Generate an image over plain HTTP and return the seconds until its first scale."""
    with httpx.Client(base_url=url, timeout=PATIENCE) as http:
        started = time.perf_counter()
        data = [str(class_id), 1, *[None] * 7, seed]
        event = http.post("gradio_api/call/generate", json={"data": data}).json()["event_id"]
        first = None
        with http.stream("GET", f"gradio_api/call/generate/{event}") as stream:
            for line in stream.iter_lines():
                if line == "event: error":
                    raise RuntimeError(f"class {class_id}, seed {seed} failed")
                if first is None and line == "event: generating":
                    first = time.perf_counter() - started
    assert first is not None
    return first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL.name,
        help="pipeline folder or Hub repository (default: %(default)s)",
    )
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    from var_hf.demo.facts import ModelFacts

    num_classes = ModelFacts.read(options.model).num_classes
    command = [sys.executable, "-m", "var_hf.cli", "demo", "--model", options.model]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"GRADIO_TEMP_DIR": folder}
        )
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert get(url) == 200
            page = time.perf_counter() - started
            waiting = generate(url, 0, 0)  # a visitor who clicks at once
            drawn = time.perf_counter() - started
            alone = sorted(generate(url, 0, seed) for seed in range(1, 6))
            server = psutil.Process(process.pid)
            memory = [server.memory_info().rss]
            rounds = []
            jobs = [(index % num_classes, index) for index in range(options.requests)]
            for _ in range(options.rounds):
                begun = time.perf_counter()
                with ThreadPoolExecutor(options.clients) as clients:
                    list(clients.map(lambda job: generate(url, *job), jobs))
                rounds.append(time.perf_counter() - begun)
                memory.append(server.memory_info().rss)
        finally:
            process.terminate()
            process.wait(600)
    result = {
        "seconds_to_first_page": round(page, 2),
        "seconds_to_first_image": round(drawn, 2),
        "of_these_waiting_for_the_image": round(waiting, 2),
        "seconds_from_click_to_first_scale": [round(one, 3) for one in alone],
        "requests": options.requests,
        "clients": options.clients,
        "seconds_per_round": [round(one, 2) for one in rounds],
        "memory_mb": [round(one / 1e6) for one in memory],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "model": options.model,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
