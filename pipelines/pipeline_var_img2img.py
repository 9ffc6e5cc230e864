"""Variations of an image: its coarse scales are kept, the fine ones redrawn."""

from collections.abc import Iterator, Sequence

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from var_hf.generation import Generators, VARScaleOutput
from var_hf.labels import Labels
from var_hf.pipelines.base import Images
from var_hf.pipelines.editing import Edit, EditingPipeline, EditInputs
from var_hf.pipelines.image_processing import Frame, ImageInput, read_images
from var_hf.pipelines.streaming import Callback, Preview, last_image
from var_hf.sampling_settings import GuidedScales, Temperature
from var_hf.strength import first_redrawn_scale


class VARImg2ImgPipeline(EditingPipeline):
    r"""
    Draws variations of an image, or another class with its layout, by redrawing the fine scales.

    Args:
        transformer ([`VARModel`]): Class and coarser scales to logits.
        vqvae ([`MultiScaleVQVAE`]): Tokens to pixels.
        scheduler ([`NextScaleScheduler`]): Logits to tokens; holds the sampling defaults.
        id2label (`dict[int, str]`, *optional*): Class names, synonyms separated by commas.

    Raises:
        ValueError: Transformer and VQVAE do not belong together.
    """

    def first_redrawn_scale(self, strength: float) -> int:
        """The first scale that is redrawn: ``S - round(strength * S)``, in [0, S]; S means none.

        With the ten scales of the 256 px release:

        | strength | first redrawn scale | its side | kept of 680 tokens |
        |---|---|---|---|
        | 0.0 | none | | 680 |
        | 0.1 | 9 | 16 | 424 |
        | 0.2 | 8 | 13 | 255 |
        | 0.3 | 7 | 10 | 155 |
        | 0.4 | 6 | 8 | 91 |
        | 0.5 | 5 | 6 | 55 |
        | 0.6 | 4 | 5 | 30 |
        | 0.7 | 3 | 4 | 14 |
        | 0.8 | 2 | 3 | 5 |
        | 0.9 | 1 | 2 | 1 |
        | 1.0 | 0 | 1 | 0 |

        Raises:
            ValueError: `strength` lies outside [0, 1].
        """
        return first_redrawn_scale(strength, self.vqvae.quantizer.num_scales)

    def stream(
        self,
        image: ImageInput,
        class_labels: Labels | Tensor = None,
        *,
        strength: float = 0.5,
        guidance_scale: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        sampling: str | None = None,
        temperature: Temperature | None = None,
        guided_scales: GuidedScales = None,
        guidance_schedule: str | None = None,
        ssg_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        preview: Preview = False,
    ) -> Iterator[VARScaleOutput]:
        """Redraw scale by scale; arguments as in [`~VARImg2ImgPipeline.__call__`].

        Args:
            preview: `True` finishes the images after every scale into `image`, which takes as long
                as several scales; `"last"` finishes them after the last scale only.

        Returns:
            An iterator over S [`VARScaleOutput`], the kept scales among them.

        Raises:
            ValueError: As in [`~VARImg2ImgPipeline.__call__`].
        """
        settings = self.resolve_settings(
            guidance_scale=guidance_scale,
            top_k=top_k,
            top_p=top_p,
            sampling=sampling,
            temperature=temperature,
            guided_scales=guided_scales,
            guidance_schedule=guidance_schedule,
            ssg_scale=ssg_scale,
        )
        return self._stream(
            self.prepare(image, strength),
            class_labels,
            settings,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            preview=preview,
        )

    def __call__(
        self,
        image: ImageInput,
        class_labels: Labels | Tensor = None,
        *,
        strength: float = 0.5,
        guidance_scale: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        sampling: str | None = None,
        temperature: Temperature | None = None,
        guided_scales: GuidedScales = None,
        guidance_schedule: str | None = None,
        ssg_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Images]:
        r"""
        Redraw the fine scales of images.

        Images of any size come back in their own. An image that is not the model's square is scaled
        to fit and its edges are continued to fill the square. Images and labels are matched one to
        one; a single one serves for all.

        Args:
            image: PIL images of any mode (transparency is laid on white), numpy arrays `(H, W, 3)`
                or `(B, H, W, 3)`, tensors `(3, H, W)` or `(B, 3, H, W)`, or a list. Numbers in [0,
                1], or uint8.
            class_labels (`int`, `str` or a list of them and `None`, *optional*):
                Class to draw. The image's own class gives variations; another class keeps the
                layout. `None` is the null class.
            strength (`float`, *optional*, defaults to 0.5):
                Share of the scales that are redrawn, the finest first, in [0, 1]: 0 is the
                reconstruction, 1 plain generation. See [`~VARImg2ImgPipeline.first_redrawn_scale`]
                for the table.
            guidance_scale, top_k, top_p, sampling, temperature:
                As in [`VARPipeline`]. Guidance has no effect on the null class.
            guided_scales, guidance_schedule, ssg_scale: As in [`VARPipeline`].
            num_images_per_prompt (`int`, *optional*, defaults to 1): Variations per image.
            generator (`torch.Generator` or a list of them, *optional*): As in [`VARPipeline`].
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"`; `"np"`, float32 `(B, H, W, 3)` in [0, 1]; `"pt"`, `(B, 3, H, W)` in [0, 1];
                or `"latent"`, `(B, Z, F, F)` before the decoder.
            return_dict (`bool`, *optional*, defaults to `True`):
                Return an [`~pipelines.ImagePipelineOutput`], else a tuple with the images.
            callback_on_step_end (`Callable`, *optional*): As in [`VARPipeline`].
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*): As in [`VARPipeline`].

        Returns:
            The images in the order given, `num_images_per_prompt` for each.

        Raises:
            ValueError: `strength` lies outside [0, 1], the numbers of images and labels do not fit,
                an image cannot be read, or an argument is out of range.

        Examples:
            ```py
            >>> from PIL import Image
            >>> from var_hf import VARImg2ImgPipeline

            >>> pipe = VARImg2ImgPipeline.from_pretrained("var-d16-256")
            >>> image = Image.open("cat.png")
            >>> variations = pipe(image, "tabby", strength=0.5, num_images_per_prompt=4).images
            ```
        """
        outputs = self.stream(
            image,
            class_labels,
            strength=strength,
            guidance_scale=guidance_scale,
            top_k=top_k,
            top_p=top_p,
            sampling=sampling,
            temperature=temperature,
            guided_scales=guided_scales,
            guidance_schedule=guidance_schedule,
            ssg_scale=ssg_scale,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            preview="last",
        )
        images = last_image(outputs)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def prepare(self, image: ImageInput, strength: float) -> EditInputs:
        """Images as the loop needs them; see [`~VARImg2ImgPipeline.__call__`]."""
        first_redrawn = self.first_redrawn_scale(strength)
        edits, squares = [], []
        for pixels in read_images(image):
            _, height, width = pixels.shape
            frame = Frame(height, width, side=self.vqvae.image_size)
            edits.append(Edit(pixels, slice(0, height), slice(0, width), frame))
            squares.append(frame.enter(pixels))
        masks = [
            torch.full((1, size * size), scale < first_redrawn)
            for scale, size in enumerate(self.vqvae.quantizer.token_map_sizes)
        ]
        return EditInputs(edits, torch.stack(squares), masks)
