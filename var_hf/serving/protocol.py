"""Requests and answers of the HTTP API, and the tasks that they become.

The names are those of the OpenAI images API where it has one, else those of the pipelines. Needs no
torch.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from var_hf.labels import parse_label, resolve_labels
from var_hf.sampling_settings import SamplingSettings
from var_hf.schema import SCHEDULER, check_values

LARGEST_SEED = 2**63 - 1
LARGEST = 1e4  # of settings without a bound of their own: products with logits stay finite
SMALLER_SEEDS = 2**53  # drawn seeds lie below, so that JavaScript can read them


class ApiError(Exception):
    """An error as an answer.

    Args:
        status: HTTP status.
        message: What is wrong, and what to do.
        param: Name of the parameter.
        code: Short name of the kind of error.
        retry_after: Seconds after which a new try makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    @property
    def kind(self) -> str:
        """The `type` of the OpenAI API."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        return kinds.get(self.status, usual)

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        detail = {"message": self.message, "type": self.kind}
        return {"error": {**detail, "param": self.param, "code": self.code}}


class ErrorDetail(BaseModel):
    """What is wrong with a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The answer to a request that failed."""

    error: ErrorDetail


Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Temperature = Annotated[FiniteFloat, Field(ge=1 / LARGEST, le=LARGEST)]
TopK = Annotated[int, Field(ge=0, le=2**31)]
ScaleCount = Annotated[int, Field(ge=0, le=64)]


class SamplingOptions(BaseModel):
    """Sampling settings of a request; the model's own by default."""

    guidance_scale: Annotated[FiniteFloat, Field(ge=0, le=LARGEST)] | None = Field(
        None, description="Classifier-free guidance at the finest scale; 1 is off."
    )
    top_k: TopK | None = Field(None, description="Draw from the k likeliest codes; 0 is off.")
    top_p: Annotated[FiniteFloat, Field(gt=0, le=1)] | None = Field(
        None, description="Draw from the likeliest codes that reach this probability; 1 is off."
    )
    sampling: Literal["multinomial", "gumbel_softmax"] | None = None
    temperature: Temperature | list[Temperature] | None = Field(
        None, description="Divides the logits: one number, or one for each scale."
    )
    guided_scales: ScaleCount | list[ScaleCount] | None = Field(
        None, description="The first n scales, or [start, stop]; all by default."
    )
    guidance_schedule: Literal["ramp", "constant"] | None = None
    ssg_scale: Annotated[FiniteFloat, Field(ge=0, le=LARGEST)] | None = Field(
        None, description="Strength of scaled spatial guidance; 0 is off."
    )

    def given(self) -> dict[str, Any]:
        """The settings that the request sets."""
        values = {name: getattr(self, name) for name in SamplingOptions.model_fields}
        return {name: value for name, value in values.items() if value is not None}


