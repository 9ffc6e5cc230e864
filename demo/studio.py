"""A loaded model and the requests of the demo. It does not depend on Gradio."""

import time
from collections.abc import Iterator
from typing import Any, cast

import torch
from PIL import Image
from torch.nn import functional

from var_hf import VARImg2ImgPipeline, VARInpaintPipeline, VARPipeline
from var_hf.demo.facts import ModelFacts
from var_hf.demo.orders import Drawn, Edit, Label
from var_hf.demo.settings import MOST_RESULT_PIXELS, Settings, shown
from var_hf.generation import VARScaleOutput
from var_hf.labels import parse_label
from var_hf.memory_errors import memory_errors
from var_hf.pipelines.image_processing import Frame, read_masks


class Studio:
    """A model and its three pipelines.

    Args:
        pipe: The model, on its device.
        facts: The facts from its configuration files.
    """

    def __init__(self, pipe: VARPipeline, facts: ModelFacts):
        self.facts = facts
        self.pipe = pipe
        self.inpaint = VARInpaintPipeline.from_pipe(pipe)
        self.img2img = VARImg2ImgPipeline.from_pipe(pipe)
        for one in (self.pipe, self.inpaint, self.img2img):
            one.set_progress_bar_config(disable=True)
        self.seconds_per_request = 1.0  # moving average

    def class_id(self, label: Label) -> int | None:
        """Return the id of a class given by name or id; `None` is the null class.

        Raises:
            ValueError: There is no such class.
        """
        if label is None:
            return None
        if isinstance(label, str):
            label = parse_label(label)
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise ValueError(f"A class is a name or a number. Got {shown(label)}.")
        if isinstance(label, str) and len(label) > 200:
            raise ValueError(f"There is no class {shown(label)}.")
        return self.pipe.resolve_labels(label)[0]

    def generate(self, label: Label, settings: Settings) -> Iterator[Drawn]:
        """Generate images of a class, scale by scale.

        Raises:
            ValueError: There is no such class, or a setting is out of range.
        """
        class_id = self.class_id(label)
        if class_id is None:
            raise ValueError("Choose a class to draw.")
        settings = settings.with_seed()
        outputs = self.pipe.stream(
            [class_id] * settings.num_images,
            generator=generators(settings),
            preview=True,
            **settings.arguments(),
        )
        yield from self._drawn(outputs, settings, class_id)

    def edit(self, edit: Edit, label: Label, settings: Settings) -> Iterator[Drawn]:
        """Edit an image, scale by scale.

        Raises:
            ValueError: There is nothing to redraw, no such class, or a setting is out of range.
        """
        class_id = self.class_id(label)
        check_size(edit, settings)
        settings = settings.with_seed()
        arguments: dict[str, Any] = {
            "class_labels": class_id,
            "num_images_per_prompt": settings.num_images,
            "generator": generators(settings),
            "preview": True,
            **settings.arguments(),
        }
        if edit.strength is not None:
            outputs = self.img2img.stream(edit.image, strength=edit.strength, **arguments)
        else:
            if edit.mask is not None and not any(edit.expand):
                self._check_mask(edit)
            outputs = self.inpaint.stream(
                edit.image,
                edit.mask,
                expand=edit.expand,
                padding_mask_crop=edit.padding_mask_crop,
                **arguments,
            )
        yield from self._drawn(outputs, settings, class_id)

    def _check_mask(self, edit: Edit) -> None:
        """Refuse a mask that redraws nothing before the request waits in the queue."""
        (mask,) = read_masks(cast(Image.Image, edit.mask))
        if not mask.any():
            raise ValueError("Nothing is painted. Paint over what is to be redrawn.")
        if edit.padding_mask_crop is not None:
            return  # the painted part covers tokens of the crop
        tokens = self.facts.token_map_sizes[-1]
        seen = Frame(mask.shape[1], mask.shape[2], self.facts.side).enter_mask(mask)
        share = functional.interpolate(seen[None], size=(tokens, tokens), mode="area")
        if not (share > 0.5).any():
            raise ValueError(
                f"Too little is painted: the model redraws squares of {1 / tokens:.0%} of the "
                "image's side, and the paint covers none by more than half. Paint a larger area, "
                "or crop around the mask."
            )

    def _drawn(
        self, outputs: Iterator[VARScaleOutput], settings: Settings, class_id: int | None
    ) -> Iterator[Drawn]:
        started = time.perf_counter()
        what = f"{settings.num_images} images at a time"
        with memory_errors(what, self.pipe.device, "Generate fewer"):
            for output in outputs:
                images = cast(list[Image.Image], output.image)
                seconds = time.perf_counter() - started
                yield Drawn(output.scale, output.num_scales, images, settings, class_id, seconds)
        self.seconds_per_request += 0.2 * (seconds - self.seconds_per_request)


def generators(settings: Settings) -> list[torch.Generator]:
    """One stream of random numbers per image, so that each can be drawn again alone."""
    return [torch.Generator().manual_seed(seed) for seed in settings.seeds]


def check_size(edit: Edit, settings: Settings) -> None:
    """Raise a ``ValueError`` where the results would take more memory than one visitor may have."""
    width, height = edit.result_size
    if width * height * settings.num_images > MOST_RESULT_PIXELS:
        raise ValueError(
            f"{settings.num_images} results of {width} x {height} pixels are more than "
            f"{MOST_RESULT_PIXELS / 1e6:g} million pixels together. Extend less, or draw fewer."
        )
