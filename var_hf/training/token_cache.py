"""Images as tokens, encoded once and read many times.

A transformer learns from tokens alone, and the tokenizer does not change meanwhile: encoding every image in
every epoch would cost a fifth of the training of VAR-d16.

    tokens/
        config.json               what the tokens were made from
        shard-00000.safetensors   tokens (N, R, L), class_labels (N,), image_numbers (N,)
        ...

A shard covers a fixed range of images and appears complete or not at all, so encoding that was cut off goes on
with the missing ones.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
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

from var_hf.images import ImageDataset, ImageTransform, UnreadableImageError, normalize
from var_hf.modeling_vqvae import MultiScaleVQVAE
from var_hf.training.processes import process_state
from var_hf.training.run_folder import write_atomically

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.json"
FORMAT = 1


def tokenizer_digest(vqvae: MultiScaleVQVAE) -> str:
    """SHA-256 of everything that decides which tokens an image gets: weights as float32, and the schedule."""
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
            f"The images have no classes ({images.names[0]} for one). Give a folder with one sub-folder per "
            "class, or a table with a label column."
        )
    return images.labels


def cache_description(
    images: ImageDataset,
    vqvae: MultiScaleVQVAE,
    transform: ImageTransform,
    copies: int,
    shard_size: int,
) -> dict[str, Any]:
    """What identifies a cache, as JSON values: two caches with the same one hold the same tokens."""
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

    Under `accelerate launch` every process encodes its share of the shards. The tokenizer computes in float32.

    Args:
        images: Images with class labels.
        vqvae: The tokenizer, in float32, on the device to compute on.
        transform: How an image becomes a square. With random crops or mirroring, give more than one copy.
        folder: Where the cache lies, or is to lie.
        copies: Versions R of each image; version r is the transform's epoch r.
        batch_size: Pictures encoded at once.
        shard_size: Images per shard.
        num_workers: Processes that read images.
        strict: Raise at an unreadable image; else it is left out, named in the log and counted.

    Raises:
        ValueError: The folder holds tokens of something else; the message says what differs. Or the tokenizer
            is not in float32, or the images have no classes.
        UnreadableImageError: An image is unreadable and `strict` is set, or all images are.
    """
    labels = labels_of(images)
    if vqvae.dtype != torch.float32:
        raise ValueError(
            f"The tokenizer is in {vqvae.dtype}: near ties between codes would be decided by rounding. "
            "Load it with dtype=torch.float32."
        )
    if copies < 1:
        raise ValueError(f"copies must be at least 1. Got {copies}.")
    folder = Path(folder)
    description = cache_description(images, vqvae, transform, copies, shard_size)
    state = process_state()
    if state.is_main_process:
        _claim(folder, description)
    state.wait_for_everyone()
    num_shards = -(-len(images) // shard_size)
    missing = [shard for shard in range(num_shards) if not _shard_file(folder, shard).exists()]
    share = missing[state.process_index :: state.num_processes]
    if share:
        views = _Views(images, transform, copies, strict)
        total = sum(min(shard_size, len(images) - shard * shard_size) for shard in share)
        with tqdm(
            total=total, unit="image", desc="encode", disable=not state.is_local_main_process
        ) as bar:
            for shard in share:
                start = shard * shard_size
                numbers = range(start, min(start + shard_size, len(images)))
                loader = DataLoader(
                    views,
                    sampler=numbers,
                    batch_size=max(1, batch_size // copies),
                    num_workers=num_workers,
                    collate_fn=list,
                )
                _write_shard(_shard_file(folder, shard), loader, labels, vqvae, bar)
    state.wait_for_everyone()
    cache = TokenCache(folder)
    if cache.num_skipped:
        logger.warning(
            "%s: %d of %d images could not be read and were left out, the first is %s",
            folder, cache.num_skipped, len(images), images.names[cache.skipped[0]],
        )  # fmt: skip
    return cache


def _claim(folder: Path, description: Mapping[str, Any]) -> None:
    """Make the folder ours, or raise a ``ValueError`` if it belongs to other tokens."""
    config_file = folder / CONFIG_NAME
    if config_file.exists():
        _check_same(folder, json.loads(config_file.read_text("utf-8")), description)
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} is not empty and holds no token cache ({CONFIG_NAME} is missing). Choose another folder."
        )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(config_file, json.dumps(description, indent=2) + "\n")


