"""Images in Parquet files and in tar files of the webdataset layout, read in place.

Nothing is copied or unpacked. Every image can be read by its number, so that the order of a
training, its resumption and its division between processes are those of a folder of images
(`var_hf.training.order`).
"""

import hashlib
import io
import json
import re
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import fsspec  # type: ignore[import-untyped]
import numpy as np
from huggingface_hub import constants

from var_hf.files import new_path
from var_hf.image_files import UnreadableImageError
from var_hf.schema import SIZE
from var_hf.text import printable
from var_hf.untrusted import open_regular

#: Bytes of row groups that a process keeps, and that are shuffled together.
MOST_GROUP_BYTES = 2**28
DEFAULT_IMAGE_COLUMN = "image"
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
PACKED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MOST_LABEL_BYTES = 1024
_BLOCK = 512  # bytes of a tar header


@dataclass(frozen=True)
class Blocks:
    """Which images lie together, for orders that read every block once.

    Attributes:
        of_image: Block of each image, ``(N,)``.
        at_once: Blocks that are kept in memory together.
    """

    of_image: np.ndarray
    at_once: int

    def select(self, indices: Sequence[int]) -> "Blocks":
        """The blocks of some of the images."""
        return Blocks(self.of_image[np.asarray(indices, dtype=np.int64)], self.at_once)

    def shuffle(self, random: np.random.Generator) -> np.ndarray:
        """An order of the images ``(N,)`` that stays with `at_once` random blocks at a time.

        The images of these blocks are shuffled together.
        """
        names, ranks = np.unique(self.of_image, return_inverse=True)
        if len(names) <= self.at_once:
            return random.permutation(len(self.of_image))
        rounds = random.permutation(len(names))[ranks] // self.at_once
        return np.lexsort((random.random(len(rounds)), rounds))


@dataclass(frozen=True)
class Shards:
    """The images of some shards.

    Attributes:
        names: Name of each image in messages.
        read: Returns the encoded image number i, or the path of its file. Raises
            `UnreadableImageError`.
        fingerprint: Hexadecimal digest of names, sizes and labels; the folder does not matter.
        labels: Class id of each image, if there are any.
        class_names: Name of each class id.
        blocks: Images that are read together, if they are.
    """

    names: Sequence[str]
    read: Callable[[int], io.BytesIO | Path]
    fingerprint: str
    labels: list[int] | None = None
    class_names: list[str] | None = None
    blocks: Blocks | None = None


# Places


def is_url(source: str) -> bool:
    """Whether a source is an address for fsspec, such as ``hf://datasets/user/name/*.parquet``."""
    return "://" in source


def list_url(url: str) -> list[str]:
    """The files behind an address: those of a folder, those that a pattern fits, or the one.

    Raises:
        OSError: There is no such place, or it cannot be reached.
        ImportError: The library for this kind of address is not installed.
        ValueError: There is no such kind of address.
    """
    try:
        system, path = fsspec.core.url_to_fs(url)
        if any(sign in path for sign in "*?["):
            found = system.glob(path)
        else:
            found = system.find(path)  # of a file, the file
        if not found:
            raise FileNotFoundError(f"There are no files at {printable(url)}.")
        return [str(system.unstrip_protocol(name)) for name in sorted(found)]
    except (ImportError, FileNotFoundError):
        raise
    except ValueError as error:
        raise ValueError(f"{printable(url)} cannot be read: {printable(error)}") from error
    except Exception as error:  # each of the file systems has errors of its own
        raise OSError(f"{printable(url)} cannot be read: {printable(error)}") from error


def _open(file: str) -> IO[bytes]:
    if is_url(file):
        return fsspec.open(file, "rb").open()
    return open_regular(file)


def _size(file: IO[bytes]) -> int:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size


def _stamp(file: str) -> str:
    """A text that changes when the file does."""
    if is_url(file):
        system, path = fsspec.core.url_to_fs(file)
        return f"{file} {system.ukey(path)}"
    about = Path(file).stat()
    return f"{Path(file).resolve()} {about.st_size} {about.st_mtime_ns}"


