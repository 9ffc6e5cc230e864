"""Sources of images: sample sets, ADM's ``.npz`` files, and all sets that `var_hf.images` opens.

Images are read batch by batch. No source is completely in memory.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from var_hf.evaluation.metrics import Moments
from var_hf.evaluation.npz import array_names, open_array, read_array
from var_hf.evaluation.sample_set import SampleSet
from var_hf.files import CONFIG_NAME
from var_hf.image_files import MOST_PIXELS
from var_hf.images import ImageDataset, open_images
from var_hf.provenance import sha256
from var_hf.text import printable

#: Names of mean and covariance in a statistics file, by kind of features.
STATISTICS = {"pooled": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
MOST_IMAGES = 10_000_000  # in an .npz file: bounds the memory of their labels
MOST_FEATURES = 8192  # D of a statistics file; Inception has 2048
MOST_EXTRACTOR_BYTES = 1 << 16


@dataclass(frozen=True)
class ImageSource:
    """A set of square images of one size.

    Attributes:
        name: Name in messages and results.
        kind: Kind of source, for results.
        sha256: Digest of the content.
        count: Number of images N.
        image_size: Side P in pixels.
        read: Returns a new iterator over uint8 images ``(P, P, 3)``.
        labels: Class id of each image, in the order of reading.
        class_names: Name of each class id.
        check: Raises an error if a file has changed since it was written.
        about: Additional information as JSON values.
    """

    name: str
    kind: str
    sha256: str
    count: int
    image_size: int
    read: Callable[[], Iterator[np.ndarray]]
    labels: np.ndarray | None = None
    class_names: Sequence[str] | None = None
    check: Callable[[], None] = lambda: None
    about: dict[str, Any] = field(default_factory=dict)

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield uint8 images ``(B, 3, P, P)`` in order.

        Raises:
            ValueError: An image has another size than the first.
            OSError: An image cannot be read.
        """
        images = self.read()
        number = 0
        while batch := list(itertools.islice(images, batch_size)):
            for image in batch:
                if image.shape != (self.image_size, self.image_size, 3):
                    raise ValueError(
                        f"The images of {self.name} differ in size: the first has "
                        f"{self.image_size} x "
                        f"{self.image_size} pixels, number {number} has {image.shape[1]} x "
                        f"{image.shape[0]}. Bring "
                        "them to one square size first."
                    )
                number += 1
            yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)

    def describe(self) -> dict[str, Any]:
        """Describe the set for results."""
        return {
            "name": self.name,
            "kind": self.kind,
            "sha256": self.sha256,
            "images": self.count,
            "image_size": self.image_size,
            **self.about,
        }


@dataclass(frozen=True)
class StatisticsFile:
    """Stored mean and covariance of the features of a reference, and the file's images, if any.

    Attributes:
        name: Name in messages and results.
        sha256: Digest of the file.
        moments: Moments by kind of features, ``"pooled"`` and, if stored, ``"spatial"``.
        images: The images in the file. ADM's reference for ImageNet contains 10,000; its statistics
            are of more images.
        extractor: Name and digest of the extractor, if stored.
    """

    name: str
    sha256: str
    moments: dict[str, Moments]
    images: ImageSource | None
    extractor: tuple[str, str] | None

    @property
    def image_size(self) -> int | None:
        """Side of the images in pixels; ``None`` without images."""
        return None if self.images is None else self.images.image_size

    def describe(self) -> dict[str, Any]:
        """Describe the file for results."""
        return {
            "name": self.name,
            "kind": "statistics file",
            "sha256": self.sha256,
            "images": None if self.images is None else self.images.count,
        }


def open_source(
    source: str | Path, split: str | None = None, **columns: str | None
) -> ImageSource | StatisticsFile:
    """Open a set of images, or a file of statistics.

    Args:
        source: A folder written by `var-hf sample`; an ``.npz`` file with the array ``arr_0`` or
            with statistics; or any source of `var_hf.images.open_images`: a folder of images, a
            Parquet, Arrow or webdataset file, or the name of a data set.
        split: Split of a data set, or subfolder of images.
        **columns: `image_column` and `label_column` of a table.

    Raises:
        ValueError: There are no images, the arrays have unexpected names, shapes or types, or the
            statistics are invalid.
        OSError: A file cannot be read.
    """
    path = Path(source)
    if path.suffix.lower() == ".npz":
        return _open_npz(path)
    if (path / CONFIG_NAME).exists():
        return open_samples(path)
    name = str(source) if split is None else f"{source}, {split}"
    return source_of_dataset(open_images(source, split, **columns), name)  # type: ignore[arg-type]


