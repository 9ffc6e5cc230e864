"""Files of a repository: the parts of a pipeline, their weights, and files that do not belong."""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from var_hf import schema
from var_hf.provenance import CODE_SUFFIXES, PICKLE_SUFFIXES
from var_hf.text import listed, printable


@dataclass(frozen=True)
class Component:
    """One kind of part of a pipeline.

    Attributes:
        module: Module of the package that defines it.
        class_name: Its class.
        config_file: Its configuration.
        weights_stem: Start of the names of its weight files; ``None`` if it has none.
        auto_map: What transformers' and diffusers' Auto classes are to load from its code file.
        base: Class that stands in for it where its own cannot be imported.
    """

    module: str
    class_name: str
    config_file: str
    weights_stem: str | None
    auto_map: Mapping[str, str] = field(default_factory=dict)
    base: str = ""

    @property
    def code_file(self) -> str:
        """Name of its code file in a repository that carries its own code."""
        return self.module.rsplit(".", 1)[1]


COMPONENTS: dict[str, Component] = {
    "transformer": Component(
        "var_hf.modeling_var",
        "VARModel",
        "config.json",
        "model",
        {"AutoConfig": "VARConfig", "AutoModel": "VARModel"},
        "transformers.PreTrainedModel",
    ),
    "vqvae": Component(
        "var_hf.modeling_vqvae",
        "MultiScaleVQVAE",
        "config.json",
        "diffusion_pytorch_model",
        {"AutoModel": "MultiScaleVQVAE"},
        "diffusers.ModelMixin",
    ),
    "scheduler": Component(
        "var_hf.scheduling_next_scale",
        "NextScaleScheduler",
        "scheduler_config.json",
        None,
        {},
        "diffusers.SchedulerMixin",
    ),
}
MODEL_TYPE = "visual_autoregressive"  # of the transformer's config


@dataclass(frozen=True)
class PipelineKind:
    """One kind of pipeline, by the parts of its folder.

    Attributes:
        module: Module of the package that defines its class.
        class_name: The class, in repositories that carry their own code.
        parts: Names of the parts, each with its component.
    """

    module: str
    class_name: str
    parts: Mapping[str, str]


PLAIN = PipelineKind(
    "var_hf.pipelines.pipeline_var", "VARPipeline", {name: name for name in COMPONENTS}
)
COLLABORATIVE = PipelineKind(
    "var_hf.pipelines.pipeline_var_collaborative",
    "VARCollaborativePipeline",
    {
        "drafter": "transformer",
        "refiner": "transformer",
        "vqvae": "vqvae",
        "scheduler": "scheduler",
    },
)
PIPELINE_CODE_FILE = "pipeline"  # the name that diffusers looks for
# The same for Modular Diffusers: module, code file, class, and the two files that name it.
MODULAR_MODULE = "var_hf.pipelines.modular_blocks"
MODULAR_CODE_FILE = "modular_blocks"
MODULAR_CLASS = "VARBlocks"
MODULAR_INDEX = "modular_model_index.json"
MODULAR_CONFIG = "modular_config.json"
# The versions of diffusers that the blocks were tried with.
MODULAR_DIFFUSERS = ">=0.42,<0.43"
# What an inference endpoint reads: the module of its handler, and the two files.
HANDLER_MODULE = "var_hf.pipelines.endpoint"
HANDLER_FILE = "handler.py"
REQUIREMENTS_FILE = "requirements.txt"
# What goes with the code and is no code.
BESIDE_CODE = (MODULAR_INDEX, MODULAR_CONFIG, REQUIREMENTS_FILE)


def kind_of(names: Collection[str]) -> PipelineKind:
    """The kind of a pipeline, from the names in its ``model_index.json`` or of its folders."""
    return COLLABORATIVE if {"drafter", "refiner"} <= set(names) else PLAIN


# model.safetensors, model.fp16.safetensors, model-00001-of-00002.safetensors,
# model.fp16-00001-of-00002.safetensors, and the lists of shards: model.safetensors.index.json,
# model.safetensors.index.fp16.json.
_WEIGHTS = re.compile(
    r"(?P<stem>model|diffusion_pytorch_model)"
    r"(?:(?:\.(?P<variant>[\w]+))?(?:-\d{5}-of-\d{5})?\.safetensors"
    r"|\.safetensors\.index(?:\.(?P<index_variant>[\w]+))?\.json)"
)

_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")

# Files of peft, which transformers loads on top of a model's own weights wherever it finds them.
_ADAPTER = re.compile(r"adapter_(?:config\.json|model\..+)")


def is_pickle(path: str) -> bool:
    """Whether a file's name is that of a pickle, which may run code when it is loaded."""
    return PurePosixPath(path).suffix.lower() in PICKLE_SUFFIXES


def is_code(path: str) -> bool:
    """Whether a file's name is that of a program or library."""
    return PurePosixPath(path).suffix.lower() in CODE_SUFFIXES


def is_adapter(path: str) -> bool:
    """Whether a file's name is one by which adapters are found and loaded."""
    return _ADAPTER.fullmatch(PurePosixPath(path).name) is not None


