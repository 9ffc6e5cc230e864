"""The original release's two files to one pipeline folder, and back."""

import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from var_hf.configuration_var import VARConfig
from var_hf.conversion import (
    PUBLISHED_TRANSFORMERS,
    PUBLISHED_VQVAE,
    checkpoint_of_file,
    find_checkpoint,
    published_file,
    read_original,
    registry,
    write_original,
)
from var_hf.conversion.class_names import imagenet_class_names
from var_hf.files import check_absent, check_space, new_path
from var_hf.hub.published import fetch_published
from var_hf.model_card import CardOptions, model_card, read_configs
from var_hf.modeling_var import VARModel
from var_hf.modeling_vqvae import MultiScaleVQVAE
from var_hf.pipelines.pipeline_var import VARPipeline
from var_hf.precision import cast
from var_hf.provenance import Source, Verification, read_provenance, verify, write_provenance
from var_hf.scheduling_next_scale import NextScaleScheduler

logger = logging.getLogger(__name__)

OriginalFile: TypeAlias = str | os.PathLike[str] | dict[str, Tensor]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_original(
    transformer_file: OriginalFile, vqvae_file: OriginalFile, **overrides: Any
) -> dict[str, Any]:
    """The arguments of a pipeline, from the two files of the release.

    Args:
        transformer_file, vqvae_file, overrides: As in [`VARPipeline.from_original`].

    Raises:
        ValueError: A file is no checkpoint of its kind, or an override is unknown.
    """
    id2label = overrides.pop("id2label", None)
    of_transformer = {key: overrides.pop(key) for key in list(overrides) if hasattr(VARConfig, key)}
    of_vqvae_names = set(inspect.signature(MultiScaleVQVAE.__init__).parameters)
    of_vqvae = {key: overrides.pop(key) for key in list(overrides) if key in of_vqvae_names}
    if overrides:
        raise ValueError(
            f"Unknown override {', '.join(sorted(overrides))}: neither a transformer nor a VQVAE "
            "has it."
        )
    transformer = VARModel.from_original(transformer_file, **of_transformer)
    of_vqvae["token_map_sizes"] = transformer.config.token_map_sizes
    vqvae = MultiScaleVQVAE.from_original(vqvae_file, **of_vqvae)
    if id2label is None and transformer.config.num_classes == 1000:
        id2label = imagenet_class_names()
    return {
        "transformer": transformer,
        "vqvae": vqvae,
        "scheduler": NextScaleScheduler(),
        "id2label": id2label,
    }


def convert_checkpoint(
    transformer_file: str | os.PathLike[str],
    vqvae_file: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "float32",
    max_shard_size: int | str = "5GB",
    **overrides: Any,
) -> Path:
    """Turn two original checkpoints into one pipeline folder, which appears complete or not at all.

    Args:
        transformer_file: ``var_d16.pth`` or the like, or a trainer's checkpoint.
        vqvae_file: ``vae_ch160v4096z32.pth``, or a trainer's checkpoint, the same one if it holds
            both.
        output: Folder to write; must not exist.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``. The learned attention scales, the
            quantizer, and the last norm and convolution of encoder and decoder stay float32.
        max_shard_size: Weights above this size are split, in bytes or as ``"5GB"``.
        overrides: ``id2label``, and config values that the tensors do not tell: see
            `VARPipeline.from_original`.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: A checkpoint does not exist.
        FileExistsError: `output` exists.
        ValueError: A file is no checkpoint of its kind, the two do not belong together, or an
            argument is unknown.
        OSError: The disk is full or cannot be written to.
    """
    sources = [
        Source("transformer", Path(transformer_file)),
        Source("vqvae", Path(vqvae_file)),
    ]
    return _convert(sources, Path(output), dtype, max_shard_size, overrides)


def convert_from_hub(
    repo: str,
    size: str,
    output: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "float32",
    max_shard_size: int | str = "5GB",
    revision: str | None = None,
    token: str | bool | None = None,
    **overrides: Any,
) -> Path:
    """Download the two files of a size of the release and convert them.

    Args:
        repo: Hub repository with the release's file names; ``"FoundationVision/var"`` is the
            release.
        size: ``"d16"``, ``"d20"``, ``"d24"``, ``"d30"`` (256 px) or ``"d36"`` (512 px).
        output: Folder to write; must not exist.
        dtype: See `convert_checkpoint`.
        max_shard_size: See `convert_checkpoint`.
        revision: Branch, tag or commit of the repository; its main branch if not given.
        token: Access token for the Hub; the stored one if not given.
        overrides: See `convert_checkpoint`.

    Raises:
        ValueError: The size is unknown.
        OSError: The download failed; else as `convert_checkpoint`.
    """
    if size not in PUBLISHED_TRANSFORMERS:
        raise ValueError(
            f"There is no published size {size!r}. Sizes: {', '.join(PUBLISHED_TRANSFORMERS)}."
        )
    transformer = PUBLISHED_TRANSFORMERS[size]
    if repo == transformer.repository:
        checkpoint = checkpoint_of_file(transformer.name)
        assert checkpoint is not None
        options = {"dtype": dtype, "max_shard_size": max_shard_size, **overrides}
        return convert_published(checkpoint.name, output, revision=revision, token=token, **options)
    check_absent(output)
    _checked_dtype(dtype)
    sources = []
    for file in (transformer, PUBLISHED_VQVAE):
        path, commit = fetch_published(file, repository=repo, revision=revision, token=token)
        sources.append(Source(file.part, path, repo, commit))
    return _convert(sources, Path(output), dtype, max_shard_size, overrides)