class PictureOptions(SamplingOptions):
    """What requests for pictures share."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="Name of the model; the only one by default.")
    n: Annotated[int, Field(ge=1)] = Field(1, description="Number of pictures.")
    size: str | None = Field(
        None, description='"auto", or the size that the model draws, such as "64x64".'
    )
    seed: Seed | list[Seed] | None = Field(
        None,
        description=(
            "Seed of the first picture, and the next ones for the others, or one for each. Random "
            "by default; the answer states it."
        ),
    )
    response_format: Literal["b64_json", "url"] = Field(
        "b64_json", description='"url" gives data URLs.'
    )
    output_format: Literal["png"] = "png"
    stream: bool = Field(False, description="Answer with server-sent events, one per scale.")
    partial_images: Annotated[int, Field(ge=0, le=64)] | None = Field(
        None,
        description=(
            "With stream: number of scales before the last whose picture so far is sent, the "
            "finest ones. All by default."
        ),
    )
    user: str | None = Field(None, description="Accepted, and not used.")


class GenerationRequest(PictureOptions):
    """Draw pictures of a class."""

    prompt: Annotated[str, Field(max_length=1000)] | int | None = Field(
        description="Class name or class id; null draws without a class."
    )


class EditRequest(PictureOptions):
    """Redraw an image: where a mask says so, or its fine scales."""

    image: UploadFile = Field(description="The image file.")
    mask: UploadFile | None = Field(
        None,
        description=(
            "Image file of the same size: transparent pixels are redrawn or, if there are none, "
            "white ones. Without a mask the fine scales of the whole image are redrawn."
        ),
    )
    prompt: Annotated[str, Field(max_length=1000)] | None = Field(
        None, description="Class name or class id; without a class by default."
    )
    strength: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = Field(
        None, description="Share of the scales that are redrawn; 0.5 by default. Not with a mask."
    )
    keep_coarsest: bool | None = Field(None, description="As in VARInpaintPipeline.")
    paste_back: bool | None = Field(None, description="As in VARInpaintPipeline.")
    padding_mask_crop: Annotated[int, Field(ge=0, le=2**16)] | None = Field(
        None, description="As in VARInpaintPipeline."
    )
    # A form has one value per field.
    seed: Seed | None = Field(
        None, description="Seed of the first picture, and the next ones for the others."
    )
    temperature: Temperature | None = None
    guided_scales: ScaleCount | None = None

    def of_edit(self) -> dict[str, Any]:
        """The arguments of the pipeline that edits.

        Raises:
            ApiError: One of them belongs to the other kind of edit.
        """
        with_mask = {
            name: value
            for name in ("keep_coarsest", "paste_back", "padding_mask_crop")
            if (value := getattr(self, name)) is not None
        }
        without = {} if self.strength is None else {"strength": self.strength}
        wrong, right = (without, with_mask) if self.mask is not None else (with_mask, without)
        for name in wrong:
            kind = "without" if self.mask is not None else "with"
            raise ApiError(400, f"{name} is for edits {kind} a mask.", param=name)
        return right


class ClassificationRequest(BaseModel):
    """Name the classes of an image."""

    model_config = ConfigDict(extra="forbid")

    image: UploadFile = Field(description="The image file.")
    model: str | None = Field(None, description="Name of the model; the only one by default.")
    top_k: Annotated[int, Field(ge=1, le=2**31)] = Field(5, description="Number of classes.")
    seed: Seed = Field(0, description="Seed of the noise that the likelihoods are estimated with.")


class ClassScore(BaseModel):
    """A class and how likely it is."""

    label: str | None
    score: float
    class_id: int
    log_likelihood: float


class ClassificationAnswer(BaseModel):
    """The likeliest classes of an image, the best first."""

    data: list[ClassScore]


class ImageData(BaseModel):
    """One picture."""

    b64_json: str | None = Field(None, description="PNG file as base64.")
    url: str | None = Field(None, description="PNG file as a data URL.")
    seed: int = Field(description="Seed that draws this picture again.")


class ImagesAnswer(BaseModel):
    """The pictures of a request."""

    created: int = Field(description="Unix time in seconds.")
    data: list[ImageData]
    size: str
    output_format: str = "png"


class ModelEntry(BaseModel):
    """A model that the server offers."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "var-hf"


class ModelList(BaseModel):
    """The models that the server offers."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


class Status(BaseModel):
    """State of the server."""

    status: Literal["ok", "draining", "loading"]


@dataclass(frozen=True)
class Facts:
    """What the API has to know about the model.

    Attributes:
        name: Name of the model in requests.
        image_size: Side P of its pictures in pixels.
        num_scales: Number of scales S.
        num_classes: Number of classes.
        id2label: Class names.
        defaults: The stored sampling settings.
    """

    name: str
    image_size: int
    num_scales: int
    num_classes: int
    id2label: dict[int, str]
    defaults: dict[str, Any]

    @property
    def size(self) -> str:
        """The size as requests write it."""
        return f"{self.image_size}x{self.image_size}"

    def check(self, options: PictureOptions, most_images: int) -> None:
        """Raise an [`ApiError`] for a request that this model cannot answer."""
        self.check_model(options.model)
        if options.size not in (None, "auto", self.size):
            raise ApiError(
                400,
                f"The model {self.name} draws {self.size} pixels. Got size {options.size!r}: leave "
                "it out.",
                param="size",
                code="invalid_size",
            )
        if options.n > most_images:
            raise ApiError(
                400,
                f"One request draws at most {most_images} pictures. Got n = {options.n}: send "
                "several requests.",
                param="n",
                code="too_many_images",
            )
        if isinstance(options.seed, list) and len(options.seed) != options.n:
            raise ApiError(
                400,
                f"seed has {len(options.seed)} numbers for {options.n} pictures. Pass one number, "
                "or one per picture.",
                param="seed",
            )

    def check_model(self, name: str | None) -> None:
        """Raise an [`ApiError`] unless this is the model's name."""
        if name not in (None, self.name):
            raise ApiError(
                404,
                f"There is no model {name!r} here. There is {self.name!r}.",
                param="model",
                code="model_not_found",
            )

    def settings(self, options: SamplingOptions) -> SamplingSettings:
        """Sampling settings of a request, with the stored ones in place of absent ones."""
        try:
            settings = SamplingSettings(**self.defaults | options.given())
            check_values(vars(settings), SCHEDULER, "Sampling settings")
            settings.check_scales(self.num_scales)
        except ValueError as error:
            raise ApiError(400, str(error)) from None
        return settings

    def class_id(self, prompt: str | int | None) -> int:
        """Class id of a prompt."""
        label = parse_label(prompt) if isinstance(prompt, str) else prompt
        try:
            return resolve_labels(label, self.id2label, self.num_classes)[0]
        except ValueError as error:
            message = str(error).replace(" See pipe.id2label for all names.", "")
            raise ApiError(400, message, param="prompt", code="unknown_class") from None

    def previews(self, options: PictureOptions) -> tuple[int, ...]:
        """The scales after which the pictures so far are sent; the last one is not among them."""
        if not options.stream:
            return ()
        last = self.num_scales - 1
        count = last if options.partial_images is None else min(options.partial_images, last)
        return tuple(range(last - count, last))