def read_weight_map(path: str | os.PathLike[str]) -> set[str]:
    """The shards that a list of shards (``.safetensors.index.json``) names.

    Raises:
        ValueError: The list is damaged, or a shard is not a safetensors file beside it.
        OSError: The list cannot be read.
    """
    index = schema.read_json(path)
    schema.check_values(index, schema.WEIGHT_INDEX, path, required=("weight_map",))
    shards = set(index["weight_map"].values())
    if outside := sorted(name for name in shards if not _is_shard(name)):
        raise ValueError(
            f"{printable(path)}: weight_map must name safetensors files beside it. "
            f"Got {listed(outside)}."
        )
    return shards


def _is_shard(name: str) -> bool:
    return "/" not in name and name.endswith(".safetensors") and is_weights(name)


def is_weights(path: str) -> bool:
    """Whether a file is a weight file or a list of shards, of any variant."""
    return _WEIGHTS.fullmatch(PurePosixPath(path).name) is not None


def variant_of(path: str) -> str | None:
    """The variant of a weight file.

    ``"fp16"`` of ``model.fp16.safetensors``, ``None`` of ``model.safetensors``.
    """
    match = _WEIGHTS.fullmatch(PurePosixPath(path).name)
    return match and (match["variant"] or match["index_variant"])


def weights_in(files: Iterable[str], folder: str) -> dict[str | None, list[str]]:
    """The weight files of one folder (``""`` is the root) by variant."""
    found: dict[str | None, list[str]] = {}
    for path in files:
        if path.rpartition("/")[0] == folder and is_weights(path):
            found.setdefault(variant_of(path), []).append(path)
    return found


def choose_weights(
    files: Collection[str], parts: Mapping[str, str], variant: str | None, where: str
) -> list[str]:
    """The weight files to load: of the variant, or plain ones where a component lacks it.

    Args:
        files: All files of the repository.
        parts: Names of the parts to load, each with its component.
        variant: Such as ``"fp16"``; ``None`` is the plain files.
        where: The repository, for errors.

    Raises:
        ValueError: A part has no weights, not in this variant, or no part has the variant.
    """
    chosen: list[str] = []
    any_variant = False
    stems = {name: COMPONENTS[component].weights_stem for name, component in parts.items()}
    wanted = [name for name, stem in stems.items() if stem]
    for name in wanted:
        available = weights_in(files, name)
        if not available:
            raise ValueError(
                f"{where} has no weights for the {name}: there is no "
                f"{name}/{stems[name]}.safetensors."
            )
        any_variant |= variant in available
        of_component = available.get(variant) or available.get(None)
        if of_component is None:
            names = " or ".join(f"variant={one!r}" for one in sorted(filter(None, available)))
            raise ValueError(f"{where} has the weights of the {name} only with {names}.")
        chosen += of_component
    if wanted and not any_variant:
        available_names = sorted({one for name in wanted for one in weights_in(files, name) if one})
        hint = f"It has {', '.join(available_names)}." if available_names else "Leave variant out."
        raise ValueError(f"{where} has no weights of the variant {variant!r}. {hint}")
    return chosen


def check_index(index: Any, where: str, file: str | os.PathLike[str] | None = None) -> None:
    """Check the content of a ``model_index.json``.

    Args:
        index: Its content as Python values.
        where: The folder or repository, for errors.
        file: The file, for errors.

    Raises:
        ValueError: It is not that of a pipeline of this package, or a value has a wrong type.
    """
    file = f"model_index.json of {where}" if file is None else file
    schema.check_values(index, {}, file)
    if not set(kind_of(index).parts) <= set(index):
        kind = index.get("_class_name") or "a model of another kind"
        kind = kind[-1] if isinstance(kind, list) else kind
        raise ValueError(
            f"{printable(where)} is no VAR pipeline but {printable(kind, 100)}: its "
            f"model_index.json does not name {', '.join(COMPONENTS)}."
        )
    schema.check_values(index, schema.MODEL_INDEX, file)


def read_index(folder: str | os.PathLike[str], where: str | None = None) -> dict[str, Any]:
    """The content of a folder's ``model_index.json``, checked.

    Args:
        folder: The folder.
        where: The repository that it is from, if errors are to name that.

    Raises:
        ValueError: It is damaged, or belongs to another kind of model.
        OSError: It is absent or cannot be read.
    """
    path = Path(folder, "model_index.json")
    file = path if where is None else f"model_index.json of {where}"
    index = schema.read_json(path, file)
    check_index(index, os.fspath(folder) if where is None else where, file)
    return dict(index)


def is_hub_name(text: str) -> bool:
    """Whether a text has the form of the name of a Hub repository, user/name."""
    return _HUB_NAME.fullmatch(text) is not None


def check_model(model: str) -> None:
    """Refuse at once what is no pipeline folder and cannot be the name of a Hub repository."""
    path = Path(model)
    if path.is_file():
        raise ValueError(
            f"A model is a pipeline folder, and {model} is a file. Convert original checkpoints "
            "first: var-hf convert."
        )
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ValueError(
                f"{model} is no pipeline folder: it has no model_index.json. var-hf convert writes "
                "such a folder."
            )
        parts = kind_of([each.name for each in path.iterdir()]).parts
        configs = [f"{name}/{COMPONENTS[part].config_file}" for name, part in parts.items()]
        if absent := [name for name in configs if not (path / name).is_file()]:
            raise ValueError(
                f"{model} is no complete VAR pipeline folder: it lacks {', '.join(absent)}."
            )
    elif not is_hub_name(model):
        raise FileNotFoundError(
            f"There is no folder {model}, and a Hub repository is named user/name."
        )
