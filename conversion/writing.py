"""Write files and folders so that they appear complete or not at all."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor


@contextmanager
def new_path(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary path to write a file or a folder to, and rename it to `path` at the end.

    The temporary path lies beside `path`, so that the rename is one step. Whatever ends the block early, an
    interrupt included, leaves neither `path` nor the temporary behind. Missing parent folders are made.

    Args:
        path: The file or folder that is to appear.
        replace: Replace a file that exists at `path`, once the new one is complete; a folder is never replaced.

    Raises:
        FileExistsError: There is something at `path` already, and it is not to be replaced.
        OSError: Writing failed, a full disk for instance; the message says what was being written.
    """
    path = Path(path)
    if path.is_dir() or not replace:
        check_absent(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A folder of our own around the temporary: what is made inside gets the user's usual permissions.
    shelter = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
    temporary = shelter / path.name
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        if (number := _system_error_number(error)) is not None:
            reason = os.strerror(number)
            raise OSError(
                number, f"Writing {path} failed and nothing of it was left behind: {reason}"
            ) from error
        raise
    finally:
        shutil.rmtree(shelter, ignore_errors=True)


def check_absent(path: str | os.PathLike[str]) -> None:
    """Refuse a path that is taken; `new_path` does too, and a caller with long work ahead may ask earlier.

    Raises:
        FileExistsError: There is a file, a folder or a link at `path`.
    """
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists already. Choose another name or remove it first.")


def _system_error_number(error: BaseException | None) -> int | None:
    """The system's error number behind an error of the writers of torch and safetensors, which hide it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if isinstance(error, SafetensorError) and (
            found := re.search(r"os error (\d+)", str(error))
        ):
            return int(found[1])
        error = error.__cause__ or error.__context__
    return None


def write_original(state_dict: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write an original state dict as a ``.pth`` file, as ``torch.save`` of the release does.

    Args:
        state_dict: What `export_transformer` or `export_vqvae` returned.
        path: The file; must not exist.

    Raises:
        FileExistsError: There is something at `path` already.
        OSError: The disk is full, or the folder cannot be written to.
    """
    tensors = {name: _alone(tensor) for name, tensor in state_dict.items()}
    with new_path(path) as temporary, temporary.open("wb") as file:
        torch.save(tensors, file)


def _alone(tensor: Tensor) -> Tensor:
    """The plain tensor with a storage that holds nothing else, since `torch.save` writes storages whole."""
    tensor = tensor.detach().cpu()
    if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
