"""What a visitor may ask for: checked once, the same for the page and for the API."""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

MOST_IMAGES = 8  # drawn in one batch: bounds memory and the time others wait
MOST_GUIDANCE = 100.0  # far beyond what is useful, and far below what overflows half precision
LARGEST_SEED = 2**53 - 1  # the largest whole number that a browser writes exactly
FRESH_SEEDS = 2**31
SAMPLING = ("multinomial", "gumbel_softmax")
MOST_PIXELS = 25_000_000  # of an upload; telephones take images of 12 to 24 million
MOST_RESULT_PIXELS = (
    16_000_000  # of all results of an edit together: some 0.5 GB while they are drawn
)
LONGEST_SIDE = 1024  # of an image that is edited, in pixels; larger ones are reduced


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """A whole number between two bounds, also where JSON made it a float.

    Raises:
        ValueError: It is none, or out of bounds.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value != int(value):
        raise ValueError(f"{name} must be a whole number. Got {shown(value)}.")
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low}, {high}]. Got {shown(value)}.")
    return int(value)


def number(name: str, value: Any, low: float, high: float) -> float:
    """A number between two bounds.

    Raises:
        ValueError: It is none, or out of bounds.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise ValueError(f"{name} must be a number in [{low:g}, {high:g}]. Got {shown(value)}.")
    return float(value)


def shown(value: Any) -> str:
    """A value as an error message repeats it: in one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True)
class Settings:
    """How images are drawn.

    Attributes:
        num_images: Images, in [1, 8].
        guidance_scale: As in `VARPipeline`, in [0, 100]; `None` is the checkpoint's default.
        top_k: As in `VARPipeline`; `None` is the checkpoint's default.
        top_p: As in `VARPipeline`; `None` is the checkpoint's default.
        sampling: As in `VARPipeline`; `None` is the checkpoint's default.
        seed: Of the first image, in [0, 2**53 - 8]; each further one takes the next number. `None`
            is a fresh one.

    Raises:
        ValueError: A value is of the wrong kind or out of range.
    """

    num_images: int = 1
    guidance_scale: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    sampling: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "num_images": whole_number("num_images", self.num_images, 1, MOST_IMAGES),
        }
        if self.sampling is not None and self.sampling not in SAMPLING:
            raise ValueError(
                f"sampling must be {' or '.join(SAMPLING)}. Got {shown(self.sampling)}."
            )
        if self.guidance_scale is not None:
            checked["guidance_scale"] = number(
                "guidance_scale", self.guidance_scale, 0, MOST_GUIDANCE
            )
        if self.top_k is not None:
            checked["top_k"] = whole_number("top_k", self.top_k, 0, 2**31)
        if self.top_p is not None:
            checked["top_p"] = number("top_p", self.top_p, 0, 1)
        if self.seed is not None:
            checked["seed"] = whole_number("seed", self.seed, 0, LARGEST_SEED - MOST_IMAGES + 1)
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # frozen for everybody else

    def with_seed(self) -> Self:
        """These settings with a seed: a fresh one if there is none."""
        return self if self.seed is not None else replace(self, seed=secrets.randbelow(FRESH_SEEDS))

    @property
    def seeds(self) -> Sequence[int]:
        """The seed of each image."""
        assert self.seed is not None
        return range(self.seed, self.seed + self.num_images)

    def arguments(self) -> dict[str, Any]:
        """The sampling arguments of a pipeline that differ from the checkpoint's defaults."""
        given = {
            "guidance_scale": self.guidance_scale,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "sampling": self.sampling,
        }
        return {name: value for name, value in given.items() if value is not None}