def of_split(files: Sequence[str], split: str | None, source: str) -> list[str]:
    """The shards of a split by their names, as on the Hub: ``train-00000-of-00008.parquet``.

    Raises:
        ValueError: There are none.
    """
    if split is None:
        return list(files)
    start = re.compile(rf"{re.escape(split)}(?![0-9a-zA-Z])")
    chosen = [file for file in files if start.match(file.rsplit("/", 1)[-1])]
    if not chosen:
        raise ValueError(
            f"{source} has no files of the split {split!r}: their names would begin with it, as in "
            f"{split}-00000, and the first is {Path(files[0]).name}."
        )
    return chosen


class RowNames(Sequence[str]):
    """``"<table>, row <i>"`` for each row, without storing a million strings.

    Args:
        tables: The tables.
        ends: Rows of each table and those before it, ``(T,)``.
    """

    def __init__(self, tables: Sequence[str], ends: Sequence[int] | np.ndarray):
        self.tables, self.ends = tables, np.asarray(ends)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: Any) -> Any:
        number = range(len(self))[index]
        table = int(np.searchsorted(self.ends, number, side="right"))
        return f"{self.tables[table]}, row {number - (int(self.ends[table - 1]) if table else 0)}"


# Parquet


def open_parquet(
    files: Sequence[str], image_column: str = DEFAULT_IMAGE_COLUMN, label_column: str | None = None
) -> Shards:
    """Open Parquet files. A row group is read when the first of its images is asked for.

    Args:
        files: Paths or addresses, in order.
        image_column: Column of the images, in the forms that the datasets library reads.
        label_column: Column of the classes. ``None`` is ``"label"`` if it exists.

    Raises:
        ValueError: A file is damaged, lacks a column, or holds no images; or the files differ in
            their classes.
    """
    import datasets  # type: ignore[import-untyped]
    import pyarrow as pa  # type: ignore[import-untyped]

    digest = hashlib.sha256(json.dumps([image_column, label_column]).encode())
    groups: list[tuple[int, int]] = []  # file, row group in it
    lengths: list[int] = []
    most_bytes, totals = 1, []
    labels: list[Any] = []
    feature: Any = None
    for number, file in enumerate(files):
        with _parquet(file) as (parquet, size):
            schema = parquet.schema_arrow
            column = label_column
            if column is None and number == 0 and "label" in schema.names:
                label_column = column = "label"
            for name, option in ((image_column, "image_column"), (column, "label_column")):
                if name is not None and name not in schema.names:
                    what = "the images" if option == "image_column" else "the class ids"
                    raise ValueError(
                        f"{file} has no column {name!r}, only {', '.join(schema.names)}. Pass the "
                        f"column of {what} ({option})."
                    )
            _check_images(file, image_column, schema.field(image_column).type)
            place = [path.split(".")[0] for path in _leaves(parquet)]
            for group in range(parquet.num_row_groups):
                about = parquet.metadata.row_group(group)
                groups.append((number, group))
                lengths.append(about.num_rows)
                most_bytes = max(
                    most_bytes,
                    sum(
                        about.column(leaf).total_uncompressed_size
                        for leaf, name in enumerate(place)
                        if name == image_column
                    ),
                )
            totals.append(parquet.metadata.num_rows)
            digest.update(f"{Path(file).name}\0{size}\0{totals[-1]}\n".encode())
            if column is not None:
                alone = pa.schema([schema.field(column)], metadata=schema.metadata)
                found = datasets.Features.from_arrow_schema(alone)[column]
                if number and getattr(found, "names", None) != getattr(feature, "names", None):
                    raise ValueError(
                        f"{file} and {files[0]} have other classes in their column {column!r}. "
                        "Give files of one data set."
                    )
                feature = found
                labels += parquet.read(columns=[column])[column].to_pylist()
    source = files[0] if len(files) == 1 else str(Path(files[0]).parent)
    if not sum(totals):
        raise ValueError(f"{source} has no rows.")
    classes: tuple[list[int] | None, list[str] | None] = (None, None)
    if label_column is not None:
        classes = read_labels(labels, feature, label_column, source)
        digest.update(json.dumps(classes).encode())
    blocks = Blocks(
        np.repeat(np.arange(len(lengths)), lengths), max(1, MOST_GROUP_BYTES // most_bytes)
    )
    names = RowNames(files, np.cumsum(totals))
    reader = _RowGroups(files, groups, np.cumsum(lengths), image_column, blocks.at_once)
    return Shards(
        names=names,
        read=lambda index: reader.read(index, names[index]),
        fingerprint=digest.hexdigest(),
        labels=classes[0],
        class_names=classes[1],
        blocks=blocks,
    )


@contextmanager
def _parquet(file: str) -> Iterator[tuple[Any, int]]:
    """A Parquet file and its size in bytes; its damages become errors of one sentence."""
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        with _open(file) as handle:
            size = _size(handle)
            yield pq.ParquetFile(handle, page_checksum_verification=True), size
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{printable(file)} cannot be read as a Parquet file: "
            f"{printable(str(error).rstrip('.'))}. It may be incomplete; copy it again."
        ) from error


