"""Whether all processes of a run have the same settings, data and model."""

import hashlib
import json
from collections.abc import Callable, Mapping

import torch
from safetensors import safe_open
from torch import Tensor

from var_hf.processes import companions
from var_hf.training.token_cache import TokenDataset


def check_agreement(digests: Mapping[str, Callable[[], str]]) -> None:
    """Compare digests over all processes. Every process has to call it.

    DDP would take the weights of the first process for all, FSDP2 would mix them, and both would
    take what the processes make of other data.

    Args:
        digests: What computes each, by the name of what it is made from, such as ``"training
            data"``. One process alone computes none.

    Raises:
        ValueError: A process has something else than the first one; in every process.
    """
    others = companions()
    if others.count > 1:
        others.compare({name: digest() for name, digest in digests.items()})


def settings_digest(settings: Mapping[str, object]) -> str:
    """SHA-256 of settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def data_digest(dataset: TokenDataset | None) -> str:
    """SHA-256 of what a data set was made from, its classes, and the digests of its shards."""
    digest = hashlib.sha256()
    if dataset is not None:
        cache = dataset.cache
        digest.update(json.dumps([cache.config, dataset.class_ids], sort_keys=True).encode())
        digest.update(cache.class_labels.numpy().tobytes())
        for file in sorted(cache.folder.glob("shard-*.safetensors")):
            with safe_open(file, framework="pt") as shard:
                digest.update(f"{file.name} {shard.metadata()}".encode())
    return digest.hexdigest()


def weights_digest(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names and values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
