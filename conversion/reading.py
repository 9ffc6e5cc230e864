"""Read original checkpoint files without running anything in them."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from var_hf.conversion.errors import CheckpointError
from var_hf.conversion.torch_file import read_torch_file
from var_hf.text import printable
from var_hf.untrusted import open_regular

Part = Literal["transformer", "vqvae"]

# Where the release's trainer keeps each model: checkpoint["trainer"][name].
_TRAINER_NAMES: dict[Part, str] = {"transformer": "var_wo_ddp", "vqvae": "vae_local"}
_WRAPPERS = {
    "module",
    "_orig_mod",
}  # DistributedDataParallel and torch.compile put these into names


class OriginalTensors(dict[str, Tensor]):
    """The tensors of an original checkpoint by their original names.

    Attributes:
        path: The file that they come from.
        sha256: Digest of the file in hexadecimal, where it was asked for.
    """

    def __init__(self, tensors: Mapping[str, Tensor], path: Path, sha256: str | None = None):
        super().__init__(tensors)
        self.path = path
        self.sha256 = sha256


def read_original(
    path: str | os.PathLike[str], part: Part | None = None, *, digest: bool = False
) -> OriginalTensors:
    """Read the tensors of an original checkpoint; nothing in the file is ever run.

    Takes the published ``.pth`` files, the checkpoint of the release's trainer, which nests both
    models, either of them with the ``module.`` or ``_orig_mod.`` prefixes of wrapped models, and a
    ``.safetensors`` file in the original layout. The tensors are mapped from the file, so memory is
    used only as they are read; leave the file alone while they are in use.

    The checksums of a ``.pth`` file are compared, which reads it once. A ``.safetensors`` file has
    none.

    Args:
        path: The file.
        part: Which of the two models to take from a trainer's checkpoint; other files ignore it.
        digest: Compute the file's SHA-256 as well, while it is read.

    Returns:
        The original names, wrapper prefixes removed, with their tensors on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: `path` is a folder.
        NotRegularFileError: `path` is a FIFO, a socket or a device.
        CheckpointError: The file is empty, damaged, no checkpoint, or holds objects other than
            dense tensors and plain data; its tensors need more memory than the file has bytes; or a
            trainer's checkpoint lacks `part`.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(
            f"{printable(path)} is a folder, not an original checkpoint file. A folder that is"
            " already converted is loaded with VARPipeline.from_pretrained."
        )
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint file {printable(path)}.")
    _check_head(path)
    sum_of_bytes = hashlib.sha256() if digest else None
    if path.suffix == ".safetensors":
        content = _read_safetensors(path, sum_of_bytes)
    else:
        content = read_torch_file(path, sum_of_bytes)
    tensors = _flat_state_dict(content, printable(path), part)
    needed = sum(tensor.nbytes for tensor in tensors.values())
    if needed > (size := path.stat().st_size):
        raise CheckpointError(
            f"{printable(path)} has {size} bytes, and its tensors need {needed}: they share memory."
            " Save a copy of each."
        )
    return OriginalTensors(
        tensors, path, None if sum_of_bytes is None else sum_of_bytes.hexdigest()
    )


def _check_head(path: Path) -> None:
    with open_regular(path) as file:
        head = file.read(64)
    name = printable(path)
    if not head:
        raise CheckpointError(f"{name} is empty.")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{name} is a Git LFS pointer, not the checkpoint itself. Download the file it stands"
            " for."
        )
    if path.suffix == ".safetensors" or head.startswith(b"PK\x03\x04"):
        return
    if head.startswith(b"\x80"):
        raise CheckpointError(
            f"{name} is a bare pickle, as PyTorch wrote it before 1.6: it has no checksums and is"
            " not read. Load it with a trusted copy of PyTorch and save its state dict again."
        )
    raise CheckpointError(f"{name} is not a PyTorch checkpoint: it starts with {head[:8]!r}.")


def _read_safetensors(path: Path, digest: "hashlib._Hash | None") -> dict[str, Tensor]:
    if digest is not None:
        with open_regular(path) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{printable(path)} is truncated, damaged or not a safetensors file:"
            f" {printable(error)}."
        ) from error


def _flat_state_dict(content: Any, path: str, part: Part | None) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        trainer = content.get("trainer", content)
        if isinstance(trainer, Mapping) and any(
            name in trainer for name in _TRAINER_NAMES.values()
        ):
            if part is None:
                raise CheckpointError(
                    f"{path} is a trainer's checkpoint with both models in it: say which part to"
                    " read, 'transformer' or 'vqvae'."
                )
            if not isinstance(content := trainer.get(_TRAINER_NAMES[part]), Mapping):
                raise CheckpointError(
                    f"{path} is a trainer's checkpoint without the {part}"
                    f" ({_TRAINER_NAMES[part]!r})."
                )
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path} holds no state dict: a {type(content).__name__} instead of names and tensors."
        )
    state_dict: dict[str, Tensor] = {}
    for key, tensor in content.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path} holds no state dict: {printable(repr(key)[:200])} is a"
                f" {type(tensor).__name__}, not a tensor. Expected one of the published files or a"
                " checkpoint of the release's trainer."
            )
        name = ".".join(component for component in key.split(".") if component not in _WRAPPERS)
        if name in state_dict:
            raise CheckpointError(
                f"{path} holds {printable(name)!r} twice, once with a wrapper's prefix."
            )
        state_dict[name] = tensor
    return state_dict
