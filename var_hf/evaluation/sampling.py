"""Generation of a sample set, on any number of processes and machines that share a folder."""

import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from var_hf import __version__
from var_hf.evaluation.image_quality import to_uint8
from var_hf.evaluation.sample_plan import SamplePlan, Share
from var_hf.evaluation.sample_set import WORK_NAME, EncodedImage, SampleSet, encode
from var_hf.int8 import int8_tensors
from var_hf.memory_errors import memory_errors
from var_hf.pipelines.pipeline_var import VARPipeline
from var_hf.pipelines.pipeline_var_collaborative import pair_settings
from var_hf.processes import companions
from var_hf.sampling_settings import SamplingSettings

logger = logging.getLogger(__name__)

_BATCHES_AHEAD = 2  # batches that wait to be written while the next is generated
_LOOK_EVERY = 0.5  # seconds between two checks of other processes' progress


def model_digest(pipe: VARPipeline) -> str:
    """Compute the SHA-256 of the names and values of all loaded weights."""
    digest = hashlib.sha256()
    parts = [
        int8_tensors(model) if model.is_int8 else model.state_dict()
        for model in pipe.transformers.values()
    ]
    for tensors in (*parts, pipe.vqvae.state_dict()):
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(values.numpy())
    return digest.hexdigest()


def sample_images(
    pipe: VARPipeline,
    folder: str | Path,
    plan: SamplePlan,
    settings: SamplingSettings,
    *,
    model: str | None = None,
    share: Share | None = None,
) -> dict[str, Any] | None:
    """Generate a sample set, or its missing images.

    The seed and the micro-batch of an image depend only on the plan, not on the number of
    processes. On one kind of device, the set is therefore the same byte for byte.

    Args:
        pipe: The model, on its device.
        folder: Folder of the set. All processes must share it.
        plan: The images, shards and micro-batches.
        settings: Sampling settings.
        model: Name of the model in the manifest.
        share: This process's share of the work; ``None`` reads the variables of `torchrun` and
            `accelerate launch`. The first process waits for the others and finishes the set.

    Returns:
        The manifest in the first process; ``None`` in the others.

    Raises:
        ValueError: The folder contains other samples, and the message names the differences; or the
            batch does not fit into memory.
        OSError: Writing failed. Finished shards stay valid.
    """
    share = share or Share.from_environment()
    config = _configuration(pipe, plan, settings, model)
    samples = SampleSet.claim(folder, config, free=("model",), writer=share.index)
    others = companions()
    others.compare({f"{samples.folder} as far as it is": str(samples.is_finished)})
    if samples.is_finished:
        logger.info("%s is finished; nothing to draw", folder)
        return samples.manifest if share.is_first else None
    try:
        others.check_shared(samples.folder / WORK_NAME)
        return _draw_missing(pipe, samples, settings, share)
    finally:
        samples.close()


