"""Images as tokens, encoded once and read many times.

A transformer learns from tokens alone, and the tokenizer does not change meanwhile: encoding every
image in every epoch would cost a fifth of the training of VAR-d16.

    tokens/
        config.json               what the tokens were made from
        shard-00000.safetensors   tokens (N, R, L), class_labels (N,), image_numbers (N,), SHA-256
        ...

A shard covers a fixed range of images and appears complete or not at all, so encoding that was cut
off goes on with the missing ones.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from var_hf.files import (
    CONFIG_NAME,
    LOCK_NAME,
    check_same,
    claim_folder,
    new_path,
    read_json,
    remove_leftovers,
)
from var_hf.image_files import UnreadableImageError
from var_hf.images import ImageDataset, ImageTransform, normalize
from var_hf.modeling_vqvae import MultiScaleVQVAE
from var_hf.processes import process_state

logger = logging.getLogger(__name__)

FORMAT = 2


def tokenizer_digest(vqvae: MultiScaleVQVAE) -> str:
    """SHA-256 of all that decides an image's tokens: weights as float32, and the schedule."""
    digest = hashlib.sha256()
    settings = {
        name: value for name, value in sorted(vqvae.config.items()) if not name.startswith("_")
    }
    digest.update(json.dumps(settings, default=list).encode())
    for name, tensor in sorted(vqvae.state_dict().items()):
        if name.startswith(("decoder.", "post_quant_conv.")) or name.endswith("codebook_usage"):
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def labels_of(images: ImageDataset) -> Sequence[int]:
    """Class id of each image.

    Raises:
        ValueError: The images have no classes.
    """
    if images.labels is None:
        raise ValueError(
            f"The images have no classes ({images.names[0]} for one). Give a folder with one "
            "sub-folder per class, or a table with a label column."
        )
    return images.labels


def cache_description(
    images: ImageDataset,
    vqvae: MultiScaleVQVAE,
    transform: ImageTransform,
    copies: int,
    shard_size: int,
) -> dict[str, Any]:
    """The identity of a cache as JSON values: caches with the same one hold the same tokens."""
    return {
        "format": FORMAT,
        "images": images.fingerprint,
        "num_images": len(images),
        "class_names": None if images.class_names is None else list(images.class_names),
        "tokenizer": tokenizer_digest(vqvae),
        "token_map_sizes": list(vqvae.quantizer.token_map_sizes),
        "codebook_size": vqvae.quantizer.codebook.num_embeddings,
        "transform": asdict(transform),
        "copies": copies,
        "shard_size": shard_size,
    }


