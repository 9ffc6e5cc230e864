"""Pipelines on onnxruntime with the calls of `VARPipeline` and `VARImg2ImgPipeline`.

They need numpy, onnxruntime and, for images, Pillow; torch is never imported.
"""

import os
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from var_hf.labels import Labels, label_ids, resolve_labels
from var_hf.onnx.metadata import Metadata
from var_hf.onnx.random_numbers import LARGEST_SEED
from var_hf.onnx.runner import Generation, Kept, OnnxGraphs, OnnxScaleOutput
from var_hf.sampling_settings import (
    GuidedScales,
    SamplingSettings,
    Temperature,
    check_num_images,
    fill_in_settings,
)
from var_hf.schema import SCHEDULER, Whole, check_values
from var_hf.strength import first_redrawn_scale

OUTPUT_TYPES = ("pil", "np", "latent")
Callback: TypeAlias = Callable[[Any, int, int, dict[str, Any]], dict[str, Any] | None]
Preview: TypeAlias = bool | str
Seed: TypeAlias = int | Sequence[int] | None


@dataclass
class OnnxPipelineOutput:
    """Output of a pipeline.

    Attributes:
        images: A list of PIL images, or an array; see `output_type`.
    """

    images: Any


class OnnxPipeline:
    """The shared part of both pipelines.

    Args:
        graphs: The graphs of an exported folder.
    """

    def __init__(self, graphs: OnnxGraphs):
        self.graphs = graphs
        self.interrupt = False

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        providers: Sequence[Any] = ("CPUExecutionProvider",),
        num_threads: int | None = None,
    ) -> Self:
        """Load a folder that `var-hf export-onnx` wrote.

        Args:
            folder: The folder.
            providers: Execution providers of onnxruntime, such as `["CUDAExecutionProvider"]`.
            num_threads: Threads of a graph; by default one per core.

        Raises:
            OSError: A file is missing, truncated or changed.
            ValueError: The metadata are damaged or of another version.
        """
        return cls(OnnxGraphs(folder, providers, num_threads))

    @classmethod
    def from_pipe(cls, pipe: "OnnxPipeline") -> Self:
        """A pipeline of this class over the graphs of another one."""
        return cls(pipe.graphs)

    @property
    def metadata(self) -> Metadata:
        """Facts about the model."""
        return self.graphs.metadata

    @property
    def id2label(self) -> dict[int, str]:
        """Class names by id."""
        return dict(self.metadata.id2label)

    @property
    def num_timesteps(self) -> int:
        """Number of scales, diffusers' steps."""
        return len(self.metadata.model.token_map_sizes)

    def get_label_ids(self, labels: str | Sequence[str]) -> list[int]:
        """Class ids of class names, as in `VARPipeline`."""
        names = [labels] if isinstance(labels, str) else labels
        return label_ids(names, self.id2label, self.metadata.model.num_classes)

    def resolve_settings(self, **settings: Any) -> SamplingSettings:
        """Sampling settings; stored defaults take the place of absent ones and `None`.

        Raises:
            ValueError: A setting is out of range, or the runner does not offer it.
        """
        resolved = fill_in_settings(settings, vars(self.metadata.sampling))
        check_values(vars(resolved), SCHEDULER, "Sampling settings")
        resolved.check_scales(self.num_timesteps)
        if resolved.sampling != "multinomial" or resolved.ssg_scale > 0:
            raise ValueError(
                "The ONNX runner offers sampling='multinomial' and ssg_scale=0.0 alone. Got "
                f"{resolved.sampling!r} and {resolved.ssg_scale}; use VARPipeline for others."
            )
        return resolved

    def decode(self, latents: NDArray[np.float32], output_type: str = "pil") -> Any:
        """Images of latents ``(B, Z, F, F)``; `output_type` as in [`OnnxVARPipeline`]."""
        if output_type == "latent":
            return latents
        # In diffusers' order, so that rounding is the same.
        images = np.clip(self.graphs.decode(latents) / 2 + np.float32(0.5), 0, 1)
        images = images.transpose(0, 2, 3, 1)
        if output_type == "np":
            return images
        from PIL import Image

        return [Image.fromarray((image * 255).round().astype(np.uint8)) for image in images]

    def _stream(
        self,
        class_ids: Sequence[int],
        settings: SamplingSettings,
        seed: Seed,
        kept: Kept | None,
        output_type: str,
        callback: Callback | None,
        callback_tensors: Sequence[str],
        preview: Preview,
    ) -> Iterator[OnnxScaleOutput]:
        """Check what is left to check, and return the loop."""
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be 'pil', 'np' or 'latent'. Got {output_type!r}.")
        unknown = set(callback_tensors) - {"latents"}
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs may hold ['latents']. Got {sorted(unknown)}."
            )
        generation = Generation(
            self.graphs, class_ids, settings, image_seeds(seed, len(class_ids)), kept
        )
        return self._run(generation, output_type, callback, callback_tensors, preview)

    def _run(
        self,
        generation: Generation,
        output_type: str,
        callback: Callback | None,
        callback_tensors: Sequence[str],
        preview: Preview,
    ) -> Iterator[OnnxScaleOutput]:
        self.interrupt = False
        for output in generation:
            if callback is not None:
                tensors = {name: getattr(generation, name) for name in callback_tensors}
                changed = callback(self, output.scale, output.scale, tensors) or {}
                output.latents = changed.pop("latents", output.latents)
                generation.latents = output.latents
            is_last = self.interrupt or output.scale == output.num_scales - 1
            if preview is True or (preview == "last" and is_last):
                output.image = self.decode(output.latents, output_type)
            yield output
            if is_last:
                return

    def _class_ids(self, class_labels: Labels) -> list[int]:
        return resolve_labels(class_labels, self.id2label, self.metadata.model.num_classes)


