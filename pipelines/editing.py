"""The shared part of redrawing a region of an image and redrawing its fine scales."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from var_hf.generation import Generators, VARScaleOutput
from var_hf.labels import Labels
from var_hf.pipelines.base import Images, NextScalePipeline
from var_hf.pipelines.checks import (
    callback_tensor_names,
    check_generator,
    check_output_type,
)
from var_hf.pipelines.image_processing import Frame, encode
from var_hf.pipelines.streaming import Callback, Preview, stream
from var_hf.sampling_settings import SamplingSettings, check_num_images


@dataclass
class Edit:
    """One image under edit.

    Attributes:
        image: The image in its own size, ``(3, H, W)`` in [0, 1].
        rows, columns: The window that goes through the model.
        frame: How that window lies in the model's square.
        opacity: Weight of the generated pixels in the window, ``(1, h, w)`` in [0, 1]; `None` is 1
            everywhere.
    """

    image: Tensor
    rows: slice
    columns: slice
    frame: Frame
    opacity: Tensor | None = None

    def finish(self, square: Tensor) -> Tensor:
        """Paste a generated square ``(3, P, P)`` in [0, 1] into the image, ``(3, H, W)``."""
        drawn = self.frame.leave(square)
        finished = self.image.clone()
        window = finished[:, self.rows, self.columns]
        if self.opacity is not None:
            drawn = window * (1 - self.opacity) + drawn * self.opacity
        window.copy_(drawn)
        return finished


@dataclass
class EditInputs:
    """Everything that an edit needs of its images.

    Attributes:
        edits: B edits, or one for all.
        squares: The images in the model's size, ``(B or 1, 3, P, P)`` in [0, 1].
        masks: Where tokens are kept, S masks ``(B or 1, T)``.
    """

    edits: list[Edit]
    squares: Tensor
    masks: list[Tensor]


class EditingPipeline(NextScalePipeline):
    """The shared part of the editing pipelines: the loop with kept tokens, and images in their own
    size.
    """

    def _stream(
        self,
        inputs: EditInputs,
        class_labels: Labels | Tensor,
        settings: SamplingSettings,
        *,
        num_images_per_prompt: int,
        generator: Generators,
        output_type: str,
        callback_on_step_end: Callback | None,
        callback_on_step_end_tensor_inputs: Sequence[str],
        preview: Preview,
    ) -> Iterator[VARScaleOutput]:
        """Check everything that is left to check, and return the loop."""
        check_output_type(output_type)
        names = callback_tensor_names(
            callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )
        class_ids, edits = self.match(
            inputs, self.resolve_labels(class_labels), num_images_per_prompt, output_type
        )
        check_generator(generator, len(class_ids), self._execution_device)
        return stream(
            self,
            self.start(class_ids, settings, generator, self.kept_tokens(inputs, len(class_ids))),
            lambda latents: self.finish(latents, edits, output_type),
            preview,
            callback_on_step_end,
            names,
        )

    def match(
        self,
        inputs: EditInputs,
        class_ids: list[int],
        num_images_per_prompt: int,
        output_type: str,
    ) -> tuple[list[int], list[Edit]]:
        """Match images and labels one to one; a single one serves for all.

        Args:
            inputs: The images.
            class_ids: One id per label.
            num_images_per_prompt: Results per image.
            output_type: As in [`VARInpaintPipeline`].

        Returns:
            One class id and one edit per result.

        Raises:
            ValueError: Their numbers do not fit, or results of several sizes go into one array.
        """
        check_num_images(num_images_per_prompt)
        edits = inputs.edits
        batch_size = common_length(class_labels=len(class_ids), images=len(edits))
        sizes = {tuple(edit.image.shape[1:]) for edit in edits}
        if output_type in ("np", "pt") and len(sizes) > 1:
            raise ValueError(
                f"Images of the sizes {sorted(sizes)} (height, width) do not fit into one array. "
                "Use output_type='pil', or pass them one by one."
            )
        class_ids = class_ids * (batch_size // len(class_ids))
        edits = edits * (batch_size // len(edits))
        return (
            [class_id for class_id in class_ids for _ in range(num_images_per_prompt)],
            [edit for edit in edits for _ in range(num_images_per_prompt)],
        )

    def kept_tokens(self, inputs: EditInputs, count: int) -> tuple[list[Tensor], list[Tensor]]:
        """Token maps and masks for `count` results, as in [`~generation.KeptTokens`]."""
        token_maps = [repeat_rows(tokens, count) for tokens in encode(self.vqvae, inputs.squares)]
        masks = [repeat_rows(mask.to(self.vqvae.device), count) for mask in inputs.masks]
        return token_maps, masks

    def finish(self, latents: Tensor, edits: Sequence[Edit], output_type: str) -> Images:
        """Decode latents ``(B, Z, F, F)`` and paste each result into its own image.

        Args:
            latents: As in [`~generation.VARScaleOutput`].
            edits: B edits.
            output_type: As in [`VARInpaintPipeline`].
        """
        if output_type == "latent":
            return latents
        squares = cast(Tensor, self.decode(latents, "pt")).cpu()  # (B, 3, P, P) in [0, 1]
        images = [edit.finish(square) for edit, square in zip(edits, squares, strict=True)]
        if output_type == "pt":
            return torch.stack(images).to(latents.device)
        arrays = [image.movedim(0, -1).numpy() for image in images]
        if output_type == "np":
            return np.stack(arrays)
        return [image for array in arrays for image in self.image_processor.numpy_to_pil(array)]


def repeat_rows(tensor: Tensor, count: int) -> Tensor:
    """Repeat each row of a tensor ``(B, T)`` equally often, to `count` rows in the same order."""
    return tensor.repeat_interleave(count // len(tensor), dim=0)


def common_length(**lengths: int) -> int:
    """The one length that lists share; those of length 1 serve for all.

    Raises:
        ValueError: They do not fit together.
    """
    longest = max(lengths.values())
    if any(length not in (1, longest) for length in lengths.values()):
        counts = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise ValueError(f"Cannot match {counts}: pass as many of each, or one of them for all.")
    return longest
