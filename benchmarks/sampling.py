"""Measure speed and memory of generating a sample set, compared with the plain pipeline.

    python benchmarks/sampling.py var_hf/assets/var-emoji-64

Both run in turn with the same batch size, so that other load affects them equally. Prints JSON:
images per second of each, the slowdown of the set, and the peak memory after every round.
"""

import argparse
import json
import resource
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from var_hf.evaluation.sample_plan import SamplePlan, Share
from var_hf.evaluation.sampling import sample_images
from var_hf.pipelines.loading import load_pipeline
from var_hf.pipelines.pipeline_var import VARPipeline
from var_hf.sampling_settings import SamplingSettings


def draw_alone(pipe: VARPipeline, plan: SamplePlan, settings: SamplingSettings) -> float:
    """Measure the seconds in which the pipeline generates and discards the images of a plan."""
    start = time.perf_counter()
    for shard in range(plan.num_shards):
        for positions in plan.batches(shard):
            generators = [torch.Generator().manual_seed(plan.seed_of(n)) for n in positions]
            labels = [plan.image(n)[0] for n in positions]
            pipe(labels, **asdict(settings), generator=generators, output_type="pt").images.cpu()
    return time.perf_counter() - start


def draw_set(pipe: VARPipeline, plan: SamplePlan, settings: SamplingSettings) -> float:
    """Measure the seconds in which a sample set is generated and written."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        sample_images(pipe, Path(folder) / "set", plan, settings, share=Share())
        return time.perf_counter() - start


def largest_memory() -> int:
    """Return the peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="pipeline folder or Hub repository")
    parser.add_argument("--per-class", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--format", default="png", help="png, tar or npz (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--dtype", default="auto", help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="default: %(default)s")
    arguments = parser.parse_args()
    pipe = load_pipeline(arguments.model, arguments.dtype, arguments.device)
    pipe.set_progress_bar_config(disable=True)
    settings = pipe.resolve_settings()
    plan = SamplePlan(
        pipe.transformer.config.num_classes,
        arguments.per_class,
        batch_size=arguments.batch_size,
        format=arguments.format,
    )
    draw_alone(pipe, replace(plan, images_per_class=1), settings)  # warm-up
    alone, written, memory = [], [], []
    for number in range(arguments.rounds):
        changed = replace(plan, seed=number)
        alone.append(draw_alone(pipe, changed, settings))
        written.append(draw_set(pipe, changed, settings))
        memory.append(largest_memory())
    print(
        json.dumps(
            {
                "device": str(pipe.device),
                "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
                "threads": torch.get_num_threads(),
                "images": len(plan),
                "batch_size": plan.batch_size,
                "format": plan.format,
                "pipeline_images_per_second": [round(len(plan) / s, 2) for s in alone],
                "sample_images_per_second": [round(len(plan) / s, 2) for s in written],
                "slowdown_of_the_best": round(min(written) / min(alone) - 1, 4),
                "largest_memory_mib_by_round": memory,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