def _draw_missing(
    pipe: VARPipeline, samples: SampleSet, settings: SamplingSettings, share: Share
) -> dict[str, Any] | None:
    plan = samples.plan
    pipe.set_progress_bar_config(disable=True)
    progress = _Progress(samples, share)
    workers = max(1, min(8, (os.cpu_count() or 1) // share.count))
    with progress, ThreadPoolExecutor(workers) as pool:
        for shard in share.shards(plan):
            # The first process may have finished the set, which deletes the records of shards.
            if not samples.has(shard) and not samples.is_finished:
                samples.write(shard, _draw_shard(pipe, samples, shard, settings, pool, progress))
                progress.finish_shard()
        if not share.is_first:
            return None
        if share.count > 1:
            logger.info("%s: done with our share, waiting for the other processes", samples.folder)
        while samples.count_finished() < len(plan):
            progress.look()
            time.sleep(_LOOK_EVERY)
        progress.look()
    return samples.finish()


def _configuration(
    pipe: VARPipeline, plan: SamplePlan, settings: SamplingSettings, model: str | None
) -> dict[str, Any]:
    return {
        "plan": plan.describe(),
        "image_size": pipe.vqvae.image_size,
        "settings": asdict(settings) | pair_settings(pipe),
        "model": model,
        "model_sha256": model_digest(pipe),
        "class_names": {str(i): name for i, name in sorted(pipe.id2label.items())},
        "dtype": pipe.precision,
        "device": pipe.device.type,  # another kind of device rounds differently
        "versions": {
            "var-hf": __version__,
            **{name: version(name) for name in ("torch", "numpy", "pillow")},
        },
    }


def _draw_shard(
    pipe: VARPipeline,
    samples: SampleSet,
    shard: int,
    settings: SamplingSettings,
    pool: ThreadPoolExecutor,
    progress: "_Progress",
) -> Iterator[EncodedImage]:
    """Yield the images of a shard in order; they are encoded while the next ones are generated."""
    plan = samples.plan
    waiting: deque[list[Future[EncodedImage]]] = deque()
    decode = _Decode(pipe)
    for positions in plan.batches(shard):
        what = f"{len(positions)} images at a time"
        with memory_errors(what, pipe.device, "Pass a smaller batch size, or bfloat16"):
            pixels, wait = decode(draw(pipe, plan, positions, settings))
        waiting.append([pool.submit(_encode, wait, image, plan.format) for image in pixels])
        progress.add(len(positions))
        if len(waiting) > _BATCHES_AHEAD:
            for image in waiting.popleft():
                yield image.result()
    for batch in waiting:
        for image in batch:
            yield image.result()


def _encode(wait: Callable[[], None] | None, image: np.ndarray, sample_format: str) -> EncodedImage:
    if wait is not None:  # the copy to the host may still be running
        wait()
    return encode(image, sample_format)


class _Decode:
    """Decodes latents ``(B, Z, F, F)`` to uint8 pixels ``(B, P, P, 3)``, rounded to 256 levels.

    On a CUDA device, decoding runs on a separate stream while the next batch is generated. The
    pixels are valid after the returned function has returned. The graphs of a compiled pipeline
    share their memory, so compiled pipelines use a single stream.
    """

    def __init__(self, pipe: VARPipeline):
        self.pipe = pipe
        beside = pipe.device.type == "cuda" and not pipe.is_compiled
        self.stream = torch.cuda.Stream(pipe.device) if beside else None

    def __call__(self, latents: Tensor) -> tuple[np.ndarray, Callable[[], None] | None]:
        if self.stream is None:
            return self._pixels(latents).cpu().numpy(), None
        self.stream.wait_stream(torch.cuda.current_stream(latents.device))
        latents.record_stream(self.stream)
        with torch.cuda.stream(self.stream):
            pixels = self._pixels(latents)
            on_host = torch.empty_like(pixels, device="cpu", pin_memory=True)
            on_host.copy_(pixels, non_blocking=True)
            return on_host.numpy(), self.stream.record_event().synchronize

    def _pixels(self, latents: Tensor) -> Tensor:
        images = cast(Tensor, self.pipe.decode(latents, "pt"))
        return to_uint8(images).permute(0, 2, 3, 1).contiguous()


def draw(
    pipe: VARPipeline, plan: SamplePlan, positions: range, settings: SamplingSettings
) -> Tensor:
    """Generate the latents ``(B, Z, F, F)`` of the images at some positions of a plan."""
    output = pipe(
        [plan.image(position)[0] for position in positions],
        **asdict(settings),
        generator=[torch.Generator().manual_seed(plan.seed_of(n)) for n in positions],
        output_type="latent",
        return_dict=False,
    )
    return cast(Tensor, output[0])


class _Progress:
    """Progress bar of the first process; every process writes its own count to a small file."""

    def __init__(self, samples: SampleSet, share: Share):
        self.samples, self.share = samples, share
        self.folder = samples.folder / ".work" / "progress"
        self.file = self.folder / str(share.index)
        self.current = 0  # finished images of the current shard
        self.bar = tqdm(
            total=len(samples.plan),
            initial=samples.count_finished(),
            unit="image",
            desc=f"sample {samples.folder.name}",
            disable=not share.is_first,
        )

    def __enter__(self) -> "_Progress":
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        self.file.unlink(missing_ok=True)
        self.samples.tidy()

    def add(self, count: int) -> None:
        """Count more images of the current shard."""
        self.current += count
        self._tell()

    def finish_shard(self) -> None:
        """Reset the count after the current shard was written."""
        self.current = 0
        self._tell()

    def _tell(self) -> None:
        if self.share.count > 1:
            with suppress(FileNotFoundError):  # the first process has finished the set
                self.file.write_text(str(self.current))
        self.look()

    def look(self) -> None:
        """Update the bar."""
        if self.share.is_first:
            others = (file for file in self.folder.glob("*") if file != self.file)
            drawn = self.samples.count_finished() + self.current + sum(map(_read_count, others))
            # A shard that is finished between the two counts is briefly counted twice.
            self.bar.n = max(self.bar.n, min(drawn, self.bar.total))
            self.bar.refresh()


def _read_count(file: Path) -> int:
    try:
        return int(file.read_text() or 0)
    except (OSError, ValueError):  # being written, or its process has finished
        return 0