def convert_published(
    name: str,
    output: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "float32",
    max_shard_size: int | str = "5GB",
    revision: str | None = None,
    token: str | bool | None = None,
    **overrides: Any,
) -> Path:
    """Download a published checkpoint and the release's VQVAE, and convert them.

    The authors' sampling settings become the defaults of the scheduler. Provenance and card name
    checkpoint, licence and base model. A licence with conditions is logged as a warning before
    anything is downloaded.

    Args:
        name: Name in the registry, ``"cca-d16"``; `var-hf list` shows all.
        output: Folder to write; must not exist.
        dtype: See `convert_checkpoint`.
        max_shard_size: See `convert_checkpoint`.
        revision: Branch, tag or commit of the transformer's repository; its main branch if not
            given.
        token: Access token for the Hub; the stored one if not given.
        overrides: See `convert_checkpoint`.

    Raises:
        ValueError: There is no such checkpoint.
        HubError: A file is not there or not the published one. An OSError.
        OSError: The download failed; else as `convert_checkpoint`.
    """
    checkpoint = find_checkpoint(name)
    check_absent(output)
    _checked_dtype(dtype)
    if notice := checkpoint.notice():
        logger.warning("%s", notice)
    family, vqvae = checkpoint.family, registry().vqvae
    path, commit = fetch_published(checkpoint.file, revision=revision, token=token)
    transformer = Source(
        "transformer",
        path,
        family.repository,
        commit,
        checkpoint=checkpoint.name,
        license=checkpoint.license.name,
        base_model=family.base_model,
    )
    same = vqvae.repository == family.repository
    path, commit = fetch_published(vqvae, revision=revision if same else None, token=token)
    sources = [transformer, Source("vqvae", path, vqvae.repository, commit)]
    return _convert(sources, Path(output), dtype, max_shard_size, overrides, checkpoint.sampling)


def export_original(
    model: str | os.PathLike[str],
    transformer_file: str | os.PathLike[str],
    vqvae_file: str | os.PathLike[str],
) -> None:
    """Write a pipeline as the two files of the original release; the inverse of
    `convert_checkpoint` in float32.

    Args:
        model: Pipeline folder or Hub repository.
        transformer_file: File to write, such as ``var_d16.pth``; must not exist.
        vqvae_file: File to write, such as ``vae_ch160v4096z32.pth``; must not exist.

    Raises:
        FileExistsError: One of the files exists.
        ValueError: The pipeline has tensors or refiners that the original layout has no place for.
        OSError: There is no such pipeline, or the disk is full or cannot be written to.
    """
    if Path(transformer_file) == Path(vqvae_file):
        raise ValueError(f"Transformer and VQVAE cannot both be written to {transformer_file}.")
    check_absent(transformer_file)
    check_absent(vqvae_file)
    pipeline = VARPipeline.from_pretrained(model, dtype=torch.float32)
    with new_path(transformer_file) as transformer, new_path(vqvae_file) as vqvae:
        write_original(pipeline.transformer.to_original(), transformer)
        write_original(pipeline.vqvae.to_original(), vqvae)


def verify_folder(folder: str | os.PathLike[str]) -> Verification:
    """Verify the digests of a converted folder, and its tensors where they come from a published
    file.

    Args:
        folder: A folder written by `convert_checkpoint` or `convert_from_hub`.

    Returns:
        Files that are changed, missing, extra or pickles, and the tensors that are known to be in
        the published file and are not in the folder.

    Raises:
        FileNotFoundError: The folder has no ``provenance.json``.
        ValueError: That file is damaged.
    """
    found = verify(folder)
    lacking: dict[str, list[str]] = {}
    for source in read_provenance(folder)["sources"]:
        file = published_file(source["name"])
        if file is None or file.part != source["part"]:
            continue
        present = _tensor_shapes(Path(folder) / file.part)
        expected = file.converted_shapes()
        if absent := [name for name, shape in expected.items() if present.get(name) != shape]:
            lacking[file.part] = absent
    return replace(found, lacking=lacking)


def _convert(
    sources: Sequence[Source],
    output: Path,
    dtype: str | torch.dtype,
    max_shard_size: int | str,
    overrides: Mapping[str, Any],
    sampling: Mapping[str, Any] | None = None,
) -> Path:
    check_absent(output)  # reading takes a while, so what can be known before is said before
    dtype = _checked_dtype(dtype)
    read = [read_original(source.path, source.part, digest=True) for source in sources]
    sources = [
        replace(source, sha256=tensors.sha256)
        for source, tensors in zip(sources, read, strict=True)
    ]
    pipeline = VARPipeline.from_original(*read, **overrides)
    if sampling:
        pipeline.register_modules(scheduler=NextScaleScheduler(**sampling))
    cast(pipeline.transformer, dtype)
    cast(pipeline.vqvae, dtype)
    tensors = (*pipeline.transformer.state_dict().values(), *pipeline.vqvae.state_dict().values())
    size = sum(tensor.nbytes for tensor in tensors)
    check_space(output, size)
    options = {name: value for name, value in overrides.items() if name != "id2label"}
    options["dtype"] = str(dtype).removeprefix("torch.")
    with new_path(output, size=size) as temporary:
        pipeline.save_pretrained(temporary, max_shard_size=max_shard_size)

        def card(provenance: dict[str, Any]) -> str:
            return str(model_card(read_configs(temporary), provenance, CardOptions(), output.name))

        write_provenance(temporary, sources, options, card)
    return output


def _checked_dtype(dtype: str | torch.dtype) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}. Got {name!r}.")
    return _DTYPES[name]


def _tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
        except SafetensorError:
            continue  # its digest differs as well; its tensors count as missing
    return shapes
