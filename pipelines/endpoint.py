"""The handler of an inference endpoint: a JSON request to images or classes.

In a repository that carries its own code this module is `handler.py`, with everything that it needs
of the package copied in. The inference toolkit of Hugging Face loads `EndpointHandler(folder)` once
and calls it with the body of each request.
"""

import base64
import binascii
import io
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from var_hf.image_files import open_image
from var_hf.modeling_var import VARModel
from var_hf.modeling_vqvae import MultiScaleVQVAE
from var_hf.pipelines.base import NextScalePipeline
from var_hf.pipelines.pipeline_var import VARPipeline
from var_hf.pipelines.pipeline_var_img2img import VARImg2ImgPipeline
from var_hf.pipelines.pipeline_var_inpaint import VARInpaintPipeline
from var_hf.scheduling_next_scale import NextScaleScheduler

#: Images that one request may ask for.
MOST_IMAGES = 16
#: An uploaded image with more pixels is refused before it is unpacked.
MOST_UPLOADED_PIXELS = 2**24
LARGEST_SEED = 2**63 - 1


def number(value: Any) -> float:
    """A number, which a query string writes as text."""
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def whole(value: Any) -> int:
    """A whole number."""
    if isinstance(value, bool) or int(value) != number(value):
        raise TypeError
    return int(value)


def count(value: Any) -> int:
    """A whole number of at least 1."""
    if whole(value) < 1:
        raise ValueError
    return whole(value)


def seed(value: Any) -> int:
    """A seed of a random stream."""
    if not 0 <= whole(value) <= LARGEST_SEED:
        raise ValueError
    return whole(value)


