"""The registry of published checkpoints: files, architectures and the authors' sampling settings.

The registry is data, ``published.json`` beside this file, with the source of each fact. This module
contains no checkpoint's name. The depth determines all widths (``models/__init__.py`` of
FoundationVision/VAR), and with them the layouts. Parameter counts do not include the stored
buffers, as in table 1 of arXiv 2404.02905.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from var_hf.configuration_var import TOKEN_MAP_SIZES_256, TOKEN_MAP_SIZES_512, refiner_table
from var_hf.conversion.layout import Layout, transformer_layout, vqvae_layout
from var_hf.conversion.reading import Part
from var_hf.conversion.transformer import transformer_shapes
from var_hf.conversion.vqvae import vqvae_shapes
from var_hf.text import printable

_TABLE = "published.json"
_TOKEN_MAP_SIZES = {256: TOKEN_MAP_SIZES_256, 512: TOKEN_MAP_SIZES_512}


@dataclass(frozen=True)
class PublishedFile:
    """One published file.

    Attributes:
        name: Its path in `repository`.
        part: ``"transformer"`` or ``"vqvae"``.
        values: The config values that its tensors determine.
        parameters: Number of parameters.
        repository: Hub repository.
        size: Bytes; ``None`` if unknown.
        sha256: Its SHA-256; ``None`` if no reliable source states it.
    """

    name: str
    part: Part
    values: Mapping[str, Any]
    parameters: int
    repository: str
    size: int | None = None
    sha256: str | None = None

    def layout(self) -> Layout:
        """Every tensor of the file: name, dtype and shape."""
        return (
            transformer_layout(self.values)
            if self.part == "transformer"
            else vqvae_layout(self.values)
        )

    def converted_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the converted file under our name, with its shape."""
        if self.part == "transformer":
            return transformer_shapes(self.values)
        return vqvae_shapes(self.values)


@dataclass(frozen=True)
class License:
    """A licence of weights.

    Attributes:
        name: The Hub's name, ``"mit"``.
        title: Its title.
        url: Its text.
        restrictions: Conditions of use and sharing beyond a copyright notice, or ``None``.
    """

    name: str
    title: str
    url: str
    restrictions: str | None


@dataclass(frozen=True)
class Family:
    """Checkpoints that were published together.

    Attributes:
        name: Short name, ``"cca"``.
        title: Name of the method.
        about: The method in a few words.
        paper: URL of the paper.
        code: URL of the authors' repository.
        commit: Its commit from which the facts were read.
        repository: Hub repository of the weights.
        license: Licence of the weights.
        license_source: Place where the authors state it.
        copyright: The authors' copyright notice.
        base_model: Hub repository of the weights that training started from; ``None`` for the
            release itself.
    """

    name: str
    title: str
    about: str
    paper: str
    code: str
    commit: str
    repository: str
    license: License
    license_source: str
    copyright: str
    base_model: str | None


@dataclass(frozen=True)
class Report:
    """Numbers that the authors published.

    Attributes:
        source: Publication that states them.
        url: Its URL.
        setting: The measurement, if not with the stored settings and ADM's evaluator.
        values: ``"FID"``, ``"IS"``, ``"precision"`` and ``"recall"``, those that are stated.
    """

    source: str
    url: str
    setting: str | None
    values: Mapping[str, float]


@dataclass(frozen=True)
class Checkpoint:
    """One entry of the registry.

    Attributes:
        name: Its name in this package, ``"cca-d16"``.
        family: The checkpoints that it was published with.
        size: Name of its architecture, ``"d16"``.
        image_size: Side of its images in pixels.
        file: Its transformer. All entries share one VQVAE, `PUBLISHED_VQVAE`.
        sampling: The authors' settings as arguments of `NextScaleScheduler`: `guidance_scale` 1 is
            off.
        sampling_source: Place where the authors state them.
        metrics: Published numbers, those of `sampling` first.
        note: A further remark, or ``None``.
    """

    name: str
    family: Family
    size: str
    image_size: int
    file: PublishedFile
    sampling: Mapping[str, Any]
    sampling_source: str
    metrics: tuple[Report, ...]
    note: str | None

    @property
    def license(self) -> License:
        """Licence of the weights."""
        return self.family.license

    def notice(self) -> str | None:
        """Return the licence's conditions beyond a copyright notice, or ``None``."""
        if self.license.restrictions is None:
            return None
        return (
            f"{self.name} is under {self.license.title} ({self.license.url}), "
            f"{self.family.copyright}: {self.license.restrictions}."
        )


