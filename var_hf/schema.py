"""The declared types and ranges of every JSON file that the package reads, and their check.

A table gives each name its field. Values out of JSON and values from Python pass the same check, so
that a wrong type, a NaN or a number out of range gives one error that names file, field, value and
remedy.
"""

import json
import math
import os
import types
import typing
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol

from var_hf.text import printable
from var_hf.untrusted import open_regular

_MOST_BYTES = 1 << 26  # of a JSON file
_SHOWN = 120  # characters of a value in an error


class SchemaError(ValueError):
    """A value does not fit its declaration; the message names file, field and value."""


class Field(Protocol):
    """What may stand under a name; its text completes "... must be"."""

    def accepts(self, value: Any) -> bool:
        """Whether a value fits."""
        ...


@dataclass(frozen=True)
class Whole:
    """A whole number between two bounds."""

    low: int
    high: int

    def accepts(self, value: Any) -> bool:
        """Whether a value is such a number; `True` is none."""
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        return is_whole and self.low <= value <= self.high

    def __str__(self) -> str:
        if self.high >= 1 << 31:
            return f"a whole number of at least {self.low}"
        return f"a whole number from {self.low} to {self.high}"


@dataclass(frozen=True)
class Number:
    """A finite number between two bounds, in the notation of intervals: `"[0, 1)"`."""

    low: float = -math.inf
    high: float = math.inf
    without_low: bool = False
    without_high: bool = False

    def accepts(self, value: Any) -> bool:
        """Whether a value is such a number; NaN, infinity and `True` are none."""
        if isinstance(value, bool) or not isinstance(value, Real):
            return False
        try:
            number = float(value)
        except OverflowError:
            return False
        above = number > self.low if self.without_low else number >= self.low
        below = number < self.high if self.without_high else number <= self.high
        return math.isfinite(number) and above and below

    def __str__(self) -> str:
        if (self.low, self.high) == (-math.inf, math.inf):
            return "a finite number"
        if self.high == math.inf:
            return f"a finite number {'above' if self.without_low else 'of at least'} {self.low:g}"
        opening = "(" if self.without_low or self.low == -math.inf else "["
        closing = ")" if self.without_high or self.high == math.inf else "]"
        return f"a finite number in {opening}{self.low:g}, {self.high:g}{closing}"


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def accepts(self, value: Any) -> bool:
        """Whether a value is one of them."""
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Text:
    """A text of limited length."""

    longest: int = 10_000

    def accepts(self, value: Any) -> bool:
        """Whether a value is such a text."""
        return isinstance(value, str | os.PathLike) and len(os.fspath(value)) <= self.longest

    def __str__(self) -> str:
        return f"a text of at most {self.longest} characters"


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    options: tuple[Any, ...]

    def accepts(self, value: Any) -> bool:
        """Whether a value is one of them."""
        return any(value == option and type(value) is type(option) for option in self.options)

    def __str__(self) -> str:
        return "one of " + ", ".join(json.dumps(option) for option in self.options)


@dataclass(frozen=True)
class ListOf:
    """A list or tuple of values of one kind."""

    item: Field
    shortest: int = 0
    longest: int = 1 << 20

    def accepts(self, value: Any) -> bool:
        """Whether a value is such a list."""
        return (
            isinstance(value, list | tuple)
            and self.shortest <= len(value) <= self.longest
            and all(self.item.accepts(item) for item in value)
        )

    def __str__(self) -> str:
        one_length = self.shortest == self.longest
        count = f"{self.shortest}" if one_length else f"{self.shortest} to {self.longest}"
        return f"a list of {count} values, each {self.item}"