def text(value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise TypeError
    return value


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise TypeError
    return value


def anything(value: Any) -> Any:
    """A value that the pipelines check."""
    return value


def one_or_list(kind: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """One value of a kind, or a list of them."""
    return lambda value: [kind(one) for one in value] if isinstance(value, list) else kind(value)


#: The parameters of a request: kind, and its name in errors.
Kinds = dict[str, tuple[Callable[[Any], Any], str]]
NUMBER = (number, "a number")
WHOLE = (whole, "a whole number")
COUNT = (count, "a whole number of at least 1")
TEXT = (text, "a text")
FLAG = (flag, "true or false")
SAMPLING: Kinds = {
    "guidance_scale": NUMBER,
    "top_k": WHOLE,
    "top_p": NUMBER,
    "sampling": TEXT,
    "temperature": (one_or_list(number), "a number, or a list with one for each scale"),
    "guided_scales": (one_or_list(whole), "a whole number, or a list of two"),
    "guidance_schedule": TEXT,
    "ssg_scale": NUMBER,
    "num_images_per_prompt": COUNT,
    "seed": (one_or_list(seed), f"a whole number from 0 to {LARGEST_SEED}, or one per image"),
}
VARIATIONS: Kinds = SAMPLING | {
    "class_labels": (anything, "a class"),
    "strength": NUMBER,
}
INPAINTING: Kinds = SAMPLING | {
    "class_labels": (anything, "a class"),
    "mask_image": (anything, "an image"),
    "expand": (one_or_list(whole), "a list of four whole numbers"),
    "keep_coarsest": FLAG,
    "paste_back": FLAG,
    "padding_mask_crop": WHOLE,
}
CLASSIFICATION: Kinds = {
    "top_k": COUNT,
    "budget": (anything, "a budget"),
    "seed": (seed, f"a whole number from 0 to {LARGEST_SEED}"),
}
TASKS = ("text-to-image", "image-to-image", "image-classification")


class EndpointHandler:
    """Draws, edits and classifies.

    The requests of several threads are served one after the other, each with random numbers of its
    own: an answer depends on its request alone.

    Args:
        path: Folder of the repository.
    """

    def __init__(self, path: str = "") -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        half = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.bfloat16 if half else torch.float32
        index = json.loads(Path(path, "model_index.json").read_text(encoding="utf-8"))
        self.pipe = VARPipeline(
            VARModel.from_pretrained(path, subfolder="transformer", dtype=dtype),
            MultiScaleVQVAE.from_pretrained(path, subfolder="vqvae", torch_dtype=dtype),
            NextScaleScheduler.from_pretrained(path, subfolder="scheduler"),
            id2label=index.get("id2label"),
        ).to(device)
        self.inpaint = VARInpaintPipeline(**self.pipe.components, id2label=self.pipe.id2label)
        self.img2img = VARImg2ImgPipeline(**self.pipe.components, id2label=self.pipe.id2label)
        for pipe in (self.pipe, self.inpaint, self.img2img):
            pipe.set_progress_bar_config(disable=True)
        self.lock = threading.Lock()  # memory for one request at a time

    def __call__(self, data: Any) -> Any:
        """Answer a request.

        Args:
            data: `inputs` and, optionally, `parameters`, among them `task`:

                - `"text-to-image"`, the default for a class: `inputs` is a class name or id, a list
                  of them, or null. The parameters are those of [`VARPipeline`], and `seed`.
                - `"image-to-image"`: `inputs` is an image as base64. With `mask_image` (base64) or
                  `expand` the parameters are those of [`VARInpaintPipeline`], else those of
                  [`VARImg2ImgPipeline`].
                - `"image-classification"`, the default for a body that is an image: `inputs` is an
                  image. Parameters: `top_k` classes (5), `budget`, `seed`.

        Returns:
            One image for one class or image and `num_images_per_prompt` 1, else a list of images
            as base64 PNG; or a list of dicts with `label`, `score`, `class_id` and
            `log_likelihood`.

        Raises:
            ValueError: The request cannot be answered; the message says why.
        """
        if not isinstance(data, dict) or "inputs" not in data:
            raise ValueError('A request is {"inputs": ..., "parameters": {...}}.')
        inputs, parameters = data["inputs"], data.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise ValueError("parameters must be an object of names and values.")
        parameters = dict(parameters)
        is_image = isinstance(inputs, Image.Image)
        task = parameters.pop("task", TASKS[2] if is_image else TASKS[0])
        if task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}. Got {task!r}.")
        if task == "image-classification":
            return self.classify(read_image(inputs, "inputs"), parameters)
        if task == "text-to-image":
            if is_image or isinstance(inputs, dict):
                raise ValueError("For text-to-image, inputs must be a class name or id, or a list.")
            return self.draw(self.pipe, {"class_labels": inputs}, checked(parameters, SAMPLING))
        image = read_image(inputs, "inputs")
        if parameters.get("mask_image") is None and parameters.get("expand") is None:
            settings = checked(parameters, VARIATIONS)
            return self.draw(self.img2img, {"image": image}, settings)
        settings = checked(parameters, INPAINTING)
        if settings.get("mask_image") is not None:
            settings["mask_image"] = read_image(settings["mask_image"], "mask_image")
        return self.draw(self.inpaint, {"image": image}, settings)

    def draw(
        self, pipe: NextScalePipeline, inputs: dict[str, Any], settings: dict[str, Any]
    ) -> Image.Image | list[str]:
        """One image, or several as base64."""
        labels = inputs.get("class_labels", settings.get("class_labels"))
        per_label = settings.get("num_images_per_prompt", 1)
        total = per_label * (len(labels) if isinstance(labels, list) else 1)
        if total > MOST_IMAGES:
            raise ValueError(
                f"One request draws at most {MOST_IMAGES} images. Got {total}: send several "
                "requests."
            )
        seeds = settings.pop("seed", None)
        if isinstance(seeds, list):
            if len(seeds) != total:
                raise ValueError(f"seed is a list of {len(seeds)} for {total} images.")
            settings["generator"] = [torch.Generator().manual_seed(one) for one in seeds]
        elif seeds is not None:
            settings["generator"] = torch.Generator().manual_seed(seeds)
        with self.lock:
            images = pipe(**inputs, **settings).images
        if per_label == 1 and not isinstance(labels, list):
            return images[0]
        return [as_base64(image) for image in images]

    def classify(self, image: Image.Image, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        """The likeliest classes of an image."""
        settings = checked(parameters, CLASSIFICATION)
        top = settings.pop("top_k", 5)
        if "seed" in settings:
            settings["generator"] = torch.Generator().manual_seed(settings.pop("seed"))
        with self.lock:
            return self.pipe.classify(image, top=top, **settings)[0]


def checked(parameters: Mapping[str, Any], kinds: Kinds) -> dict[str, Any]:
    """The parameters of a request; those that are null are left out.

    Raises:
        ValueError: There is no such parameter, or it is of another kind.
    """
    if unknown := sorted(set(parameters) - set(kinds)):
        raise ValueError(
            f"There is no parameter {', '.join(map(repr, unknown))} here. "
            f"There are {', '.join(sorted(kinds))}."
        )
    settings = {}
    for name, value in parameters.items():
        if value is None:
            continue
        convert, kind = kinds[name]
        try:
            settings[name] = convert(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{name} must be {kind}. Got {str(value)[:100]!r}.") from None
    return settings


def read_image(value: Any, name: str) -> Image.Image:
    """An image of a request: base64 of a file, with or without the start of a data URL.

    Raises:
        ValueError: It is none, damaged, or too large.
    """
    if isinstance(value, Image.Image):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{name} must be an image file as base64. Got {type(value).__name__}.")
    if value.startswith("data:"):
        value = value.partition(",")[2]
    try:
        content = base64.b64decode(value, validate=True)
    except binascii.Error:
        raise ValueError(f"{name} must be an image file as base64, and is no base64.") from None
    try:
        return open_image(io.BytesIO(content), name, most_pixels=MOST_UPLOADED_PIXELS)
    except OSError as error:
        raise ValueError(str(error)) from error


def as_base64(image: Image.Image) -> str:
    """An image as base64 of a PNG file."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()