def _leaves(parquet: Any) -> list[str]:
    """Paths of the columns as Parquet stores them, such as ``image.bytes``."""
    return [parquet.schema.column(i).path for i in range(len(parquet.schema))]


def _check_images(file: str, column: str, kind: Any) -> None:
    import datasets
    import pyarrow as pa

    try:
        datasets.Image(decode=False).cast_storage(pa.array([], type=kind))
    except Exception as error:
        raise ValueError(
            f"{printable(file)}, column {column!r} holds no images but {kind}. Pass the column of "
            "the images (image_column)."
        ) from error


class _RowGroups:
    """Cells of the image column by number. The last few row groups stay in memory."""

    def __init__(
        self,
        files: Sequence[str],
        groups: Sequence[tuple[int, int]],
        ends: np.ndarray,
        column: str,
        most: int,
    ):
        self.files, self.groups, self.ends = files, groups, ends
        self.column, self.most = column, most
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def read(self, index: int, name: str) -> io.BytesIO | Path:
        number = int(np.searchsorted(self.ends, index, side="right"))
        cells = self._cells(number)
        cell = cells[index - (int(self.ends[number - 1]) if number else 0)].as_py()
        if cell is None or not (cell["bytes"] or cell["path"]):
            raise UnreadableImageError(f"cannot read the image {name}: the cell is empty")
        if not cell["bytes"] and is_url(name):
            raise UnreadableImageError(
                f"cannot read the image {name}: the cell names the file {printable(cell['path'])} "
                "and does not hold it"
            )
        return io.BytesIO(cell["bytes"]) if cell["bytes"] else Path(cell["path"])

    def _cells(self, number: int) -> Any:
        import datasets

        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        while len(self._kept) >= self.most:  # before more is read
            self._kept.popitem(last=False)
        file, group = self.groups[number]
        with _parquet(self.files[file]) as (parquet, _):
            chunks = parquet.read_row_group(group, columns=[self.column])[self.column]
        cells = datasets.Image(decode=False).cast_storage(chunks.combine_chunks())
        self._kept[number] = cells
        return cells


# webdataset


@dataclass
class _Members:
    """The samples of one tar file: name, place and size of each image, and its label."""

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)


