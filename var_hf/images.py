"""Read images from folders, Parquet, Arrow and webdataset files, and the datasets library.

Training and evaluation read their images here. An unreadable image is reported, skipped and
counted. In strict mode it stops the run.
"""

import hashlib
import io
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from var_hf.image_files import UnreadableImageError, open_image, to_rgb
from var_hf.image_shards import (
    DEFAULT_IMAGE_COLUMN,
    IMAGE_SUFFIXES,
    PACKED_SUFFIXES,
    Blocks,
    RowNames,
    Shards,
    is_url,
    list_url,
    of_split,
    open_parquet,
    open_webdataset,
    read_labels,
)
from var_hf.text import printable

logger = logging.getLogger(__name__)

TABLE_SUFFIXES = (".parquet", ".arrow")
SHARD_SUFFIXES = (".parquet", ".tar", *PACKED_SUFFIXES)
#: Longer images are refused: resizing their shorter side to the model's size would fill the memory.
MOST_ELONGATED = 64


def decode_image(file: Path | io.BytesIO, name: str) -> Image.Image:
    """Read one image as upright 8-bit RGB, in one of the formats of `open_image`.

    Raises:
        UnreadableImageError: The image cannot be read, is too large, or is more than 64 times as
            long as wide.
    """
    try:
        image = open_image(file, name)
    except (OSError, ValueError) as error:
        raise UnreadableImageError(str(error)) from error
    if max(image.size) > MOST_ELONGATED * min(image.size):
        raise UnreadableImageError(
            f"{name} has {image.width} x {image.height} pixels: more than {MOST_ELONGATED} times "
            "as long as wide. Crop it first."
        )
    return to_rgb(image)


class ImageDataset:
    """A list of images, with labels if the source has them.

    Args:
        names: Name of each image in messages: a path, or a row of a table.
        read: Returns image number i as RGB. Raises `UnreadableImageError`.
        fingerprint: Hexadecimal digest of the content.
        labels: Class id of each image, ids counting from 0.
        class_names: Name of each class id.
        blocks: Which images are stored together, if reading one of them reads all.
    """

    def __init__(
        self,
        names: Sequence[str],
        read: Callable[[int], Image.Image],
        fingerprint: str,
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        blocks: Blocks | None = None,
    ):
        self.names = names
        self.read = read
        self.fingerprint = fingerprint
        self.labels = labels
        self.class_names = class_names
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.names)

    def select(self, indices: Sequence[int]) -> "ImageDataset":
        """Return some of the images, with the same classes."""
        digest = hashlib.sha256(
            self.fingerprint.encode() + np.asarray(indices, dtype=np.int64).tobytes()
        )
        return ImageDataset(
            names=[self.names[index] for index in indices],
            read=lambda index: self.read(indices[index]),
            fingerprint=digest.hexdigest(),
            labels=None if self.labels is None else [self.labels[index] for index in indices],
            class_names=self.class_names,
            blocks=None if self.blocks is None else self.blocks.select(indices),
        )


def open_images(
    source: str | Path,
    split: str | None = None,
    image_column: str = DEFAULT_IMAGE_COLUMN,
    label_column: str | None = None,
) -> ImageDataset:
    """Open a set of images.

    Parquet and webdataset files are read in place, without a copy. The datasets library copies what
    it loads by name into its cache.

    Args:
        source: A folder of images, with one sub-folder per class if it has classes; a Parquet,
            Arrow or webdataset file (``.tar``), or a folder of files of one of these kinds; an
            address of Parquet or webdataset files for fsspec, such as
            ``"hf://datasets/user/name/data/*.parquet"``; a folder from `save_to_disk` of the
            datasets library; or the name of a data set for `datasets.load_dataset`.
        split: Split of a data set, such as ``"train"``: in a folder, the sub-folder with this name,
            or the shards whose names begin with it.
        image_column: Column of the images in a table; in webdataset files their extension, by
            default that of the one image in each sample.
        label_column: Column of the class ids in a table. ``None`` is ``"label"`` if it exists; in
            webdataset files ``"cls"``.

    Raises:
        ValueError: There are no images, a file is damaged, or the split or column does not exist.
        ImportError: The source needs the datasets library, which is not installed.
        OSError: There is no such file, or it cannot be read.
    """
    columns = (image_column, label_column)
    if is_url(str(source)):
        files = list_url(str(source))
        return _open_shards(files, str(source), split, *columns)
    path = Path(source)
    if path.is_dir():
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            return _open_table(str(source), split, *columns)
        if split is not None and (path / split).is_dir():
            path, split = path / split, None
        entries = sorted(path.rglob("*"))
        kinds = {file.suffix.lower() for file in entries}
        if kinds.isdisjoint(TABLE_SUFFIXES) and not kinds.isdisjoint(IMAGE_SUFFIXES):
            return _open_folder(path, entries)
        if ".arrow" not in kinds:
            files = [str(file) for file in entries if not file.is_dir()]
            return _open_shards(files, str(path), split, *columns)
    elif not path.exists() and (
        path.is_absolute() or path.name.lower().endswith((*TABLE_SUFFIXES, *SHARD_SUFFIXES))
    ):
        raise FileNotFoundError(f"{path} does not exist; give a folder of images or a data file.")
    elif path.name.lower().endswith(SHARD_SUFFIXES):
        return _open_shards([str(path)], str(path), None, *columns)
    return _open_table(str(path if path.exists() else source), split, *columns)


