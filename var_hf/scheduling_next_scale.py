"""From logits to tokens: guidance, filtering, drawing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from .sampling_settings import GuidedScales, Temperature, temperature_at


@dataclass
class NextScaleSchedulerOutput(BaseOutput):
    """Output of one step of `NextScaleScheduler`.

    Attributes:
        tokens: The tokens drawn, ``(B, T)``, int64.
        code_weights: With Gumbel-softmax, the weight of every code at every position, ``(B, T,
            V)``: the image is then made of mixtures of codes and not of `tokens`.
    """

    tokens: Tensor
    code_weights: Tensor | None = None


class NextScaleScheduler(SchedulerMixin, ConfigMixin):
    r"""
    Draws the tokens of one scale from the transformer's logits. All of them are drawn
    independently.

    The arguments are the defaults that a checkpoint ships with; each can be overridden per call.

    Args:
        guidance_scale (`float`, *optional*, defaults to 2.5):
            Classifier-free guidance at the finest scale, no unit; 1.0 is off. The VAR release
            counts from zero: its `cfg=1.5` is 2.5 here.
        top_k (`int`, *optional*, defaults to 900): Draw from the k likeliest codes; 0 is off.
        top_p (`float`, *optional*, defaults to 0.96):
            Draw from the likeliest codes that together reach this probability, in (0, 1]; 1.0 is
            off.
        sampling (`str`, *optional*, defaults to `"multinomial"`):
            `"multinomial"`, or `"gumbel_softmax"` (the release's `more_smooth`): soft mixtures of
            codes, smoother images for display; not for FID.
        gumbel_temperature (`float`, *optional*, defaults to 0.27):
            Temperature at the coarsest scale for Gumbel-softmax, above 0. It mixes codes and leaves
            the distribution that tokens are drawn from as it is.
        temperature (`float` or `list[float]`, *optional*, defaults to 1.0):
            Divides the guided logits before top-k and top-p, above 0: one number for all scales, or
            a list with one for each. Values below 1.0 favour likely codes; 1.0 is off, as in the
            release.
        guidance_schedule (`str`, *optional*, defaults to `"ramp"`):
            `"ramp"` raises guidance linearly from 1.0 at the coarsest scale to `guidance_scale` at
            the finest, as the release does. `"constant"` applies `guidance_scale` at every scale.
        guided_scales (`int` or `tuple[int, int]`, *optional*, defaults to `None`):
            The scales that are guided, numbered from the coarsest: a number n is the first n
            scales, a pair `(start, stop)` the scales from `start` to `stop - 1` (arXiv 2404.07724
            calls this a guidance interval). `None` is all of them.
        ssg_scale (`float`, *optional*, defaults to 0.0):
            Strength of scaled spatial guidance (arXiv 2602.05534), at least 0; 0.0 is off. It
            needs no second pass and adds to classifier-free guidance.

    The defaults are the settings of the release's published FID.

    Raises:
        ValueError: A setting is out of range.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 2.5,
        top_k: int = 900,
        top_p: float = 0.96,
        sampling: str = "multinomial",
        gumbel_temperature: float = 0.27,
        temperature: Temperature = 1.0,
        guidance_schedule: str = "ramp",
        guided_scales: GuidedScales = None,
        ssg_scale: float = 0.0,
    ):
        self.check_settings(**self.config)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any = None, subfolder: str | None = None, **kwargs: Any
    ) -> Any:
        """Load saved settings, as diffusers does.

        Raises:
            ValueError: The file is damaged, or a value has a wrong type or is out of range.
        """
        from .stored import check_scheduler

        check_scheduler(pretrained_model_name_or_path, subfolder)
        return super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)

    @staticmethod
    def check_settings(**settings: Any) -> None:
        """Raise a ``ValueError`` for a setting that is out of range; the names are the class's."""
        from .schema import SCHEDULER, check_values

        check_values(settings, SCHEDULER, "Sampling settings")

    def guide(
        self,
        conditional: Tensor,
        unconditional: Tensor,
        progress: float,
        guidance_scale: float | Tensor,
    ) -> Tensor:
        """Push logits ``(B, T, V)`` away from the unconditional ones: ``(1 + t) * c - t * u``.

        t is ``(guidance_scale - 1) * progress``. In the release's ramp, `progress` is 0 at the
        coarsest scale and 1 at the finest.

        Source: arXiv 2207.12598; the ramp is that of `autoregressive_infer_cfg` in the VAR release.
        """
        t = (guidance_scale - 1) * progress
        return (1 + t) * conditional - t * unconditional

    def filter(self, logits: Tensor, top_k: int, top_p: float) -> Tensor:
        """Set logits ``(B, T, V)`` to -inf that must not be sampled: first by top-k, then by top-p.

        Ties with the smallest logit that is kept stay, and the largest always stays.
        """
        num_codes = logits.shape[-1]
        top_k = min(top_k or num_codes, num_codes)
        if top_k == num_codes and top_p == 1:
            return logits
        # Only the k largest are ever sorted: beyond them, top-p has nothing left to remove.
        largest = logits.topk(top_k, dim=-1).values  # (B, T, k), descending
        smallest_kept = largest[..., -1:]
        if top_p < 1:
            # Summed from the unlikely end, as in the release: rounding decides at the border.
            ascending = largest.flip(-1)
            probabilities = ascending.softmax(dim=-1)
            # Half-precision logits tie often: what ties with the k-th largest counts as well.
            num_ties = (logits >= smallest_kept).sum(dim=-1, keepdim=True) - top_k
            of_ties = num_ties * probabilities[..., :1]
            removed = probabilities.cumsum(dim=-1) + of_ties <= (1 - top_p) * (1 + of_ties)
            removed[..., -1] = False
            smallest_kept = ascending.masked_fill(removed, torch.inf).amin(dim=-1, keepdim=True)
        return logits.masked_fill(logits < smallest_kept, -torch.inf)

    def noise(
        self,
        like: Tensor,
        sampling: str | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> tuple[Tensor, ...]:
        """Generate the exponential random numbers of one scale, each ``(B, T, V)`` like the logits.

        One such tensor decides on the tokens; Gumbel-softmax needs a second one. Drawing them is
        all that a generator is asked for, and neither logits nor device matter for the numbers.
        """
        sampling = self.config.sampling if sampling is None else sampling
        # The release draws tokens also when it then mixes codes: the draw is part of its random
        # stream.
        return tuple(
            exponential_like(like, generator)
            for _ in range(2 if sampling == "gumbel_softmax" else 1)
        )

    def draw(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Draw tokens ``(B, T)`` from logits ``(B, T, V)``, given the `noise` ``(B, T, V)``.

        The code with the greatest probability / noise is drawn; `torch.multinomial` does the same,
        and gives the same tokens for the same generator, but waits for the device to check what it
        was given.
        """
        return logits.softmax(dim=-1).div_(noise).argmax(dim=-1)

    def gumbel_weights(self, logits: Tensor, progress: float, noise: Tensor) -> Tensor:
        """Gumbel-softmax weights of the codes, ``(B, T, V)``, sharper from scale to scale.

        ``softmax((logits * (1 + r) - log(noise)) / tau)`` with r the `progress` and
        ``tau = max(temperature * (1 - 0.95 * r), 0.005)``.

        Source: arXiv 1611.01144; the constants are those of the release's `more_smooth`.
        """
        temperature = max(self.config.gumbel_temperature * (1 - 0.95 * progress), 0.005)
        return ((logits * (1 + progress) - noise.log()) / temperature).softmax(dim=-1)

    def step(
        self,
        logits: Tensor,
        progress: float,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        sampling: str | None = None,
        temperature: Temperature | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        noise: tuple[Tensor, ...] | None = None,
        return_dict: bool = True,
    ) -> NextScaleSchedulerOutput | tuple:
        """Draw the tokens of one scale.

        Args:
            logits: Guided logits ``(B, T, V)``, float32.
            progress: Scale / (number of scales - 1), in [0, 1].
            top_k, top_p, sampling, temperature: See the class; `None` takes the stored default.
            generator: One for the whole batch (the release's random stream), or B of them, one per
                image.
            noise: A result of [`~NextScaleScheduler.noise`], instead of a generator.
            return_dict: Return a [`NextScaleSchedulerOutput`], else the tuple ``(tokens,
                code_weights)``.

        Raises:
            ValueError: A setting is out of range, or the generators are not as many as the images.
        """
        top_k = self.config.top_k if top_k is None else top_k
        top_p = self.config.top_p if top_p is None else top_p
        sampling = self.config.sampling if sampling is None else sampling
        temperature = self.config.temperature if temperature is None else temperature
        if not torch.compiler.is_compiling():
            self.check_settings(
                top_k=top_k, top_p=top_p, sampling=sampling, temperature=temperature
            )
        divisor = temperature_at(temperature, progress)
        if divisor != 1:
            logits = logits / divisor
        logits = self.filter(logits, top_k, top_p)
        if noise is None:
            noise = self.noise(logits, sampling, generator)
        tokens = self.draw(logits, noise[0])
        code_weights = (
            self.gumbel_weights(logits, progress, noise[1])
            if sampling == "gumbel_softmax"
            else None
        )
        if not return_dict:
            return tokens, code_weights
        return NextScaleSchedulerOutput(tokens=tokens, code_weights=code_weights)


def exponential_like(
    like: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None
) -> Tensor:
    """Generate exponential random numbers ``(B, ...)`` in the shape of `like`.

    One generator fills the whole batch; B generators fill one image each.

    They are drawn on the generator's device, so that a CPU generator gives the same numbers for a
    model on any device, and come back on the tensor's.
    """
    if isinstance(generator, Sequence):
        if len(generator) != len(like):
            raise ValueError(
                f"Got {len(generator)} generators for {len(like)} images. Pass one for all or one "
                f"per image."
            )
        return torch.cat([exponential_like(like[i : i + 1], g) for i, g in enumerate(generator)])
    device = like.device if generator is None else generator.device
    noise = torch.empty(like.shape, dtype=like.dtype, device=device)
    return noise.exponential_(generator=generator).to(like.device, non_blocking=True)
