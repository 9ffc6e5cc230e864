"""Pictures with settings of their own in one pass, and two generations made one.

Letters: B pictures, R rows of the transformer (B, or 2B under guidance), T tokens of one scale, V
codes, Z latent channels, F side of the finest token map.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from var_hf.generation import Generation, Generators, Guidance, Noise, TokenChoice
from var_hf.modeling_var import NextScaleCache
from var_hf.sampling_settings import SamplingSettings


@dataclass
class Member:
    """How one picture of a pass is guided and drawn.

    Attributes:
        settings: Its sampling settings. Pictures side by side with equal ones are drawn together.
        guidance: Its guidance.
        choice: Draws its tokens.
    """

    settings: SamplingSettings
    guidance: Guidance
    choice: TokenChoice

    def shares_passes_with(self, other: "Member") -> bool:
        """Whether both need the same rows of the transformer and the same kinds of tensors."""
        return self.needs == other.needs

    @property
    def needs(self) -> tuple[int, str, bool]:
        """Number of guided scales, kind of noise, and whether guidance keeps a memory."""
        guided = self.guidance.num_guided_scales
        return guided, self.settings.sampling, self.settings.ssg_scale > 0


def runs(members: Sequence[Member]) -> Iterator[tuple[Member, slice]]:
    """Yield the stretches of pictures with equal settings: their first member, and their rows.

    Settings whose drawing or guidance multiplies matrices make stretches of one picture: a product
    over more rows rounds differently. All other steps compute each row by itself.
    """

    def settings_of(numbered: tuple[int, Member]) -> tuple[dict[str, Any], int | None]:
        number, member = numbered
        multiplies = member.settings.sampling == "gumbel_softmax" or member.settings.ssg_scale > 0
        return dict(vars(member.settings)), number if multiplies else None

    start = 0
    for _, equal in groupby(enumerate(members), key=settings_of):
        stretch = [member for _, member in equal]
        yield stretch[0], slice(start, start + len(stretch))
        start += len(stretch)


class MixedGuidance:
    """Guides each picture by its own settings; a [`~generation.Guidance`].

    Args:
        members: The pictures. The list is read at every scale, so it may change between two.
    """

    def __init__(self, members: Sequence[Member]):
        self.members = members
        self.num_guided_scales = members[0].guidance.num_guided_scales

    def __call__(
        self,
        conditional: Tensor,
        unconditional: Tensor | None,
        scale: int,
        guidance_scale: float | Tensor,
        memory: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """See [`~generation.Guidance`]; each picture's own scale replaces `guidance_scale`."""
        logits, memories = [], []
        for member, rows in runs(self.members):
            guided, kept = member.guidance(
                conditional[rows],
                None if unconditional is None else unconditional[rows],
                scale,
                member.settings.guidance_scale,
                None if memory is None else memory[rows],
            )
            logits.append(guided)
            memories.append(kept)
        kept_all = [kept for kept in memories if kept is not None]
        return joined(logits), joined(kept_all) if kept_all else None


class MixedTokens:
    """Draws each picture's tokens by its own settings; a [`~generation.TokenChoice`].

    Args:
        members: As in [`MixedGuidance`].
    """

    def __init__(self, members: Sequence[Member]):
        self.members = members

    def noise(self, shape: Tensor, generator: Generators) -> Noise:
        """See [`~generation.TokenChoice`]; there is one generator per picture."""
        assert isinstance(generator, list)
        of_runs = [
            member.choice.noise(shape[rows], generator[rows]) for member, rows in runs(self.members)
        ]
        return tuple(joined(parts) for parts in zip(*of_runs, strict=True))

    def __call__(self, logits: Tensor, scale: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """See [`~generation.TokenChoice`]."""
        drawn = [
            member.choice(logits[rows], scale, tuple(part[rows] for part in noise))
            for member, rows in runs(self.members)
        ]
        return joined([tokens for tokens, _ in drawn]), joined([codes for _, codes in drawn])


class OneByOne:
    """A quantizer that expands the codes of each picture alone.

    A convolution over one picture is another kernel than one over several. On a CPU it rounds
    differently, and is all that makes a picture's latents depend on its batch.

    Args:
        quantizer: A MultiScaleQuantizer.
    """

    def __init__(self, quantizer: Any):
        self.quantizer = quantizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.quantizer, name)

    def expand(self, codes: Tensor, scale: int) -> Tensor:
        """Compute a scale's addition to the latents: ``(B, T, Z)`` to ``(B, Z, F, F)``."""
        return joined([self.quantizer.expand(one, scale) for one in codes.split(1)])


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate along the batch; a single part is returned as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def merge(first: Generation, second: Generation) -> None:
    """Append the pictures of a generation to another one at the same scale, in place.

    Guidance and choice stay those of the first; see [`MixedGuidance`]. Both have one generator per
    picture.
    """
    assert first.scale == second.scale and first.readers.keys() == second.readers.keys()
    assert isinstance(first.generator, list) and isinstance(second.generator, list)
    for key, reader in first.readers.items():
        other = second.readers[key]
        parts = reader.rows // len(first.class_ids)  # two under guidance
        merge_caches(reader.cache, other.cache, parts)
        reader.rows += other.rows
    first.class_ids = torch.cat([first.class_ids, second.class_ids])
    first.history = [
        torch.cat(latents) for latents in zip(first.history, second.history, strict=True)
    ]
    if first.memory is not None and second.memory is not None:
        first.memory = torch.cat([first.memory, second.memory])
    first.generator = first.generator + second.generator


def merge_caches(first: NextScaleCache, second: NextScaleCache, parts: int) -> None:
    """Append the rows of a cache to another one that has read the same scales, in place.

    Args:
        first, second: Caches of R1 and R2 rows.
        parts: 2 if each cache holds B conditional rows and then B unconditional ones, else 1. The
            merged one has all conditional rows first, too.
    """

    def interleaved(one: Tensor, other: Tensor) -> Tensor:
        pairs = zip(one.chunk(parts), other.chunk(parts), strict=True)
        return torch.cat([part for pair in pairs for part in pair])

    for layer, other in zip(first.layers, second.layers, strict=True):
        stop = layer.cumulative_length
        for name in ("keys", "values"):
            one = getattr(layer, name)[: layer.rows, :, :stop]
            states = interleaved(one, getattr(other, name)[: other.rows, :, :stop])
            room = states.new_empty(*states.shape[:2], layer.max_length, states.shape[-1])
            room[:, :, :stop] = states
            setattr(layer, name, room)
        layer.rows = None
    first.modulations = {
        name: interleaved(rows, second.modulations[name])
        for name, rows in first.modulations.items()
    }
