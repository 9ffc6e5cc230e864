"""Train a VAR transformer with Ray Train, on one machine or a cluster.

    pip install var-hf[train,ray]
    python examples/ray/train.py recipe.json runs/photos --workers 8 --gpu

`recipe.json` holds settings of `TransformerTrainingConfig`; data, tokenizer and run folder lie on a
file system that all machines share. Ray starts the workers again when one of them is lost, and the
run goes on from its newest checkpoint.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

# Before ray is imported: nothing is reported to its makers.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer


def train_on_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Train in one of the workers; Ray has connected them and set ``RANK`` and ``WORLD_SIZE``."""
    from var_hf.training.transformer import train_transformer
    from var_hf.training.transformer_config import TransformerTrainingConfig

    return train_transformer(TransformerTrainingConfig(**job["settings"]), job["output"])


def train(
    settings: dict[str, Any], output: Path, workers: int, gpu: bool = False, retries: int = 3
) -> dict[str, Any]:
    """Train with Ray.

    Args:
        settings: Of `TransformerTrainingConfig`, with absolute paths.
        output: Run folder.
        workers: Number of processes; each has a GPU of its own if `gpu` is set.
        gpu: Train on GPUs.
        retries: How often lost workers are started again.

    Returns:
        The result of `train_transformer`.
    """
    trainer = TorchTrainer(
        train_on_worker,
        train_loop_config={"settings": settings, "output": str(output.absolute())},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RunConfig(
            name=output.name,  # Ray's own state lies beside the run folder
            storage_path=str(output.absolute().with_name("ray")),
            failure_config=FailureConfig(max_failures=retries),
        ),
    )
    return dict(trainer.fit().return_value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, help="JSON file of settings")
    parser.add_argument("output", type=Path, help="run folder")
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    parser.add_argument("--gpu", action="store_true", help="give each process a GPU")
    parser.add_argument("--retries", type=int, default=3, help="restarts after a lost worker")
    parser.add_argument("--address", help="a running cluster; by default one on this machine")
    arguments = parser.parse_args()
    local = {} if arguments.address else {"include_dashboard": False}
    ray.init(address=arguments.address, **local)
    settings = json.loads(arguments.recipe.read_text("utf-8"))
    result = train(settings, arguments.output, arguments.workers, arguments.gpu, arguments.retries)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
