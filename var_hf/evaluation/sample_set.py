"""A sample set on disk: shards that are complete or absent, and a manifest once all are there.

    samples/
        config.json                    settings of the set; written first
        images/000000-0207-0012.png    format png: position in the set, class id, index in the class
        shard-00000.tar                format tar: 000000.png, 000000.cls, 000000.json, ...
        samples.npz                    format npz: arr_0 uint8 (N, P, P, 3), arr_1 class ids (N,)
        manifest.json                  digests and settings; written last
        .work/                         until then: records of finished shards, unfinished data

All formats hold the images in the same shuffled order.
"""

import hashlib
import io
import json
import logging
import os
import shutil
import tarfile
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock
from PIL import Image

from var_hf.evaluation.sample_plan import SamplePlan
from var_hf.files import (
    CONFIG_NAME,
    claim_folder,
    new_folder,
    new_path,
    read_json,
    sync,
    write_json,
    write_text,
    writing_errors,
)
from var_hf.image_files import open_image
from var_hf.provenance import sha256
from var_hf.text import printable

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
NPZ_NAME = "samples.npz"
WORK_NAME = ".work"
VERSION = 1
_CHUNK = 2**20


class UnfinishedSamplesError(ValueError):
    """A sample set lacks shards or its manifest."""


class DamagedSamplesError(OSError):
    """A sample set was changed after it was written."""


@dataclass(frozen=True)
class EncodedImage:
    """An encoded image of the set, and the SHA-256 of its raw pixels."""

    content: bytes
    pixels_sha256: bytes


def encode(pixels: np.ndarray, sample_format: str) -> EncodedImage:
    """Encode an image ``(P, P, 3)`` uint8 as PNG, or as raw pixels for the format npz."""
    raw = np.ascontiguousarray(pixels).tobytes()
    digest = hashlib.sha256(raw).digest()
    if sample_format == "npz":
        return EncodedImage(raw, digest)
    file = io.BytesIO()
    # PNG is lossless at every level; level 1 is as fast as a fast accelerator.
    Image.fromarray(pixels).save(file, format="png", compress_level=1)
    return EncodedImage(file.getvalue(), digest)


