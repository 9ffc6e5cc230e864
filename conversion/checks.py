"""The checks of every conversion. Each raises one error that names the tensor."""

from collections.abc import Mapping, Set
from math import isfinite
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from var_hf.conversion.errors import CheckpointError
from var_hf.conversion.layout import leaf

_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_SHOWN = 5  # names printed before "and N more"


def shape_of(
    state_dict: Mapping[str, Tensor], name: str, num_dims: int, what: str
) -> tuple[int, ...]:
    """Shape of a tensor from which config values are read.

    Raises:
        CheckpointError: The tensor is absent, has another number of dimensions, or is empty.
    """
    if name not in state_dict:
        raise CheckpointError(f"{what} lacks the tensor {name!r}.")
    shape = tuple(state_dict[name].shape)
    if len(shape) != num_dims or 0 in shape:
        raise CheckpointError(
            f"{what}: {name!r} has shape {shape}; expected {num_dims} dimensions, none of them "
            f"empty."
        )
    return shape


def count_indexed(state_dict: Mapping[str, Tensor], prefix: str) -> int:
    """Count the different numbers that follow ``prefix.`` in the names."""
    numbers = {
        name[len(prefix) + 1 :].partition(".")[0]
        for name in state_dict
        if name.startswith(f"{prefix}.")
    }
    return sum(number.isdecimal() for number in numbers)


def take_overrides(
    known: Mapping[str, Any],
    defaults: Mapping[str, Any],
    overrides: Mapping[str, Any],
    what: str,
    others: Set[str] = frozenset(),
) -> dict[str, Any]:
    """Merge the config values that the tensors determine with defaults and overrides.

    Args:
        known: Values that the tensors determine. An override may repeat them.
        defaults: Values that they do not determine. An override replaces them.
        overrides: Values by name. ``None`` counts as not given.
        what: Subject of error messages: what is converted.
        others: Names of further values, which are passed through unchecked.

    Raises:
        ValueError: An override has an unknown name.
        CheckpointError: An override contradicts the tensors.
    """
    given = {name: _tuple(value) for name, value in overrides.items() if value is not None}
    names = {*known, *defaults, *others}
    if unknown := sorted(set(given) - names):
        raise ValueError(
            f"Unknown override {', '.join(unknown)}. Known are {', '.join(sorted(names))}."
        )
    for name, value in known.items():
        if given.get(name, value) != value:
            raise CheckpointError(
                f"{what}: {name}={given[name]} contradicts the tensors, which have {value}."
            )
    return {**defaults, **given, **known}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class HasLayout(Protocol):
    """A tensor, or its entry in the header of a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    @property
    def dtype(self) -> Any:
        """Its type."""
        ...


def check_layout(
    state_dict: Mapping[str, HasLayout], shapes: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """Compare the names, shapes and dtypes of tensors with the expected layout.

    Args:
        state_dict: The tensors to check.
        shapes: Every expected name with its shape.
        what: Subject of the error message: the tensors and their source.

    Raises:
        CheckpointError: A tensor is missing, is unknown, has another shape, or has no floating
            point dtype.
    """
    problems = []
    if missing := [name for name in shapes if name not in state_dict]:
        problems.append(f"it lacks {_listed(missing)}")
    if unknown := [name for name in state_dict if name not in shapes]:
        problems.append(f"it has the unknown {_listed(unknown)}")
    wrong = [
        f"{name} {tuple(state_dict[name].shape)} (expected {shape})"
        for name, shape in shapes.items()
        if name in state_dict and tuple(state_dict[name].shape) != shape
    ]
    if wrong:
        problems.append(f"wrong shape in {_listed(wrong)}")
    types = [
        f"{name} ({str(state_dict[name].dtype).removeprefix('torch.')})"
        for name in shapes
        if name in state_dict and leaf(name) != "lvl_1L" and state_dict[name].dtype not in _FLOATS
    ]
    if types:
        problems.append(f"wrong dtype (expected 16 to 64 bit floats) in {_listed(types)}")
    if problems:
        raise CheckpointError(f"{what} does not have the expected layout: {'; '.join(problems)}.")


def check_values(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights that are not finite. Tensors on the meta device have no values to check.

    Raises:
        CheckpointError: A tensor holds NaN or infinity.
    """
    with_values = {name: tensor for name, tensor in tensors.items() if not tensor.is_meta}
    progress = tqdm(with_values.items(), "checking weights", leave=False, delay=2)
    # The extremes are NaN where any entry is, and unlike isfinite they need no memory of the
    # tensor's size.
    if bad := [
        name for name, tensor in progress if not all(isfinite(end) for end in tensor.aminmax())
    ]:
        raise CheckpointError(f"{what} holds NaN or infinite weights in {_listed(bad)}.")


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}: {shown}{more}"
