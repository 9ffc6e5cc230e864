"""What lies in a model's folder, checked before and after a library loads it.

Before: configurations against the tables of `var_hf.schema`, lists of shards, and the headers of
the weight files against the shapes that the configuration implies; nothing is allocated for it.
After: the values of the weights.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from var_hf import schema
from var_hf.conversion.checks import check_layout, check_values
from var_hf.hub.files import COMPONENTS, kind_of, read_index, read_weight_map, weights_in
from var_hf.text import printable
from var_hf.untrusted import check_regular

Shapes = Mapping[str, tuple[int, ...]]
#: From the values of a config to the shapes of its tensors.
ShapesOf = Callable[[Mapping[str, Any]], Shapes]

_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}
# With these arguments the folder's config or weights are not those that are loaded, or need not
# fit.
_OTHER_WEIGHTS = ("config", "gguf_file", "ignore_mismatched_sizes", "state_dict")


@dataclass(frozen=True)
class _Header:
    """What the header of a safetensors file says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str


def check_pipeline(folder: str | os.PathLike[str]) -> None:
    """Check the configurations of a pipeline's folder.

    Raises:
        ValueError: One of them is damaged, of another kind of model, or holds a wrong type or a
        value out of range.
        OSError: One of them is absent or cannot be read.
    """
    folder = Path(folder)
    for name, component in kind_of(read_index(folder)).parts.items():
        if (folder / name / COMPONENTS[component].config_file).exists():
            read_config(folder / name, component)


def read_config(folder: str | os.PathLike[str], name: str) -> dict[str, Any]:
    """The configuration of a component, checked.

    Args:
        folder: The component's folder.
        name: Of the component: ``"transformer"``, ``"vqvae"`` or ``"scheduler"``.

    Raises:
        ValueError: It is damaged, or holds a wrong type or a value out of range.
        OSError: It is absent or cannot be read.
    """
    path = Path(folder) / COMPONENTS[name].config_file
    values = schema.read_json(path)
    schema.check_config(values, name, path)
    return dict(values)


def check_scheduler(folder: Any, subfolder: str | None) -> None:
    """Check the configuration of a scheduler in a local folder, if there is one.

    Raises:
        ValueError, OSError: See `read_config`.
    """
    if folder is not None and os.path.isdir(folder):
        path = Path(folder, subfolder or "")
        if (path / COMPONENTS["scheduler"].config_file).exists():
            read_config(path, "scheduler")


def check_component(
    name: str, place: tuple[Any, ...], arguments: Mapping[str, Any], shapes_of: ShapesOf
) -> dict[str, Any]:
    """Check a component's folder before a library loads it.

    Args:
        name: Of the component: ``"transformer"`` or ``"vqvae"``.
        place: Positional arguments of `from_pretrained`; folder or repository comes first.
        arguments: Its other arguments.
        shapes_of: Names and shapes of the tensors, from the values of the config.

    Returns:
        The arguments with which the library loads no pickle.

    Raises:
        ValueError: The config is damaged or out of range, the weights are a pickle, whole numbers,
        or not those that the
            config describes, or `use_safetensors` is off.
        OSError: A weight file is damaged or no regular file.
    """
    if arguments.get("use_safetensors") is False:
        raise ValueError(
            "use_safetensors=False would load a pickle, which may run code. Leave it out."
        )
    arguments = {**arguments, "use_safetensors": True}
    folder = _folder(place, arguments)
    if folder is not None and not any(arguments.get(name) for name in _OTHER_WEIGHTS):
        own = {
            key: arguments[key]
            for key in schema.TABLES[name]
            if key in arguments and key != "dtype"
        }
        _check_folder(folder, name, arguments.get("variant"), own, shapes_of)
    return arguments


def check_loaded(
    name: str,
    place: tuple[Any, ...],
    arguments: Mapping[str, Any],
    shapes_of: ShapesOf,
    model: nn.Module,
    info: Mapping[str, Any],
) -> None:
    """Check a model that a library has loaded.

    Args:
        name, place, arguments, shapes_of: See `check_component`.
        model: What was loaded.
        info: What the library found while loading: `missing_keys`, `unexpected_keys`.

    Raises:
        ValueError: A tensor was missing, unexpected, or holds NaN or infinity.
    """
    where = f" of {printable(place[0])}" if place else ""
    what = f"The weights{where}"
    for problem, verb in (("missing_keys", "lack"), ("unexpected_keys", "have the unknown")):
        if names := sorted(info.get(problem) or ()):
            first = ", ".join(map(printable, names[:3])) + (", ..." if len(names) > 3 else "")
            raise ValueError(
                f"{what} {verb} {len(names)} of the tensors of a {type(model).__name__}: {first}. "
                "Save, convert or download the model again."
            )
    cached = _cached_folder(name, place, arguments)
    if cached is not None and not any(arguments.get(name) for name in _OTHER_WEIGHTS):
        _check_folder(cached, name, arguments.get("variant"), {}, shapes_of)
    check_values(dict(_plain(model)), what)


