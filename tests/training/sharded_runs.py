"""Runs of several processes: `python sharded_runs.py RUNS`, started once per process.

RUNS is a JSON list of objects with ``train`` (the name in `TRAINERS`), ``settings``, ``output`` and
perhaps ``folders``, one working directory for each process. What a run raises becomes the file
OUTPUT.error-RANK. The process group lives for all runs, because starting costs more than training.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]


def start(count: int, runs: list[dict[str, Any]]) -> None:
    """Carry out runs on `count` processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(count):
        environment = {
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        command = [sys.executable, "-W", "error:FSDP2", __file__, json.dumps(runs)]
        processes.append(
            subprocess.Popen(
                command,
                env=os.environ | environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        for process in processes:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def carry_out(runs: list[dict[str, Any]]) -> None:
    sys.path.insert(0, str(TESTS))
    import conftest  # noqa: F401

    from var_hf.training.cca import CCAConfig, train_cca
    from var_hf.training.ddo import DDOConfig, train_ddo
    from var_hf.training.transformer import train_transformer
    from var_hf.training.transformer_config import TransformerTrainingConfig

    trainers: dict[str, tuple[Any, Any]] = {
        "transformer": (TransformerTrainingConfig, train_transformer),
        "cca": (CCAConfig, train_cca),
        "ddo": (DDOConfig, train_ddo),
    }
    rank = int(os.environ["RANK"])
    for run in runs:
        config, train = trainers[run["train"]]
        if "folders" in run:
            os.chdir(run["folders"][rank])
        try:
            train(config(**run["settings"]), run["output"])
        except ValueError as error:
            Path(f"{run['output']}.error-{rank}").write_text(str(error))


if __name__ == "__main__":
    carry_out(json.loads(sys.argv[1]))