class SampleSet:
    """The folder of a sample set.

    Args:
        folder: Its path.
        config: The configuration that `claim` wrote.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], lock: FileLock | None = None):
        self.folder = folder
        self._lock = lock
        self.config = dict(config)
        self.plan = SamplePlan(**config["plan"])
        self.image_size: int = config["image_size"]
        self._work = folder / WORK_NAME

    # Making

    @classmethod
    def claim(
        cls,
        folder: str | Path,
        config: Mapping[str, Any],
        free: Collection[str] = (),
        writer: int = 0,
    ) -> "SampleSet":
        """Start a set with this configuration in a folder, or continue the set in it.

        All processes may call this, and they write the same bytes. Until `close`, no other process
        can be the same writer. A finished set has no writers.

        Args:
            folder: The folder. It is created if it does not exist.
            config: The configuration as JSON values, with ``plan`` and ``image_size``.
            free: Names in `config` that do not change the images.
            writer: Index of this process among the processes that generate the set.

        Raises:
            ValueError: The folder holds another set or other files.
            FolderInUseError: Another process generates the same share.
        """
        folder = Path(folder)
        is_finished = (folder / MANIFEST_NAME).exists()
        stored, lock = claim_folder(
            folder,
            {"version": VERSION, **config},
            kind="sample set",
            free=free,
            own=[WORK_NAME],
            lock=None if is_finished else f"{WORK_NAME}/writer-{writer}",
        )
        if not is_finished:
            (folder / WORK_NAME).mkdir(exist_ok=True)
        return cls(folder, stored, lock)

    def close(self) -> None:
        """Release the lock of this writer."""
        if self._lock is not None:
            self._lock.release()

    def has(self, shard: int) -> bool:
        """Check whether a shard is finished and its files have their recorded sizes."""
        record = self._read_record(shard)
        if record is None:
            return False
        sizes = [file.stat().st_size if file.exists() else 0 for file in self._files(shard)]
        if sum(sizes) == record["bytes"]:
            return True
        logger.warning(
            "%s: shard %d is not as it was written; drawing it again", self.folder, shard
        )
        return False

    def write(self, shard: int, images: Iterable[EncodedImage]) -> None:
        """Write a shard that appears complete or not at all.

        Args:
            shard: Its number.
            images: The encoded images of the shard, in order.

        Raises:
            OSError: Writing failed, on a full disk for instance; finished shards stay valid.
        """
        (self._work / "records").mkdir(parents=True, exist_ok=True)
        pixels, written = hashlib.sha256(), hashlib.sha256()
        contents = _digesting(images, pixels)
        size = _WRITERS[self.plan.format](self, shard, contents, written)
        record = {
            "shard": shard,
            "images": len(self.plan.positions(shard)),
            "bytes": size,
            "sha256": written.hexdigest(),
            "pixels_sha256": pixels.hexdigest(),
        }
        write_text(self._record_file(shard), json.dumps(record))

    def _write_pngs(self, shard: int, images: Iterator[bytes], digest: "hashlib._Hash") -> int:
        files, size = self._files(shard), 0
        with new_folder(self._work / f"images-{shard:05d}") as folder:
            for file, image in zip(files, images, strict=True):
                (folder / file.name).write_bytes(image)
                digest.update(image)
                size += len(image)
        # All of them are on the disk; the record of the shard follows when all are named.
        target = self.folder / "images"
        with writing_errors(target):
            target.mkdir(exist_ok=True)
            for file in files:
                os.replace(self._work / f"images-{shard:05d}" / file.name, file)
            (self._work / f"images-{shard:05d}").rmdir()
            sync(target, recursive=False)
        return size

    def _write_tar(self, shard: int, images: Iterator[bytes], digest: "hashlib._Hash") -> int:
        (file,) = self._files(shard)
        with _whole_file(file) as handle:
            hashing = _HashingWriter(handle, digest)
            with tarfile.open(fileobj=hashing, mode="w|", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
                for position, image in zip(self.plan.positions(shard), images, strict=True):
                    class_id, index = self.plan.image(position)
                    about = {
                        "class_id": class_id,
                        "index": index,
                        "seed": self.plan.seed_of(position),
                    }
                    for suffix, content in (
                        ("png", image),
                        ("cls", str(class_id).encode()),
                        ("json", json.dumps(about).encode()),
                    ):
                        # Without time and owner: the same images, the same bytes.
                        member = tarfile.TarInfo(f"{position:06d}.{suffix}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
        return hashing.size

    def _write_part(self, shard: int, images: Iterator[bytes], digest: "hashlib._Hash") -> int:
        (file,) = self._files(shard)
        with _whole_file(file) as handle:
            hashing = _HashingWriter(handle, digest)
            for image in images:
                hashing.write(image)
        return hashing.size

    def finish(self) -> dict[str, Any]:
        """Write the manifest, and the one file of the format npz, once every shard is there.

        Raises:
            UnfinishedSamplesError: A shard is missing.
            DamagedSamplesError: A part of the one file is damaged; it is removed, to be drawn
                again.
            OSError: Writing failed.
        """
        self._check_no_shard_is_missing()
        records = [self._read_record(shard) for shard in range(self.plan.num_shards)]
        manifest = {**self.config, "num_images": len(self.plan), "shards": records}
        if self.plan.format == "npz":
            file = self.folder / NPZ_NAME
            self._assemble(file)
            manifest["file"] = {
                "name": NPZ_NAME,
                "bytes": file.stat().st_size,
                "sha256": sha256(file),
            }
        manifest["sha256"] = _digest_of_set(manifest)
        write_json(self.folder / MANIFEST_NAME, manifest)
        self.tidy()
        return manifest

    def tidy(self) -> None:
        """Remove what a finished set no longer needs; any process may do it."""
        if self.is_finished:
            shutil.rmtree(self._work, ignore_errors=True)
            for leftover in self.folder.glob(".*.partial"):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)

    @property
    def is_finished(self) -> bool:
        """Whether the manifest is there."""
        return (self.folder / MANIFEST_NAME).exists()

    def _assemble(self, file: Path) -> None:
        """Join the parts to one npz without ever holding more than a piece of it."""
        shape = (len(self.plan), self.image_size, self.image_size, 3)
        labels = np.array([self.plan.image(n)[0] for n in range(len(self.plan))], dtype=np.int64)
        with (
            _whole_file(file) as handle,
            zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as archive,
        ):
            # ZipInfo has a constant date by default, so equal images give equal files.
            with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as array:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(array, header)
                for shard in range(self.plan.num_shards):
                    self._copy_part(shard, array)
            with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as array:
                np.lib.format.write_array(array, labels, allow_pickle=False)

    def _copy_part(self, shard: int, target: IO[bytes]) -> None:
        (part,) = self._files(shard)
        record, digest = self._read_record(shard), hashlib.sha256()
        with part.open("rb") as source:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                target.write(chunk)
        if record is None or digest.hexdigest() != record["sha256"]:
            part.unlink()
            self._record_file(shard).unlink(missing_ok=True)
            raise DamagedSamplesError(
                f"{part} is damaged and was removed. Start the same command again to draw its"
                " images anew."
            )

    # Reading

    @classmethod
    def open(cls, folder: str | Path) -> "SampleSet":
        """Open a finished set.

        Raises:
            UnfinishedSamplesError: The set is not finished.
            ValueError: The folder holds no sample set, or one of another version.
            DamagedSamplesError: Its manifest cannot be read, or was changed.
        """
        folder = Path(folder)
        if not (folder / CONFIG_NAME).exists():
            raise ValueError(f"{folder} holds no sample set ({CONFIG_NAME} is missing).")
        config = _read_json(folder / CONFIG_NAME)
        if config.get("version") != VERSION:
            raise ValueError(
                f"{folder} has version {config.get('version')!r} of sample sets; this program reads"
                f" {VERSION}."
            )
        try:
            samples = cls(folder, config)
        except (KeyError, TypeError) as error:
            raise DamagedSamplesError(f"{folder / CONFIG_NAME} is damaged: {error}.") from error
        if not samples.is_finished:
            samples._check_no_shard_is_missing()
            raise UnfinishedSamplesError(
                f"{folder} is unfinished: {MANIFEST_NAME} is missing. Start the command that draws"
                " it again."
            )
        manifest = samples.manifest
        if manifest.get("sha256") != _digest_of_set(manifest):
            raise DamagedSamplesError(f"{folder / MANIFEST_NAME} was changed after it was written.")
        return samples

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the finished set."""
        return _read_json(self.folder / MANIFEST_NAME)

    def check(self) -> None:
        """Verify every digest.

        Raises:
            DamagedSamplesError: A file is missing, truncated or changed. The message names it.
        """
        manifest = self.manifest
        if "file" in manifest:
            self._check_file(self.folder / manifest["file"]["name"], manifest["file"])
            return
        for record in manifest["shards"]:
            files = self._files(record["shard"])
            if len(files) == 1 and self.plan.format == "tar":
                self._check_file(files[0], record)
                continue
            digest = hashlib.sha256()
            for file in files:
                try:
                    digest.update(file.read_bytes())
                except FileNotFoundError:
                    raise DamagedSamplesError(f"{file} is missing. {_DRAW_AGAIN}") from None
            if digest.hexdigest() != record["sha256"]:
                raise DamagedSamplesError(
                    f"One of the images {files[0].name} to {files[-1].name} in {files[0].parent} is"
                    f" not as it was written. {_DRAW_AGAIN}"
                )

    def _check_file(self, file: Path, record: Mapping[str, Any]) -> None:
        if not file.exists():
            raise DamagedSamplesError(f"{file} is missing. {_DRAW_AGAIN}")
        if (size := file.stat().st_size) != record["bytes"]:
            raise DamagedSamplesError(
                f"{file} has {size} bytes, {record['bytes']} were written. {_DRAW_AGAIN}"
            )
        if sha256(file) != record["sha256"]:
            raise DamagedSamplesError(f"{file} is not as it was written. {_DRAW_AGAIN}")

    def images(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yield images ``(P, P, 3)`` uint8 with class ids, in order; not for the format npz."""
        for shard in range(self.plan.num_shards):
            files = self._files(shard)
            if self.plan.format == "png":
                for file, position in zip(files, self.plan.positions(shard), strict=True):
                    yield np.asarray(open_image(file)), self.plan.image(position)[0]
                continue
            try:
                with tarfile.open(
                    files[0], "r:"
                ) as tar:  # compressed ones could unpack to anything
                    for member in tar:
                        stem, _, suffix = member.name.partition(".")
                        if suffix == "png" and (content := tar.extractfile(member)) is not None:
                            yield np.asarray(open_image(content)), self.plan.image(int(stem))[0]
            except (tarfile.TarError, LookupError, EOFError, ValueError) as error:
                raise DamagedSamplesError(
                    f"{files[0]} is damaged: {printable(error)}. {_DRAW_AGAIN}"
                ) from error

    # Inside

    def _files(self, shard: int) -> list[Path]:
        """Return the files with the images of a shard."""
        if self.plan.format == "tar":
            return [self.folder / f"shard-{shard:05d}.tar"]
        if self.plan.format == "npz":
            return [self._work / f"part-{shard:05d}.bin"]
        return [
            self.folder / "images" / "{:06d}-{:04d}-{:04d}.png".format(n, *self.plan.image(n))
            for n in self.plan.positions(shard)
        ]

    def _record_file(self, shard: int) -> Path:
        return self._work / "records" / f"shard-{shard:05d}.json"

    def _read_record(self, shard: int) -> dict[str, Any] | None:
        file = self._record_file(shard)
        return _read_json(file) if file.exists() else None

    def count_finished(self) -> int:
        """Count the images in finished shards."""
        numbers = (int(file.stem[-5:]) for file in self._work.glob("records/shard-*.json"))
        return sum(len(self.plan.positions(shard)) for shard in numbers)

    def _check_no_shard_is_missing(self) -> None:
        missing = [
            shard for shard in range(self.plan.num_shards) if not self._record_file(shard).exists()
        ]
        if missing:
            raise UnfinishedSamplesError(
                f"{self.folder} is unfinished: {len(missing)} of {self.plan.num_shards} shards are"
                f" missing, the first is number {missing[0]}. Start the command that draws it"
                " again."
            )


_DRAW_AGAIN = "Draw the set again, into another folder."
_WRITERS = {
    "png": SampleSet._write_pngs,
    "tar": SampleSet._write_tar,
    "npz": SampleSet._write_part,
}


def _digesting(images: Iterable[EncodedImage], digest: "hashlib._Hash") -> Iterator[bytes]:
    """Yield the contents of images, and update a digest with those of their pixels."""
    for image in images:
        digest.update(image.pixels_sha256)
        yield image.content


class _HashingWriter:
    """Forwards bytes to a file, and computes their digest and size."""

    def __init__(self, target: IO[bytes], digest: "hashlib._Hash"):
        self.target, self.digest, self.size = target, digest, 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.target.write(data)


@contextmanager
def _whole_file(file: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears complete or not at all, and replaces an existing one."""
    with new_path(file, replace=True) as temporary, temporary.open("wb") as handle:
        yield handle


def _digest_of_set(manifest: Mapping[str, Any]) -> str:
    """Compute the SHA-256 of all other entries of a manifest."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return read_json(file)
    except ValueError as error:
        raise DamagedSamplesError(str(error)) from error