def _plain(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The weights that are floats; what a quantiser has made of a tensor is left out."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return [
        (name, tensor.data)
        for name, tensor in tensors
        if type(tensor.data) is Tensor and tensor.is_floating_point()
    ]


def _folder(place: tuple[Any, ...], arguments: Mapping[str, Any]) -> Path | None:
    """The local folder that is loaded from, if it is one."""
    path = place[0] if place else arguments.get("pretrained_model_name_or_path")
    if path is None or not os.path.isdir(path):
        return None
    return Path(path, arguments.get("subfolder") or "")


def _cached_folder(name: str, place: tuple[Any, ...], arguments: Mapping[str, Any]) -> Path | None:
    """The folder in the Hub's cache that a repository was loaded from."""
    repository = place[0] if place else arguments.get("pretrained_model_name_or_path")
    if repository is None or os.path.isdir(repository):
        return None
    subfolder = arguments.get("subfolder") or ""
    config = try_to_load_from_cache(
        str(repository),
        f"{subfolder}/{COMPONENTS[name].config_file}".lstrip("/"),
        cache_dir=arguments.get("cache_dir"),
        revision=arguments.get("revision"),
    )
    return Path(config).parent if isinstance(config, str) else None


def _check_folder(
    folder: Path, name: str, variant: str | None, overrides: Mapping[str, Any], shapes_of: ShapesOf
) -> None:
    config = folder / COMPONENTS[name].config_file
    if not config.exists():
        return  # the library names what is missing
    values = {**read_config(folder, name), **overrides}
    if (quantization := values.get("quantization_config")) is not None:
        _check_quantization(quantization, config)
        return  # quantised weights have names and types of their own, which the library checks
    headers: dict[str, _Header] = {}
    for file in weight_files(folder, COMPONENTS[name].weights_stem or "", variant):
        headers |= _headers(file)
    if headers:
        check_layout(headers, shapes_of(values), f"{printable(config)} and the weights beside it:")


def _check_quantization(values: Any, config: Path) -> None:
    """Check that transformers can read how weights were quantised; it raises errors of any kind."""
    from transformers.quantizers.auto import AutoQuantizationConfig

    if not hasattr(values, "to_dict"):  # else an object from Python
        try:
            AutoQuantizationConfig.from_dict(dict(values))
        except Exception as error:
            raise ValueError(
                f"{printable(config)}: quantization_config cannot be read: "
                f"{type(error).__name__}: {printable(error)}. Quantise and save the model again."
            ) from error


def weight_files(folder: Path, stem: str, variant: str | None) -> list[Path]:
    """The weight files that a library loads from a folder: one file, or the shards of a list.

    Raises:
        ValueError: There is nothing but a pickle, or the list of shards is damaged or leaves the
        folder.
        NotRegularFileError: One is a FIFO, a socket or a device.
        FileNotFoundError: A shard is missing.
    """
    names = [path.name for path in folder.iterdir()]
    found = weights_in(names, "")
    chosen = found.get(variant) or found.get(None) or []
    singles = [name for name in chosen if name.startswith(stem) and "-of-" not in name]
    files = [name for name in singles if name.endswith(".safetensors")]
    indices = [name for name in singles if name.endswith(".json")]
    if not chosen and (pickles := [name for name in names if name.endswith(_PICKLES)]):
        raise ValueError(
            f"{printable(folder)} holds its weights as a pickle ({printable(pickles[0])}), which "
            "may run code when it is "
            "loaded. Save them as safetensors."
        )
    if not files and indices:
        files = sorted(read_weight_map(folder / indices[0]))
    for name in files:
        check_regular(folder / name)
    return [folder / name for name in files]


def _headers(file: Path) -> dict[str, _Header]:
    try:
        with safe_open(file, framework="pt") as stored:
            headers = {}
            for name in stored.keys():  # noqa: SIM118  # no dictionary
                part = stored.get_slice(name)
                dtype = part.get_dtype()
                headers[name] = _Header(tuple(part.get_shape()), _DTYPES.get(dtype, dtype))
            return headers
    except SafetensorError as error:
        raise OSError(
            f"{printable(file)} is truncated, damaged or no safetensors file: {printable(error)}. "
            "Save or download it "
            "again."
        ) from error
