"""Export a pipeline to a folder of ONNX graphs; see docs/onnx.md for its format."""

import math
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from var_hf import __version__
from var_hf.files import check_absent, new_path, write_json, write_text
from var_hf.onnx.metadata import (
    DTYPES,
    METADATA_FILE,
    MOST_BYTES_OF_A_FILE,
    Metadata,
    ModelFacts,
    browser_limit,
    file_digest,
)
from var_hf.sampling_settings import SamplingSettings

if TYPE_CHECKING:
    from var_hf.onnx.graphs import Build, State
    from var_hf.pipelines.pipeline_var import VARPipeline

DEFAULT_OPSET = 18
_TOOLS = ("torch", "onnx", "onnxruntime")
_BYTES = {"float32": 4, "float16": 2, "int8": 1}
# A protobuf message holds names and nodes besides the weights.
_MOST_BYTES_OF_WEIGHTS = MOST_BYTES_OF_A_FILE - (1 << 26)
_EXTRA = "Exporting to ONNX needs the extra: pip install var-hf[onnx]."


def export_onnx(
    pipe: "VARPipeline",
    folder: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    opset: int = DEFAULT_OPSET,
    name: str | None = None,
    license: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Metadata:
    """Write a pipeline as a folder of ONNX graphs with ``metadata.json``.

    The folder appears complete or not at all. Every graph passes `onnx.checker`. Weights above
    2 GB go to a second file beside their graph.

    Args:
        pipe: The pipeline; its weights may have any dtype and lie on any device.
        folder: Folder to write; must not exist.
        dtype: Number format of the stored weights: `"float32"`, `"float16"` or `"int8"`. All
            arithmetic is float32.
        opset: Version of the ONNX operators, at least 18.
        name: Name of the model; by default that of the folder it was loaded from.
        license: The Hub's name of the weights' licence.
        provenance: Content of the model's ``provenance.json``.

    Returns:
        The metadata as written.

    Raises:
        ImportError: The extra `onnx` is not installed.
        FileExistsError: `folder` exists.
        ValueError: The pipeline, the dtype or the opset cannot be exported.
    """
    check_absent(folder)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}. Got {dtype!r}.")
    _check_opset(opset)
    sampling = _sampling_defaults(pipe)
    _check_weights(pipe)
    from var_hf.onnx.graphs import graph_builders

    with new_path(folder, size=sum(estimated_sizes(pipe, dtype).values())) as temporary:
        temporary.mkdir()
        files: dict[str, dict[str, Any]] = {}
        graphs: dict[str, str] = {}
        for each, (state, build) in graph_builders(pipe.transformer, pipe.vqvae).items():
            graphs[each] = f"{each}.onnx"
            _write_graph(each, state, build, temporary / graphs[each], dtype, opset)
        for path in sorted(temporary.iterdir()):
            files[path.name] = {"size": path.stat().st_size, "sha256": file_digest(path)}
        metadata = Metadata(
            name=name or Path(str(pipe.config.get("_name_or_path") or "var")).name,
            dtype=dtype,
            opset=opset,
            license=license,
            model=_facts(pipe),
            id2label=dict(pipe.id2label),
            sampling=sampling,
            graphs=graphs,
            files=files,
            provenance={"source": dict(provenance or {}), "tools": _tools()},
        )
        write_json(temporary / METADATA_FILE, metadata.to_json())
        write_text(temporary / "README.md", _card(metadata))
    return metadata


def estimated_sizes(pipe: "VARPipeline", dtype: str) -> dict[str, int]:
    """Bytes of the files that an export would write, from the number of weights; without nodes."""
    return {f"{name}.onnx": count * _BYTES[dtype] for name, count in _weight_counts(pipe).items()}


def browser_problem(pipe: "VARPipeline", dtype: str) -> str | None:
    """Why a browser could not run the export, in one sentence, or `None`."""
    num_parameters = sum(_weight_counts(pipe).values())
    return browser_limit(estimated_sizes(pipe, dtype), num_parameters, dtype)


