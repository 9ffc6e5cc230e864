"""Measure `var-hf serve` under load; the results are JSON on stdout.

python benchmarks/serve_load.py load --requests 5000 --clients 64      # every picture checked
python benchmarks/serve_load.py load --requests 300 --kills 3          # replicas killed under load
python benchmarks/serve_load.py throughput --rounds 5                  # against one-by-one calls
python benchmarks/serve_load.py policy                                 # when newcomers start

`--model tiny` writes a small random model into a temporary folder.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import torch

from var_hf import MultiScaleVQVAE, NextScaleScheduler, VARConfig, VARModel, VARPipeline
from var_hf.image_files import open_image
from var_hf.pipelines.loading import load_pipeline
from var_hf.serving.batching import DONE, Batcher, Picture

PATH = "/v1/images/generations"
INVALID = [
    {"prompt": "no such class"},
    {"prompt": 0, "n": 0},
    {"prompt": 0, "n": 1000},
    {"prompt": 0, "guidance_scale": -1},
    {"prompt": 0, "size": "7x7"},
    {"prompt": 0, "model": "another"},
    {"prompt": 0, "anything": 1},
    {},
]
SETTINGS = [
    {},
    {},
    {},
    {"guidance_scale": 1.0},
    {"guidance_scale": 3.0, "top_k": 20},
    {"sampling": "gumbel_softmax"},
    {"temperature": 0.8, "guided_scales": 3},
]
READY_SECONDS = 600
TRIES_IN_FULL_QUEUE = 100


def tiny_model(folder: Path) -> None:
    torch.manual_seed(0)
    sizes = (1, 2, 3, 5)
    transformer = VARModel(
        VARConfig(
            vocab_size=29, latent_channels=6, hidden_size=96, num_hidden_layers=2,
            num_attention_heads=6, token_map_sizes=sizes, num_classes=11, head_init_scale=1.0,
        )
    )  # fmt: skip
    vqvae = MultiScaleVQVAE(
        base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, latent_channels=6,
        codebook_size=29, token_map_sizes=sizes, norm_num_groups=4,
    )  # fmt: skip
    scheduler = NextScaleScheduler(guidance_scale=2.0, top_k=0, top_p=0.95)
    VARPipeline(transformer.eval(), vqvae.eval(), scheduler).save_pretrained(folder)


@contextmanager
def server(model: str, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "var_hf.cli", "serve", "--model", model, "--port", str(port)]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        if not url:
            raise SystemExit("The server did not start.")
        yield url, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=READY_SECONDS)
        print(f"the server ended with exit code {process.returncode}", file=sys.stderr)


def plan(count: int, num_classes: int, settings: list[dict], seed: int = 0) -> list[dict]:
    """Requests with distinct seeds: 90% valid ones of mixed n, 5% cancelled, 5% invalid."""
    rng = random.Random(seed)
    requests = []
    for i in range(count):
        kind = rng.choices(["valid", "cancelled", "invalid"], [90, 5, 5])[0]
        body = {
            "prompt": rng.randrange(num_classes),
            "n": rng.choice([1, 1, 1, 2, 4]),
            "seed": 16 * i,
            **rng.choice(settings),
        }
        if kind == "invalid":
            body = rng.choice(INVALID)
        requests.append({"kind": kind, "body": body, "patience": rng.uniform(0, 0.3)})
    return requests


async def send(client: httpx.AsyncClient, request: dict) -> dict:
    start = time.monotonic()
    full = 0
    try:
        while True:
            call = client.post(PATH, json=request["body"])
            if request["kind"] == "cancelled":
                answer = await asyncio.wait_for(call, request["patience"])
            else:
                answer = await call
            if answer.status_code != 429 or full == TRIES_IN_FULL_QUEUE:
                break
            full += 1
            await asyncio.sleep(int(answer.headers["Retry-After"]) * random.uniform(0.5, 1))
    except TimeoutError:
        return {**request, "status": "cancelled"}
    except httpx.HTTPError as error:
        return {**request, "status": repr(error)}
    seconds = time.monotonic() - start
    data = answer.json() if answer.content else None
    return {**request, "status": answer.status_code, "data": data, "seconds": seconds, "full": full}


async def send_all(url: str, requests: list[dict], clients: int, done=lambda count: None):
    waiting, answers = iter(requests), []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:

        async def one_client():
            for request in waiting:
                answers.append(await send(client, request))
                done(len(answers))

        await asyncio.gather(*[one_client() for _ in range(clients)])
    return answers


def pixels(text: str) -> bytes:
    return open_image(io.BytesIO(base64.b64decode(text)), "answer").convert("RGB").tobytes()


def check(pipe: VARPipeline, answers: list[dict]) -> dict:
    """Compare every answered picture with that of a call of its own."""
    pictures = equal = lost = 0
    statuses: Counter = Counter()
    for answer in answers:
        kind, body, status = answer["kind"], answer["body"], answer["status"]
        statuses[f"{kind}: {status}"] += 1
        if status != 200:
            lost += kind == "valid"
            continue
        if kind == "invalid":
            continue
        names = set(body) - {"prompt", "n", "seed"}
        options = {name: body[name] for name in names}
        data = answer["data"]["data"]
        lost += len(data) != body["n"]
        for i, one in enumerate(data):
            generator = torch.Generator().manual_seed(body["seed"] + i)
            image = pipe(body["prompt"], generator=generator, **options).images[0]
            pictures += 1
            equal += one["seed"] == body["seed"] + i and pixels(one["b64_json"]) == image.tobytes()
    return {
        "statuses": dict(sorted(statuses.items())),
        "pictures": pictures,
        "bit_equal_to_offline": equal,
        "valid_requests_lost": lost,
    }


def quantiles(seconds: list[float]) -> dict:
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50": round(cuts[49], 3), "p95": round(cuts[94], 3), "p99": round(cuts[98], 3)}


def replicas(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in process.children(recursive=True):
        try:
            if "".join(child.cmdline()).startswith("ray::ServeReplica:var-hf:Model"):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def load(arguments: argparse.Namespace, model: str) -> dict:
    pipe = load_pipeline(model, arguments.dtype, "cpu")
    pipe.set_progress_bar_config(disable=True)
    requests = plan(arguments.requests, pipe.transformer.config.num_classes, SETTINGS)
    killed: list[int] = []
    options = ["--dtype", arguments.dtype, "--threads", str(arguments.threads)]
    options += ["--max-queue", str(arguments.max_queue)]
    if arguments.replicas > 1:
        options += ["--replicas", str(arguments.replicas), "--min-replicas"]
        options += [str(arguments.replicas)]
    with server(model, *options) as (url, process):
        gap = arguments.requests // (arguments.kills + 1)

        def done(count: int) -> None:
            if count % 100 == 0:
                print(f"{count} requests answered", file=sys.stderr)
            if arguments.kills > len(killed) and count >= gap * (len(killed) + 1):
                alive = [one for one in replicas(process) if one.pid not in killed]
                if alive:
                    alive[0].kill()
                    killed.append(alive[0].pid)

        start = time.monotonic()
        answers = asyncio.run(send_all(url, requests, arguments.clients, done))
        seconds = time.monotonic() - start
        metrics = httpx.get(url + "/metrics").text
    result = check(pipe, answers)
    result["seconds"] = round(seconds, 1)
    result["latency"] = quantiles(
        [a["seconds"] for a in answers if a["kind"] == "valid" and "seconds" in a]
    )
    result["answers_429_tried_again"] = sum(a.get("full", 0) for a in answers)
    result["replicas_killed"] = len(killed)
    wanted = ("var_hf_images_total", "var_hf_images_per_pass_sum", "var_hf_pending_images ")
    result["metrics"] = [line for line in metrics.splitlines() if line.startswith(wanted)]
    return result


def throughput(arguments: argparse.Namespace, model: str) -> dict:
    """Pairs of one-by-one calls and calls of several clients, in alternating order."""
    pipe = load_pipeline(model, arguments.dtype, "cpu")
    pipe.set_progress_bar_config(disable=True)
    classes, count = pipe.transformer.config.num_classes, arguments.requests
    options = ["--dtype", arguments.dtype, "--threads", str(arguments.threads)]

    def bodies(round_number: int) -> list[dict]:
        return [
            {"kind": "valid", "body": {"prompt": i % classes, "seed": 1000 * round_number + i}}
            for i in range(count)
        ]

    def offline(requests: list[dict]) -> float:
        start = time.monotonic()
        for request in requests:
            generator = torch.Generator().manual_seed(request["body"]["seed"])
            pipe(request["body"]["prompt"], generator=generator)
        return count / (time.monotonic() - start)

    pairs = []
    with server(model, *options) as (url, _):

        def served(requests: list[dict], clients: int) -> float:
            start = time.monotonic()
            answers = asyncio.run(send_all(url, requests, clients))
            assert all(answer["status"] == 200 for answer in answers)
            return count / (time.monotonic() - start)

        served(bodies(0)[:16], 16)
        offline(bodies(0)[:2])
        for number in range(1, arguments.rounds + 1):
            ways = {
                "pipeline_one_by_one": lambda number=number: offline(bodies(number)),
                "one_client": lambda number=number: served(bodies(number), 1),
                "clients": lambda number=number: served(bodies(number), arguments.clients),
            }
            names = list(ways) if number % 2 else list(reversed(ways))
            pair = {name: round(ways[name](), 3) for name in names}
            pair["load_average"] = round(os.getloadavg()[0], 1)
            print(pair, file=sys.stderr)
            pairs.append(pair)
    return {
        "pictures_per_second": pairs,
        "median_gain_over_pipeline": round(
            statistics.median(p["clients"] / p["pipeline_one_by_one"] for p in pairs), 2
        ),
        "median_gain_over_one_client": round(
            statistics.median(p["clients"] / p["one_client"] for p in pairs), 2
        ),
    }


class WaitingBatcher(Batcher):
    """Newcomers wait until the pictures under way are finished."""

    def room(self) -> int:
        return 0 if self.groups else self.max_pictures


def policy(arguments: argparse.Namespace, model: str) -> dict:
    """Pictures that arrive at random times, and 16 clients that wait for their answers."""
    pipe = load_pipeline(model, arguments.dtype, "cpu")
    pipe.set_progress_bar_config(disable=True)
    settings, classes = pipe.resolve_settings(), pipe.transformer.config.num_classes

    def drive(kind: type[Batcher], arrivals: list[float] | None, cpu: bool = True) -> dict:
        """Time is that of the process on its core, so that other programs do not count."""
        batcher = kind(pipe, 16)
        clock, idle = time.process_time, 0.0
        start = clock()
        left, began, latencies = arguments.requests, {}, []
        under_way = 0

        def add() -> None:
            nonlocal left, under_way
            left -= 1
            under_way += 1
            seed = left

            def emit(result):
                nonlocal under_way
                if result is DONE:
                    under_way -= 1
                    latencies.append(clock() + idle - start - began[seed])

            arrived = arrivals[len(began)] if arrivals else clock() - start
            began[seed] = arrived
            batcher.add(Picture(emit, seed % classes, seed, settings))

        while left or batcher.has_work:
            if arrivals is None:
                while left and under_way < arguments.clients:
                    add()
            else:
                while left and arrivals[len(began)] <= clock() + idle - start:
                    add()
                if not batcher.has_work:
                    idle += max(0.0, arrivals[len(began)] - (clock() + idle - start))
                    continue
            batcher.turn()
        total = clock() + idle - start
        return {"per_second": round(len(latencies) / total, 2), "latency": quantiles(latencies)}

    drive(Batcher, None)
    rng, rates = random.Random(0), {}
    for rate in arguments.rates:
        now, arrivals = 0.0, []
        for _ in range(arguments.requests):
            now += rng.expovariate(rate)
            arrivals.append(now)
        rates[f"arrivals of {rate:g} per second"] = arrivals
    return {
        name: {
            "catch_up": drive(Batcher, arrivals),
            "wait": drive(WaitingBatcher, arrivals),
        }
        for name, arrivals in {f"{arguments.clients} clients": None, **rates}.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["load", "throughput", "policy"])
    parser.add_argument("--model", default="var-emoji-64")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--requests", type=int, default=160)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--max-queue", type=int, default=256)
    parser.add_argument("--rates", type=float, nargs="*", default=[2, 4, 6])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if model == "tiny":
            model = str(Path(folder) / "tiny")
            tiny_model(Path(model))
        measured = {"load": load, "throughput": throughput, "policy": policy}[arguments.what]
        before = os.getloadavg()[0]
        result = measured(arguments, model)
    given = vars(arguments)
    machine = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    machine |= {"torch": torch.__version__, "load_average_before": round(before, 1)}
    print(json.dumps({"arguments": given, "machine": machine, "result": result}, indent=2))


if __name__ == "__main__":
    main()
