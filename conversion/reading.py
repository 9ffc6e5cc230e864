"""Read original checkpoint files without executing code from them."""

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

# Names of the models in a checkpoint of the release's trainer: checkpoint["trainer"][name].
_TRAINER_NAMES: dict[Part, str] = {"transformer": "var_wo_ddp", "vqvae": "vae_local"}
_WRAPPERS = {"module", "_orig_mod"}  # prefixes of DistributedDataParallel and torch.compile


class OriginalTensors(dict[str, Tensor]):
    """The tensors of an original checkpoint by their original names.

    Attributes:
        path: Their source file.
        sha256: Hexadecimal digest of the file, or ``None`` if it was not requested.
    """

    def __init__(self, tensors: Mapping[str, Tensor], path: Path, sha256: str | None = None):
        super().__init__(tensors)
        self.path = path
        self.sha256 = sha256


def read_original(
    path: str | os.PathLike[str], part: Part | None = None, *, digest: bool = False
) -> OriginalTensors:
    """Read the tensors of an original checkpoint. No code in the file is ever executed.

    The file is a published ``.pth`` file, a checkpoint of the release's trainer (which nests both
    models), or a ``.safetensors`` file in the original layout. Names may have the ``module.`` or
    ``_orig_mod.`` prefixes of wrapped models. The tensors are mapped from the file, so they need
    memory only as they are read. Do not change the file while they are in use.

    The checksums of a ``.pth`` file are verified, which reads it once. A ``.safetensors`` file has
    none.

    Args:
        path: The file.
        part: Model to read from a trainer's checkpoint, which holds both. Ignored for other files.
        digest: Also compute the file's SHA-256.

    Returns:
        The original names without wrapper prefixes, and their tensors on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: `path` is a folder.
        NotRegularFileError: `path` is a FIFO, a socket or a device.
        CheckpointError: The file is empty, damaged or not a checkpoint; it holds objects other than
            dense tensors and plain data; its tensors need more memory than the file has bytes; or a
            trainer's checkpoint lacks `part`.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(
            f"{printable(path)} is a folder, not an original checkpoint file. Load a converted "
            "folder with VARPipeline.from_pretrained."
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
            f"{printable(path)} has {size} bytes, but its tensors need {needed} because they share "
            "memory. Clone each tensor before saving."
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
            f"{name} is a Git LFS pointer, not the checkpoint. Download the file that it points to."
        )
    if path.suffix == ".safetensors" or head.startswith(b"PK\x03\x04"):
        return
    if head.startswith(b"\x80"):
        raise CheckpointError(
            f"{name} is a bare pickle, the format of PyTorch before 1.6. It has no checksums and "
            "is not read. Load it with PyTorch if you trust its source, and save its state dict "
            "again."
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
            f"{printable(path)} is truncated, damaged or not a safetensors file: "
            f"{printable(error)}."
        ) from error


def _flat_state_dict(content: Any, path: str, part: Part | None) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        trainer = content.get("trainer", content)
        if isinstance(trainer, Mapping) and any(
            name in trainer for name in _TRAINER_NAMES.values()
        ):
            if part is None:
                raise CheckpointError(
                    f"{path} is a trainer's checkpoint, which holds both models. Pass part: "
                    "'transformer' or 'vqvae'."
                )
            if not isinstance(content := trainer.get(_TRAINER_NAMES[part]), Mapping):
                raise CheckpointError(
                    f"{path} is a trainer's checkpoint without the {part} "
                    f"({_TRAINER_NAMES[part]!r})."
                )
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path} holds no state dict: a {type(content).__name__} instead of names and tensors."
        )
    state_dict: dict[str, Tensor] = {}
    for key, tensor in content.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path} holds no state dict: {printable(repr(key)[:200])} is a "
                f"{type(tensor).__name__}, not a tensor. Expected one of the published files or a "
                "checkpoint of the release's trainer."
            )
        name = ".".join(component for component in key.split(".") if component not in _WRAPPERS)
        if name in state_dict:
            raise CheckpointError(
                f"{path} holds {printable(name)!r} twice, once with a wrapper's prefix."
            )
        state_dict[name] = tensor
    return state_dict
