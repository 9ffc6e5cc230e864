"""The API: three functions with fixed names, for `gradio_client` and for plain HTTP."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import gradio as gr
from gradio.data_classes import FileData

from var_hf.demo.files import picture_file
from var_hf.demo.gpu import on_gpu
from var_hf.demo.models import StudioLoader
from var_hf.demo.orders import Drawn, Edit
from var_hf.demo.settings import Settings, number, shown, whole_number
from var_hf.demo.uploads import uploaded_picture

if TYPE_CHECKING:
    from var_hf.demo.studio import Studio

Info = dict[str, Any]


@contextmanager
def caller_errors() -> Iterator[None]:
    """Tell a caller in one line what was wrong with the input."""
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
        seed: int | None = None,
    ) -> Iterator[tuple[list[FileData], Info]]:
        """Draw images of a class. Streams the images after every scale; the last ones are finished.

        Args:
            class_labels: Name of a class, or its id.
            num_images: Images, 1 to 8.
            guidance_scale: 1 is off; by default that of the model. The original code's cfg is one
                less.
            top_k: Draw from the k likeliest codes, 0 is off; by default that of the model.
            top_p: Draw from the likeliest codes that reach this probability, 1 is off; by default
                that of the model.
            sampling: "multinomial", or "gumbel_softmax", which mixes codes: smoother images. By
                default that of the model.
            seed: Of the first image, each further one has the next number; a fresh one by default.

        Returns:
            The images, and a dict with scale, num_scales, class_id, class_name, seeds and seconds.
        """
        with caller_errors():
            settings = Settings(num_images, guidance_scale, top_k, top_p, sampling, seed)
            for drawn in self.studio.generate(class_labels, settings):
                yield self._answer(drawn)

    def edit(
        self,
        image: FileData,
        mask: FileData | None = None,
        class_labels: str | None = None,
        expand: list[int] | None = None,
        strength: float | None = None,
        padding_mask_crop: int | None = None,
        num_images: int = 1,
        guidance_scale: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        sampling: str | None = None,
        seed: int | None = None,
    ) -> Iterator[tuple[list[FileData], Info]]:
        """Redraw a part of an image, draw beyond its edges, or vary it. Streams as `/generate`
        does.

        Args:
            image: The image; at most 25 million pixels, reduced to 1024 a side.
            mask: In the size of the image, white where it is redrawn.
            class_labels: Name of a class, or its id; none by default.
            expand: Pixels to draw beyond the left, top, right and bottom.
            strength: Instead of mask and expand: redraw this share of the scales, the finest first,
                0 to 1.
            padding_mask_crop: Edit a crop around the mask with this margin in pixels: sharper in
                large images.
            num_images: Results, 1 to 8.
            guidance_scale: As in `/generate`.
            top_k: As in `/generate`.
            top_p: As in `/generate`.
            sampling: As in `/generate`.
            seed: As in `/generate`.

        Returns:
            The images, and a dict as in `/generate`.
        """
        with caller_errors():
            settings = Settings(num_images, guidance_scale, top_k, top_p, sampling, seed)
            edit = self._edit(image, mask, expand, strength, padding_mask_crop)
            for drawn in self.studio.edit(edit, class_labels, settings):
                yield self._answer(drawn)

    def classify(self, image: FileData, top: int = 5) -> Iterator[list[Info]]:
        """Name the classes under which an image is likeliest. Streams after every few classes
        tried.

        Args:
            image: The image; its central square is looked at.
            top: Classes to return.

        Returns:
            Dicts with class_id, label, score (the probability, overconfident) and log_likelihood
            (nats), likeliest first.
        """
        with caller_errors():
            from var_hf.demo import inside

            top = whole_number("top", top, 1, self.loader.facts.num_classes)
            picture = uploaded_picture(image)
            for _, totals in inside.name_classes(self.studio, picture):
                yield inside.top_classes(self.studio, totals, top)

    def _edit(
        self, image: Any, mask: Any, expand: Any, strength: Any, padding_mask_crop: Any
    ) -> Edit:
        picture = uploaded_picture(image)
        if strength is not None:
            if mask is not None or expand is not None:
                raise ValueError("strength redraws the whole image: leave mask and expand out.")
            return Edit(picture, strength=number("strength", strength, 0, 1))
        sides = (0, 0, 0, 0)
        if expand is not None:
            if not isinstance(expand, list) or len(expand) != 4:
                raise ValueError(
                    "expand must be four numbers of pixels: left, top, right, bottom. "
                    f"Got {shown(expand)}."
                )
            longest = max(picture.size)
            left, top, right, bottom = (whole_number("expand", one, 0, longest) for one in expand)
            sides = (left, top, right, bottom)
        painted = None if mask is None else uploaded_picture(mask, "mask")
        if painted is None and not any(sides):
            raise ValueError("There is nothing to redraw: pass mask, expand or strength.")
        margin = padding_mask_crop
        if margin is not None:
            margin = whole_number("padding_mask_crop", margin, 0, max(picture.size))
        return Edit(picture, painted, sides, padding_mask_crop=margin)

    def _answer(self, drawn: Drawn) -> tuple[list[FileData], Info]:
        files = [
            FileData(path=picture_file(picture), mime_type="image/png").model_dump()
            for picture in drawn.images
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
        **queue: How calls wait for one another, as in `gr.api`.
    """
    api = API(loader)
    for name in ("generate", "edit", "classify"):
        gr.api(on_gpu(streamed(getattr(api, name))), api_name=name, **queue)


def streamed(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """A generator whose signature names what it yields as its result: so Gradio reads the type of a
    result.
    """

    @functools.wraps(function)
    def stream(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield from function(*arguments, **options)

    signature = inspect.signature(function)
    (result,) = get_args(signature.return_annotation)
    stream.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]
    return stream