@dataclass(frozen=True)
class Registry:
    """The whole table.

    Attributes:
        checkpoints: Entries by name, in the order of the table.
        licenses: Licences by the Hub's name.
        vqvae: The VQVAE that all entries were trained with.
    """

    checkpoints: Mapping[str, Checkpoint]
    licenses: Mapping[str, License]
    vqvae: PublishedFile


def read_registry(text: str) -> Registry:
    """Build the registry from the text of a ``published.json``."""
    table = json.loads(text)
    licenses = {name: License(name, **entry) for name, entry in table["licenses"].items()}
    families = {
        name: Family(name, **{**entry, "license": licenses[entry["license"]]})
        for name, entry in table["families"].items()
    }
    checkpoints = {}
    for entry in table["checkpoints"]:
        family = families[entry["family"]]
        architecture = table["architectures"][entry["size"]]
        checkpoints[entry["name"]] = Checkpoint(
            name=entry["name"],
            family=family,
            size=entry["size"],
            image_size=architecture["image_size"],
            file=_transformer(entry, architecture, family),
            sampling=entry["sampling"],
            sampling_source=entry["sampling_source"],
            metrics=tuple(Report(**report) for report in entry["metrics"]),
            note=entry["note"],
        )
    return Registry(checkpoints, licenses, _vqvae(table["vqvae"]))


def _transformer(
    entry: Mapping[str, Any], architecture: Mapping[str, Any], family: Family
) -> PublishedFile:
    depth, side = architecture["depth"], architecture["image_size"]
    values = {
        "vocab_size": 4096,
        "latent_channels": 32,
        "hidden_size": 64 * depth,
        "num_hidden_layers": depth,
        "num_attention_heads": depth,
        "intermediate_size": 256 * depth,
        "token_map_sizes": _TOKEN_MAP_SIZES[side],
        "num_classes": 1000,
        "share_modulation": side == 512,
        "qk_norm": True,
    }
    return PublishedFile(
        entry["file"],
        "transformer",
        values,
        architecture["parameters"],
        family.repository,
        entry["bytes"],
        entry["sha256"],
    )


def _vqvae(entry: Mapping[str, Any]) -> PublishedFile:
    values = {
        "in_channels": 3,
        **{key: tuple(v) if isinstance(v, list) else v for key, v in entry["values"].items()},
        "latent_channels": 32,
        "codebook_size": 4096,
        "token_map_sizes": TOKEN_MAP_SIZES_256,
        "refiner_sharing": 4,
        "refiner_of_scale": refiner_table(10, 4),
        "refiner_mix": 0.5,
    }
    return PublishedFile(
        entry["file"],
        "vqvae",
        values,
        entry["parameters"],
        entry["repository"],
        entry["bytes"],
        entry["sha256"],
    )


@cache
def registry() -> Registry:
    """Return the registry of this package."""
    return read_registry(files("var_hf.conversion").joinpath(_TABLE).read_text("utf-8"))


def find_checkpoint(name: str) -> Checkpoint:
    """Return the entry with this name.

    Raises:
        ValueError: There is none. The error suggests the most similar names.
    """
    checkpoints = registry().checkpoints
    if name in checkpoints:
        return checkpoints[name]
    close = get_close_matches(name.lower(), checkpoints, n=3, cutoff=0.6)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    raise ValueError(
        f"There is no published checkpoint {printable(name)}. {hint}`var-hf list` shows all of "
        "them."
    )


def checkpoint_of_file(name: str) -> Checkpoint | None:
    """Return the entry whose file has this base name, or ``None``."""
    entries = registry().checkpoints.values()
    return next((entry for entry in entries if _base_name(entry.file.name) == name), None)


def published_file(name: str) -> PublishedFile | None:
    """Return the published file with this base name, or ``None``."""
    if name == _base_name(registry().vqvae.name):
        return registry().vqvae
    entry = checkpoint_of_file(name)
    return entry.file if entry else None


def _base_name(path: str) -> str:
    return path.rpartition("/")[2]


# The release: the one family without a base model. Size, as in `--size d16`, to transformer.
PUBLISHED_TRANSFORMERS: dict[str, PublishedFile] = {
    entry.size: entry.file
    for entry in registry().checkpoints.values()
    if entry.family.base_model is None
}
PUBLISHED_VQVAE = registry().vqvae
PUBLISHED_REPO = PUBLISHED_VQVAE.repository