def _check_same(folder: Path, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    differences = []
    for name in given:
        was, now = stored.get(name), given[name]
        if isinstance(now, Mapping) and isinstance(was, Mapping):
            differences += [
                f"{name}.{key} was {was.get(key)!r}, is {now.get(key)!r}"
                for key in now
                if was.get(key) != now.get(key)
            ]
        elif was != now:
            differences.append(f"{name} was {_short(was)}, is {_short(now)}")
    if differences:
        raise ValueError(
            f"The token cache {folder} was made from something else: {'; '.join(differences)}. "
            "Choose another folder, or delete this one to encode anew."
        )


def _short(value: Any, length: int = 12) -> str:
    """A digest by its beginning, anything else as it is."""
    is_digest = isinstance(value, str) and len(value) == 64
    return repr(f"{value[:length]}..." if is_digest else value)


def _shard_file(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


class _Views(Dataset[tuple[int, Tensor | None]]):
    """All versions of image number i as uint8 ``(R, 3, P, P)``, or ``None`` where it cannot be read."""

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
def _write_shard(
    file: Path, loader: DataLoader, labels: Sequence[int], vqvae: MultiScaleVQVAE, bar: tqdm
) -> None:
    # A codebook that fits into 15 bits halves the file.
    small = vqvae.quantizer.codebook.num_embeddings <= 2**15
    dtype = torch.int16 if small else torch.int32
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
            tokens.append(torch.cat(token_maps, dim=1).to("cpu", dtype))
        for number, view in samples:
            (skipped if view is None else numbers).append(number)
        bar.update(len(samples))
    all_tokens = torch.cat(tokens) if tokens else torch.empty(0, num_tokens, dtype=dtype)
    tensors = {
        "tokens": all_tokens.unflatten(0, (len(numbers), copies)),  # (N, R, L)
        "class_labels": torch.tensor([labels[number] for number in numbers], dtype=torch.int64),
        "image_numbers": torch.tensor(numbers, dtype=torch.int64),
    }
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        save_file(tensors, temporary, metadata={"skipped": json.dumps(skipped)})
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(file)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{file} could not be written: {error}. Shards that are there stay valid; "
            "make room and start the same command again."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


class TokenCache:
    """The tokens of a data set, memory-mapped.

    Args:
        folder: A folder that `encode_images` has filled.

    Attributes:
        class_labels: Class id of each image, ``(N,)``.
        skipped: Numbers of the images that could not be read.

    Raises:
        ValueError: The folder holds no cache, or an unfinished one, or one of another version.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        config_file = self.folder / CONFIG_NAME
        if not config_file.exists():
            raise ValueError(f"{folder} holds no token cache ({CONFIG_NAME} is missing).")
        self.config: dict[str, Any] = json.loads(config_file.read_text("utf-8"))
        if self.config.get("format") != FORMAT:
            raise ValueError(
                f"{folder} has token cache format {self.config.get('format')!r}; this version reads {FORMAT}."
            )
        num_shards = -(-self.config["num_images"] // self.config["shard_size"])
        files = [_shard_file(self.folder, shard) for shard in range(num_shards)]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise ValueError(
                f"{folder} is unfinished: {len(missing)} of {num_shards} shards are missing ({missing[0]}). "
                "Start the command that encodes it again."
            )
        shards, labels = [], []
        self.skipped: list[int] = []
        for file in files:
            with safe_open(file, framework="pt") as shard:
                shards.append(shard.get_tensor("tokens"))
                labels.append(shard.get_tensor("class_labels"))
                self.skipped += json.loads(shard.metadata()["skipped"])
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
        _check_same(self.folder, self.config, own)


class TokenDataset(Dataset[dict[str, Tensor]]):
    """Training samples by ``(epoch, index)``, or by index for measuring.

    Args:
        cache: Where the tokens are.
        num_noise: Uniform numbers that a sample gets for what is dropped: ``1 + 2 * num_hidden_layers``.
        seed: Seeds these numbers, together with epoch and index and nothing else: neither the process
            nor the batch that a sample falls into changes them.
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