def _open_shards(
    files: Sequence[str],
    source: str,
    split: str | None,
    image_column: str,
    label_column: str | None,
) -> ImageDataset:
    files = [file for file in files if file.lower().endswith(SHARD_SUFFIXES)]
    if not files:
        raise ValueError(
            f"{source} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}) and no Parquet or "
            "webdataset files. Give a folder of images, or of one sub-folder per class."
        )
    is_table = {file.lower().endswith(".parquet") for file in files}
    if len(is_table) > 1:
        raise ValueError(
            f"{source} holds Parquet and tar files. Give a folder, or a pattern, of one kind."
        )
    files = of_split(files, split, source)
    shards: Shards
    if is_table == {True}:
        _datasets(source)
        shards = open_parquet(files, image_column, label_column)
    else:
        shards = open_webdataset(files, image_column, label_column)
    return ImageDataset(
        names=shards.names,
        read=lambda index: decode_image(shards.read(index), shards.names[index]),
        fingerprint=shards.fingerprint,
        labels=shards.labels,
        class_names=shards.class_names,
        blocks=shards.blocks,
    )


def _datasets(source: str) -> Any:
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            f"{source} is not a folder of images. All other sources but tar files need the "
            "datasets library: pip install var-hf[train]"
        ) from error
    return datasets


def _open_folder(folder: Path, entries: Sequence[Path]) -> ImageDataset:
    files = [file for file in entries if file.suffix.lower() in IMAGE_SUFFIXES]
    relative = [file.relative_to(folder) for file in files]
    digest = hashlib.sha256()
    for name, file in zip(relative, files, strict=True):
        digest.update(f"{name.as_posix()}\0{file.stat().st_size}\n".encode())

    labels = class_names = None
    classes = sorted({name.parts[0] for name in relative if len(name.parts) > 1})
    if classes:
        stray = [str(name) for name in relative if len(name.parts) == 1]
        if stray:
            raise ValueError(
                f"{folder} holds class folders ({classes[0]}, ...) and images beside them "
                f"({stray[0]}, {len(stray)} in all). Move these into a class, or give another "
                "folder."
            )
        class_names = classes
        class_ids = {name: class_id for class_id, name in enumerate(classes)}
        labels = [class_ids[name.parts[0]] for name in relative]
    return ImageDataset(
        names=[str(file) for file in files],
        read=lambda index: decode_image(files[index], str(files[index])),
        fingerprint=digest.hexdigest(),
        labels=labels,
        class_names=class_names,
    )


def _open_table(
    source: str, split: str | None, image_column: str, label_column: str | None
) -> ImageDataset:
    datasets = _datasets(source)
    try:
        table = _load_table(datasets, source, split)
    except (OSError, ValueError, ImportError):
        raise
    except Exception as error:  # of datasets and pyarrow, for damaged files
        raise ValueError(
            f"{printable(source)} cannot be read as a table of images: {printable(error)}"
        ) from error
    if image_column not in table.column_names:
        raise ValueError(
            f"{source} has no column {image_column!r}, only {', '.join(table.column_names)}. "
            "Pass the column of the images (image_column)."
        )
    if label_column is None and "label" in table.column_names:
        label_column = "label"
    if label_column is not None and label_column not in table.column_names:
        raise ValueError(
            f"{source} has no column {label_column!r}, only {', '.join(table.column_names)}. "
            "Pass the column of the class ids (label_column)."
        )
    # Without decoding, so that an unreadable image concerns one row and can be named.
    try:
        images = table.cast_column(image_column, datasets.Image(decode=False)).select_columns(
            [image_column]
        )
    except Exception as error:  # of datasets and pyarrow, for columns of another type
        raise ValueError(
            f"{printable(source)}, column {image_column!r} holds no images: {printable(error)}"
        ) from error

    def read(index: int) -> Image.Image:
        name = f"{source}, row {index}"
        cell = images[index][image_column]
        if cell is None or not (cell["bytes"] or cell["path"]):
            raise UnreadableImageError(f"cannot read the image {name}: the cell is empty")
        return decode_image(
            io.BytesIO(cell["bytes"]) if cell["bytes"] else Path(cell["path"]), name
        )

    labels = class_names = None
    if label_column is not None:
        labels, class_names = read_labels(
            table[label_column][:], table.features[label_column], label_column, source
        )
    return ImageDataset(
        names=RowNames([source], [len(table)]),
        read=read,
        fingerprint=hashlib.sha256(table._fingerprint.encode()).hexdigest(),
        labels=labels,
        class_names=class_names,
    )


