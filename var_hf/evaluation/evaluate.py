"""FID, sFID, Inception Score, precision and recall of a set of images against a reference."""

import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from var_hf.evaluation.features import FeatureExtractor, Features
from var_hf.evaluation.image_sources import STATISTICS, ImageSource, StatisticsFile
from var_hf.evaluation.metrics import (
    NUM_NEIGHBOURS,
    SCORE_BLOCK,
    Coverage,
    Moments,
    MomentsBuilder,
    coverage,
    frechet_distance,
    inception_score,
)
from var_hf.files import new_path
from var_hf.processes import companions, gather_to_first

logger = logging.getLogger(__name__)

#: Images in the published protocol. FID falls with the number of images, so other numbers of images
#: give no comparable FID.
PROTOCOL_IMAGES = 50_000
SHOWN_CLASSES = 40  # in a report
SHOWN_PER_CLASS = 8
SHOWN_WITHOUT_CLASSES = 100


@dataclass
class MeasuredSet:
    """Features and statistics of a set of images.

    Attributes:
        moments: Mean and covariance by kind of features, ``"pooled"`` and ``"spatial"``.
        pooled: Features ``(N, D)``, float32.
        probabilities: Probabilities of the extractor's classes ``(N, C)``, float32.
        digests: SHA-256 of the pixels of each image.
        shown: Some images ``(P, P, 3)`` by class id; -1 if the set has no classes.
    """

    moments: dict[str, Moments]
    pooled: Tensor
    probabilities: Tensor
    digests: list[bytes]
    shown: dict[int, list[np.ndarray]]

    @property
    def by_content(self) -> np.ndarray:
        """Order of the images that depends only on their pixels, ``(N,)``."""
        return np.argsort(np.array(self.digests, dtype="S32"), kind="stable")


