"""Sampling settings of one call, and their values at each scale. Needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, TypeAlias

GuidedScales: TypeAlias = int | Sequence[int] | None
Temperature: TypeAlias = float | Sequence[float]


@dataclass
class SamplingSettings:
    """Sampling settings of one call, with the stored defaults filled in; see
    [`NextScaleScheduler`].

    Attributes:
        guidance_scale: Classifier-free guidance at the finest scale; 1.0 is off.
        top_k: Draw from the k likeliest codes; 0 is off.
        top_p: Draw from the likeliest codes that together reach this probability; 1.0 is off.
        sampling: `"multinomial"` or `"gumbel_softmax"`.
        temperature: Divides the guided logits, one number or one per scale; 1.0 is off.
        guided_scales: The guided scales: a number from the coarsest, a pair (start, stop), or
            `None` for all.
        guidance_schedule: `"ramp"` or `"constant"`.
        ssg_scale: Strength of scaled spatial guidance; 0.0 is off.
    """

    guidance_scale: float
    top_k: int
    top_p: float
    sampling: str
    temperature: Temperature = 1.0
    guided_scales: GuidedScales = None
    guidance_schedule: str = "ramp"
    ssg_scale: float = 0.0

    def check_scales(self, num_scales: int) -> None:
        """Raise a ``ValueError`` for a setting that does not fit a model of `num_scales` scales."""
        self.guided_range(num_scales)
        if isinstance(self.temperature, Sequence) and len(self.temperature) != num_scales:
            raise ValueError(
                f"temperature must be one number, or a list with one for each of the {num_scales} "
                f"scales of this model. Got {len(self.temperature)} numbers."
            )

    def guided_range(self, num_scales: int) -> tuple[int, int]:
        """The first guided scale and the one after the last, out of `num_scales`.

        Raises:
            ValueError: The range is none, or reaches beyond the scales.
        """
        given: Any = num_scales if self.guided_scales is None else self.guided_scales
        start, stop = map(int, (0, given) if isinstance(given, Integral) else given)
        if not 0 <= start <= stop <= num_scales:
            raise ValueError(
                f"guided_scales counts scales from the coarsest, from 0 to {num_scales} for this "
                "model: a number n is the first n scales, a pair (start, stop) those from start to "
                f"stop - 1. Got {self.guided_scales}."
            )
        return start, stop

    def num_guided_scales(self, num_scales: int) -> int:
        """Number of scales, from the coarsest, for which unconditional logits are computed.

        The scales before a guided range count as well: its first scale reads them.
        """
        start, stop = self.guided_range(num_scales)
        return stop if self.guidance_scale > 1 and stop > start else 0


def fill_in_settings(given: Mapping[str, Any], stored: Mapping[str, Any]) -> SamplingSettings:
    """Settings of a call; the stored defaults take the place of absent ones and `None`."""
    defaults = {field.name: stored[field.name] for field in fields(SamplingSettings)}
    chosen = {name: value for name, value in given.items() if value is not None}
    return SamplingSettings(**defaults | chosen)


def check_num_images(num_images_per_prompt: int) -> None:
    """Raise for fewer than one image per label."""
    if num_images_per_prompt < 1:
        raise ValueError(f"num_images_per_prompt must be at least 1. Got {num_images_per_prompt}.")


def guidance_shares(settings: SamplingSettings, num_scales: int) -> list[float]:
    """Share of the guidance at each scale, from the schedule and the range of guided scales.

    Returns:
        S numbers in [0, 1]; 0 is no guidance, 1 is `guidance_scale`.
    """
    start, stop = settings.guided_range(num_scales)
    ramp = settings.guidance_schedule == "ramp"
    return [
        (scale / (num_scales - 1) if ramp else 1.0) if start <= scale < stop else 0.0
        for scale in range(num_scales)
    ]


def temperature_at(temperature: Temperature, progress: float) -> float:
    """The temperature of one scale.

    Args:
        temperature: As in [`NextScaleScheduler`].
        progress: Scale / (number of scales - 1), in [0, 1].
    """
    if isinstance(temperature, Sequence):
        return temperature[round(progress * (len(temperature) - 1))]
    return temperature