@dataclass(frozen=True)
class MapOf:
    """A dictionary; a whole number as key may be written as text, as JSON does."""

    key: Field
    value: Field
    most: int = 1 << 20

    def accepts(self, value: Any) -> bool:
        """Whether a value is such a dictionary."""
        return (
            isinstance(value, Mapping)
            and len(value) <= self.most
            and all(self._accepts_key(key) for key in value)
            and all(self.value.accepts(item) for item in value.values())
        )

    def _accepts_key(self, key: Any) -> bool:
        if isinstance(self.key, Whole) and isinstance(key, str):
            return key.isdecimal() and len(key) < 20 and self.key.accepts(int(key))
        return self.key.accepts(key)

    def __str__(self) -> str:
        return f"a dictionary from {self.key} to {self.value}"


@dataclass(frozen=True)
class Maybe:
    """A value or nothing."""

    field: Field

    def accepts(self, value: Any) -> bool:
        """Whether a value is absent or fits."""
        return value is None or self.field.accepts(value)

    def __str__(self) -> str:
        return f"{self.field}, or null"


@dataclass(frozen=True)
class Either:
    """A value of one of two kinds."""

    one: Field
    other: Field

    def accepts(self, value: Any) -> bool:
        """Whether a value fits one of them."""
        return self.one.accepts(value) or self.other.accepts(value)

    def __str__(self) -> str:
        return f"{self.one}, or {self.other}"


@dataclass(frozen=True)
class Anything:
    """Any value."""

    def accepts(self, value: Any) -> bool:
        """Yes."""
        return True

    def __str__(self) -> str:
        return "any value"


Table = Mapping[str, Field]

POSITIVE = Number(0, without_low=True)
SIZE = Whole(1, 1 << 20)
SHARE = Number(0, 1, without_high=True)
TOKEN_MAP_SIZES = ListOf(Whole(1, 1024), 2, 64)
CLASS_NAMES = MapOf(Whole(0, (1 << 20) - 1), Text())

TRANSFORMER: Table = {
    "vocab_size": SIZE,
    "latent_channels": SIZE,
    "hidden_size": SIZE,
    "num_hidden_layers": Whole(1, 1024),
    "num_attention_heads": Whole(1, 4096),
    "intermediate_size": Maybe(SIZE),
    "token_map_sizes": TOKEN_MAP_SIZES,
    "num_classes": SIZE,
    "share_modulation": Flag(),
    "qk_norm": Flag(),
    "layer_norm_eps": Number(0, 1, without_low=True),
    "class_dropout_prob": SHARE,
    "drop_path_rate": Maybe(SHARE),
    "initializer_range": Maybe(Number(0)),
    "head_init_scale": Number(0),
    "modulation_init_scale": Number(0),
    "gate_init_scale": Number(0),
}

DTYPES = ("float32", "bfloat16", "float16", "float64")
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_DTYPE = Maybe(Choice((*DTYPES, *(f"torch.{name}" for name in DTYPES))))
_ATTENTION = Maybe(Choice(ATTENTION))

#: What transformers reads from a config besides the model's own values. An attention kernel, an
#: adapter, quantised weights or another weight file may be asked for in Python, not by a file.
TRANSFORMERS_KEYS: Table = {
    "model_type": Choice(("visual_autoregressive",)),
    "dtype": _DTYPE,
    "torch_dtype": _DTYPE,
    "return_dict": Choice((True,)),
    "output_hidden_states": Flag(),
    "output_attentions": Choice((False,)),
    "chunk_size_feed_forward": Choice((0,)),
    "is_encoder_decoder": Choice((False,)),
    "tie_word_embeddings": Flag(),
    "problem_type": Choice((None,)),
    "num_labels": Maybe(SIZE),
    "id2label": Maybe(CLASS_NAMES),
    "label2id": Maybe(MapOf(Text(), Whole(0, 1 << 20))),
    "architectures": Maybe(ListOf(Text(), 0, 8)),
    "auto_map": Maybe(MapOf(Text(), Text())),
    "transformers_version": Maybe(Text()),
    "name_or_path": Maybe(Text()),
    "_name_or_path": Maybe(Text()),
    "attn_implementation": _ATTENTION,
    "_attn_implementation": _ATTENTION,
    "_attn_implementation_internal": _ATTENTION,
    **dict.fromkeys(
        (
            "experts_implementation",
            "_experts_implementation",
            "use_kernels",
            "kernel_config",
            "transformers_weights",
            "per_layer_config",
            "sub_configs",
        ),
        Choice((None, False)),
    ),
}

