"""The loop over scales: one transformer pass per scale, from class ids to latents.

The function `generate` is the only loop in the package. A [`Generation`] holds the whole state of
one call, so calls never share state. Three interfaces decide, scale by scale, how the loop draws:

- a [`TransformerSchedule`] names the transformer that predicts a scale;
- a [`Guidance`] combines the conditional and the unconditional logits;
- a [`TokenChoice`] turns logits into tokens.

Letters: B images, R rows of the transformer (B, or 2B under guidance), S scales, T tokens of one
scale, V codes, Z latent channels, F side of the finest token map.

Source: arXiv 2404.02905, section 3.2 and algorithm 2.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .modeling_var import NextScaleCache, VARModel
from .sampling_settings import SamplingSettings
from .scheduling_next_scale import NextScaleScheduler

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
Noise: TypeAlias = tuple[Tensor, ...]
Quantizer: TypeAlias = Any  # a MultiScaleQuantizer, a class that the VQVAE alone imports
# From the number of a scale to the transformer that predicts it.
TransformerSchedule: TypeAlias = Callable[[int], VARModel]


class Guidance(Protocol):
    """Combines the conditional and the unconditional logits of each scale.

    Attributes:
        num_guided_scales: Number of scales, counted from the coarsest, that need unconditional
            logits. The transformer computes 2B rows for these and B rows for the others.
    """

    num_guided_scales: int

    def __call__(
        self,
        conditional: Tensor,
        unconditional: Tensor | None,
        scale: int,
        guidance_scale: float | Tensor,
        memory: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Guided logits ``(B, T, V)`` from two of that shape, and the memory for the next scale.

        Args:
            conditional: Logits ``(B, T, V)``, float32.
            unconditional: Logits of the null class; `None` where none were computed.
            scale: Number of the scale.
            guidance_scale: Strength of the guidance; 1.0 is off.
            memory: The tensor that the call for the scale before returned; `None` at the first
                scale.
        """


