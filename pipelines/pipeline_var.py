"""Class labels to images."""

from collections.abc import Iterator, Sequence

from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from var_hf.pipelines.base import Callback, Generators, Images, VARScaleOutput
from var_hf.pipelines.likelihood import LikelihoodPipeline


class VARPipeline(LikelihoodPipeline):
    r"""
    Draws images of a class, coarse to fine, in one transformer pass per scale.

    Args:
        transformer ([`VARModel`]): Class and coarser scales to logits.
        vqvae ([`MultiScaleVQVAE`]): Tokens to pixels.
        scheduler ([`NextScaleScheduler`]): Logits to tokens; holds the sampling defaults.
        id2label (`dict[int, str]`, *optional*): Class names, synonyms separated by commas.

    Raises:
        ValueError: Transformer and VQVAE do not belong together.
    """

    def stream(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor,
        *,
        guidance_scale: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        sampling: str | None = None,
        guided_scales: int | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        preview: bool = False,
    ) -> Iterator[VARScaleOutput]:
        """Generate scale by scale; arguments as in [`~VARPipeline.__call__`].

        Args:
            preview: Decode the pictures after every scale into `image`, at full size. Decoding takes as long as
                several scales.

        Returns:
            An iterator over S [`VARScaleOutput`], one after each scale.

        Raises:
            ValueError: An unknown class, or an argument out of range.
        """
        settings = self._settings(guidance_scale, top_k, top_p, sampling)
        tensor_inputs = self._check_output(
            output_type, callback_on_step_end, callback_on_step_end_tensor_inputs
        )
        self._check_guided_scales(guided_scales)
        self._check_num_images(num_images_per_prompt)
        class_ids = [i for i in self._class_ids(class_labels) for _ in range(num_images_per_prompt)]
        self._check_generator(generator, len(class_ids))
        return self._generate(
            class_ids,
            settings,
            generator,
            output_type,
            callback_on_step_end,
            tensor_inputs,
            preview,
            guided_scales=guided_scales,
        )

    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor,
        *,
        guidance_scale: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        sampling: str | None = None,
        guided_scales: int | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Images]:
        r"""
        Generate images of the given classes, one transformer pass per scale (10 at 256 px).

        Args:
            class_labels (`int`, `str` or a list of them):
                Class ids in [0, num_classes) or class names, one or many.
            guidance_scale (`float`, *optional*):
                Classifier-free guidance at the finest scale; no unit. 1.0 (or less) is off and halves the work. It
                rises linearly from 1.0 at the coarsest scale. The VAR release counts from zero: its `cfg=1.5` is
                2.5 here.
            top_k (`int`, *optional*): Draw each token from its k likeliest codes; 0 is off.
            top_p (`float`, *optional*):
                Draw each token from the likeliest codes that together reach this probability; 1.0 is off.
            sampling (`str`, *optional*):
                `"multinomial"`, or `"gumbel_softmax"`, the release's `more_smooth`: smoother pictures, not for FID.
            guided_scales (`int`, *optional*):
                How many scales are guided, counted from the coarsest; all by default. The last two of ten hold 62% of the
                tokens: unguided, they cost half as much, and the images change (docs/performance.md).
            num_images_per_prompt (`int`, *optional*, defaults to 1): Images per label.
            generator (`torch.Generator` or a list of them, *optional*):
                One generator serves the whole batch and, for a seed, gives the images of the release. One per image
                makes each image independent of its batch mates, up to float rounding. A CPU generator works with a
                model on any device.
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"`; `"np"`, float32 `(B, P, P, 3)` in [0, 1]; `"pt"`, `(B, 3, P, P)` in [0, 1]; or `"latent"`,
                `(B, Z, F, F)` before the decoder.
            return_dict (`bool`, *optional*, defaults to `True`):
                Return an [`~pipelines.ImagePipelineOutput`], else a tuple with the images.
            callback_on_step_end (`Callable`, *optional*):
                Called as `callback(pipe, scale, scale, tensors)` after every scale; returns a dict whose `latents`
                replace the current ones.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*): Tensors the callback gets: `latents`.

        `guidance_scale`, `top_k`, `top_p` and `sampling` default to what the checkpoint's scheduler stores; the
        published checkpoints are converted with 2.5, 900, 0.96 and `"multinomial"`, the release's FID settings.

        Returns:
            The images in the order of the labels.

        Raises:
            ValueError: An unknown class, or an argument out of range.

        Examples:
            ```py
            >>> import torch
            >>> from var_hf import VARPipeline

            >>> pipe = VARPipeline.from_pretrained("var-d16-256", dtype=torch.bfloat16).to("cuda")
            >>> images = pipe(["golden retriever", 207], generator=torch.Generator().manual_seed(0)).images
            ```

        Source: arXiv 2404.02905, section 3.2.
        """
        for output in self.stream(
            class_labels,
            guidance_scale=guidance_scale,
            top_k=top_k,
            top_p=top_p,
            sampling=sampling,
            guided_scales=guided_scales,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        ):
            latents = output.latents
        images = self._to_images(latents, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