@dataclass(frozen=True)
class Reference:
    """The reference set or statistics for samples.

    Attributes:
        about: Description for results.
        moments: Moments by kind of features; ``"spatial"`` may be missing.
        measured: Features of its images, if it has images.
        labels: Class id of each image.
        class_names: Name of each class id.
        image_size: Side of the images in pixels, if it has images.
    """

    about: dict[str, Any]
    moments: dict[str, Moments]
    measured: MeasuredSet | None
    labels: np.ndarray | None = None
    class_names: Sequence[str] | None = None
    image_size: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate_samples`.

    Attributes:
        result: The metrics and a description of their inputs, as JSON values.
        samples: Features of the samples.
        coverage: Mutual coverage of samples and reference, if the reference has images.
        warnings: Warnings that limit the meaning of the numbers.
    """

    result: dict[str, Any]
    samples: MeasuredSet
    coverage: Coverage | None
    warnings: list[str] = field(default_factory=list)


def measure(
    source: ImageSource, extractor: FeatureExtractor, batch_size: int = 64, divided: bool = False
) -> MeasuredSet:
    """Check all files of a set, then extract its features.

    Args:
        source: The images.
        extractor: The feature extractor.
        batch_size: Images per batch.
        divided: This is the first of several processes, and the others call `help_to_measure` for
            the same images.

    Raises:
        ValueError: There is only one image, or images differ in size.
        OSError: A file is damaged.
    """
    if source.count < 2:
        raise ValueError(
            f"{source.name} holds {source.count} image; a covariance needs at least two."
        )
    source.check()
    builders = {kind: MomentsBuilder() for kind in STATISTICS}
    pooled, probabilities = [], []
    digests: list[bytes] = []
    shown: dict[int, list[np.ndarray]] = {}
    with tqdm(total=source.count, unit="image", desc=f"read {Path(source.name).name}") as bar:
        for pixels, features in _features(source, extractor, batch_size, divided):
            builders["pooled"].add(features.pooled)
            builders["spatial"].add(features.spatial)
            pooled.append(features.pooled.cpu())
            probabilities.append(features.probabilities.float().cpu())
            for image in pixels.permute(0, 2, 3, 1).contiguous().numpy():
                _show(shown, source.labels, len(digests), image)
                digests.append(hashlib.sha256(image).digest())
            bar.update(len(pixels))
    if len(digests) != source.count:
        raise OSError(f"{source.name} holds {len(digests)} images, {source.count} were expected.")
    return MeasuredSet(
        moments={kind: builder.finish() for kind, builder in builders.items()},
        pooled=torch.cat(pooled),
        probabilities=torch.cat(probabilities),
        digests=digests,
        shown=shown,
    )


def help_to_measure(source: ImageSource, extractor: FeatureExtractor, batch_size: int = 64) -> None:
    """Extract this process's share of the features that `measure` extracts in the first one.

    Raises:
        OSError: A file cannot be read.
    """
    for _ in _features(source, extractor, batch_size, divided=True):
        pass


def _features(
    source: ImageSource, extractor: FeatureExtractor, batch_size: int, divided: bool
) -> Iterator[tuple[Tensor, Features]]:
    """Batches of images and their features in order; process i extracts every i-th batch.

    Batches are those of a single process, so that the features are the same. Only the first process
    gets any.
    """
    others = companions()
    index, count = (others.index, others.count) if divided else (0, 1)
    batches = source.batches(batch_size)
    while turn := list(itertools.islice(batches, count)):
        own = extractor(turn[index]) if index < len(turn) else None
        if count == 1:
            yield turn[0], cast(Features, own)
            continue
        found = gather_to_first(None if own is None else [part.cpu() for part in astuple(own)])
        for pixels, parts in zip(turn, found[: len(turn)], strict=False):  # nothing in the others
            yield pixels, Features(*(part.to(extractor.device) for part in parts))


def _show(
    shown: dict[int, list[np.ndarray]], labels: np.ndarray | None, number: int, image: np.ndarray
) -> None:
    class_id = -1 if labels is None else int(labels[number])
    most = SHOWN_WITHOUT_CLASSES if labels is None else SHOWN_PER_CLASS
    if class_id < SHOWN_CLASSES and len(images := shown.setdefault(class_id, [])) < most:
        images.append(image)


def prepare_reference(
    source: ImageSource | StatisticsFile,
    extractor: FeatureExtractor,
    batch_size: int = 64,
    divided: bool = False,
) -> Reference:
    """Prepare a reference for comparison with samples.

    Stored statistics are used unchanged, as in ADM's evaluator. Images in the same file are used
    for precision and recall. `divided` as in `measure`.

    Raises:
        ValueError: The statistics were computed with another extractor.
    """
    if isinstance(source, ImageSource):
        measured = measure(source, extractor, batch_size, divided)
        return Reference(
            about=source.describe(),
            moments=measured.moments,
            measured=measured,
            labels=source.labels,
            class_names=source.class_names,
            image_size=source.image_size,
        )
    if source.extractor is not None and source.extractor[1] != extractor.sha256:
        raise ValueError(
            f"The statistics {source.name} were made with {source.extractor[0]} "
            f"({source.extractor[1][:12]}...), and "
            f"the samples are looked at with {extractor.name} ({extractor.sha256[:12]}...). Use "
            f"the same one."
        )
    images = source.images
    return Reference(
        about=source.describe(),
        moments=source.moments,
        measured=None if images is None else measure(images, extractor, batch_size, divided),
        labels=None if images is None else images.labels,
        image_size=source.image_size,
    )


def write_statistics(file: str | Path, reference: Reference, extractor: FeatureExtractor) -> None:
    """Write mean and covariance of a reference to a statistics file with ADM's array names.

    Raises:
        OSError: Writing failed.
    """
    arrays: dict[str, Any] = {"extractor": np.array([extractor.name, extractor.sha256])}
    for kind, found in reference.moments.items():
        mean, covariance = STATISTICS[kind]
        arrays[mean], arrays[covariance] = found.mean, found.covariance
    with new_path(file, replace=True) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **arrays)


def check_count(count: int, min_images: int, name: str) -> None:
    """Raise a ``ValueError`` if there are fewer than `min_images` images."""
    if count < min_images:
        raise ValueError(
            f"{name} holds {count} images, and published numbers are of {PROTOCOL_IMAGES}: FID "
            "falls as images are added, so the result is comparable only with sets of "
            f"{count} images. To measure it anyway, pass --min-images {count}."
        )


def check_size(image_size: int, reference_size: int | None, name: str, reference: str) -> None:
    """Raise a ``ValueError`` if samples and reference differ in size.

    `reference_size` is ``None`` for a reference without images.
    """
    if reference_size not in (None, image_size):
        raise ValueError(
            f"{name} has images of {image_size} pixels a side and the reference {reference} of "
            f"{reference_size}. Their sharpness alone would differ. Pass a reference of the same "
            "size."
        )


def evaluate_samples(
    source: ImageSource,
    reference: Reference,
    extractor: FeatureExtractor,
    *,
    min_images: int = PROTOCOL_IMAGES,
    batch_size: int = 64,
    divided: bool = False,
) -> Evaluation:
    """Measure a set of images.

    Args:
        source: The images.
        reference: Result of `prepare_reference` with the same extractor.
        extractor: The feature extractor.
        min_images: Smallest allowed number of images.
        batch_size: Images per batch.
        divided: As in `measure`.

    Returns:
        An evaluation whose `result` contains ``fid`` and ``sfid`` (0 is best; no unit),
        ``inception_score`` (at most the number of classes, independent of the order of the file),
        ``precision`` and ``recall`` in [0, 1], ``per_class``, ``warnings``, and descriptions of
        samples and reference. Values that cannot be computed are ``None``.

    Raises:
        ValueError: There are too few images, or samples and reference differ in size or extractor.
        OSError: A file is damaged.
    """
    check_count(source.count, min_images, source.name)
    check_size(source.image_size, reference.image_size, source.name, reference.about["name"])
    samples = measure(source, extractor, batch_size, divided)
    in_order = samples.probabilities[samples.by_content]
    covered = (
        None
        if reference.measured is None
        else coverage(
            samples.pooled.to(extractor.device), reference.measured.pooled.to(extractor.device)
        )
    )
    result: dict[str, Any] = {
        "fid": _distance(samples, reference, "pooled"),
        "sfid": _distance(samples, reference, "spatial"),
        "inception_score": inception_score(in_order),
        "inception_score_in_file_order": inception_score(samples.probabilities),
        "precision": None if covered is None else covered.precision,
        "recall": None if covered is None else covered.recall,
        "images": source.count,
        "samples": source.describe(),
        "reference": reference.about,
        "features": extractor.describe(),
        "definitions": {
            "inception_score_block": SCORE_BLOCK,
            "manifold_neighbours": NUM_NEIGHBOURS,
        },
        "per_class": _per_class(source, samples, reference, covered, extractor),
    }
    warnings = _warnings(source, samples, reference, result)
    result["warnings"] = warnings
    for warning in warnings:
        logger.warning("%s", warning)
    return Evaluation(result, samples, covered, warnings)


def _distance(samples: MeasuredSet, reference: Reference, kind: str) -> float | None:
    if kind not in reference.moments:
        return None
    try:
        return frechet_distance(samples.moments[kind], reference.moments[kind])
    except ValueError as error:
        raise ValueError(f"{reference.about['name']}: {error}") from error


def is_sorted_by_class(classes: np.ndarray) -> bool:
    """Check whether adjacent images share a class much more often than in a shuffled set."""
    if len(classes) < 3:
        return False
    _, counts = np.unique(classes, return_counts=True)
    expected = float(((counts / len(classes)) ** 2).sum())
    found = float((classes[1:] == classes[:-1]).mean())
    return found - expected > 0.5 * (1 - expected)


def _warnings(
    source: ImageSource, samples: MeasuredSet, reference: Reference, result: dict[str, Any]
) -> list[str]:
    warnings = []
    classes = source.labels
    if classes is None:
        classes = samples.probabilities.argmax(dim=1).numpy()
    if source.count > SCORE_BLOCK and is_sorted_by_class(classes):
        warnings.append(
            f"The images are sorted by class. Evaluators that compute the Inception Score in "
            f"blocks of {SCORE_BLOCK} in "
            f"the order of the file, the one of ADM among them, report "
            f"{result['inception_score_in_file_order']:.2f} for them and not "
            f"{result['inception_score']:.2f}."
        )
    copies = source.count - len(set(samples.digests))
    if copies:
        warnings.append(f"{copies} of {source.count} images are copies of others, pixel by pixel.")
    if source.count <= samples.pooled.shape[1]:
        warnings.append(
            f"There are {source.count} images for {samples.pooled.shape[1]} features: FID mostly "
            f"measures how few."
        )
    if source.count < PROTOCOL_IMAGES:
        warnings.append(
            f"FID of {source.count} images is larger than that of {PROTOCOL_IMAGES}; compare it "
            f"with sets of the same "
            "size only."
        )
    if reference.measured is None:
        warnings.append("The reference holds no images: there is no precision and no recall.")
    return warnings


def _per_class(
    source: ImageSource,
    samples: MeasuredSet,
    reference: Reference,
    covered: Coverage | None,
    extractor: FeatureExtractor,
) -> list[dict[str, Any]] | None:
    """Compute the results per class; ``None`` if the samples have no classes."""
    if source.labels is None:
        return None
    num_classes = int(source.labels.max()) + 1
    names = source.class_names or [f"class {i}" for i in range(num_classes)]
    reference_ids = _reference_ids(names, reference)
    known = {name: i for i, name in enumerate(extractor.class_names or ())}
    guesses = samples.probabilities.argmax(dim=1).numpy()
    rows = []
    for class_id in np.unique(source.labels).tolist():
        mine = np.flatnonzero(source.labels == class_id)
        row: dict[str, Any] = {
            "class_id": class_id,
            "class_name": names[class_id],
            "images": len(mine),
            "recognised": None,
            "precision": None,
            "recall": None,
            "mean_distance": None,
            "spread": _spread(samples.pooled[mine]),
            "reference_spread": None,
        }
        if names[class_id] in known:
            row["recognised"] = float((guesses[mine] == known[names[class_id]]).mean())
        if covered is not None:
            row["precision"] = float(covered.in_reference.cpu()[mine].double().mean())
        theirs = reference_ids.get(class_id)
        if theirs is not None and len(theirs) and reference.measured and covered is not None:
            features = reference.measured.pooled[theirs]
            shift = samples.pooled[mine].double().mean(dim=0) - features.double().mean(dim=0)
            row["recall"] = float(covered.in_samples.cpu()[theirs].double().mean())
            row["mean_distance"] = float(shift.norm())
            row["reference_spread"] = _spread(features)
        rows.append(row)
    return rows


def _spread(features: Tensor) -> float | None:
    """Root mean square distance of features from their mean; ``None`` for a single feature."""
    if len(features) < 2:
        return None
    return float(features.double().var(dim=0).sum().sqrt())


def _reference_ids(names: Sequence[str], reference: Reference) -> dict[int, np.ndarray]:
    """Map each class of the samples to the reference's rows, by name, or by id without names."""
    if reference.labels is None:
        return {}
    if reference.class_names is None:
        return {i: np.flatnonzero(reference.labels == i) for i in range(len(names))}
    ids = {name: i for i, name in enumerate(reference.class_names)}
    return {
        i: np.flatnonzero(reference.labels == ids[name])
        for i, name in enumerate(names)
        if name in ids
    }
