"""A loaded model that answers tasks, many at a time."""

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import torch
from PIL import Image

from var_hf.pipelines.loading import load_pipeline
from var_hf.pipelines.pipeline_var import VARPipeline
from var_hf.sampling_settings import SamplingSettings
from var_hf.serving.batching import DONE, Batcher, BatcherThread, Order, Picture, Progress
from var_hf.serving.protocol import DrawTask, Facts, Frame


class ServedModel:
    """One model and the thread that computes.

    Args:
        pipe: The pipeline.
        name: Name of the model in requests.
        max_pictures: Pictures under way at a time.
    """

    def __init__(self, pipe: VARPipeline, name: str, max_pictures: int = 16):
        pipe.set_progress_bar_config(disable=True)
        self.pipe = pipe
        defaults = vars(pipe.resolve_settings())
        self.facts = Facts(
            name=name,
            image_size=pipe.vqvae.image_size,
            num_scales=pipe.num_timesteps,
            num_classes=pipe.transformer.config.num_classes,
            id2label=dict(pipe.id2label),
            defaults=defaults,
        )
        self.thread = BatcherThread(Batcher(pipe, max_pictures))

    @classmethod
    def load(
        cls,
        model: str,
        name: str,
        dtype: str = "auto",
        device: str = "auto",
        max_pictures: int = 16,
        threads: int | None = None,
    ) -> "ServedModel":
        """Load a model.

        Args:
            model: As in `load_pipeline`.
            name: Name of the model in requests.
            dtype: As in `load_pipeline`.
            device: As in `load_pipeline`.
            max_pictures: Pictures under way at a time.
            threads: Threads of PyTorch on the CPU; its own choice by default.

        Raises:
            OSError: The model could not be loaded.
            ValueError: It is no pipeline of this package, there is no such device, or its memory
                does not suffice for so many pictures.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        return cls(load_pipeline(model, dtype, device), name, max_pictures)

    async def draw(self, task: DrawTask) -> AsyncIterator[Frame]:
        """Draw a picture; yields frames, the finished picture last.

        A consumer that stops early, or is cancelled, cancels the picture.
        """
        results: asyncio.Queue[Any] = asyncio.Queue()
        picture = Picture(
            posted_to(results),
            task.class_id,
            task.seed,
            SamplingSettings(**task.settings),
            task.previews,
        )
        async for progress in self._results(picture, results):
            yield await asyncio.to_thread(framed, progress)

    async def _results(self, order: Order, results: asyncio.Queue[Any]) -> AsyncIterator[Any]:
        self.thread.add(order)
        try:
            while (result := await results.get()) is not DONE:
                if isinstance(result, Exception):
                    raise result
                yield result
        finally:
            order.cancelled = True

    def close(self) -> None:
        """Stop the thread."""
        self.thread.close()


def posted_to(results: asyncio.Queue[Any]) -> Any:
    """A function that puts results into a queue of the running event loop, from any thread."""
    loop = asyncio.get_running_loop()

    def post(result: Any) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(results.put_nowait, result)

    return post


def framed(progress: Progress) -> Frame:
    """A frame with the pictures as PNG files."""
    files = [png(image) for image in progress.images]
    return Frame(progress.scale, progress.num_scales, files, progress.sharing)


def png(image: Image.Image) -> bytes:
    """An image as a PNG file."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
