"""What redrawing a part of a picture and redrawing its fine scales have in common."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from var_hf.pipelines.base import (
    Callback,
    Generators,
    Images,
    KeptTokens,
    Labels,
    NextScalePipeline,
    VARScaleOutput,
)
from var_hf.pipelines.pictures import Frame


@dataclass
class Edit:
    """One picture on its way through the model.

    Attributes:
        picture: As it is to come back, ``(3, H, W)`` in [0, 1].
        rows, columns: The window of it that the model sees.
        frame: How that window lies in the model's square.
        opacity: How much of the model's picture shows in the window, ``(1, h, w)`` in [0, 1]; `None` is all of it.
    """

    picture: Tensor
    rows: slice
    columns: slice
    frame: Frame
    opacity: Tensor | None = None

    def finish(self, square: Tensor) -> Tensor:
        """Lay what the model drew, ``(3, P, P)`` in [0, 1], into the picture: ``(3, H, W)``."""
        drawn = self.frame.leave(square)
        finished = self.picture.clone()
        window = finished[:, self.rows, self.columns]
        if self.opacity is not None:
            drawn = window * (1 - self.opacity) + drawn * self.opacity
        window.copy_(drawn)
        return finished


class EditingPipeline(NextScalePipeline):
    """The shared part of the editing pipelines: labels, the loop with kept tokens, pictures in their own size."""

    def _start(
        self,
        edits: Sequence[Edit],
        squares: Tensor,
        masks: Sequence[Tensor],
        class_labels: Labels,
        *,
        guidance_scale: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        sampling: str | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> tuple[Iterator[VARScaleOutput], Callable[[Tensor], Images]]:
        """Check everything and start the loop.

        Args:
            edits: B edits, or one for all.
            squares: What the model sees, ``(B or 1, 3, P, P)`` in [0, 1].
            masks: Where tokens are kept, S masks ``(B or 1, T)``.
            class_labels: B labels, or one for all; `None` is the null class.

        Returns:
            The loop, not yet begun, and a function from latents to finished pictures.
        """
        settings = self._settings(guidance_scale, top_k, top_p, sampling)
        tensor_inputs = self._check_output(
            output_type, callback_on_step_end, callback_on_step_end_tensor_inputs
        )
        self._check_num_images(num_images_per_prompt)
        class_ids = self._class_ids_or_null(class_labels)
        batch_size = common_length(class_labels=len(class_ids), pictures=len(edits))
        class_ids = class_ids * (batch_size // len(class_ids))
        edits = list(edits) * (batch_size // len(edits))
        if all(class_id == self.transformer.config.num_classes for class_id in class_ids):
            # Guided and unguided predictions are the same.
            settings = replace(settings, guidance_scale=1.0)
        sizes = {tuple(edit.picture.shape[1:]) for edit in edits}
        if output_type in ("np", "pt") and len(sizes) > 1:
            raise ValueError(
                f"Pictures of the sizes {sorted(sizes)} (height, width) do not fit into one array. "
                "Use output_type='pil', or pass them one by one."
            )

        class_ids = [i for i in class_ids for _ in range(num_images_per_prompt)]
        edits = [edit for edit in edits for _ in range(num_images_per_prompt)]
        self._check_generator(generator, len(class_ids))
        token_maps = self._encode(squares)
        kept = KeptTokens(
            token_maps=[self._for_each(tokens, len(class_ids)) for tokens in token_maps],
            masks=[self._for_each(mask.to(self.vqvae.device), len(class_ids)) for mask in masks],
        )
        outputs = self._generate(
            class_ids,
            settings,
            generator,
            output_type,
            callback_on_step_end,
            tensor_inputs,
            preview=False,
            kept=kept,
        )
        return outputs, lambda latents: self._finish(latents, edits, output_type)

    @staticmethod
    def _for_each(tensor: Tensor, count: int) -> Tensor:
        """Repeat the rows of a tensor ``(B, T)``, each in its place, until there are `count`."""
        return tensor.repeat_interleave(count // len(tensor), dim=0)

    @staticmethod
    def _with_previews(
        outputs: Iterator[VARScaleOutput], to_images: Callable[[Tensor], Images]
    ) -> Iterator[VARScaleOutput]:
        for output in outputs:
            output.image = to_images(output.latents)
            yield output

    @staticmethod
    def _run(outputs: Iterator[VARScaleOutput], to_images: Callable[[Tensor], Images]) -> Images:
        """Run the loop to its end and return the finished pictures."""
        for output in outputs:
            latents = output.latents
        return to_images(latents)

    @torch.no_grad()
    def _finish(self, latents: Tensor, edits: Sequence[Edit], output_type: str) -> Images:
        if output_type == "latent":
            return latents
        sample = self.vqvae.decode_latents(latents).sample.float()
        squares = self.image_processor.denormalize(sample).cpu()  # (B, 3, P, P) in [0, 1]
        pictures = [edit.finish(square) for edit, square in zip(edits, squares, strict=True)]
        if output_type == "pt":
            return torch.stack(pictures).to(latents.device)
        arrays = [picture.movedim(0, -1).numpy() for picture in pictures]
        if output_type == "np":
            return np.stack(arrays)
        return [image for array in arrays for image in self.image_processor.numpy_to_pil(array)]


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
