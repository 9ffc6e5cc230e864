"""The settings of a request, with one check for the page and the API."""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

MOST_IMAGES = 8  # in one batch: bounds memory and the waiting time of other requests
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.01, 100.0  # far beyond useful values, as is the next
MOST_GUIDANCE = 100.0  # far below the overflow of half precision
MOST_SSG = 10.0  # likewise
LARGEST_SEED = 2**53 - 1  # the largest integer that a browser represents exactly
FRESH_SEEDS = 2**31
SAMPLING = ("multinomial", "gumbel_softmax")
GUIDANCE_SCHEDULES = ("ramp", "constant")
MOST_PIXELS = 25_000_000  # of an upload; photos of phones have 12 to 24 million
MOST_RESULT_PIXELS = 16_000_000  # of all results of an edit in total: about 0.5 GB of memory
LONGEST_SIDE = 1024  # pixels of an image to edit; larger images are reduced


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """Return a whole number between two bounds. Floats with an integer value, as in JSON, count.

    Raises:
        ValueError: The value is not a whole number, or it is out of bounds.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value != int(value):
        raise ValueError(f"{name} must be a whole number. Got {shown(value)}.")
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low}, {high}]. Got {shown(value)}.")
    return int(value)


def number(name: str, value: Any, low: float, high: float) -> float:
    """Return a number between two bounds.

    Raises:
        ValueError: The value is not a number, or it is out of bounds.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise ValueError(f"{name} must be a number in [{low:g}, {high:g}]. Got {shown(value)}.")
    return float(value)


def shown(value: Any) -> str:
    """Return a value's text for an error message: one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True)
class Settings:
    """The settings of a request.

    Attributes:
        num_images: Number of images, in [1, 8].
        guidance_scale: As in `VARPipeline`, in [0, 100]; `None` is the checkpoint's default.
        top_k: As in `VARPipeline`; `None` is the checkpoint's default.
        top_p: As in `VARPipeline`; `None` is the checkpoint's default.
        sampling: As in `VARPipeline`; `None` is the checkpoint's default.
        temperature: As in `VARPipeline`, in [0.01, 100]; `None` is the checkpoint's default.
        guidance_schedule: As in `VARPipeline`; `None` is the checkpoint's default.
        ssg_scale: As in `VARPipeline`, in [0, 10]; `None` is the checkpoint's default.
        seed: Seed of the first image, in [0, 2**53 - 8]; each further image uses the next number.
            `None` is a random seed.

    Raises:
        ValueError: A value has the wrong type or is out of range.
    """

    num_images: int = 1
    guidance_scale: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    sampling: str | None = None
    temperature: float | None = None
    guidance_schedule: str | None = None
    ssg_scale: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "num_images": whole_number("num_images", self.num_images, 1, MOST_IMAGES),
        }
        if self.sampling is not None and self.sampling not in SAMPLING:
            raise ValueError(
                f"sampling must be {' or '.join(SAMPLING)}. Got {shown(self.sampling)}."
            )
        if self.guidance_schedule is not None and self.guidance_schedule not in GUIDANCE_SCHEDULES:
            raise ValueError(
                f"guidance_schedule must be {' or '.join(GUIDANCE_SCHEDULES)}. Got "
                f"{shown(self.guidance_schedule)}."
            )
        if self.guidance_scale is not None:
            checked["guidance_scale"] = number(
                "guidance_scale", self.guidance_scale, 0, MOST_GUIDANCE
            )
        if self.top_k is not None:
            checked["top_k"] = whole_number("top_k", self.top_k, 0, 2**31)
        if self.top_p is not None:
            checked["top_p"] = number("top_p", self.top_p, 0, 1)
        if self.temperature is not None:
            checked["temperature"] = number(
                "temperature", self.temperature, LEAST_TEMPERATURE, MOST_TEMPERATURE
            )
        if self.ssg_scale is not None:
            checked["ssg_scale"] = number("ssg_scale", self.ssg_scale, 0, MOST_SSG)
        if self.seed is not None:
            checked["seed"] = whole_number("seed", self.seed, 0, LARGEST_SEED - MOST_IMAGES + 1)
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    def with_seed(self) -> Self:
        """Return these settings with a seed: a random one if there is none."""
        return self if self.seed is not None else replace(self, seed=secrets.randbelow(FRESH_SEEDS))

    @property
    def seeds(self) -> Sequence[int]:
        """The seed of each image."""
        assert self.seed is not None
        return range(self.seed, self.seed + self.num_images)

    def arguments(self) -> dict[str, Any]:
        """Return the sampling arguments for a pipeline, without those left at their default."""
        given = {
            "guidance_scale": self.guidance_scale,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "sampling": self.sampling,
            "temperature": self.temperature,
            "guidance_schedule": self.guidance_schedule,
            "ssg_scale": self.ssg_scale,
        }
        return {name: value for name, value in given.items() if value is not None}
