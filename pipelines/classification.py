"""Classification by likelihood, in stages: each stage reads more scales under fewer classes.

Letters: G images of a group, N classes of an image, R pairs of an image and a class, those of an
image side by side, S scales, L tokens of all scales, T_0 tokens of the coarsest.

Source: A-VARC, arXiv 2510.12060, for stages and noisy samples. There, every stage reads its scales
from the start; here, keys and values of the scales that were read are kept.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from var_hf.budgets import Budget, Stage, resolve_budget
from var_hf.pipelines.image_processing import ImageInput, cover, read_images
from var_hf.pipelines.likelihood import check_batch_size, token_log_likelihood

if TYPE_CHECKING:
    from var_hf.pipelines.pipeline_var import VARPipeline


class Sample(NamedTuple):
    """Teacher forcing for one sample of each image of a group.

    Attributes:
        tokens: ``(G, L)``.
        inputs: ``(G, L - T_0, Z)``.
    """

    tokens: Tensor
    inputs: Tensor


@dataclass
class Prefix:
    """The scales of one sample that were read under each pair's class.

    Attributes:
        log_likelihood: Of these scales, in nats, ``(R,)``, float64.
        cache: Their keys and values.
        num_scales: Number of these scales.
    """

    log_likelihood: Tensor
    cache: Cache = field(default_factory=DynamicCache)
    num_scales: int = 0

    def select(self, rows: Tensor) -> "Prefix":
        """Those of some rows ``(R',)``."""
        cache = DynamicCache()
        for number, layer in enumerate(self.cache.layers):
            cache.update(layer.keys[rows], layer.values[rows], number)
        return Prefix(self.log_likelihood[rows], cache, self.num_scales)

    def join(self, other: "Prefix") -> "Prefix":
        """The rows of this one, then those of another."""
        cache = DynamicCache()
        for number, (one, two) in enumerate(
            zip(self.cache.layers, other.cache.layers, strict=True)
        ):
            keys, values = ((one.keys, two.keys), (one.values, two.values))
            cache.update(torch.cat(keys), torch.cat(values), number)
        log_likelihood = torch.cat([self.log_likelihood, other.log_likelihood])
        return Prefix(log_likelihood, cache, self.num_scales)


@dataclass
class Candidates:
    """Classes in question, and what was read under each.

    Attributes:
        images: Number of the image in its group, ``(R,)``.
        class_ids: ``(R,)``.
        prefixes: One per sample.
        log_likelihood: Mean over the samples of the latest stage, ``(R,)``, float64.
    """

    images: Tensor
    class_ids: Tensor
    prefixes: list[Prefix]
    log_likelihood: Tensor

    @classmethod
    def all_of(cls, num_images: int, num_classes: int, num_samples: int) -> "Candidates":
        """All classes of each image, of which nothing was read."""
        nothing = torch.zeros(num_images * num_classes, dtype=torch.float64)
        return cls(
            images=torch.arange(num_images).repeat_interleave(num_classes),
            class_ids=torch.arange(num_classes).repeat(num_images),
            prefixes=[Prefix(nothing) for _ in range(num_samples)],
            log_likelihood=nothing,
        )

    def select(self, rows: Tensor) -> "Candidates":
        """Those of some rows ``(R',)``."""
        return Candidates(
            self.images[rows],
            self.class_ids[rows],
            [prefix.select(rows) for prefix in self.prefixes],
            self.log_likelihood[rows],
        )

    def join(self, other: "Candidates") -> "Candidates":
        """These of one image, then others of the same image."""
        return Candidates(
            torch.cat([self.images, other.images]),
            torch.cat([self.class_ids, other.class_ids]),
            [one.join(two) for one, two in zip(self.prefixes, other.prefixes, strict=True)],
            torch.cat([self.log_likelihood, other.log_likelihood]),
        )

    def likeliest(self, count: int, num_images: int) -> "Candidates":
        """The `count` likeliest ones of each image, at most all, likeliest first."""
        by_image = self.log_likelihood.view(num_images, -1)
        order = by_image.sort(dim=1, descending=True, stable=True).indices[:, :count]
        return self.select(
            (order + by_image.shape[1] * torch.arange(num_images)[:, None]).flatten()
        )


@torch.no_grad()
def classify(
    pipe: "VARPipeline",
    images: ImageInput,
    *,
    top: int = 5,
    batch_size: int = 16,
    budget: Budget = None,
    smoothing: float = 0.1,
    generator: torch.Generator | None = None,
) -> list[list[dict[str, Any]]]:
    """Rank the classes under which images are likeliest, by Bayes' rule with equal priors.

    The full search reads all scales of an image under each class. A budget drops classes after the
    first scales. The probabilities are overconfident, because the log-likelihoods of all tokens add
    up. A progress bar counts pairs of an image and a class, once per stage and sample.

    Args:
        pipe: The pipeline, whose progress bar and device are used.
        images: As in [`VARInpaintPipeline`]; cut to the central square and resized to the model's.
        top: Classes to return; at most those that the last stage of the budget keeps.
        batch_size: Number of pairs of an image and a class per forward pass; bounds the memory.
        budget: `"full"`, `"fast"`, `"a-varc"`, or a list of stages `(candidates, scales)` or
            `(candidates, scales, samples)`; see [`~budgets.Stage`]. `None` is `"full"` up to 100
            classes and `"fast"` beyond.
        smoothing: Standard deviation of the noise on the encoder's features, where a stage averages
            over more than one sample. The default is that of A-VARC.
        generator: Draws that noise.

    Returns:
        For each image its `top` classes, likeliest first: dicts with `class_id`, `label` (the name,
        `None` if unknown), `score` (the probability among the classes that the last stage compares)
        and `log_likelihood` (nats, of the scales that the last stage reads).

    Raises:
        ValueError: An image cannot be read, `top` or `batch_size` is below 1, `smoothing` is
            negative, or the budget does not suit the model; see [`~budgets.resolve_budget`].
    """
    tensors = read_images(images)
    check_batch_size(batch_size)
    if top < 1:
        raise ValueError(f"top must be at least 1. Got {top}.")
    if not 0 <= smoothing < float("inf"):
        raise ValueError(f"smoothing must be a finite number of at least 0. Got {smoothing}.")
    config = pipe.transformer.config
    stages = resolve_budget(budget, config.num_classes, config.num_scales)
    group_size = max(1, batch_size // config.num_classes)
    compared = [config.num_classes, *(stage.candidates for stage in stages)]
    pairs = sum(count * stage.samples for count, stage in zip(compared, stages, strict=False))
    rows = []
    with pipe.progress_bar(total=len(tensors) * pairs) as progress_bar:
        for start in range(0, len(tensors), group_size):
            group = tensors[start : start + group_size]
            samples = draw_samples(pipe, group, stages[-1].samples, smoothing, generator)
            best, evidence = search(pipe, samples, stages, batch_size, progress_bar.update)
            rows += ranking(pipe, best, evidence, top)
    pipe.maybe_free_model_hooks()
    return rows


def draw_samples(
    pipe: "VARPipeline",
    images: Sequence[Tensor],
    count: int,
    smoothing: float,
    generator: torch.Generator | None,
) -> list[Sample]:
    """Encode G images, and further samples of them with noise on the encoder's features.

    Args:
        pipe: The pipeline.
        images: As from `read_images`.
        count: Number of samples; the first one is free of noise.
        smoothing: Standard deviation of the noise.
        generator: Draws it, for one sample of all images after the other, as in A-VARC.
    """
    quantizer = pipe.vqvae.quantizer
    squares = torch.stack([cover(image, pipe.vqvae.image_size) for image in images])
    encoded = pipe.vqvae.encode(squares.to(pipe.vqvae.device) * 2 - 1)
    all_maps = [encoded.token_maps]
    if count > 1:
        features = encoded.features.float()
        shape = ((count - 1) * len(features), *features.shape[1:])
        noise = randn_tensor(shape, generator=generator, device=features.device)
        noisy = features.repeat(count - 1, 1, 1, 1) + smoothing * noise
        token_maps, _ = quantizer.encode(noisy)
        all_maps += zip(*(tokens.split(len(features)) for tokens in token_maps), strict=True)
    return [
        Sample(torch.cat(tuple(maps), dim=1), quantizer.teacher_inputs(maps)) for maps in all_maps
    ]


def search(
    pipe: "VARPipeline",
    samples: Sequence[Sample],
    stages: Sequence[Stage],
    batch_size: int,
    progress: Callable[[int], Any],
) -> tuple[Candidates, Tensor]:
    """The likeliest classes of G images.

    Args:
        pipe: The pipeline.
        samples: As many as the last stage needs.
        stages: The budget.
        batch_size: Number of pairs per forward pass. G is 1 unless all pairs of the group fit.
        progress: Called with numbers of finished pairs.

    Returns:
        The classes that the last stage keeps, and the log of the sum of the likelihoods of all
        classes that it compares, ``(G,)``.
    """
    num_images = len(samples[0].tokens)
    left = Candidates.all_of(num_images, pipe.transformer.config.num_classes, len(samples))
    for number, stage in enumerate(stages, start=1):
        best: Candidates | None = None
        compared = []
        for rows in torch.arange(len(left.class_ids)).split(batch_size):
            chunk = left.select(rows)
            read(pipe, chunk, samples, stage, keep=number < len(stages))
            compared.append(chunk.log_likelihood)
            # Those that are no longer among the likeliest leave at once, with their memory.
            best = chunk if best is None else best.join(chunk)
            best = best.likeliest(stage.candidates, num_images)
            progress(len(rows) * stage.samples)
        assert best is not None  # there is a class at least
        left = best
    return left, torch.cat(compared).view(num_images, -1).logsumexp(dim=1)


def read(
    pipe: "VARPipeline",
    candidates: Candidates,
    samples: Sequence[Sample],
    stage: Stage,
    keep: bool,
) -> None:
    """Read the scales of a stage, of as many samples as it averages over, in place.

    With `keep`, keys and values are kept for further stages.
    """
    slices = pipe.transformer.config.token_slices
    for prefix, sample in zip(candidates.prefixes[: stage.samples], samples, strict=False):
        # A filled cache takes one scale per pass.
        stops = range(prefix.num_scales + 1, stage.scales + 1)
        for stop in stops if prefix.num_scales else [stage.scales]:
            first, last = slices[prefix.num_scales].start, slices[stop - 1].stop
            inputs = sample.inputs[:, max(0, first - slices[0].stop) : last - slices[0].stop]
            log_likelihood = token_log_likelihood(
                pipe,
                candidates.class_ids.tolist(),
                sample.tokens[candidates.images, first:last],
                inputs[candidates.images] if inputs.shape[1] else None,
                prefix.cache if keep or prefix.num_scales else None,
            )
            prefix.log_likelihood = prefix.log_likelihood + log_likelihood.double().sum(dim=1)
            prefix.num_scales = stop
        if not keep:
            prefix.cache = DynamicCache()
    read_ones = [prefix.log_likelihood for prefix in candidates.prefixes[: stage.samples]]
    candidates.log_likelihood = torch.stack(read_ones).mean(dim=0)


def ranking(
    pipe: "VARPipeline", best: Candidates, evidence: Tensor, top: int
) -> list[list[dict[str, Any]]]:
    """The rows of [`classify`] for G images, from the results of [`search`]."""
    by_image = (values.view(len(evidence), -1) for values in (best.class_ids, best.log_likelihood))
    return [
        [
            {
                "class_id": class_id,
                "label": pipe.id2label.get(class_id),
                "score": math.exp(log_likelihood - total),
                "log_likelihood": log_likelihood,
            }
            for class_id, log_likelihood in zip(ids[:top], values[:top], strict=True)
        ]
        for ids, values, total in zip(
            *(values.tolist() for values in by_image), evidence.tolist(), strict=True
        )
    ]
