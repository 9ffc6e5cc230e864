"""Read original checkpoint files without running anything in them."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from var_hf.conversion.errors import CheckpointError

Part = Literal["transformer", "vqvae"]

# Where the release's trainer keeps each model: checkpoint["trainer"][name].
_TRAINER_NAMES: dict[Part, str] = {"transformer": "var_wo_ddp", "vqvae": "vae_local"}
_WRAPPERS = {
    "module",
    "_orig_mod",
}  # DistributedDataParallel and torch.compile put these into names


def read_original(path: str | os.PathLike[str], part: Part | None = None) -> dict[str, Tensor]:
    """Read the tensors of an original checkpoint; nothing in the file is ever run.

    Takes the published ``.pth`` files, the checkpoint of the release's trainer, which nests both models, either
    of them with the ``module.`` or ``_orig_mod.`` prefixes of wrapped models, and a ``.safetensors`` file in the
    original layout. The tensors are mapped from the file, so memory is used only as they are read; leave the
    file alone while they are in use.

    Args:
        path: The file.
        part: Which of the two models to take from a trainer's checkpoint; other files ignore it.

    Returns:
        The original names, wrapper prefixes removed, with their tensors on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: `path` is a folder.
        CheckpointError: The file is empty, damaged, no checkpoint, or holds objects other than tensors and plain
            data, which only a pickle that runs code could rebuild; or a trainer's checkpoint lacks `part`.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(
            f"{path} is a folder, not an original checkpoint file. A folder that is already converted is loaded "
            "with VARPipeline.from_pretrained."
        )
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return _flat_state_dict(content, path, part)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is truncated, damaged or not a safetensors file: {error}."
        ) from error


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(f"{path} is empty.")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the checkpoint itself. Download the file it stands for."
        )
    is_zip = head.startswith(
        b"PK\x03\x04"
    )  # before torch 1.6, a bare pickle of protocol 2 or later
    if not is_zip and not head.startswith(b"\x80"):
        raise CheckpointError(f"{path} is not a PyTorch checkpoint: it starts with {head[:8]!r}.")
    try:
        # Mapping reads a tensor only when it is used: a trainer's optimizer state, say, never is.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:
        # The readers of torch raise whatever they stumble over, and name their internals instead of the cause.
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{path} asks for {refused[1]} to be run, and only files of tensors are read. Nothing was run. "
                "If you trust the file, load it where it was made and save its state dict alone."
            ) from error
        raise CheckpointError(
            f"{path} is truncated, damaged or not a PyTorch checkpoint."
        ) from error


def _flat_state_dict(content: Any, path: Path, part: Part | None) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        trainer = content.get("trainer", content)
        if isinstance(trainer, Mapping) and any(
            name in trainer for name in _TRAINER_NAMES.values()
        ):
            if part is None:
                raise CheckpointError(
                    f"{path} is a trainer's checkpoint with both models in it: say which part to read, "
                    "'transformer' or 'vqvae'."
                )
            if not isinstance(content := trainer.get(_TRAINER_NAMES[part]), Mapping):
                raise CheckpointError(
                    f"{path} is a trainer's checkpoint without the {part} ({_TRAINER_NAMES[part]!r})."
                )
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path} holds no state dict: a {type(content).__name__} instead of names and tensors."
        )
    state_dict: dict[str, Tensor] = {}
    for key, tensor in content.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path} holds no state dict: {key!r} is a {type(tensor).__name__}, not a tensor. Expected one of the "
                "published files or a checkpoint of the release's trainer."
            )
        name = ".".join(component for component in key.split(".") if component not in _WRAPPERS)
        if name in state_dict:
            raise CheckpointError(f"{path} holds {name!r} twice, once with a wrapper's prefix.")
        state_dict[name] = tensor
    return state_dict