def source_of_dataset(images: ImageDataset, name: str) -> ImageSource:
    """Wrap a data set opened by `var_hf.images`."""
    if len(images) == 0:
        raise ValueError(f"{name} holds no images.")
    width, height = images.read(0).size
    if width != height:
        raise ValueError(
            f"{images.names[0]} is not square: it has {width} x {height} pixels. Bring the images "
            f"to one square "
            "size first."
        )
    return ImageSource(
        name=name,
        kind="images",
        sha256=images.fingerprint,
        count=len(images),
        image_size=width,
        read=lambda: (np.asarray(images.read(number)) for number in range(len(images))),
        labels=None if images.labels is None else np.asarray(images.labels),
        class_names=images.class_names,
    )


def open_samples(folder: Path) -> ImageSource:
    """Open a sample set written by `var-hf sample`.

    Raises:
        ValueError, OSError: The set is unfinished or damaged; see `SampleSet.open`.
    """
    samples = SampleSet.open(folder)
    manifest, plan = samples.manifest, samples.plan
    names = manifest.get("class_names") or {}
    about = {
        name: manifest[name] for name in ("settings", "model", "model_sha256", "plan", "dtype")
    }
    if plan.format == "npz":
        file = folder / manifest["file"]["name"]

        def read() -> Iterator[np.ndarray]:
            return _npz_images(file)
    else:

        def read() -> Iterator[np.ndarray]:
            return (image for image, _ in samples.images())

    return ImageSource(
        name=str(folder),
        kind="samples",
        sha256=manifest["sha256"],
        count=len(plan),
        image_size=samples.image_size,
        read=read,
        labels=np.array([plan.image(position)[0] for position in range(len(plan))]),
        class_names=[names.get(str(i), f"class {i}") for i in range(plan.num_classes)],
        check=samples.check,
        about=about,
    )


def _open_npz(file: Path) -> ImageSource | StatisticsFile:
    arrays = array_names(file)
    images = _images_of_npz(file, arrays) if "arr_0" in arrays else None
    if not {"mu", "sigma"} <= arrays:
        if images is None:
            raise ValueError(
                f"{file} holds the arrays {printable(', '.join(sorted(arrays)) or 'none')}. "
                "Expected are arr_0, images "
                "uint8 (N, P, P, 3), or mu and sigma, and for sFID mu_s and sigma_s."
            )
        return images
    moments = {
        kind: _moments(file, *names) for kind, names in STATISTICS.items() if {*names} <= arrays
    }
    extractor = None
    if "extractor" in arrays:
        names = read_array(file, "extractor", MOST_EXTRACTOR_BYTES)
        if names.shape != (2,) or names.dtype.kind != "U":
            raise ValueError(f"{file} holds no usable statistics: extractor must be two texts.")
        extractor = (printable(names[0]), printable(names[1]))
    return StatisticsFile(str(file), sha256(file), moments, images, extractor)


def _moments(file: Path, mean_name: str, covariance_name: str) -> Moments:
    most_bytes = MOST_FEATURES**2 * 8
    mean, covariance = (read_array(file, name, most_bytes) for name in (mean_name, covariance_name))
    try:
        return Moments(mean.astype(np.float64), covariance.astype(np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{file} holds no usable statistics in {mean_name} and {covariance_name}: "
            f"{printable(error)}"
        ) from error


def _images_of_npz(file: Path, arrays: set[str]) -> ImageSource:
    with open_array(file, "arr_0") as images:
        shape, dtype = images.shape, images.dtype
        if images.column_major:
            raise ValueError(f"{images.name} is stored column by column; save a plain array.")
    if len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or dtype != np.uint8:
        raise ValueError(
            f"arr_0 of {file} has the shape {shape} and the type {dtype}. Expected are images "
            f"uint8 (N, P, P, 3)."
        )
    if 0 in shape:
        raise ValueError(f"arr_0 of {file} holds no images.")
    if shape[0] > MOST_IMAGES or shape[1] ** 2 > MOST_PIXELS:
        raise ValueError(
            f"arr_0 of {file} has the shape {shape}; at most {MOST_IMAGES} images of "
            f"{MOST_PIXELS} pixels are read."
        )
    labels = None
    if "arr_1" in arrays:
        with open_array(file, "arr_1") as stored:
            if stored.shape == shape[:1] and stored.dtype.kind in "iu":
                labels = stored.read(shape[0]).astype(np.int64)
    return ImageSource(
        name=str(file),
        kind="npz",
        sha256=sha256(file),
        count=shape[0],
        image_size=shape[1],
        read=lambda: _npz_images(file),
        labels=labels,
    )


def _npz_images(file: Path) -> Iterator[np.ndarray]:
    """Yield the images of arr_0 one by one, because the array may be larger than the memory."""
    with open_array(file, "arr_0") as images:
        size = math.prod(images.shape[1:])
        for _ in range(images.shape[0]):
            yield images.read(size).reshape(images.shape[1:])