VQVAE: Table = {
    "in_channels": Whole(1, 1024),
    "base_channels": SIZE,
    "channel_multipliers": ListOf(Whole(1, 1024), 1, 16),
    "num_res_blocks": Whole(1, 256),
    "latent_channels": SIZE,
    "codebook_size": SIZE,
    "token_map_sizes": TOKEN_MAP_SIZES,
    "refiner_sharing": Whole(0, 64),
    "refiner_of_scale": Maybe(ListOf(Whole(0, 63), 0, 64)),
    "refiner_mix": Number(0, 1),
    "norm_num_groups": SIZE,
    "norm_eps": Number(0, 1, without_low=True),
    "commitment_weight": Number(0),
}

SCHEDULER: Table = {
    "guidance_scale": Number(0),
    "top_k": Whole(0, 1 << 31),
    "top_p": Number(0, 1, without_low=True),
    "sampling": Choice(("multinomial", "gumbel_softmax")),
    "gumbel_temperature": POSITIVE,
    "temperature": Either(POSITIVE, ListOf(POSITIVE, 2, 64)),
    "guidance_schedule": Choice(("ramp", "constant")),
    "guided_scales": Maybe(Either(Whole(0, 64), ListOf(Whole(0, 64), 2, 2))),
    "ssg_scale": Number(0),
}

#: What diffusers reads from a config besides the values of the class.
DIFFUSERS_KEYS: Table = {
    "_class_name": Text(),
    "_diffusers_version": Text(),
    "_name_or_path": Maybe(Text()),
    "_use_default_values": ListOf(Text(), 0, 64),
    "auto_map": Maybe(MapOf(Text(), Text())),
    "quantization_config": Choice((None,)),
}

_COMPONENT = ListOf(Text(), 2, 2)
MODEL_INDEX: Table = {
    "_class_name": Anything(),  # a list in a repository that carries its own code
    "_diffusers_version": Text(),
    "_name_or_path": Maybe(Text()),
    "transformer": _COMPONENT,
    "drafter": _COMPONENT,
    "refiner": _COMPONENT,
    "vqvae": _COMPONENT,
    "scheduler": _COMPONENT,
    "id2label": Maybe(CLASS_NAMES),
    "draft_scales": Maybe(Whole(0, 64)),
}

WEIGHT_INDEX: Table = {
    "weight_map": MapOf(Text(), Text()),
    "metadata": Maybe(MapOf(Text(), Anything())),
}


#: Of the configurations of a pipeline's components.
TABLES: dict[str, Table] = {
    "transformer": {**TRANSFORMERS_KEYS, **TRANSFORMER},
    "vqvae": {**DIFFUSERS_KEYS, **VQVAE},
    "scheduler": {**DIFFUSERS_KEYS, **SCHEDULER},
}


def check_values(
    values: Any, table: Table, where: str | os.PathLike[str], required: Collection[str] = ()
) -> None:
    """Check values against a table; names that are not in the table are left alone.

    Args:
        values: Names and values.
        table: Names and fields.
        where: The file, or what else errors begin with.
        required: Names that may not be absent.

    Raises:
        SchemaError: `values` is no dictionary, a name is absent, or a value does not fit.
    """
    where = printable(where)
    if not isinstance(values, Mapping):
        raise SchemaError(
            f"{where} must hold one JSON object, names with values. Got {_shown(values)}. Restore "
            "the file."
        )
    for name in required:
        if name not in values:
            raise SchemaError(f"{where} lacks {name}. It must be {table[name]}.")
    for name, value in values.items():
        field = table.get(name)
        if field is not None and not field.accepts(value):
            raise SchemaError(f"{where}: {printable(name)} must be {field}. Got {_shown(value)}.")


