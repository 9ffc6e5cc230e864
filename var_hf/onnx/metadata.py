"""The file ``metadata.json`` of an exported folder: all that a runner has to know."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from var_hf.sampling_settings import SamplingSettings
from var_hf.schema import (
    CLASS_NAMES,
    SCHEDULER,
    SIZE,
    TOKEN_MAP_SIZES,
    Anything,
    Choice,
    MapOf,
    Maybe,
    Table,
    Text,
    Whole,
    check_values,
    read_settings,
)

METADATA_FILE = "metadata.json"
FORMAT, FORMAT_VERSION = "var-hf-onnx", 1
DTYPES = ("float32", "float16", "int8")
GRAPHS = ("condition", "transformer", "latents", "decoder", "encoder")

MOST_BYTES_OF_A_FILE = 2**31 - 1  # of a protobuf message
_BROWSER_MEMORY = 2**32  # that WebAssembly can address

_MODEL: Table = {
    "num_classes": SIZE,
    "vocab_size": SIZE,
    "token_map_sizes": TOKEN_MAP_SIZES,
    "num_tokens": SIZE,
    "latent_channels": SIZE,
    "image_size": SIZE,
    "num_hidden_layers": Whole(1, 1024),
    "num_attention_heads": Whole(1, 4096),
    "head_dim": SIZE,
    "hidden_size": SIZE,
}
_METADATA: Table = {
    "format": Choice((FORMAT,)),
    "name": Text(),
    "dtype": Choice(DTYPES),
    "opset": Whole(1, 1000),
    "license": Maybe(Text()),
    "model": Anything(),
    "id2label": CLASS_NAMES,
    "sampling": Anything(),
    "graphs": MapOf(Choice(GRAPHS), Text(255)),
    "files": MapOf(Text(255), Anything()),
    "provenance": Anything(),
}
_FILE: Table = {"size": Whole(0, 2**53), "sha256": Text(64)}


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of the model.

    Attributes:
        num_classes: Number of classes; this number is the null class.
        vocab_size: Number of codes V.
        token_map_sizes: Side of each token map, coarse to fine; the last is the latent side F.
        num_tokens: Number of tokens L of all scales.
        latent_channels: Channels Z of the latents.
        image_size: Side of the images in pixels.
        num_hidden_layers: Number of layers N.
        num_attention_heads: Heads H.
        head_dim: Channels D of a head.
        hidden_size: Width C.
    """

    num_classes: int
    vocab_size: int
    token_map_sizes: tuple[int, ...]
    num_tokens: int
    latent_channels: int
    image_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    hidden_size: int


