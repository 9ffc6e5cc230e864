"""Class labels to images."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image
from torch import Tensor

from var_hf.generation import Generation, Generators, VARScaleOutput, generate
from var_hf.labels import Labels
from var_hf.pipelines.base import Images, NextScalePipeline
from var_hf.pipelines.checks import (
    callback_tensor_names,
    check_generator,
    check_output_type,
)
from var_hf.pipelines.streaming import Callback, Preview, last_image, stream
from var_hf.sampling_settings import GuidedScales, Temperature, check_num_images

if TYPE_CHECKING:
    from var_hf.budgets import Budget
    from var_hf.pipelines.image_processing import ImageInput
    from var_hf.pipelines.likelihood import VARLikelihoodOutput
    from var_hf.pipelines.search import Judge


class VARPipeline(NextScalePipeline):
    r"""
    Draws images of a class, coarse to fine, in one transformer pass per scale.

    Args:
        transformer ([`VARModel`]): Predicts logits from the class and the coarser scales.
        vqvae ([`MultiScaleVQVAE`]): Decodes tokens to pixels.
        scheduler ([`NextScaleScheduler`]): Draws tokens from logits; stores the sampling defaults.
        id2label (`dict[int, str]`, *optional*): Class names, with synonyms separated by commas.

    Raises:
        ValueError: Transformer and VQVAE do not belong together.
    """

    def stream(
        self,
        class_labels: Labels | Tensor,
        *,
        guidance_scale: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        sampling: str | None = None,
        temperature: Temperature | None = None,
        guided_scales: GuidedScales = None,
        guidance_schedule: str | None = None,
        ssg_scale: float | None = None,
        num_images_per_prompt: int = 1,
        candidates: int = 1,
        judge: "Judge | torch.nn.Module | str | None" = None,
        judged_scales: Sequence[int] = (),
        beams: int = 1,
        generator: Generators = None,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        preview: Preview = False,
    ) -> Iterator[VARScaleOutput]:
        """Generate scale by scale; arguments as in [`~VARPipeline.__call__`].

        All arguments are checked before the iterator is returned.

        Args:
            preview: `True` decodes the images after every scale into `image`, at full size, which
                takes as long as several scales; `"last"` decodes them after the last scale only.
                Before the last scale these are all candidates.

        Returns:
            An iterator over S [`VARScaleOutput`], one after each scale.

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
            ssg_scale=ssg_scale,
        )
        check_output_type(output_type)
        names = callback_tensor_names(
            callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )
        check_num_images(num_images_per_prompt)
        class_ids = [
            class_id
            for class_id in self.resolve_labels(class_labels)
            for _ in range(num_images_per_prompt)
        ]
        check_generator(generator, len(class_ids), self._execution_device)
        draw: Callable[[Generation], Iterator[VARScaleOutput]] = generate
        if candidates != 1:
            from var_hf.pipelines.search import Search

            draw = Search(self, judge, candidates, judged_scales, beams)
            class_ids, generator = draw.expand(class_ids), draw.expand(generator)
        generation = self.start(class_ids, settings, generator)
        return stream(
            self,
            generation,
            lambda latents: self.decode(latents, output_type),
            preview,
            callback_on_step_end,
            names,
            draw,
        )

    def __call__(
        self,
        class_labels: Labels | Tensor,
        *,
        guidance_scale: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        sampling: str | None = None,
        temperature: Temperature | None = None,
        guided_scales: GuidedScales = None,
        guidance_schedule: str | None = None,
        ssg_scale: float | None = None,
        num_images_per_prompt: int = 1,
        candidates: int = 1,
        judge: "Judge | torch.nn.Module | str | None" = None,
        judged_scales: Sequence[int] = (),
        beams: int = 1,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Images]:
        r"""
        Generate images of the given classes, one transformer pass per scale (10 at 256 px).

        Args:
            class_labels (`int`, `str`, `None` or a list of them):
                Class ids in [0, num_classes) or class names, one or many. `None` is the null class:
                the image is drawn without a class, and guidance has no effect on it.
            guidance_scale (`float`, *optional*):
                Classifier-free guidance at the finest scale; no unit. 1.0 (or less) is off and
                halves the work. The VAR release counts from zero: its `cfg=1.5` is 2.5 here.
            top_k (`int`, *optional*): Draw each token from its k likeliest codes; 0 is off.
            top_p (`float`, *optional*):
                Draw each token from the likeliest codes that together reach this probability; 1.0
                is off.
            sampling (`str`, *optional*):
                `"multinomial"`, or `"gumbel_softmax"`, the release's `more_smooth`: smoother
                images, not for FID.
            temperature (`float` or `list[float]`, *optional*):
                Divides the guided logits before top-k and top-p, above 0: one number, or a list
                with one for each scale. Below 1.0 favours likely codes; 1.0 is off.
            guided_scales (`int` or `tuple[int, int]`, *optional*):
                The scales that are guided, numbered from the coarsest: a number n is the first n
                scales, a pair `(start, stop)` the scales from `start` to `stop - 1`. The last two
                of ten hold 62% of the tokens: unguided, they cost half as much, and the images
                change (docs/performance.md).
            guidance_schedule (`str`, *optional*):
                `"ramp"` raises guidance linearly from 1.0 at the coarsest scale; `"constant"`
                applies `guidance_scale` at every guided scale.
            ssg_scale (`float`, *optional*):
                Strength of scaled spatial guidance (arXiv 2602.05534), which needs no second pass;
                0.0 is off. See [`~spatial_guidance.ScaledSpatialGuidance`].
            num_images_per_prompt (`int`, *optional*, defaults to 1): Images per label.
            candidates (`int`, *optional*, defaults to 1):
                Draw each image this many times, all at once, and return the one that `judge` likes
                best. 1 is off.
            judge (`"likelihood"`, `torch.nn.Module` or `Callable`, *optional*):
                Rates the candidates; see [`~pipelines.search.Judge`]. A module is a classifier: it
                maps images `(R, 3, P, P)` in [-1, 1] to logits `(R, num_classes)`.
            judged_scales (`list[int]`, *optional*):
                Scales after which the judge also rates the images so far: the best `beams`
                candidates of each image go on, in equal shares.
            beams (`int`, *optional*, defaults to 1): Candidates that go on; divides `candidates`.
            generator (`torch.Generator` or a list of them, *optional*):
                One generator serves the whole batch and, for a seed, gives the images of the
                release. One per image makes each image independent of its batch mates, up to float
                rounding. A CPU generator works with a model on any device.
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"`; `"np"`, float32 `(B, P, P, 3)` in [0, 1]; `"pt"`, `(B, 3, P, P)` in [0, 1];
                or `"latent"`, `(B, Z, F, F)` before the decoder.
            return_dict (`bool`, *optional*, defaults to `True`):
                Return an [`~pipelines.ImagePipelineOutput`], else a tuple with the images.
            callback_on_step_end (`Callable`, *optional*):
                Called as `callback(pipe, scale, scale, tensors)` after every scale; returns a dict
                whose `latents` replace the current ones.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*): Tensors the callback gets:
                `latents`.

        The sampling settings, from `guidance_scale` to `ssg_scale`, default to what the
        checkpoint's scheduler stores. The release's checkpoints are converted with its FID
        settings: 2.5, 900, 0.96, `"multinomial"`, 1.0, all scales, `"ramp"` and 0.0.

        Returns:
            The images in the order of the labels.

        Raises:
            ValueError: A class is unknown, or an argument is out of range.

        Examples:
            ```py
            >>> import torch
            >>> from var_hf import VARPipeline

            >>> pipe = VARPipeline.from_pretrained("var-d16-256", dtype=torch.bfloat16).to("cuda")
            >>> generator = torch.Generator().manual_seed(0)
            >>> images = pipe(["golden retriever", 207], generator=generator).images
            ```

        Source: arXiv 2404.02905, section 3.2.
        """
        outputs = self.stream(
            class_labels,
            guidance_scale=guidance_scale,
            top_k=top_k,
            top_p=top_p,
            sampling=sampling,
            temperature=temperature,
            guided_scales=guided_scales,
            guidance_schedule=guidance_schedule,
            ssg_scale=ssg_scale,
            num_images_per_prompt=num_images_per_prompt,
            candidates=candidates,
            judge=judge,
            judged_scales=judged_scales,
            beams=beams,
            generator=generator,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            preview="last",
        )
        images = last_image(outputs)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    # Likelihoods; the functions lie in `likelihood.py` and `classification.py`.

    def log_likelihood(
        self, images: "ImageInput", class_labels: Labels = None, *, batch_size: int = 16
    ) -> "VARLikelihoodOutput":
        """Exact log-probability of images' tokens; see [`~pipelines.likelihood.log_likelihood`]."""
        from var_hf.pipelines.likelihood import log_likelihood

        return log_likelihood(self, images, class_labels, batch_size=batch_size)

    def classify(
        self,
        images: "ImageInput",
        *,
        top: int = 5,
        batch_size: int = 16,
        budget: "Budget" = None,
        smoothing: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> list[list[dict[str, Any]]]:
        """The likeliest classes of images; see [`~pipelines.classification.classify`]."""
        from var_hf.pipelines.classification import classify

        return classify(
            self,
            images,
            top=top,
            batch_size=batch_size,
            budget=budget,
            smoothing=smoothing,
            generator=generator,
        )

    def surprise_maps(
        self, images: "ImageInput", class_labels: Labels = None, *, scale: int | None = None
    ) -> list[Image.Image]:
        """Heat maps of the model's surprise; see [`~pipelines.likelihood.surprise_maps`]."""
        from var_hf.pipelines.likelihood import surprise_maps

        return surprise_maps(self, images, class_labels, scale=scale)
