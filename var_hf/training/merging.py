"""Merge two transformers of the same shape by extrapolation: the last step of Neon.

Neon (negative extrapolation from self-training, arXiv 2510.03597) fine-tunes a model shortly on its
own samples, which makes it worse, and then steps away from the result:
``(1 + weight) * base - weight * self_trained``.
"""

import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from var_hf.evaluation.sampling import model_digest
from var_hf.files import check_absent, new_folder
from var_hf.model_card import CardOptions, model_card, read_configs
from var_hf.pipelines.pipeline_var import VARPipeline
from var_hf.precision import cast
from var_hf.provenance import write_provenance


@torch.no_grad()
def extrapolate(base: VARPipeline, self_trained: VARPipeline, weight: float) -> None:
    """Move the transformer of `base` away from that of `self_trained`, in place.

    Every tensor becomes ``base + weight * (base - self_trained)``, computed in float32 in this
    order, as the authors' code does. A weight of 0 changes nothing; -1 gives `self_trained`, up to
    rounding.

    Args:
        base: Pipeline with the model before self-training.
        self_trained: Pipeline with the model after it.
        weight: Length of the step, in units of the distance between the two.

    Raises:
        ValueError: The weight is not finite, the two do not belong together, or a result is not
            finite; in the last case some tensors of `base` are changed already.
    """
    if not math.isfinite(weight):
        raise ValueError(f"weight must be a finite number. Got {weight}.")
    check_same_model(base, self_trained)
    others = self_trained.transformer.state_dict()
    for name, tensor in base.transformer.state_dict().items():
        if not tensor.is_floating_point():
            continue
        ours, other = tensor.float(), others[name].float()
        merged = ours + weight * (ours - other)
        if not merged.isfinite().all():
            raise ValueError(
                f"With weight {weight:g}, {name} is no longer finite. Use a smaller one."
            )
        tensor.copy_(merged)


MERGE_ADVICE = "Merge a model with one that was trained from it."


def check_same_model(base: VARPipeline, other: VARPipeline, advice: str = MERGE_ADVICE) -> None:
    """Raise a ``ValueError`` unless two pipelines differ only in the transformer's weights.

    Args:
        base: The one pipeline.
        other: The other.
        advice: The end of the message: what to do.
    """
    for pipe in (base, other):
        if len(pipe.transformers) > 1:
            raise ValueError(
                f"A {type(pipe).__name__} has two transformers. {advice} Take its two models one "
                "by one: VARPipeline(pipe.drafter, pipe.vqvae, pipe.scheduler, pipe.id2label)."
            )
    ours = {name: tuple(tensor.shape) for name, tensor in base.transformer.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in other.transformer.state_dict().items()}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"The models do not have the same shape: {name} is {ours.get(name, 'absent')} in"
                f" the base and {theirs.get(name, 'absent')} in the other. {advice}"
            )
    for name in ("token_map_sizes", "num_attention_heads", "qk_norm", "share_modulation"):
        one, two = getattr(base.transformer.config, name), getattr(other.transformer.config, name)
        if one != two:
            raise ValueError(
                f"The models differ in {name}: {one} in the base, {two} in the other. {advice}"
            )
    codebooks = [pipe.vqvae.quantizer.codebook.weight.float() for pipe in (base, other)]
    if not torch.equal(*codebooks):
        raise ValueError(
            "The VQVAEs have different codebooks, so the transformers speak of different tokens. "
            f"{advice}"
        )
    if base.id2label != other.id2label:
        raise ValueError(f"The models have different class names. {advice}")


def merge_to_folder(
    base: VARPipeline,
    self_trained: VARPipeline,
    weight: float,
    output: str | PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    card: CardOptions | None = None,
    title: str | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write the merged pipeline: the VQVAE, the sampling defaults and the class names of the base.

    Args:
        base, self_trained, weight: As in [`extrapolate`]; `base` is changed.
        output: Folder to write; must not exist. It appears complete or not at all.
        dtype: Number format to store.
        card: Information for the model card.
        title: Name of the result in its card; ``None`` is that of the folder.
        about: More entries of the provenance, as JSON values.

    Raises:
        ValueError: As in [`extrapolate`].
        FileExistsError: There is something at `output` already.
        WriteError: The disk is full, or the folder cannot be written to.
    """
    check_absent(Path(output))
    digests = {"base_sha256": model_digest(base), "self_trained_sha256": model_digest(self_trained)}
    extrapolate(base, self_trained, weight)
    cast(base.transformer, dtype)
    cast(base.vqvae, dtype)
    with new_folder(output) as folder:
        base.save_pretrained(folder)
        write_provenance(
            folder,
            sources=[],
            options={"merge": {"method": "neon", "weight": weight, **digests}, **(about or {})},
            write_card=lambda provenance: str(
                model_card(
                    read_configs(folder),
                    provenance,
                    card or CardOptions(),
                    title or Path(output).name,
                )
            ),
        )
