"""Write original checkpoints."""

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from var_hf.files import new_path


def write_original(state_dict: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write an original state dict as a ``.pth`` file with ``torch.save``, as the release does.

    Args:
        state_dict: Result of `export_transformer` or `export_vqvae`.
        path: The file. It must not exist.

    Raises:
        FileExistsError: `path` exists.
        WriteError: The disk is full, or the folder cannot be written to.
    """
    tensors = {name: _alone(tensor) for name, tensor in state_dict.items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    with new_path(path, size=size) as temporary, temporary.open("wb") as file:
        torch.save(tensors, file)


def _alone(tensor: Tensor) -> Tensor:
    """Copy a tensor to a storage of its own, because `torch.save` writes whole storages."""
    tensor = tensor.detach().cpu()
    if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