class TokenChoice(Protocol):
    """Turns the logits of each scale into tokens."""

    def noise(self, shape: Tensor, generator: Generators) -> Noise:
        """The random numbers for one scale, given a float32 tensor in the shape of the logits ``(B,
        T, V)``.
        """

    def __call__(self, logits: Tensor, scale: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """Tokens ``(B, T)`` and their codes ``(B, T, Z)`` from guided logits ``(B, T, V)``."""


class ScheduledTokens:
    """Draws every token by the scheduler.

    Args:
        scheduler: Filters the logits and draws.
        quantizer: Holds the codebook and the schedule.
        settings: Sampling settings.
    """

    def __init__(
        self,
        scheduler: NextScaleScheduler,
        quantizer: Quantizer,
        settings: SamplingSettings,
    ):
        self.scheduler, self.quantizer = scheduler, quantizer
        self.sampling = settings.sampling
        # Only what `step` takes: another guidance scale must not recompile a compiled loop.
        self.options: dict[str, Any] = {
            "top_k": settings.top_k,
            "top_p": settings.top_p,
            "sampling": settings.sampling,
            "temperature": settings.temperature,
        }

    def noise(self, shape: Tensor, generator: Generators) -> Noise:
        """See [`TokenChoice`]."""
        return self.scheduler.noise(shape, self.sampling, generator)

    def __call__(self, logits: Tensor, scale: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """See [`TokenChoice`]; under Gumbel-softmax the codes are mixtures."""
        progress = scale / (self.quantizer.num_scales - 1)
        tokens, code_weights = self.scheduler.step(
            logits, progress, noise=noise, return_dict=False, **self.options
        )
        if code_weights is None:
            return tokens, self.quantizer.codes(tokens)
        return tokens, code_weights @ self.quantizer.codebook.weight.float()


@dataclass
class KeptTokens:
    """Draws tokens and puts given ones in their place where a mask says so; the basis of all edits.

    Attributes:
        choice: Draws the tokens.
        quantizer: Holds the codebook.
        token_maps: The tokens to keep, S maps ``(B, T)``.
        masks: S masks ``(B, T)`` or ``(1, T)``; True keeps the given token.
    """

    choice: TokenChoice
    quantizer: Quantizer
    token_maps: Sequence[Tensor]
    masks: Sequence[Tensor]

    def noise(self, shape: Tensor, generator: Generators) -> Noise:
        """See [`TokenChoice`]."""
        return self.choice.noise(shape, generator)

    def __call__(self, logits: Tensor, scale: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """See [`TokenChoice`]."""
        tokens, codes = self.choice(logits, scale, noise)
        mask, kept = self.masks[scale], self.token_maps[scale]
        tokens = torch.where(mask, kept, tokens)
        return tokens, torch.where(mask[..., None], self.quantizer.codes(kept), codes)


class ScaleInputs(NamedTuple):
    """Everything that one scale is computed from; see [`draw_scale`].

    Attributes:
        scale: Number of the scale.
        transformer: The transformer that predicts it.
        cache: Keys and values of the scales that this transformer has read.
        labels: Class ids ``(R,)``.
        latents: The running sums ``(B, Z, F, F)`` before each scale that the transformer reads in
            this pass. The last one belongs to `scale`; there are more where a transformer takes
            over from another.
        guidance: Combines conditional and, where R is 2B, unconditional logits.
        guidance_scale: Strength of the guidance.
        memory: Tensor that the guidance kept at the scale before.
        choice: Draws the tokens.
        noise: Random numbers for the draw.
        quantizer: Holds the codebook and the schedule.
    """

    scale: int
    transformer: VARModel
    cache: Cache
    labels: Tensor
    latents: list[Tensor]
    guidance: Guidance
    guidance_scale: float | Tensor
    memory: Tensor | None
    choice: TokenChoice
    noise: Noise
    quantizer: Quantizer


class ScaleResult(NamedTuple):
    """The result of one scale.

    Attributes:
        tokens: ``(B, T)``.
        logits: Guided logits before any filter, ``(B, T, V)``, float32.
        latents: Running sum including this scale, ``(B, Z, F, F)``, float32.
        memory: Tensor that the guidance keeps for the next scale.
        finite: Whether all logits are finite, ``()``.
    """

    tokens: Tensor
    logits: Tensor
    latents: Tensor
    memory: Tensor | None
    finite: Tensor


class Run(Protocol):
    """One call's use of a runner: eager or compiled; see `var_hf.compiled`."""

    def new_cache(self, transformer: VARModel, rows: int, num_tokens: int) -> NextScaleCache:
        """An empty cache for one transformer of the call, which reads `num_tokens` tokens."""

    def draw_scale(self, inputs: ScaleInputs) -> ScaleResult:
        """[`draw_scale`], checked for logits that are not finite."""


@dataclass
class Reader:
    """A transformer and the scales that it has read.

    Attributes:
        transformer: The transformer.
        cache: Its keys and values.
        rows: Number of rows that the cache goes on with.
        num_read: Number of scales that the cache holds.
    """

    transformer: VARModel
    cache: NextScaleCache
    rows: int
    num_read: int = 0


def transformer_uses(
    transformers: TransformerSchedule, num_scales: int
) -> list[tuple[VARModel, list[int]]]:
    """The transformers of a schedule in the order of their first scales, each with its scales."""
    uses: dict[int, tuple[VARModel, list[int]]] = {}
    for scale in range(num_scales):
        transformer = transformers(scale)
        uses.setdefault(id(transformer), (transformer, []))[1].append(scale)
    return list(uses.values())


@dataclass
class Controls:
    """Values that a callback may change between two scales.

    Attributes:
        guidance_scale: Guidance at the finest scale.
        interrupt: Stop after the current scale.
    """

    guidance_scale: float
    interrupt: bool = False


@dataclass
class Generation:
    """The whole state of one call.

    Attributes:
        transformers: Names the transformer of each scale.
        guidance: Combines conditional and unconditional logits.
        choice: Draws the tokens.
        quantizer: Holds the codebook and the schedule.
        run: Computes a scale, eagerly or compiled.
        controls: Values that a callback may change.
        class_ids: ``(B,)``; `null_class` is the null class.
        null_class: Id of the null class.
        history: The running sums ``(B, Z, F, F)`` before each scale; the last one is the current
            one.
        generator: One random stream for the batch, or B, one per image.
        readers: The transformers that have read something, by identity.
        memory: Tensor that the guidance keeps from scale to scale.
    """

    transformers: TransformerSchedule
    guidance: Guidance
    choice: TokenChoice
    quantizer: Quantizer
    run: Run
    controls: Controls
    class_ids: Tensor
    null_class: int
    history: list[Tensor]
    generator: Generators = None
    readers: dict[int, Reader] = field(default_factory=dict)
    memory: Tensor | None = None

    @property
    def scale(self) -> int:
        """Number of the next scale."""
        return len(self.history) - 1

    @property
    def latents(self) -> Tensor:
        """The current running sum ``(B, Z, F, F)``."""
        return self.history[-1]

    @latents.setter
    def latents(self, latents: Tensor) -> None:
        self.history[-1] = latents

    def labels(self) -> Tensor:
        """Class ids for the transformer, ``(R,)``: under guidance B null classes follow the B
        classes.
        """
        if self.scale >= self.guidance.num_guided_scales:
            return self.class_ids
        return torch.cat([self.class_ids, torch.full_like(self.class_ids, self.null_class)])

    def reader(self, rows: int) -> Reader:
        """The transformer of the next scale with what it has read, cut to `rows` rows."""
        transformer = self.transformers(self.scale)
        if id(transformer) not in self.readers:
            sizes = self.quantizer.token_map_sizes
            uses = transformer_uses(self.transformers, len(sizes))
            last = next(scales[-1] for used, scales in uses if used is transformer)
            num_tokens = sum(size**2 for size in sizes[: last + 1])
            cache = self.run.new_cache(transformer, rows, num_tokens)
            self.readers[id(transformer)] = Reader(transformer, cache, rows)
        reader = self.readers[id(transformer)]
        if rows < reader.rows:  # guidance ends here
            reader.cache.keep_rows(rows)
            reader.rows = rows
        return reader

    def reorder(self, rows: Tensor) -> None:
        """Continue with these rows of the batch ``(B',)``, which may repeat or be left out.

        There may be at most as many as before. Row i keeps the i-th generator.
        """
        before = len(self.class_ids)
        self.class_ids = self.class_ids[rows]
        self.history = [latents[rows] for latents in self.history]
        if self.memory is not None:
            self.memory = self.memory[rows]
        for reader in self.readers.values():
            parts = range(reader.rows // before)  # two under guidance
            reader.cache.reorder_cache(torch.cat([rows + part * before for part in parts]))
            reader.rows = len(rows) * len(parts)


@dataclass
class VARScaleOutput:
    """The state of a generation after one scale.

    Attributes:
        scale: Number of the scale, 0 is the coarsest.
        num_scales: Number of scales S.
        tokens: The drawn tokens, ``(B, T)``.
        logits: Guided logits before any filter, ``(B, T, V)``, float32.
        latents: Running sum of all scales so far, ``(B, Z, F, F)``, float32.
        image: With ``preview=True`` the images so far, in the form of `output_type`.
    """

    scale: int
    num_scales: int
    tokens: Tensor
    logits: Tensor
    latents: Tensor
    image: Any = None


@torch.no_grad()
def generate(generation: Generation) -> Iterator[VARScaleOutput]:
    """Draw the scales one after the other.

    Between two scales the caller may change `generation.controls.guidance_scale` and
    `generation.latents`, and select rows with `generation.reorder`. It stops early by leaving the
    loop.

    Raises:
        ValueError: Logits are not finite, or a compiled pipeline draws two batches at once.
    """
    quantizer, num_scales = generation.quantizer, generation.quantizer.num_scales
    for scale in range(num_scales):
        labels = generation.labels()
        reader = generation.reader(rows=len(labels))
        latents = generation.latents
        shape = latents.new_empty(()).expand(
            len(latents), quantizer.token_map_sizes[scale] ** 2, quantizer.num_codes
        )
        inputs = ScaleInputs(
            scale=scale,
            transformer=reader.transformer,
            cache=reader.cache,
            labels=labels,
            latents=generation.history[reader.num_read :],
            guidance=generation.guidance,
            guidance_scale=generation.controls.guidance_scale,
            memory=generation.memory,
            choice=generation.choice,
            noise=generation.choice.noise(shape, generation.generator),
            quantizer=quantizer,
        )
        result = generation.run.draw_scale(inputs)
        reader.num_read = scale + 1
        generation.history.append(result.latents)
        generation.memory = result.memory
        yield VARScaleOutput(scale, num_scales, result.tokens, result.logits, result.latents)


def draw_scale(inputs: ScaleInputs) -> ScaleResult:
    """One scale, from the running sum before it to the one after it.

    The function depends on its arguments alone and changes nothing but the cache, so it can be
    compiled.

    Source: arXiv 2404.02905, algorithm 2, one turn of its loop.
    """
    scale, quantizer, labels = inputs.scale, inputs.quantizer, inputs.labels
    latents = inputs.latents[-1]
    first = scale + 1 - len(inputs.latents)
    # The coarsest scale is predicted from the class alone. Each other one reads the image so far on
    # its own grid.
    grids = [
        quantizer.shrink(before, first + i).to(labels.device)  # (B, T, Z)
        for i, before in enumerate(inputs.latents)
        if first + i > 0
    ]
    copies = len(labels) // len(latents)
    latent_inputs = torch.cat(grids, dim=1).repeat(copies, 1, 1) if grids else None
    output = inputs.transformer(labels, latent_inputs, past_key_values=inputs.cache)
    logits = output.logits[:, -(quantizer.token_map_sizes[scale] ** 2) :].to(latents.device)
    conditional, unconditional = logits.chunk(2) if copies == 2 else (logits, None)
    logits, memory = inputs.guidance(
        conditional, unconditional, scale, inputs.guidance_scale, inputs.memory
    )  # (B, T, V)
    tokens, codes = inputs.choice(logits, scale, inputs.noise)  # (B, T), (B, T, Z)
    latents = latents + quantizer.expand(codes, scale)
    return ScaleResult(tokens, logits, latents, memory, logits.sum().isfinite())