def model_license(folder: Path) -> str | None:
    """The licence in the model card of a folder."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    from huggingface_hub import ModelCard

    name = ModelCard.load(card).data.get("license")
    return name if isinstance(name, str) else None


def model_provenance(folder: Path) -> dict[str, Any]:
    """The provenance of a folder, if it has one."""
    from var_hf.provenance import PROVENANCE_FILE, read_provenance

    return read_provenance(folder) if (folder / PROVENANCE_FILE).is_file() else {}


def _weight_counts(pipe: "VARPipeline") -> dict[str, int]:
    """Number of weights of each graph."""
    transformer, vqvae = pipe.transformer, pipe.vqvae
    all_of_transformer = _count(transformer)
    of_condition = sum(
        parameter.numel()
        for name, parameter in transformer.named_parameters()
        if "modulation" in name or "class_embedding" in name
    )
    return {
        "condition": of_condition,
        "transformer": all_of_transformer - of_condition,
        "latents": _count(vqvae.quantizer),
        "decoder": _count(vqvae.decoder) + _count(vqvae.post_quant_conv),
        "encoder": _count(vqvae.encoder) + _count(vqvae.quant_conv) + _count(vqvae.quantizer),
    }


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _check_opset(opset: int) -> None:
    """Raise unless the graphs fit this version and the installed onnxruntime reads it."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"{_EXTRA} ({error})") from error
    newest = onnx.defs.onnx_opset_version()
    if not DEFAULT_OPSET <= opset <= newest:
        raise ValueError(
            f"opset must lie between {DEFAULT_OPSET} and {newest}, the newest that onnx "
            f"{version('onnx')} knows. Got {opset}."
        )
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], "probe", [value], [other]
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    try:
        onnxruntime.InferenceSession(model.SerializeToString())
    except Exception as error:
        raise ValueError(
            f"The installed onnxruntime {version('onnxruntime')} does not read opset {opset}. Pass "
            f"a smaller one, such as {DEFAULT_OPSET}, or install a newer onnxruntime."
        ) from error


def _sampling_defaults(pipe: "VARPipeline") -> SamplingSettings:
    if list(pipe.transformers) != ["transformer"]:
        raise ValueError(
            f"A {type(pipe).__name__} has several transformers and cannot be exported to ONNX. "
            "Export a VARPipeline."
        )
    settings = pipe.resolve_settings()
    if settings.sampling != "multinomial" or settings.ssg_scale > 0:
        raise ValueError(
            "The ONNX runner draws by sampling='multinomial' and without scaled spatial guidance. "
            f"This model's defaults are sampling={settings.sampling!r} and "
            f"ssg_scale={settings.ssg_scale}; store others with "
            "pipe.scheduler.register_to_config(sampling='multinomial', ssg_scale=0.0)."
        )
    return settings


def _facts(pipe: "VARPipeline") -> ModelFacts:
    config = pipe.transformer.config
    return ModelFacts(
        num_classes=config.num_classes,
        vocab_size=config.vocab_size,
        token_map_sizes=tuple(config.token_map_sizes),
        num_tokens=config.num_tokens,
        latent_channels=config.latent_channels,
        image_size=pipe.vqvae.image_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        hidden_size=config.hidden_size,
    )


def _tools() -> dict[str, str]:
    return {
        "var-hf": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in _TOOLS},
    }


def _check_weights(pipe: "VARPipeline") -> None:
    """Raise for weights that are no plain numbers, and for adapters."""
    for model, config in (
        (pipe.transformer, pipe.transformer.config.to_dict()),
        (pipe.vqvae, dict(pipe.vqvae.config)),
    ):
        weights = list(model.parameters())
        if not all(type(each) is nn.Parameter and each.is_floating_point() for each in weights):
            raise ValueError(
                "The pipeline has quantized weights, which cannot be exported. Load it without "
                "quantization, and pass dtype='int8' for weights of 8 bits."
            )
        if model.state_dict().keys() != model.stored_shapes(config).keys():
            raise ValueError(
                f"The {type(model).__name__} has other weights than its configuration describes, "
                "such as adapters. Merge them before the export."
            )


def _write_graph(
    name: str, state: "State", build: "Build", path: Path, dtype: str, opset: int
) -> None:
    import onnx

    from var_hf.onnx.writer import Writer

    writer = Writer(state, dtype)
    build(writer)
    apart = writer.num_bytes > _MOST_BYTES_OF_WEIGHTS
    onnx.save_model(
        writer.model(name, opset),
        path,
        save_as_external_data=apart,
        location=f"{path.name}.data" if apart else None,
    )
    onnx.checker.check_model(path, full_check=True)


def _card(metadata: Metadata) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        license=metadata.license,
        library_name="onnx",
        pipeline_tag="unconditional-image-generation",
        tags=["var", "onnx", "class-conditional", "arxiv:2404.02905"],
    )
    model = metadata.model
    total = sum(entry["size"] for entry in metadata.files.values())
    digits = max(0, 2 - int(math.log10(max(1, total / 1e6))))
    return f"""---
{data.to_yaml()}
---

# {metadata.name}, ONNX

{metadata.name} as ONNX graphs: {model.image_size} x {model.image_size} pixel images of \
{model.num_classes} classes in {len(model.token_map_sizes)} scales. Weights are stored in \
{metadata.dtype} ({total / 1e6:.{digits}f} MB), arithmetic is float32, the opset is \
{metadata.opset}. `{METADATA_FILE}` describes the files, the defaults and the origin.

```python
from var_hf.onnx import OnnxVARPipeline

pipe = OnnxVARPipeline.from_pretrained(".")
image = pipe({(model.num_classes - 1) // 2}, seed=0).images[0]
```
"""
