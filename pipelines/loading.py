"""From the name of a model to a pipeline on a device, with one clear error for whatever can be
wrong.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.errors import EntryNotFoundError, RevisionResolutionError
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from var_hf.assets import shipped_model
from var_hf.hub.errors import TransportError
from var_hf.hub.files import PLAIN, check_model, kind_of, read_index
from var_hf.pipelines.pipeline_var import VARPipeline
from var_hf.pipelines.pipeline_var_collaborative import VARCollaborativePipeline


def load_pipeline(
    model: str,
    dtype: str = "auto",
    device: str = "auto",
    *,
    refiner: str | None = None,
    draft_scales: int | None = None,
) -> VARPipeline:
    """Load a pipeline and put it on a device.

    A folder with a drafter and a refiner gives a [`VARCollaborativePipeline`].

    Args:
        model: Pipeline folder, Hub repository as user/name, or the name of a shipped
            model (`var_hf.assets`).
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: half precision where the device computes
            it, else float32. `int8` is `auto` with `VARPipeline.enable_int8`.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto`: the accelerator where there is one.
        refiner: Folder or Hub repository of a second pipeline, whose transformer predicts the fine
            scales.
        draft_scales: Number of scales that the first model then predicts; by default what is
            stored, or all but the last two.

    Raises:
        OSError: There is no such model, it is damaged, or the Hub could not be reached.
        ValueError: It is no pipeline of this package, there is no such device, the two models do
            not belong together, or `draft_scales` is no number of their scales.
    """
    model = shipped_model(model)
    check_model(model)
    torch_device = choose_device(device)
    with loading_errors(model), no_loading_bars():
        folder = model if os.path.isdir(model) else VARPipeline.download(model)
        options: dict[str, Any] = {"dtype": choose_dtype(dtype, torch_device)}
        loader: type[VARPipeline] = VARCollaborativePipeline
        if refiner is not None:
            options["refiner"] = shipped_model(refiner)
        elif kind_of(read_index(folder)) is PLAIN:
            loader = VARPipeline
        if draft_scales is not None:
            if loader is VARPipeline:
                raise ValueError(
                    f"{model} has one transformer, which draws all scales. For draft_scales, pass a"
                    " refiner as well."
                )
            options["draft_scales"] = draft_scales
        pipe = loader.from_pretrained(folder, **options)
        pipe.register_to_config(_name_or_path=model)
        pipe.to(torch_device)
        if dtype == "int8":
            pipe.enable_int8()
        return pipe


@contextmanager
def loading_errors(model: str) -> Iterator[None]:
    """Turn what loading can raise into an OSError that names the model; a ValueError or OSError
    passes.
    """
    try:
        yield
    except (
        EntryNotFoundError,
        RevisionResolutionError,
        RuntimeError,
        SafetensorError,
        TransportError,
    ) as error:
        raise OSError(f"{model} could not be loaded: {error}") from error


@contextmanager
def no_loading_bars() -> Iterator[None]:
    """Load weights without the libraries' progress bars; downloads keep theirs."""
    libraries = [
        each for each in (diffusers_logging, transformers_logging) if each.is_progress_bar_enabled()
    ]
    for each in libraries:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each in libraries:
            each.enable_progress_bar()


def choose_device(name: str) -> torch.device:
    """The device of this name, `auto` being the accelerator where there is one.

    Raises:
        ValueError: PyTorch finds no such device here.
    """
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(
            f"There is no device {name!r}. Pass cpu, cuda, cuda:1, mps or auto."
        ) from None
    if device.type == "cpu":
        return device
    if accelerator is None or device.type != accelerator.type:
        found = "only the cpu" if accelerator is None else f"cpu and {accelerator.type}"
        raise ValueError(f"PyTorch finds no device {name!r} on this machine, {found}.")
    if (device.index or 0) >= (count := torch.accelerator.device_count()):
        raise ValueError(
            f"PyTorch finds no device {name!r}: the last one is {device.type}:{count - 1}."
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of this name. `auto` is half precision where the device computes it, else float32;
    `int8` keeps the other layers in that dtype.
    """
    if name not in ("auto", "int8"):
        return getattr(torch, name)
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float16
    return torch.bfloat16 if device.type == "cpu" and has_fast_bfloat16() else torch.float32


def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 by instructions of its own: half the time of
    float32, or less.

    x86 with AVX512-BF16 or AMX. Others compute it too, by way of float32 and slower than that.
    """
    # torch tells only by functions that are not public; where they are missing, float32 is the safe
    # choice.
    asked = (
        getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")
    )
    return any(supported() for supported in asked if supported is not None)