class OnnxVARPipeline(OnnxPipeline):
    """Draws images of a class with onnxruntime; the call is that of `VARPipeline`.

    Args:
        graphs: The graphs of an exported folder; see [`~OnnxPipeline.from_pretrained`].
    """

    def stream(
        self,
        class_labels: Labels,
        *,
        guidance_scale: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        sampling: str | None = None,
        temperature: Temperature | None = None,
        guided_scales: GuidedScales = None,
        guidance_schedule: str | None = None,
        num_images_per_prompt: int = 1,
        seed: Seed = None,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        preview: Preview = False,
    ) -> Iterator[OnnxScaleOutput]:
        """Generate scale by scale; arguments as in [`~OnnxVARPipeline.__call__`].

        All arguments are checked before the iterator is returned.

        Args:
            preview: `True` decodes the images after every scale into `image`; `"last"` decodes
                them after the last scale only.

        Returns:
            An iterator over one [`OnnxScaleOutput`] per scale.

        Raises:
            ValueError: A class is unknown, or an argument is out of range.
        """
        settings = self.resolve_settings(
            guidance_scale=guidance_scale,
            top_k=top_k,
            top_p=top_p,
            sampling=sampling,
            temperature=temperature,
            guided_scales=guided_scales,
            guidance_schedule=guidance_schedule,
        )
        check_num_images(num_images_per_prompt)
        class_ids = [
            class_id
            for class_id in self._class_ids(class_labels)
            for _ in range(num_images_per_prompt)
        ]
        return self._stream(
            class_ids,
            settings,
            seed,
            None,
            output_type,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            preview,
        )

    def __call__(
        self, class_labels: Labels, *, return_dict: bool = True, **options: Any
    ) -> OnnxPipelineOutput | tuple[Any]:
        """Generate images of the given classes.

        Args:
            class_labels: Class ids in [0, num_classes) or class names, one or many. `None` is the
                null class.
            return_dict: Return an [`OnnxPipelineOutput`], else a tuple with the images.
            **options: `guidance_scale`, `top_k`, `top_p`, `sampling`, `temperature`,
                `guided_scales`, `guidance_schedule`, `num_images_per_prompt`,
                `callback_on_step_end` and `callback_on_step_end_tensor_inputs` as in
                `VARPipeline`, with the stored defaults. A callback stops the call with
                `pipe.interrupt = True`. `seed` (default: random) is a whole number in [0, 2^53)
                for the batch, or a list with one for each image, which makes each image
                independent of its batch. `output_type` is `"pil"` (default), `"np"`, float32 ``(B,
                P, P, 3)`` in [0, 1], or `"latent"`, ``(B, Z, F, F)``.

        Raises:
            ValueError: A class is unknown, or an argument is out of range.
        """
        return last_output(self.stream(class_labels, preview="last", **options), return_dict)