@dataclass(frozen=True)
class Metadata:
    """The content of ``metadata.json``.

    Attributes:
        name: Name of the model.
        dtype: Number format of the stored weights: `"float32"`, `"float16"` or `"int8"`.
        opset: Version of the ONNX operators.
        license: Licence of the weights; `None` is unknown.
        model: Sizes of the model.
        id2label: Class names by id.
        sampling: Sampling defaults.
        graphs: File of each graph.
        files: Size in bytes and SHA-256 of each file.
        provenance: Origin of the weights and the tools of the export.
    """

    name: str
    dtype: str
    opset: int
    license: str | None
    model: ModelFacts
    id2label: Mapping[int, str]
    sampling: SamplingSettings
    graphs: Mapping[str, str]
    files: Mapping[str, Mapping[str, Any]]
    provenance: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The content as JSON values."""
        return {"format": FORMAT, "format_version": FORMAT_VERSION} | asdict(self)


def read_metadata(folder: str | os.PathLike[str]) -> Metadata:
    """Read and check the metadata of an exported folder.

    Raises:
        FileNotFoundError: The folder holds no such file.
        ValueError: The file is damaged, or another version of var-hf wrote it.
    """
    path = Path(folder) / METADATA_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no exported folder: it holds no {METADATA_FILE}. Write one with "
            "var-hf export-onnx MODEL -o FOLDER."
        )
    content = read_settings(path)
    version = content.pop("format_version", None)
    if content.get("format") == FORMAT and version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has the format version {version!r}, and this version of var-hf reads "
            f"{FORMAT_VERSION}. Export the model again, or install the version of var-hf that "
            "wrote the folder."
        )
    check_values(content, _METADATA, path, required=_METADATA)
    check_values(content["model"], _MODEL, f"{path}, model", required=_MODEL)
    settings = {name: SCHEDULER[name] for name in SamplingSettings.__annotations__}
    check_values(content["sampling"], settings, f"{path}, sampling", required=settings)
    check_values(
        content["graphs"], dict.fromkeys(GRAPHS, Text(255)), f"{path}, graphs", required=GRAPHS
    )
    for name, entry in content["files"].items():
        check_values(entry, _FILE, f"{path}, {name}", required=_FILE)
    model = {name: content["model"][name] for name in _MODEL}
    facts = ModelFacts(**model | {"token_map_sizes": tuple(model["token_map_sizes"])})
    _check_facts(facts, path)
    sampling = SamplingSettings(**{name: content["sampling"][name] for name in settings})
    sampling.check_scales(len(facts.token_map_sizes))
    return Metadata(
        model=facts,
        sampling=sampling,
        id2label={int(key): name for key, name in content["id2label"].items()},
        **{
            name: content[name]
            for name in ("name", "dtype", "opset", "license", "graphs", "files", "provenance")
        },
    )


def _check_facts(facts: ModelFacts, path: Path) -> None:
    num_tokens = sum(size**2 for size in facts.token_map_sizes)
    if facts.num_tokens != num_tokens:
        raise ValueError(
            f"{path}: num_tokens must be the number of tokens of token_map_sizes, {num_tokens}. "
            f"Got {facts.num_tokens}. Export the model again."
        )


def check_files(folder: str | os.PathLike[str], metadata: Metadata) -> None:
    """Compare size and SHA-256 of every file with the metadata.

    Raises:
        OSError: A file is missing or differs; the message names it.
    """
    again = "Copy the folder again, or export the model again."
    for name, entry in metadata.files.items():
        path = Path(folder) / name
        if path.parent != Path(folder) or not path.is_file():
            raise FileNotFoundError(f"{path} is missing. {again}")
        size = path.stat().st_size
        if size != entry["size"]:
            raise OSError(
                f"{path} has {size} bytes and should have {entry['size']}: it is truncated or of "
                f"another export. {again}"
            )
        if file_digest(path) != entry["sha256"]:
            raise OSError(f"{path} differs from its SHA-256 in {METADATA_FILE}. {again}")
    absent = [file for file in metadata.graphs.values() if file not in metadata.files]
    if absent:
        raise OSError(f"{METADATA_FILE} in {folder} does not describe {absent[0]}. {again}")


def file_digest(path: str | os.PathLike[str], algorithm: str = "sha256") -> str:
    """The hexadecimal digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def browser_limit(sizes: Mapping[str, int], num_parameters: int, dtype: str) -> str | None:
    """Why a browser cannot run a model, in one sentence, or `None`.

    Args:
        sizes: Bytes of each file.
        num_parameters: Number of weights of all graphs.
        dtype: Number format of the stored weights.
    """
    name, largest = max(sizes.items(), key=lambda item: item[1])
    if largest > MOST_BYTES_OF_A_FILE:
        return (
            f"{name} takes {largest / 1e9:.1f} GB, and a browser reads files of up to "
            f"{MOST_BYTES_OF_A_FILE / 1e9:.1f} GB"
        )
    # Weights in float16 become float32 when they are loaded.
    memory = sum(sizes.values()) + (0 if dtype == "int8" else 4 * num_parameters)
    if memory > _BROWSER_MEMORY:
        return (
            f"the weights take {memory / 1e9:.1f} GB of memory while they are loaded, and "
            f"WebAssembly addresses {_BROWSER_MEMORY / 1e9:.1f} GB"
        )
    return None
