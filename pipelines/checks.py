"""Checks of a pipeline's components and arguments. Each raises a ``ValueError`` with a remedy."""

from collections.abc import Sequence

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from var_hf.generation import Generators
from var_hf.modeling_var import VARModel
from var_hf.modeling_vqvae import MultiScaleVQVAE

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_components(
    transformer: VARModel, vqvae: MultiScaleVQVAE, name: str = "transformer"
) -> None:
    """Raise unless the transformer, the component `name`, predicts the tokens of this VQVAE."""
    ours, theirs = transformer.config, vqvae.config
    for what, of_transformer, of_vqvae in (
        ("codes (vocab_size, codebook_size)", ours.vocab_size, theirs.codebook_size),
        ("latent channels (latent_channels)", ours.latent_channels, theirs.latent_channels),
        (
            "token map sizes (token_map_sizes)",
            tuple(ours.token_map_sizes),
            tuple(theirs.token_map_sizes),
        ),
    ):
        if of_transformer != of_vqvae:
            raise ValueError(
                f"{name.capitalize()} and VQVAE do not belong together: they differ in {what}, the "
                f"{name} has "
                f"{of_transformer} and the VQVAE {of_vqvae}. Load both from one checkpoint."
            )


def check_output_type(output_type: str) -> None:
    """Raise for an unknown form of images."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be 'pil', 'np', 'pt' or 'latent'. Got {output_type!r}.")


def callback_tensor_names(
    callback: object, names: Sequence[str], available: Sequence[str]
) -> Sequence[str]:
    """Determine the tensors for a callback: those that a callback object needs, or those passed.

    Raises:
        ValueError: There is no such tensor.
    """
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        names = callback.tensor_inputs
    unknown = set(names) - set(available)
    if unknown:
        raise ValueError(
            f"callback_on_step_end_tensor_inputs may hold {list(available)}. Got {sorted(unknown)}."
        )
    return names


def check_generator(generator: Generators, batch_size: int, device: torch.device) -> None:
    """Check that generators are none, one, or one per image, and usable with the model's device."""
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(
            f"generator is a list of {len(generator)} for {batch_size} images. "
            "Pass one generator for all or one per image (labels times num_images_per_prompt)."
        )
    if generator is None:
        return
    for one in generator if isinstance(generator, list) else [generator]:
        if not isinstance(one, torch.Generator):
            raise ValueError(
                f"generator must be a torch.Generator or a list of them. Got {type(one).__name__}."
            )
        if one.device.type not in ("cpu", device.type):
            raise ValueError(
                f"The generator lives on {one.device} but the model on {device}. "
                f"Use torch.Generator() (CPU; works everywhere) or "
                f"torch.Generator({device.type!r})."
            )