def open_webdataset(
    files: Sequence[str], image_column: str = DEFAULT_IMAGE_COLUMN, label_column: str | None = None
) -> Shards:
    """Open tar files in the layout of webdataset: ``000017.jpg``, ``000017.cls``, ...

    The headers are read once; the places of the images are kept in the cache of the Hub's libraries
    (``$HF_HOME/var-hf``).

    Args:
        files: Paths or addresses, in order.
        image_column: Extension of the images, such as ``"input.png"``. By default, the one file of
            each sample with the extension of an image.
        label_column: Extension of a text with class id or name. ``None`` is ``"cls"`` if it exists.

    Raises:
        ValueError: A file is truncated, packed or no tar file; a sample has no image, several, or
            no class; or there are no images.
    """
    digest = hashlib.sha256(json.dumps([image_column, label_column]).encode())
    shards = [_members(file, image_column, label_column) for file in files]
    for file, found in zip(files, shards, strict=True):
        digest.update(f"{Path(file).name}\0{len(found.names)}\n".encode())
        for member, size in zip(found.names, found.sizes, strict=True):
            digest.update(f"{member}\0{size}\n".encode())
    names = [
        f"{file}, {member}"
        for file, found in zip(files, shards, strict=True)
        for member in found.names
    ]
    source = files[0] if len(files) == 1 else str(Path(files[0]).parent)
    if not names:
        raise ValueError(
            f"{source} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}). Give tar files in "
            "the layout of webdataset: 000017.jpg, 000017.cls, ..."
        )
    texts = [text for found in shards for text in found.labels]
    classes: tuple[list[int] | None, list[str] | None] = (None, None)
    column = label_column or "cls"
    if label_column is not None or any(text is not None for text in texts):
        if None in texts:
            raise ValueError(
                f"{names[texts.index(None)]} has no class: its sample has no file .{column}. "
                "Give every sample one, or name another (label_column)."
            )
        classes = read_labels(_as_numbers(texts), None, column, source)
        digest.update(json.dumps(classes).encode())
    ends = np.cumsum([len(found.names) for found in shards])
    offsets = np.concatenate([np.asarray(found.offsets, dtype=np.int64) for found in shards])
    sizes = np.concatenate([np.asarray(found.sizes, dtype=np.int64) for found in shards])

    def read(index: int) -> io.BytesIO:
        file = files[int(np.searchsorted(ends, index, side="right"))]
        with _open(file) as handle:
            handle.seek(offsets[index])
            content = handle.read(int(sizes[index]))
        if len(content) < sizes[index]:
            raise ValueError(f"{file} was cut short while it was in use. Copy it again.")
        return io.BytesIO(content)

    return Shards(names, read, digest.hexdigest(), *classes)


def _as_numbers(texts: Sequence[Any]) -> list[Any]:
    """Texts as whole numbers, if all of them are."""
    with suppress(ValueError):
        return [int(text) for text in texts]
    return list(texts)


def _members(file: str, image_column: str, label_column: str | None) -> _Members:
    """The samples of a tar file, from the index of an earlier call if the file is the same."""
    if file.lower().endswith(PACKED_SUFFIXES):
        raise ValueError(
            f"{file} is packed, so that its images cannot be read one by one. Unpack it to a plain "
            ".tar file (gzip -d, xz -d, ...)."
        )
    key = json.dumps(["tar-index-1", _stamp(file), image_column, label_column])
    index = Path(constants.HF_HOME, "var-hf", hashlib.sha256(key.encode()).hexdigest() + ".json")
    with suppress(OSError, ValueError, TypeError):
        return _Members(**json.loads(index.read_text("utf-8")))
    found = _scan(file, image_column, label_column)
    with suppress(OSError), new_path(index, replace=True, durable=False) as temporary:
        temporary.write_text(json.dumps(vars(found)), "utf-8")
    return found


def _scan(file: str, image_column: str, label_column: str | None) -> _Members:
    found = _Members()
    with _open(file) as handle:
        for key, sample in _samples(file, handle):
            member = sample[_image_of(f"{file}, {key}", sample, image_column)]
            found.names.append(member.name)
            found.offsets.append(member.offset_data)
            found.sizes.append(member.size)
            text = sample.get(label_column or "cls")
            found.labels.append(None if text is None else _label(file, handle, text))
    return found