# diffusers passes these on as arguments, beside those of the class.
_TAKEN = ("dtype", "self")


def check_config(
    values: Any, name: str, where: str | os.PathLike[str], kind: type = OrderedDict
) -> None:
    """Check the values of a component's configuration.

    Args:
        values: Names and values.
        name: Of the component: ``"transformer"``, ``"vqvae"`` or ``"scheduler"``.
        where: The file.
        kind: The configuration's class, which keeps unknown values as attributes: none may take the
            place of a method.

    Raises:
        SchemaError: A value has a wrong type or is out of range.
    """
    table = TABLES[name]
    check_values(values, table, where)
    for key in values:
        if key not in table and (key in _TAKEN or hasattr(kind, key)):
            raise SchemaError(
                f"{printable(where)}: {printable(key)} is no value of a {name}'s configuration. "
                "Take it out."
            )


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # numbers of more than 4300 digits, objects that fail
        text = "a value that cannot be shown"
    return f"{printable(text, _SHOWN)} ({type(value).__name__})"


def read_json(path: str | os.PathLike[str], where: str | os.PathLike[str] | None = None) -> Any:
    """The content of a JSON file.

    Args:
        path: The file.
        where: What errors of its content begin with; `path` by default.

    Raises:
        FileNotFoundError, IsADirectoryError, NotRegularFileError: See
        `var_hf.untrusted.check_regular`.
        SchemaError: It is too large, or no JSON.
    """
    with open_regular(path) as file:
        content = file.read(_MOST_BYTES + 1)
    return parse_json(content, path if where is None else where)


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a JSON file that holds one object.

    Raises:
        OSError: See `read_json`.
        SchemaError: It is too large, no JSON, or no object.
    """
    values = read_json(path)
    check_values(values, {}, path)
    return dict(values)


def parse_json(content: str | bytes, where: str | os.PathLike[str]) -> Any:
    """JSON as Python values.

    Raises:
        SchemaError: It is too large, no JSON, nested too deep, or names one thing twice.
    """
    where = printable(where)
    if len(content) > _MOST_BYTES:
        raise SchemaError(f"{where} has more than {_MOST_BYTES / 1e6:.0f} MB, too many for JSON.")
    try:
        return json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise SchemaError(
            f"{where} is damaged or not JSON: {printable(error)}. Restore the file."
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{printable(name)!r} is there twice")
        values[name] = value
    return values


def check_dataclass(kind: type, values: Any, where: str | os.PathLike[str]) -> None:
    """Check values against the types of a dataclass's fields, before it is made of them.

    Raises:
        SchemaError: `values` is no dictionary, or a value has another type than its field.
    """
    check_values(values, table_of(typing.get_type_hints(kind)), where)


def table_of(annotations: Mapping[str, Any]) -> dict[str, Field]:
    """The table of a dataclass, from the types of its fields.

    Args:
        annotations: Names and types, as `typing.get_type_hints` gives them. A type without a field
        here accepts anything.
    """
    return {name: _field_of(annotation) for name, annotation in annotations.items()}


def _field_of(annotation: Any) -> Field:
    simple: dict[Any, Field] = {
        bool: Flag(),
        int: Whole(-(2**53), 2**53),
        float: Number(),
        str: Text(),
    }
    if annotation in simple:
        return simple[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        rest = [argument for argument in arguments if argument is not type(None)]
        if len(rest) == 1:
            return Maybe(_field_of(rest[0]))
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return ListOf(_field_of(arguments[0]))
    if origin is tuple and len(set(arguments)) == 1:
        return ListOf(_field_of(arguments[0]), len(arguments), len(arguments))
    if origin is dict:
        return MapOf(Text(), Anything())
    return Anything()