def seeds(options: PictureOptions) -> list[int]:
    """One seed per picture; a random one and the next ones if the request states none."""
    if isinstance(options.seed, list):
        return options.seed
    first = secrets.randbelow(SMALLER_SEEDS) if options.seed is None else options.seed
    return [(first + i) % (LARGEST_SEED + 1) for i in range(options.n)]


@dataclass(frozen=True)
class DrawTask:
    """One picture to draw.

    Attributes:
        class_id: In [0, num_classes]; `num_classes` is the null class.
        seed: Its seed.
        settings: Names and values of [`SamplingSettings`].
        previews: Scales after which the picture so far is sent.
    """

    class_id: int
    seed: int
    settings: Mapping[str, Any]
    previews: Sequence[int] = ()


@dataclass(frozen=True)
class EditTask(DrawTask):
    """One picture to redraw.

    Attributes:
        image: Image file.
        mask: Image file, or `None` to redraw fine scales.
        options: Arguments of the pipeline that edits.
    """

    image: bytes = field(default=b"", repr=False)
    mask: bytes | None = field(default=None, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassifyTask:
    """One image to classify.

    Attributes:
        image: Image file.
        top: Number of classes.
        seed: Seed of the noise.
    """

    image: bytes = field(repr=False)
    top: int
    seed: int


Task = DrawTask | ClassifyTask


@dataclass(frozen=True)
class Frame:
    """The pictures of a task after a scale; the last frame of a task has the finished ones.

    Attributes:
        scale: Number of the scale.
        num_scales: Number of scales.
        files: PNG files.
        sharing: Number of pictures that shared the pass.
        classes: Classes of a classified image.
    """

    scale: int
    num_scales: int
    files: list[bytes] = field(repr=False)
    sharing: int = 1
    classes: list[dict[str, Any]] = field(default_factory=list)


def generation_tasks(request: GenerationRequest, facts: Facts, most_images: int) -> list[DrawTask]:
    """The pictures of a request.

    Raises:
        ApiError: The model cannot draw them.
    """
    facts.check(request, most_images)
    class_id = facts.class_id(request.prompt)
    settings, previews = vars(facts.settings(request)), facts.previews(request)
    return [DrawTask(class_id, seed, settings, previews) for seed in seeds(request)]


async def edit_tasks(request: EditRequest, facts: Facts, most_images: int) -> list[DrawTask]:
    """The pictures of an edit.

    Raises:
        ApiError: The model cannot draw them.
    """
    facts.check(request, most_images)
    class_id, options = facts.class_id(request.prompt), request.of_edit()
    settings, previews = vars(facts.settings(request)), facts.previews(request)
    image = await request.image.read()
    mask = None if request.mask is None else await request.mask.read()
    return [
        EditTask(class_id, seed, settings, previews, image, mask, options)
        for seed in seeds(request)
    ]


@dataclass(frozen=True)
class Limits:
    """Limits of the service.

    Attributes:
        max_images: Pictures that one request may ask for.
        max_pending: Pictures accepted and not yet answered; further requests get 429.
        max_body: Bytes of a request.
    """

    max_images: int = 16
    max_pending: int = 128
    max_body: int = 40 * 2**20


@dataclass(frozen=True)
class ServeOptions:
    """What is served, and how.

    Attributes:
        model: As in `load_pipeline`.
        name: Name of the model in requests.
        dtype: As in `load_pipeline`.
        device: As in `load_pipeline`.
        max_batch: Pictures under way at a time in a replica.
        min_replicas: Number of replicas without load.
        max_replicas: Number of replicas under load.
        threads: Threads of a replica on the CPU; PyTorch's choice by default.
        gpus_per_replica: GPUs that each replica has for itself.
        limits: Limits of the service.
        drain_seconds: Time for accepted requests at the end.
    """

    model: str
    name: str
    dtype: str = "auto"
    device: str = "auto"
    max_batch: int = 16
    min_replicas: int = 1
    max_replicas: int = 1
    threads: int | None = None
    gpus_per_replica: int = 0
    limits: Limits = field(default_factory=Limits)
    drain_seconds: float = 60.0


def served_name(model: str) -> str:
    """The name of a model in requests: that of its folder, or the repository."""
    return Path(model).resolve().name if Path(model).is_dir() else model
