"""The API: three functions with fixed names, for `gradio_client` and for plain HTTP."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import gradio as gr
from gradio.data_classes import FileData

from var_hf.demo.files import image_file
from var_hf.demo.gpu import on_gpu
from var_hf.demo.models import StudioLoader
from var_hf.demo.orders import Drawn, Edit
from var_hf.demo.settings import Settings, number, shown, whole_number
from var_hf.demo.uploads import uploaded_image

if TYPE_CHECKING:
    from var_hf.demo.studio import Studio

Info = dict[str, Any]


@contextmanager
def caller_errors() -> Iterator[None]:
    """Report invalid input to the caller in one line."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(str(error), print_exception=False) from error


@dataclass(frozen=True)
class API:
    """The functions behind the API; their signatures and docstrings are its documentation.

    Attributes:
        loader: The model.
    """

    loader: StudioLoader

    @property
    def studio(self) -> "Studio":
        """The model; waits until it is loaded."""
        return self.loader.studio

    def generate(
        self,
        class_labels: str,
        num_images: int = 1,
        guidance_scale: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        sampling: str | None = None,
        temperature: float | None = None,
        guidance_schedule: str | None = None,
        ssg_scale: float | None = None,
        seed: int | None = None,
    ) -> Iterator[tuple[list[FileData], Info]]:
        """Generate images of a class. Streams the images after every scale; the last are finished.

        Gradio reads one line per argument. Omitted settings take the model's defaults.

        Args:
            class_labels: Name of a class, or its id.
            num_images: Number of images, 1 to 8.
            guidance_scale: Guidance; 1 is off. It equals the original code's cfg plus 1.
            top_k: Sample from the k likeliest codes; 0 is off.
            top_p: Sample from the likeliest codes that reach this probability; 1 is off.
            sampling: "multinomial", or "gumbel_softmax", which mixes codes: smoother images.
            temperature: Divides the logits, 0.01 to 100; 1 is off.
            guidance_schedule: "ramp", rising from scale to scale, or "constant".
            ssg_scale: Scaled spatial guidance, 0 to 10, which stresses detail; 0 is off.
            seed: Seed of the first image; each further one uses the next number. Default: random.

        Returns:
            The images, and a dict with scale, num_scales, class_id, class_name, seeds and seconds.
        """
        with caller_errors():
            settings = Settings(
                num_images,
                guidance_scale,
                top_k,
                top_p,
                sampling,
                temperature,
                guidance_schedule,
                ssg_scale,
                seed,
            )
            for drawn in self.studio.generate(class_labels, settings):
                yield self._answer(drawn)

    def edit(
        self,
        image: FileData,
        mask_image: FileData | None = None,
        class_labels: str | None = None,
        expand: list[int] | None = None,
        strength: float | None = None,
        padding_mask_crop: int | None = None,
        num_images: int = 1,
        guidance_scale: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        sampling: str | None = None,
        temperature: float | None = None,
        guidance_schedule: str | None = None,
        ssg_scale: float | None = None,
        seed: int | None = None,
    ) -> Iterator[tuple[list[FileData], Info]]:
        """Redraw a part of an image, extend it, or vary it. Streams like `/generate`.

        Args:
            image: The image, at most 25 million pixels; reduced to at most 1024 pixels a side.
            mask_image: Mask in the size of the image; white pixels are redrawn.
            class_labels: Name of a class, or its id. Default: no class.
            expand: Pixels to add at the left, top, right and bottom.
            strength: Share of the scales to redraw, 0 to 1, instead of mask_image and expand.
            padding_mask_crop: Margin in pixels of a crop around the mask, to edit only the crop.
            num_images: Number of results, 1 to 8.
            guidance_scale: As in `/generate`.
            top_k: As in `/generate`.
            top_p: As in `/generate`.
            sampling: As in `/generate`.
            temperature: As in `/generate`.
            guidance_schedule: As in `/generate`.
            ssg_scale: As in `/generate`.
            seed: As in `/generate`.

        Returns:
            The images, and a dict as in `/generate`.
        """
        with caller_errors():
            settings = Settings(
                num_images,
                guidance_scale,
                top_k,
                top_p,
                sampling,
                temperature,
                guidance_schedule,
                ssg_scale,
                seed,
            )
            edit = self._edit(image, mask_image, expand, strength, padding_mask_crop)
            for drawn in self.studio.edit(edit, class_labels, settings):
                yield self._answer(drawn)

    def classify(self, image: FileData, top: int = 5) -> Iterator[list[Info]]:
        """Rank the classes by the likelihood of an image. Streams after every few classes.

        Args:
            image: The image, which is centre-cropped.
            top: Number of classes to return.

        Returns:
            Dicts with class_id, label, score (overconfident) and log_likelihood, likeliest first.
        """
        with caller_errors():
            from var_hf.demo import inside

            top = whole_number("top", top, 1, self.loader.facts.num_classes)
            opened = uploaded_image(image)
            for _, totals in inside.name_classes(self.studio, opened):
                yield inside.top_classes(self.studio, totals, top)

    def _edit(
        self, image: Any, mask_image: Any, expand: Any, strength: Any, padding_mask_crop: Any
    ) -> Edit:
        opened = uploaded_image(image)
        if strength is not None:
            if mask_image is not None or expand is not None:
                raise ValueError(
                    "strength redraws the whole image: leave mask_image and expand out."
                )
            return Edit(opened, strength=number("strength", strength, 0, 1))
        sides = (0, 0, 0, 0)
        if expand is not None:
            if not isinstance(expand, list) or len(expand) != 4:
                raise ValueError(
                    "expand must be four numbers of pixels: left, top, right, bottom. "
                    f"Got {shown(expand)}."
                )
            longest = max(opened.size)
            left, top, right, bottom = (whole_number("expand", one, 0, longest) for one in expand)
            sides = (left, top, right, bottom)
        painted = None if mask_image is None else uploaded_image(mask_image, "mask_image")
        if painted is None and not any(sides):
            raise ValueError("There is nothing to redraw: pass mask_image, expand or strength.")
        margin = padding_mask_crop
        if margin is not None:
            margin = whole_number("padding_mask_crop", margin, 0, max(opened.size))
        return Edit(opened, painted, sides, padding_mask_crop=margin)

    def _answer(self, drawn: Drawn) -> tuple[list[FileData], Info]:
        files = [
            FileData(path=image_file(image), mime_type="image/png").model_dump()
            for image in drawn.images
        ]
        class_id = drawn.class_id
        return files, {
            "scale": drawn.scale,
            "num_scales": drawn.num_scales,
            "class_id": class_id,
            "class_name": None if class_id is None else self.loader.facts.id2label.get(class_id),
            "seeds": list(drawn.settings.seeds),
            "seconds": round(drawn.seconds, 3),
        }


def add_api(loader: StudioLoader, **queue: Any) -> None:
    """Add `/generate`, `/edit` and `/classify` to the page that is being built.

    Args:
        loader: The model.
        **queue: Queue settings, as in `gr.api`.
    """
    api = API(loader)
    for name in ("generate", "edit", "classify"):
        gr.api(on_gpu(streamed(getattr(api, name))), api_name=name, **queue)


def streamed(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Wrap a generator so that its signature returns the type that it yields, as Gradio expects."""

    @functools.wraps(function)
    def stream(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield from function(*arguments, **options)

    signature = inspect.signature(function)
    (result,) = get_args(signature.return_annotation)
    stream.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]
    return stream
