"""Analysis of an image: its scales, what each adds, the surprise, and the likeliest classes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from var_hf.demo.orders import Label
from var_hf.demo.studio import Studio
from var_hf.pipelines.image_processing import cover, read_images

CLASSES_AT_A_TIME = 8
# Classification takes a pass over all tokens for every class. This many multiplications take a CPU
# a minute or two.
MOST_WORK_ON_A_CPU = 5e12


@dataclass(frozen=True)
class Inside:
    """The analysis of an image.

    Attributes:
        seen: The model's input: the image's central square in the model's size.
        by_scale: The image after each scale.
        added: The change by each scale; grey is no change. The first is the image after scale 0.
        surprise: Map of the surprise, dark to bright, in the size of `seen`.
        nats_per_token: Mean surprise of each scale's tokens, in nats.
        log_likelihood: Log-likelihood of all tokens, in nats.
    """

    seen: Image.Image
    by_scale: list[Image.Image]
    added: list[Image.Image]
    surprise: Image.Image
    nats_per_token: list[float]
    log_likelihood: float


@torch.no_grad()
def look_inside(studio: Studio, image: Image.Image, label: Label = None) -> Inside:
    """Analyse an image under a class or without one.

    Raises:
        ValueError: There is no such class, or the image cannot be read.
    """
    pipe = studio.pipe
    class_id = studio.class_id(label)
    square = cover(read_images(image)[0], studio.facts.side)  # (3, P, P) in [0, 1]
    device = pipe.vqvae.device
    token_maps = pipe.vqvae.encode(square[None].to(device) * 2 - 1).token_maps
    latents = torch.cat(list(pipe.vqvae.quantizer.latents_by_scale(token_maps)))  # (S, Z, F, F)
    samples = torch.cat([pipe.vqvae.decode_latents(one[None]).sample for one in latents])
    by_scale = (samples.float().cpu() / 2 + 0.5).clamp(0, 1)  # (S, 3, P, P)

    likelihood = pipe.log_likelihood(square, class_id)
    return Inside(
        seen=to_image(square),
        by_scale=[to_image(one) for one in by_scale],
        added=[to_image(one) for one in added_by_scale(by_scale)],
        surprise=pipe.surprise_maps(square, class_id)[0],
        nats_per_token=[-tokens.mean().item() for tokens in likelihood.per_token],
        log_likelihood=likelihood.total.item(),
    )


def added_by_scale(by_scale: Tensor) -> Tensor:
    """Compute the change by each scale, ``(S, 3, P, P)``: doubled, with grey for no change."""
    changes = 0.5 + by_scale.diff(dim=0)  # a change of half the range is black or white
    return torch.cat([by_scale[:1], changes.clamp(0, 1)])


def to_image(pixels: Tensor) -> Image.Image:
    """``(3, P, P)`` in [0, 1] as an image."""
    return Image.fromarray((pixels * 255).round().byte().movedim(0, -1).numpy())


@torch.no_grad()
def name_classes(studio: Studio, image: Image.Image) -> Iterator[tuple[int, list[float]]]:
    """Compute the log-likelihoods of an image for a few classes at a time, so that it can be
    stopped.

    Yields:
        The number of finished classes, and their log-likelihoods in nats, by class id.

    Raises:
        ValueError: This device is too slow, or the image cannot be read.
    """
    check_work(studio)
    square = cover(read_images(image)[0], studio.facts.side)
    totals: list[float] = []
    for class_ids in torch.arange(studio.facts.num_classes).split(CLASSES_AT_A_TIME):
        ids = class_ids.tolist()
        likelihood = studio.pipe.log_likelihood([square] * len(ids), ids)
        totals += likelihood.total.tolist()
        yield len(totals), totals


def top_classes(studio: Studio, totals: list[float], top: int) -> list[dict[str, Any]]:
    """Rank classes by Bayes' rule with equal priors, in the format of `VARPipeline.classify`."""
    scores, order = torch.tensor(totals, dtype=torch.float64).softmax(0).sort(descending=True)
    return [
        {
            "class_id": class_id,
            "label": studio.facts.id2label.get(class_id),
            "score": score,
            "log_likelihood": totals[class_id],
        }
        for score, class_id in zip(scores[:top].tolist(), order[:top].tolist(), strict=True)
    ]


def work_of_naming(studio: Studio) -> float:
    """Return the number of multiplications of a pass over all tokens for every class."""
    return (
        studio.pipe.transformer.num_parameters()
        * studio.facts.num_tokens
        * studio.facts.num_classes
    )


def can_name_classes(studio: Studio) -> bool:
    """Check whether the device is fast enough to try every class."""
    return studio.pipe.device.type != "cpu" or work_of_naming(studio) <= MOST_WORK_ON_A_CPU


def check_work(studio: Studio) -> None:
    """Raise a ``ValueError`` if classification would block other visitors for too long."""
    if not can_name_classes(studio):
        raise ValueError(
            f"Naming the class tries each of {studio.facts.num_classes} classes, which takes this "
            "model too long on a CPU. Use a GPU, or `var-hf classify` if you can wait."
        )
