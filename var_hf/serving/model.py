"""A loaded model that answers tasks, many at a time."""

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from typing import Any

import torch
from PIL import Image, ImageChops

from var_hf.image_files import open_image
from var_hf.pipelines.endpoint import MOST_UPLOADED_PIXELS
from var_hf.pipelines.loading import load_pipeline
from var_hf.pipelines.pipeline_var import VARPipeline
from var_hf.pipelines.pipeline_var_img2img import VARImg2ImgPipeline
from var_hf.pipelines.pipeline_var_inpaint import VARInpaintPipeline
from var_hf.sampling_settings import SamplingSettings
from var_hf.serving.batching import DONE, Batcher, BatcherThread, Job, Order, Picture, Progress
from var_hf.serving.protocol import ClassifyTask, EditTask, Facts, Frame, Task


class ServedModel:
    """One model and the thread that computes.

    Args:
        pipe: The pipeline.
        name: Name of the model in requests.
        max_pictures: Pictures under way at a time.
    """

    def __init__(self, pipe: VARPipeline, name: str, max_pictures: int = 16):
        self.pipe = pipe
        self.inpaint = VARInpaintPipeline(**pipe.components, id2label=pipe.id2label)
        self.img2img = VARImg2ImgPipeline(**pipe.components, id2label=pipe.id2label)
        for each in (self.pipe, self.inpaint, self.img2img):
            each.set_progress_bar_config(disable=True)
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

    async def draw(self, task: Task) -> AsyncIterator[Frame]:
        """Draw or redraw a picture, or classify one; yields frames, the finished one last.

        A consumer that stops early, or is cancelled, cancels the task.

        Raises:
            ValueError: An image cannot be read, or the task cannot be done.
        """
        results: asyncio.Queue[Any] = asyncio.Queue()
        order: Order
        if isinstance(task, ClassifyTask):
            image = await asyncio.to_thread(read_file, task.image, "image")
            order = Job(posted_to(results), lambda: self._classify(image, task))
        elif isinstance(task, EditTask):
            images = await asyncio.to_thread(read_edit, task)
            order = Job(posted_to(results), lambda: self._edit(images, task))
        else:
            settings = SamplingSettings(**task.settings)
            order = Picture(posted_to(results), task.class_id, task.seed, settings, task.previews)
        async for result in self._results(order, results):
            if isinstance(result, Progress):
                yield await asyncio.to_thread(framed, result)
            elif result is not None:
                yield result

    def _edit(self, images: dict[str, Image.Image], task: EditTask) -> Iterator[Progress | None]:
        """The scales of an edit; nothing for those that nobody asked about."""
        pipe: Any = self.inpaint if "mask_image" in images else self.img2img
        class_id = task.class_id if task.class_id < self.facts.num_classes else None
        outputs = pipe.stream(
            **images,
            class_labels=class_id,
            generator=torch.Generator().manual_seed(task.seed),
            preview=True if task.previews else "last",
            **task.settings,
            **task.options,
        )
        for output in outputs:
            is_last = output.scale == output.num_scales - 1
            if is_last or output.scale in task.previews:
                yield Progress(output.scale, output.num_scales, output.image, 1)
            else:
                yield None

    def _classify(self, image: Image.Image, task: ClassifyTask) -> Iterator[Frame]:
        generator = torch.Generator().manual_seed(task.seed)
        top = min(task.top, self.facts.num_classes)
        classes = self.pipe.classify(image, top=top, generator=generator)[0]
        last = self.facts.num_scales - 1
        yield Frame(last, self.facts.num_scales, [], classes=classes)

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


def read_file(content: bytes, name: str) -> Image.Image:
    """An uploaded image.

    Raises:
        ValueError: It is none, damaged, or too large.
    """
    try:
        return open_image(io.BytesIO(content), name, most_pixels=MOST_UPLOADED_PIXELS)
    except OSError as error:
        raise ValueError(str(error)) from error


def read_edit(task: EditTask) -> dict[str, Image.Image]:
    """The images of an edit by the names of the pipeline's arguments.

    Raises:
        ValueError: One of them is no image, is damaged, or is too large.
    """
    images = {"image": read_file(task.image, "image")}
    if task.mask is not None:
        images["mask_image"] = redrawn(read_file(task.mask, "mask"))
    return images


def redrawn(mask: Image.Image) -> Image.Image:
    """A mask that is white where it was transparent; one without transparency stays as it is."""
    if "A" in mask.getbands():
        alpha = mask.getchannel("A")
        if alpha.getextrema() != (255, 255):
            return ImageChops.invert(alpha)
    return mask.convert("L")


def framed(progress: Progress) -> Frame:
    """A frame with the pictures as PNG files."""
    files = [png(image) for image in progress.images]
    return Frame(progress.scale, progress.num_scales, files, progress.sharing)


def png(image: Image.Image) -> bytes:
    """An image as a PNG file."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