class OnnxVARImg2ImgPipeline(OnnxPipeline):
    """Draws variations of an image: its coarse scales are kept, the fine ones redrawn.

    Args:
        graphs: The graphs of an exported folder; see [`~OnnxPipeline.from_pretrained`].
    """

    def first_redrawn_scale(self, strength: float) -> int:
        """As in `VARImg2ImgPipeline`."""
        return first_redrawn_scale(strength, self.num_timesteps)

    def stream(
        self,
        image: Any,
        class_labels: Labels = None,
        *,
        strength: float = 0.5,
        guidance_scale: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        sampling: str | None = None,
        temperature: Temperature | None = None,
        guided_scales: GuidedScales = None,
        guidance_schedule: str | None = None,
        num_images_per_prompt: int = 1,
        seed: Seed = None,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        preview: Preview = False,
    ) -> Iterator[OnnxScaleOutput]:
        """Redraw scale by scale; arguments as in [`~OnnxVARImg2ImgPipeline.__call__`].

        Args:
            preview: As in [`OnnxVARPipeline.stream`].

        Returns:
            An iterator over one [`OnnxScaleOutput`] per scale, the kept scales among them.

        Raises:
            ValueError: As in [`~OnnxVARImg2ImgPipeline.__call__`].
        """
        settings = self.resolve_settings(
            guidance_scale=guidance_scale,
            top_k=top_k,
            top_p=top_p,
            sampling=sampling,
            temperature=temperature,
            guided_scales=guided_scales,
            guidance_schedule=guidance_schedule,
        )
        check_num_images(num_images_per_prompt)
        first_redrawn = self.first_redrawn_scale(strength)
        squares = read_squares(image, self.metadata.model.image_size)
        class_ids = self._class_ids(class_labels)
        count = max(len(class_ids), len(squares))
        if len(class_ids) not in (1, count) or len(squares) not in (1, count):
            raise ValueError(
                f"Cannot match {len(class_ids)} class_labels, {len(squares)} images: pass as many "
                "of each, or one of them for all."
            )
        class_ids = [
            each
            for each in class_ids * (count // len(class_ids))
            for _ in range(num_images_per_prompt)
        ]
        repeats = len(class_ids) // len(squares)
        kept = Kept(
            [np.repeat(tokens, repeats, axis=0) for tokens in self.graphs.encode(squares)],
            [
                np.full((1, size**2), scale < first_redrawn)
                for scale, size in enumerate(self.metadata.model.token_map_sizes)
            ],
        )
        return self._stream(
            class_ids,
            settings,
            seed,
            kept,
            output_type,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            preview,
        )

    def __call__(
        self,
        image: Any,
        class_labels: Labels = None,
        *,
        strength: float = 0.5,
        return_dict: bool = True,
        **options: Any,
    ) -> OnnxPipelineOutput | tuple[Any]:
        """Redraw the fine scales of images.

        Args:
            image: PIL images or arrays ``(P, P, 3)`` or ``(B, P, P, 3)``, uint8 or in [0, 1], of
                the model's size.
            class_labels: As in [`OnnxVARPipeline`]; `None` is the null class.
            strength: Share of the scales to redraw, in [0, 1].
            return_dict: As in [`OnnxVARPipeline`].
            **options: As in [`OnnxVARPipeline`].

        Raises:
            ValueError: A class is unknown, an image has another size, the numbers of images and
                labels do not fit, or an argument is out of range.
        """
        outputs = self.stream(image, class_labels, strength=strength, preview="last", **options)
        return last_output(outputs, return_dict)


def last_output(
    outputs: Iterator[OnnxScaleOutput], return_dict: bool
) -> OnnxPipelineOutput | tuple[Any]:
    """The images of the last scale that is drawn."""
    images = deque(outputs, maxlen=1).pop().image
    return OnnxPipelineOutput(images) if return_dict else (images,)


def image_seeds(seed: Seed, count: int) -> list[tuple[int, int]]:
    """The random stream of each image: its seed, and its number among those that share the seed.

    Args:
        seed: One for the batch, one per image, or `None` for a random one.
        count: Number of images.

    Raises:
        ValueError: A seed is no whole number in [0, 2^53), or there are not as many as images.
    """
    if seed is None:
        seed = secrets.randbelow(LARGEST_SEED + 1)
    seeds: Any = seed if isinstance(seed, Sequence) else [seed]
    field = Whole(0, LARGEST_SEED)
    if not all(field.accepts(each) for each in seeds):
        raise ValueError(
            f"seed must be a whole number from 0 to 2^53 - 1, or a list of them. Got {seed!r}."
        )
    if not isinstance(seed, Sequence):
        return [(int(seed), image) for image in range(count)]
    if len(seeds) != count:
        raise ValueError(
            f"seed is a list of {len(seeds)} for {count} images. Pass one for all or one per image "
            "(labels times num_images_per_prompt)."
        )
    return [(int(each), 0) for each in seeds]


def read_squares(images: Any, size: int) -> NDArray[np.float32]:
    """Images of the model's size as one array ``(B, 3, P, P)`` in [-1, 1].

    Raises:
        ValueError: There is no image, or one has another size or numbers outside [0, 1].
    """
    if isinstance(images, np.ndarray) and images.ndim == 4:
        images = list(images)
    images = images if isinstance(images, list | tuple) else [images]
    if not images:
        raise ValueError("image is an empty list. Pass at least one image.")
    arrays = []
    for image in images:
        array = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
        if array.shape != (size, size, 3):
            raise ValueError(
                f"image must have {size} x {size} pixels and 3 channels, as a PIL image or an "
                f"array (height, width, 3). Got the shape {array.shape}; crop and resize it first."
            )
        array = array.astype(np.float32) / (255 if array.dtype == np.uint8 else 1)
        if not (array.min() >= 0 and array.max() <= 1):
            raise ValueError(
                "image must hold numbers in [0, 1], or in 0..255 as uint8. Got "
                f"[{array.min():.4g}, {array.max():.4g}]."
            )
        arrays.append(array.transpose(2, 0, 1) * 2 - 1)
    return np.stack(arrays)
