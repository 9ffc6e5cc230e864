"""Inpainting and outpainting."""

from collections.abc import Iterator, Sequence

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.logging import get_logger
from torch import Tensor
from torch.nn import functional

from var_hf.generation import Generators, VARScaleOutput
from var_hf.labels import Labels
from var_hf.pipelines.base import Images
from var_hf.pipelines.editing import Edit, EditingPipeline, EditInputs, common_length
from var_hf.pipelines.image_processing import (
    Frame,
    ImageInput,
    feather,
    read_images,
    read_masks,
    window_around,
)
from var_hf.pipelines.streaming import Callback, Preview, last_image
from var_hf.sampling_settings import GuidedScales, Temperature

logger = get_logger(__name__)

ALWAYS_KEPT_TOKENS = 3  # the original keeps token maps of up to 3 tokens: the 1 x 1 map


class VARInpaintPipeline(EditingPipeline):
    r"""
    Redraws the masked region of an image, zero-shot.

    The VQVAE encodes the image into token maps. At every scale the tokens outside the mask replace
    the drawn ones, so each scale is conditioned on the kept tokens of the coarser ones.

    Args:
        transformer ([`VARModel`]): Class and coarser scales to logits.
        vqvae ([`MultiScaleVQVAE`]): Tokens to pixels.
        scheduler ([`NextScaleScheduler`]): Logits to tokens; holds the sampling defaults.
        id2label (`dict[int, str]`, *optional*): Class names, synonyms separated by commas.

    Raises:
        ValueError: Transformer and VQVAE do not belong together.

    Source: arXiv 2404.02905, zero-shot task generalization, as the release's notebook does it.
    """

    def stream(
        self,
        image: ImageInput,
        mask_image: ImageInput | None = None,
        class_labels: Labels | Tensor = None,
        *,
        expand: tuple[int, int, int, int] = (0, 0, 0, 0),
        keep_coarsest: bool = True,
        paste_back: bool = True,
        padding_mask_crop: int | None = None,
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
        """Redraw scale by scale; arguments as in [`~VARInpaintPipeline.__call__`].

        Args:
            preview: `True` finishes the images after every scale into `image`, which takes as long
                as several scales; `"last"` finishes them after the last scale only.

        Returns:
            An iterator over S [`VARScaleOutput`]; kept tokens stand among its `tokens`.

        Raises:
            ValueError: As in [`~VARInpaintPipeline.__call__`].
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
            self.prepare(image, mask_image, expand, keep_coarsest, paste_back, padding_mask_crop),
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
        mask_image: ImageInput | None = None,
        class_labels: Labels | Tensor = None,
        *,
        expand: tuple[int, int, int, int] = (0, 0, 0, 0),
        keep_coarsest: bool = True,
        paste_back: bool = True,
        padding_mask_crop: int | None = None,
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
        Redraw images where their masks are white.

        Images of any size come back in their own. An image that is not the model's square is scaled
        to fit and its edges are continued to fill the square, and so is its mask. Images, masks and
        labels are matched one to one; a single one of them serves for all.

        Args:
            image: PIL images of any mode (transparency is laid on white), numpy arrays `(H, W, 3)`
                or `(B, H, W, 3)`, tensors `(3, H, W)` or `(B, 3, H, W)`, or a list. Numbers in [0,
                1], or uint8.
            mask_image (*optional*):
                In the size of the image, white (1) where it is redrawn: PIL images, arrays `(H, W)`
                or `(B, H, W, 1)`, tensors `(H, W)` or `(B, 1, H, W)`, or a list. A token is redrawn
                where more than half of its area is. Can be left out with `expand`.
            class_labels (`int`, `str` or a list of them and `None`, *optional*):
                Class of the redrawn region. `None` is the null class.
            expand (`tuple[int, int, int, int]`, *optional*, defaults to `(0, 0, 0, 0)`):
                Pixels to add at the left, top, right and bottom; they are drawn.
            keep_coarsest (`bool`, *optional*, defaults to `True`):
                Keep the 1 x 1 token map, which holds the overall tone, inside the mask too, as the
                original does.
            paste_back (`bool`, *optional*, defaults to `True`):
                Put the original pixels back where the mask is black. They fade in over one token's
                width outside the mask; beyond that they are bit for bit the given ones. Without it
                all pixels are decoded from tokens, so the kept region loses detail as well.
            padding_mask_crop (`int`, *optional*):
                Margin in pixels of a square window around the mask. Only this window goes through
                the model, which gives sharper results in images larger than the model's. The name
                is that of diffusers.
            guidance_scale, top_k, top_p, sampling, temperature:
                As in [`VARPipeline`]; the release's editing notebook uses 4.0, 900, 0.95 and
                `"gumbel_softmax"`. Guidance has no effect on the null class.
            guided_scales, guidance_schedule, ssg_scale: As in [`VARPipeline`].
            num_images_per_prompt (`int`, *optional*, defaults to 1): Results per image.
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
            ValueError: There is no mask, or it has another size than its image; the numbers of
                images, masks and labels do not fit; an image cannot be read; or an argument is out
                of range.

        Examples:
            ```py
            >>> from PIL import Image
            >>> from var_hf import VARInpaintPipeline

            >>> pipe = VARInpaintPipeline.from_pretrained("var-d16-256")
            >>> image, mask = Image.open("dog.png"), Image.open("mask.png")
            >>> edited = pipe(image, mask, "golden retriever").images[0]
            >>> wider = pipe(image, expand=(128, 0, 128, 0)).images[0]
            ```
        """
        outputs = self.stream(
            image,
            mask_image,
            class_labels,
            expand=expand,
            keep_coarsest=keep_coarsest,
            paste_back=paste_back,
            padding_mask_crop=padding_mask_crop,
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

    def prepare(
        self,
        image: ImageInput,
        mask_image: ImageInput | None,
        expand: tuple[int, int, int, int],
        keep_coarsest: bool,
        paste_back: bool,
        padding_mask_crop: int | None,
    ) -> EditInputs:
        """Images and masks as the loop needs them; see [`~VARInpaintPipeline.__call__`]."""
        expand = check_expand(expand)
        check_margin(padding_mask_crop)
        images = read_images(image)
        if mask_image is not None:
            masks = read_masks(mask_image)
        elif any(expand):
            masks = [torch.zeros(1, *pixels.shape[1:]) for pixels in images]
        else:
            raise ValueError(
                "There is nothing to redraw. Pass a mask_image that is white where the image is to "
                "be redrawn, "
                "or expand=(left, top, right, bottom)."
            )
        count = common_length(images=len(images), masks=len(masks))
        images = images * (count // len(images))
        masks = masks * (count // len(masks))

        edits, squares, kept = [], [], []
        for pixels, mask in zip(images, masks, strict=True):
            check_same_size(pixels, mask)
            pixels, mask = enlarge(pixels, mask, expand)
            edit, square, keep = self._place(pixels, mask, paste_back, padding_mask_crop)
            edits.append(edit)
            squares.append(square)
            kept.append(keep)
        if any(mask.any() for mask in masks) and all(keep.all() for keep in kept):
            logger.warning(
                "The mask covers no more than half of any token, so nothing is redrawn. Mark a "
                "larger area, or edit a crop around it with padding_mask_crop."
            )
        keep_by_scale = keep_masks(
            torch.stack(kept), self.vqvae.quantizer.token_map_sizes, keep_coarsest
        )
        return EditInputs(edits, torch.stack(squares), keep_by_scale)

    def _place(
        self, image: Tensor, mask: Tensor, paste_back: bool, padding_mask_crop: int | None
    ) -> tuple[Edit, Tensor, Tensor]:
        """Fit an image ``(3, H, W)`` and its mask ``(1, H, W)`` to the model's square.

        Returns:
            The edit; the square image, ``(3, P, P)``; and the mask of kept tokens at the finest
            scale, ``(F, F)``.
        """
        rows, columns = slice(0, image.shape[1]), slice(0, image.shape[2])
        if padding_mask_crop is not None:
            rows, columns = window_around(mask, padding_mask_crop)
        window, mask = image[:, rows, columns], mask[:, rows, columns]
        _, height, width = window.shape
        frame = Frame(height, width, side=self.vqvae.image_size)
        mask_square = frame.enter_mask(mask)  # (1, P, P)
        opacity = None
        if paste_back:
            # The seam lies on kept tokens, whose pixels resemble the original's: half a token wide,
            # then blurred.
            seam = frame.leave(feather(mask_square, radius=max(1, self.vqvae.stride // 2)))
            opacity = torch.maximum(seam, mask)
        full_size = self.vqvae.quantizer.token_map_sizes[-1]
        redrawn = functional.interpolate(mask_square[None], size=(full_size,) * 2, mode="area")
        edit = Edit(image, rows, columns, frame, opacity)
        return edit, frame.enter(window), redrawn[0, 0] <= 0.5


def keep_masks(keep: Tensor, token_map_sizes: Sequence[int], keep_coarsest: bool) -> list[Tensor]:
    """Masks of the kept tokens at each scale.

    Args:
        keep: At the finest scale, bools ``(B, F, F)``.
        token_map_sizes: Side of each token map.
        keep_coarsest: Keep maps of up to 3 tokens as a whole.

    Returns:
        S masks ``(B, T)``.

    Source: the release's editing notebook: a bilinear average of what is kept, above one half.
    """
    masks = []
    for size in token_map_sizes:
        share = functional.interpolate(keep[:, None].float(), size=(size, size), mode="bilinear")
        mask = (share > 0.5).flatten(1)  # (B, T)
        if keep_coarsest and size * size <= ALWAYS_KEPT_TOKENS:
            mask = torch.ones_like(mask)
        masks.append(mask)
    return masks


def check_expand(expand: object) -> tuple[int, int, int, int]:
    """Check that `expand` is four whole numbers of pixels; raise a ``ValueError`` otherwise."""
    if (
        not isinstance(expand, Sequence)
        or len(expand) != 4
        or any(not isinstance(pixels, int) or pixels < 0 for pixels in expand)
    ):
        raise ValueError(
            f"expand must be four numbers of pixels of at least 0: left, top, right, bottom. Got "
            f"{expand!r}."
        )
    left, top, right, bottom = expand
    return left, top, right, bottom


def check_margin(margin: object) -> None:
    """Raise a ``ValueError`` unless a margin is `None` or a whole number of pixels of at least
    0.
    """
    if margin is not None and not (isinstance(margin, int) and margin >= 0):
        raise ValueError(
            f"padding_mask_crop must be a whole number of pixels of at least 0, or None. Got "
            f"{margin!r}."
        )


def check_same_size(image: Tensor, mask: Tensor) -> None:
    """Raise a ``ValueError`` unless a mask has the height and width of its image."""
    if image.shape[1:] != mask.shape[1:]:
        (height, width), (mask_height, mask_width) = image.shape[1:], mask.shape[1:]
        raise ValueError(
            f"image is {width} x {height} pixels (width x height) and mask_image {mask_width} x "
            f"{mask_height}. "
            "Resize the mask to the image."
        )


def enlarge(
    image: Tensor, mask: Tensor, expand: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor]:
    """Pad an image by repeating its edges, and its mask by 1, at the left, top, right and
    bottom.
    """
    left, top, right, bottom = expand
    sides = (left, right, top, bottom)  # torch's order
    image = functional.pad(image[None], sides, mode="replicate")[0]
    return image, functional.pad(mask, sides, value=1.0)