def _load_table(datasets: Any, source: str, split: str | None) -> Any:
    path = Path(source)
    if (
        (path.is_dir() and not any(file.suffix in TABLE_SUFFIXES for file in path.glob("*")))
        or (path / "dataset_info.json").exists()
        or (path / "dataset_dict.json").exists()
    ):
        loaded = datasets.load_from_disk(source)
    elif path.exists():
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        tables = [file for file in files if file.suffix.lower() in TABLE_SUFFIXES]
        if {file.suffix.lower() for file in tables} != {".arrow"}:
            raise ValueError(
                f"{source} is not one kind of table. Give a Parquet or Arrow file, or a folder of "
                "one kind."
            )
        loaded = datasets.load_dataset(
            "arrow", data_files=[str(file) for file in tables], split="train"
        )
    else:
        loaded = datasets.load_dataset(source, split=split)
    if isinstance(loaded, dict):
        if split is None and len(loaded) == 1:
            return next(iter(loaded.values()))
        if split not in loaded:
            raise ValueError(
                f"{source} has the splits {', '.join(loaded)}, not {split!r}. Name one (split)."
            )
        return loaded[split]
    return loaded


@dataclass(frozen=True)
class ImageTransform:
    """Resize, crop and mirror. A sample's result does not depend on the process or worker.

    Args:
        image_size: Side P of the result in pixels.
        resize_factor: The shorter side is resized to P times this (Lanczos) before the crop. The
            release has 1.125; 1.0 does not resize images that already have side P.
        random_crop: Crop at a random position instead of the centre.
        horizontal_flip: Mirror half of the images.
        seed: Seed of the random choices, together with the epoch and the sample's number.
    """

    image_size: int
    resize_factor: float = 1.0
    random_crop: bool = False
    horizontal_flip: bool = False
    seed: int = 0

    def __call__(self, image: Image.Image, epoch: int, index: int) -> Tensor:
        """Transform one image to uint8 ``(3, P, P)``."""
        shorter = round(self.image_size * self.resize_factor)
        factor = shorter / min(image.size)
        if factor != 1.0:
            width, height = (max(self.image_size, round(side * factor)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        spare = [side - self.image_size for side in image.size]
        random = np.random.default_rng([self.seed, epoch, index])
        if self.random_crop:
            left, top = (int(random.integers(side + 1)) for side in spare)
        else:
            left, top = (side // 2 for side in spare)
        image = image.crop((left, top, left + self.image_size, top + self.image_size))
        if self.horizontal_flip and random.uniform() < 0.5:
            image = ImageOps.mirror(image)
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)

    def fingerprint(self) -> str:
        """Return the hexadecimal digest of all settings."""
        return hashlib.sha256(json.dumps(vars(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Sample:
    """One image as uint8 ``(3, P, P)``, its number and label, and the images skipped for it."""

    pixels: Tensor
    index: int
    label: int
    skipped: tuple[str, ...]


class TrainingSamples(Dataset[Sample]):
    """Transformed images by ``(epoch, index)``. An unreadable image is replaced by its successor.

    Args:
        images: The images.
        transform: Their transform.
        strict: Raise an error at the first unreadable image instead.
    """

    def __init__(self, images: ImageDataset, transform: ImageTransform, strict: bool = False):
        self.images = images
        self.transform = transform
        self.strict = strict

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: tuple[int, int]) -> Sample:
        """Return the sample at ``(epoch, index)``.

        Raises:
            UnreadableImageError: The image is unreadable in strict mode, or all are unreadable.
        """
        epoch, index = position
        skipped: list[str] = []
        while True:
            try:
                image = self.images.read(index)
                break
            except UnreadableImageError as error:
                skipped.append(self.images.names[index])
                if self.strict or len(skipped) == len(self.images):
                    raise
                logger.warning("%s; skipped", error)
                index = (index + 1) % len(self.images)
        label = -1 if self.images.labels is None else self.images.labels[index]
        return Sample(self.transform(image, epoch, index), index, label, tuple(skipped))


def collate(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Return pixels uint8 ``(B, 3, P, P)``, labels ``(B,)`` (-1: no class) and skipped names."""
    pixels = torch.stack([sample.pixels for sample in samples])
    labels = torch.tensor([sample.label for sample in samples])
    return pixels, labels, tuple(name for sample in samples for name in sample.skipped)


def normalize(pixels: Tensor) -> Tensor:
    """Convert uint8 ``(B, 3, P, P)`` to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1.0
