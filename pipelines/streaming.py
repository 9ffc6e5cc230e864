"""The loop over scales in a diffusers pipeline: progress bar, callbacks, previews, offloading."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from var_hf.generation import Controls, Generation, VARScaleOutput, generate

Preview: TypeAlias = bool | Literal["last"]
Callback: TypeAlias = (
    Callable[[DiffusionPipeline, int, int, dict], dict] | PipelineCallback | MultiPipelineCallbacks
)


class CallbackControls:
    """The values of a pipeline that callbacks read and change.

    Attributes:
        controls: Those of the call that drew the latest scale.
    """

    controls: Controls

    @property
    def guidance_scale(self) -> float:
        """Guidance at the finest scale, of the call that drew the latest scale."""
        return self.controls.guidance_scale

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt` in a callback to stop its call after the current scale."""
        return self.controls.interrupt

    # diffusers' callbacks set these two.

    @property
    def _guidance_scale(self) -> float:
        return self.controls.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, guidance_scale: float) -> None:
        self.controls.guidance_scale = guidance_scale

    @property
    def _interrupt(self) -> bool:
        return self.controls.interrupt

    @_interrupt.setter
    def _interrupt(self, interrupt: bool) -> None:
        self.controls.interrupt = interrupt


@torch.no_grad()
def stream(
    pipe: Any,
    generation: Generation,
    to_images: Callable[[Tensor], Any],
    preview: Preview,
    callback: Callback | None,
    callback_tensors: Sequence[str],
    draw: Callable[[Generation], Iterator[VARScaleOutput]] = generate,
) -> Iterator[VARScaleOutput]:
    """Draw scale by scale.

    Args:
        pipe: The pipeline, a `NextScalePipeline`.
        generation: The state of the call.
        to_images: Turns latents ``(B, Z, F, F)`` into images.
        preview: Fill in `image` after every scale (`True`), after the last one that is drawn
            (`"last"`), or never.
        callback: Called as `callback(pipe, scale, scale, tensors)` after every scale.
        callback_tensors: Names of the tensors that the callback gets.
        draw: Runs the loop, and may change the generation between two scales.
    """
    num_scales = generation.quantizer.num_scales
    try:
        with pipe.progress_bar(total=num_scales) as progress_bar:
            for output in draw(generation):
                # Callbacks reach this call's guidance and interrupt through the pipeline.
                pipe.controls = generation.controls
                if callback is not None:
                    tensors = {name: getattr(generation, name) for name in callback_tensors}
                    changed = callback(pipe, output.scale, output.scale, tensors)
                    output.latents = changed.pop("latents", output.latents)
                    generation.latents = output.latents
                progress_bar.update()
                is_last = generation.controls.interrupt or output.scale == num_scales - 1
                if preview is True or (preview == "last" and is_last):
                    output.image = to_images(output.latents)
                yield output
                # The consumer may have set it meanwhile. With "last", the image of the next scale
                # is still owed.
                if is_last or (generation.controls.interrupt and preview != "last"):
                    return
    finally:
        pipe.maybe_free_model_hooks()


def last_image(outputs: Iterator[VARScaleOutput]) -> Any:
    """The images of the last scale that is drawn."""
    return deque(outputs, maxlen=1).pop().image