def encode_images(
    images: ImageDataset,
    vqvae: MultiScaleVQVAE,
    transform: ImageTransform,
    folder: str | Path,
    *,
    copies: int = 1,
    batch_size: int = 64,
    shard_size: int = 4096,
    num_workers: int = 0,
    strict: bool = False,
) -> "TokenCache":
    """Encode a data set, or the part of it that is missing, and open the result.

    Under `accelerate launch` every process encodes its share of the shards. The tokenizer computes
    in float32.

    Args:
        images: Images with class labels.
        vqvae: The tokenizer, in float32, on the device to compute on.
        transform: How an image becomes a square. With random crops or mirroring, give more than one
            copy.
        folder: Where the cache lies, or is to lie.
        copies: Versions R of each image; version r is the transform's epoch r.
        batch_size: Images encoded at once.
        shard_size: Images per shard.
        num_workers: Data-loading workers; 0 loads in this process.
        strict: Raise at an unreadable image; else it is left out, named in the log and counted.

    Raises:
        ValueError: The folder holds tokens of something else, the message names the differences, or
            damaged ones. Or the tokenizer is not in float32, or the images have no classes.
        FolderInUseError: Another process encodes into the folder.
        UnreadableImageError: An image is unreadable and `strict` is set, or all images are.
    """
    labels = labels_of(images)
    if vqvae.dtype != torch.float32:
        raise ValueError(
            f"The tokenizer is in {vqvae.dtype}: near ties between codes would be decided by "
            "rounding. Load it with dtype=torch.float32."
        )
    if copies < 1:
        raise ValueError(f"copies must be at least 1. Got {copies}.")
    folder = Path(folder)
    views = _Views(images, transform, copies, strict)

    def write(file: Path, numbers: range, bar: tqdm) -> None:
        loader = DataLoader(
            views,
            sampler=numbers,
            batch_size=max(1, batch_size // copies),
            num_workers=num_workers,
            collate_fn=list,
        )
        _write_encoded(file, loader, labels, vqvae, bar)

    cache = fill_cache(
        folder, cache_description(images, vqvae, transform, copies, shard_size), "encode", write
    )
    if cache.num_skipped:
        logger.warning(
            "%s: %d of %d images could not be read and were left out, the first is %s",
            folder, cache.num_skipped, len(images), images.names[cache.skipped[0]],
        )  # fmt: skip
    return cache


def fill_cache(
    folder: Path,
    description: Mapping[str, Any],
    verb: str,
    write: Callable[[Path, range, tqdm], None],
) -> "TokenCache":
    """Write the shards that a cache lacks, each process its share of them, and open the result.

    Machines that do not share the folder end with a whole cache each.

    Args:
        folder: Where the cache lies, or is to lie.
        description: The identity of the cache, as of `cache_description`.
        verb: What is done, beside the progress bar.
        write: Writes a file with the images of a range, and updates the progress bar.

    Raises:
        ValueError: The folder holds something else, or damaged tokens.
        FolderInUseError: Another process writes into the folder.
    """
    num_images, shard_size = description["num_images"], description["shard_size"]
    state = process_state()
    files = [_shard_file(folder, shard) for shard in range(-(-num_images // shard_size))]
    with ExitStack() as stack:
        if state.is_main_process:
            # A finished cache serves several runs at a time, and may be read-only.
            is_finished = (folder / CONFIG_NAME).exists() and all(file.exists() for file in files)
            _, lock = claim_folder(
                folder, description, kind="token cache", lock=None if is_finished else LOCK_NAME
            )
            if lock is not None:
                stack.callback(lock.release)
                remove_leftovers(folder)
        state.wait_for_everyone()
        if state.is_local_main_process:  # of another machine, which may have a folder of its own
            claim_folder(folder, description, kind="token cache", lock=None)
        local_count = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
        # What is missing after the first round lies on machines that do not share the folder.
        for index, count in (
            (state.process_index, state.num_processes),
            (state.local_process_index, local_count),
        ):
            missing = [shard for shard, file in enumerate(files) if not file.exists()]
            state.wait_for_everyone()  # all of them have seen the same files
            ranges = {
                shard: range(shard * shard_size, min((shard + 1) * shard_size, num_images))
                for shard in missing[index::count]
            }
            with tqdm(
                total=sum(map(len, ranges.values())),
                unit="image",
                desc=verb,
                disable=not ranges or not state.is_local_main_process,
            ) as bar:
                for shard, numbers in ranges.items():
                    write(files[shard], numbers, bar)
            state.wait_for_everyone()
    return TokenCache(folder)


def _shard_file(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


class _Views(Dataset[tuple[int, Tensor | None]]):
    """All versions of image number i as uint8 ``(R, 3, P, P)``; ``None`` if it is unreadable."""

    def __init__(self, images: ImageDataset, transform: ImageTransform, copies: int, strict: bool):
        self.images, self.transform, self.copies, self.strict = images, transform, copies, strict

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[int, Tensor | None]:
        try:
            image = self.images.read(number)
        except UnreadableImageError as error:
            if self.strict:
                raise
            logger.warning("%s; left out", error)
            return number, None
        views = [self.transform(image, copy, number) for copy in range(self.copies)]
        return number, torch.stack(views)


@torch.no_grad()
def _write_encoded(
    file: Path, loader: DataLoader, labels: Sequence[int], vqvae: MultiScaleVQVAE, bar: tqdm
) -> None:
    num_tokens = sum(size * size for size in vqvae.quantizer.token_map_sizes)
    tokens: list[Tensor] = []
    numbers: list[int] = []
    skipped: list[int] = []
    copies = 1
    for samples in loader:
        views = [view for _, view in samples if view is not None]
        if views:
            copies = len(views[0])
            pixels = normalize(torch.cat(views).to(vqvae.device))  # (N * R, 3, P, P)
            token_maps = vqvae.encode(pixels).token_maps
            tokens.append(torch.cat(token_maps, dim=1).cpu())
        for number, view in samples:
            (skipped if view is None else numbers).append(number)
        bar.update(len(samples))
    all_tokens = torch.cat(tokens) if tokens else torch.empty(0, num_tokens)
    write_shard(
        file,
        all_tokens.unflatten(0, (len(numbers), copies)),
        torch.tensor([labels[number] for number in numbers]),
        numbers,
        skipped,
        codebook_size=vqvae.quantizer.codebook.num_embeddings,
    )


def write_shard(
    file: Path,
    tokens: Tensor,
    class_labels: Tensor,
    image_numbers: Sequence[int],
    skipped: Sequence[int] = (),
    *,
    codebook_size: int,
) -> None:
    """Write one shard, complete or not at all.

    Args:
        file: Where.
        tokens: ``(N, R, L)``, R versions of each image.
        class_labels: Class ids ``(N,)``.
        image_numbers: Which of all images these are.
        skipped: Numbers of the images that could not be read.
        codebook_size: Number of codes.

    Raises:
        WriteError: The disk is full, or the folder cannot be written to.
    """
    # A codebook that fits into 15 bits halves the file.
    dtype = torch.int16 if codebook_size <= 2**15 else torch.int32
    tensors = {
        "tokens": tokens.to("cpu", dtype).contiguous(),
        "class_labels": class_labels.to("cpu", torch.int64),
        "image_numbers": torch.tensor(image_numbers, dtype=torch.int64),
    }
    with new_path(file, replace=True, size=sum(t.nbytes for t in tensors.values())) as temporary:
        save_file(tensors, temporary, metadata=shard_metadata(tensors, skipped))


def shard_metadata(tensors: Mapping[str, Tensor], skipped: Sequence[int]) -> dict[str, str]:
    """Numbers of unreadable images, and the SHA-256 of all that a shard holds.

    They share one entry: safetensors writes several in an order that differs from call to call.
    """
    about = {"skipped": list(skipped), "sha256": _shard_digest(tensors, skipped)}
    return {"shard": json.dumps(about)}


def _shard_digest(tensors: Mapping[str, Tensor], skipped: Sequence[int]) -> str:
    digest = hashlib.sha256(json.dumps(list(skipped)).encode())
    for name in ("tokens", "class_labels", "image_numbers"):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _read_shard(file: Path, check: bool) -> tuple[Tensor, Tensor, list[int]]:
    """Tokens, class ids and skipped images of a shard, compared with its digest."""
    try:
        if not file.is_file():  # a pipe would never end
            raise ValueError("it is no regular file")
        with safe_open(file, framework="pt") as shard:
            tensors = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
            about = json.loads(shard.metadata()["shard"])
        if check and about["sha256"] != _shard_digest(tensors, about["skipped"]):
            raise ValueError("it is not as it was written")
        return tensors["tokens"], tensors["class_labels"], about["skipped"]
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        reason = f"it has no {error}" if isinstance(error, LookupError) else str(error)
        raise ValueError(
            f"{file} is damaged: {reason}. Delete it and start the command that encodes it again."
        ) from error


def _check_description(file: Path, config: Mapping[str, Any]) -> None:
    sizes = [config.get("num_images"), config.get("shard_size")]
    names = config.get("class_names")
    if not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"{file} is damaged: num_images and shard_size must be whole numbers.")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise ValueError(f"{file} is damaged: class_names must be a list of names.")


class TokenCache:
    """The tokens of a data set, memory-mapped.

    Args:
        folder: A folder that `encode_images` has filled.

    Attributes:
        class_labels: Class id of each image, ``(N,)``.
        skipped: Numbers of the images that could not be read.

    Raises:
        ValueError: The folder holds no cache, or an unfinished or damaged one, or one of another
            version.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        config_file = self.folder / CONFIG_NAME
        if not config_file.exists():
            raise ValueError(f"{folder} holds no token cache ({CONFIG_NAME} is missing).")
        self.config: dict[str, Any] = read_json(config_file)
        if self.config.get("format") != FORMAT:
            raise ValueError(
                f"{folder} has token cache format {self.config.get('format')!r}; this version "
                f"reads {FORMAT}. Choose another folder, or delete this one to encode anew."
            )
        _check_description(config_file, self.config)
        num_shards = -(-self.config["num_images"] // self.config["shard_size"])
        num_found = len(list(self.folder.glob("shard-*.safetensors")))
        files = [_shard_file(self.folder, shard) for shard in range(min(num_shards, num_found + 1))]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise ValueError(
                f"{folder} is unfinished: {num_shards - num_found} of {num_shards} shards are "
                f"missing ({missing[0]}). Start the command that encodes it again."
            )
        # The first process of each machine compares digests for all.
        check = process_state().is_local_main_process
        read = [_read_shard(file, check) for file in files]
        shards, labels = [tokens for tokens, _, _ in read], [labels for _, labels, _ in read]
        self.skipped: list[int] = [number for _, _, skipped in read for number in skipped]
        self._shards = shards
        self._ends = np.cumsum([len(shard) for shard in shards])
        self.class_labels = torch.cat(labels)
        if len(self.class_labels) == 0:
            raise UnreadableImageError(
                f"None of the {self.config['num_images']} images could be read."
            )

    @property
    def num_skipped(self) -> int:
        """Number of images that could not be read."""
        return len(self.skipped)

    @property
    def class_names(self) -> list[str] | None:
        """Name of each class id, if the data had names."""
        return self.config["class_names"]

    def __len__(self) -> int:
        return len(self.class_labels)

    def tokens(self, index: int, copy: int = 0) -> Tensor:
        """Tokens ``(L,)`` of one version of one image; versions are counted round and round."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[shard - 1]) if shard else 0)
        versions = self._shards[shard][row]
        return versions[copy % len(versions)].long()

    def check_tokenizer(self, vqvae: MultiScaleVQVAE) -> None:
        """Raise a ``ValueError`` unless the tokens come from this tokenizer."""
        own = {
            "token_map_sizes": list(vqvae.quantizer.token_map_sizes),
            "codebook_size": vqvae.quantizer.codebook.num_embeddings,
            "tokenizer": tokenizer_digest(vqvae),
        }
        stored = {name: self.config.get(name) for name in own}
        check_same(f"{self.folder} was made with other settings", stored, own)


class TokenDataset(Dataset[dict[str, Tensor]]):
    """Training samples by ``(epoch, index)``, or by index for measuring.

    Args:
        cache: Where the tokens are.
        num_noise: Uniform numbers that a sample gets for what is dropped: ``1 + 2 *
            num_hidden_layers``.
        seed: Seeds these numbers, together with epoch and index and nothing else: neither the
            process nor the batch that a sample falls into changes them.
        class_ids: The model's id for each class of the cache; ``None`` if they are the same.
    """

    def __init__(
        self,
        cache: TokenCache,
        num_noise: int,
        seed: int,
        class_ids: Sequence[int] | None = None,
    ):
        self.cache, self.num_noise, self.seed, self.class_ids = cache, num_noise, seed, class_ids

    @property
    def classes(self) -> list[int]:
        """The model's ids of the classes of the data, in the data's order."""
        labels = self.cache.class_labels.unique().tolist()
        return labels if self.class_ids is None else [self.class_ids[label] for label in labels]

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, position: int | tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = position if isinstance(position, tuple) else (0, position)
        label = int(self.cache.class_labels[index])
        noise = np.random.default_rng([self.seed, epoch, index]).random(self.num_noise, np.float32)
        return {
            "class_labels": torch.tensor(
                label if self.class_ids is None else self.class_ids[label]
            ),
            "labels": self.cache.tokens(index, epoch),
            "dropout_noise": torch.from_numpy(noise),
        }