def _samples(file: str, handle: IO[bytes]) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Key and members by extension of each sample: neighbours that share the part before a dot."""
    size = _size(handle)
    key, sample = "", dict[str, tarfile.TarInfo]()
    try:
        with tarfile.open(fileobj=handle, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined] # else all are kept
                folder, _, name = member.name.rpartition("/")
                stem, dot, extension = name.partition(".")
                if member.isdir() or not stem or not dot or stem.startswith("__"):
                    continue
                if not member.isreg() or member.issparse():
                    raise ValueError(
                        f"{file}, {printable(member.name)} is a link or no plain file. Pack the "
                        "files themselves."
                    )
                if (sample_key := f"{folder}/{stem}") != key:
                    if sample:
                        yield key, sample
                    key, sample = sample_key, {}
                if extension.lower() in sample:
                    raise ValueError(
                        f"{file} holds two files {printable(member.name)} in one sample. Pack it "
                        "again."
                    )
                sample[extension.lower()] = member
            end = tar.offset
    except tarfile.TarError as error:
        raise _truncated(file, str(error)) from error
    if sample:
        yield key, sample
    handle.seek(end)
    if end + _BLOCK > size or any(handle.read(_BLOCK)):
        raise _truncated(file, "the mark at its end is missing")


def _truncated(file: str, reason: str) -> ValueError:
    return ValueError(
        f"{printable(file)} is truncated or no tar file: {printable(reason)}. Copy it again."
    )


def _image_of(name: str, sample: dict[str, tarfile.TarInfo], column: str) -> str:
    """The extension of a sample's image."""
    if column in sample:
        return column
    found = [ext for ext in sample if f".{ext.rpartition('.')[2]}" in IMAGE_SUFFIXES]
    if column == DEFAULT_IMAGE_COLUMN and len(found) == 1:
        return found[0]
    fault = f"has no file .{column}"
    if column == DEFAULT_IMAGE_COLUMN:
        fault = "has several images" if found else "has no image"
    raise ValueError(
        f"{printable(name)} {fault}; its files are {printable(', '.join(sorted(sample)))}. Pass "
        "the extension of the images (image_column)."
    )


def _label(file: str, handle: IO[bytes], member: tarfile.TarInfo) -> str:
    handle.seek(member.offset_data)
    content = handle.read(min(member.size, _MOST_LABEL_BYTES + 1))
    try:
        text = content.decode("utf-8").strip()
    except UnicodeDecodeError:
        text = ""
    if not text or len(content) > _MOST_LABEL_BYTES:
        raise ValueError(
            f"{file}, {printable(member.name)} holds no class: expected is a short text with its "
            "id or name."
        )
    return text


# Classes


def read_labels(
    values: Sequence[Any], feature: Any, column: str, source: str
) -> tuple[list[int], list[str]]:
    """Class ids and names of the values of a column.

    Args:
        values: Ids that count from 0, or names.
        feature: The column's type in the datasets library; one with `names` gives the class names.
        column, source: Their names in messages.

    Raises:
        ValueError: The values are neither, or some are missing.
    """
    if not values:
        raise ValueError(f"{source} has no rows.")
    if hasattr(feature, "names"):  # a ClassLabel
        if any(value is None or not 0 <= value < len(feature.names) for value in values):
            raise ValueError(
                f"{source}, column {column!r}: some rows have no class. Filter them out."
            )
        return list(values), list(feature.names)
    if any(value is None for value in values):
        raise ValueError(f"{source}, column {column!r}: some rows have no class. Filter them out.")
    if all(isinstance(value, str) for value in values):
        class_names = sorted(set(values))
        class_ids = {name: class_id for class_id, name in enumerate(class_names)}
        return [class_ids[value] for value in values], class_names
    if all(isinstance(value, int) for value in values) and min(values) >= 0:
        if max(values) >= SIZE.high:
            raise ValueError(
                f"{source}, column {column!r} holds the class id {max(values)}. Ids count from 0 "
                f"and are below {SIZE.high}. Renumber the classes."
            )
        return list(values), [str(class_id) for class_id in range(max(values) + 1)]
    raise ValueError(
        f"{source}, column {column!r} holds neither class names nor ids counting from 0. "
        "Pass another column (label_column)."
    )
