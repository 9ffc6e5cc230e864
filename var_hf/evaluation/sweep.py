"""Sweeps of the guidance scale: one sample set per value, all evaluated against one reference.

sweep/
    guidance-1.5/samples/       the sample set
    guidance-1.5/result.json    its metrics
    sweep.json, sweep.png       all metrics
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from var_hf.evaluation.evaluate import (
    PROTOCOL_IMAGES,
    Reference,
    check_count,
    evaluate_samples,
)
from var_hf.evaluation.features import FeatureExtractor
from var_hf.evaluation.image_sources import open_samples
from var_hf.evaluation.report import (
    METRICS,
    RESULT_NAME,
    check_matplotlib,
    new_figure,
    save_figure,
    write_report,
)
from var_hf.evaluation.sample_plan import SamplePlan, Share
from var_hf.evaluation.sampling import sample_images
from var_hf.files import write_json
from var_hf.pipelines.pipeline_var import VARPipeline
from var_hf.sampling_settings import SamplingSettings

logger = logging.getLogger(__name__)

JSON_NAME, PLOT_NAME = "sweep.json", "sweep.png"


def point_folder(folder: str | Path, guidance_scale: float) -> Path:
    """Return the folder of a point of a sweep."""
    return Path(folder) / f"guidance-{guidance_scale:g}"


def sample_sweep(
    pipe: VARPipeline,
    folder: str | Path,
    plan: SamplePlan,
    settings: SamplingSettings,
    guidance_scales: Sequence[float],
    *,
    model: str | None = None,
    share: Share | None = None,
) -> None:
    """Generate the sample sets of a sweep, or their missing images.

    Args:
        pipe: The model.
        folder: Folder of the sweep.
        plan: Plan of each set, with the same classes and seeds for every guidance scale.
        settings: All other settings.
        guidance_scales: The points; 1.0 is off.
        model: Name of the model in manifests.
        share: As in `sample_images`.

    Raises:
        ValueError, OSError: As in `sample_images`.
    """
    for guidance_scale in guidance_scales:
        sample_images(
            pipe, point_folder(folder, guidance_scale) / "samples", plan,
            replace(settings, guidance_scale=guidance_scale), model=model, share=share,
        )  # fmt: skip


def evaluate_sweep(
    folder: str | Path,
    guidance_scales: Sequence[float],
    reference: Reference,
    extractor: FeatureExtractor,
    *,
    min_images: int = PROTOCOL_IMAGES,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Evaluate the sample sets of a sweep and plot the trade-off.

    Existing results for the same samples, reference and extractor are reused.

    Returns:
        The content of ``sweep.json``: the reference, the extractor, and one entry per point.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError, OSError: As in `evaluate_samples`.
    """
    check_matplotlib()
    points = []
    for guidance_scale in guidance_scales:
        point = point_folder(folder, guidance_scale)
        source = open_samples(point / "samples")
        check_count(source.count, min_images, source.name)
        result = _measured_before(point / RESULT_NAME, source.sha256, reference, extractor)
        if result is None:
            evaluation = evaluate_samples(
                source, reference, extractor, min_images=min_images, batch_size=batch_size
            )
            write_report(point, evaluation, reference)
            result = evaluation.result
        points.append(
            {"guidance_scale": guidance_scale, "images": result["images"]}
            | {name: result[name] for name in METRICS}
        )
    sweep = {"reference": reference.about, "features": extractor.describe(), "points": points}
    write_json(Path(folder) / JSON_NAME, sweep)
    plot_sweep(points, Path(folder) / PLOT_NAME)
    return sweep


def _measured_before(
    file: Path, samples_sha256: str, reference: Reference, extractor: FeatureExtractor
) -> dict[str, Any] | None:
    """Return an earlier result for the same samples, reference and extractor, if any."""
    try:
        result = json.loads(file.read_text("utf-8"))
        same = (
            result["samples"]["sha256"] == samples_sha256
            and result["reference"]["sha256"] == reference.about["sha256"]
            and result["features"] == extractor.describe()
        )
    except (OSError, ValueError, KeyError):
        return None
    return result if same else None


def plot_sweep(points: Sequence[dict[str, Any]], file: Path) -> None:
    """Plot FID against Inception Score, and all metrics against the guidance scale."""
    points = sorted(points, key=lambda point: point["guidance_scale"])
    scales = [point["guidance_scale"] for point in points]
    figure = new_figure(14, 4)
    trade_off, distances, covered = figure.subplots(1, 3)
    scores = [point["inception_score"] for point in points]
    fids = [point["fid"] for point in points]
    trade_off.plot(scores, fids, marker="o")
    for scale, score, fid in zip(scales, scores, fids, strict=True):
        trade_off.annotate(f"{scale:g}", (score, fid), textcoords="offset points", xytext=(5, 5))
    trade_off.set(title="by guidance scale", xlabel="Inception Score", ylabel="FID")
    for panel, names in ((distances, ("fid", "sfid")), (covered, ("precision", "recall"))):
        for name in names:
            values = [point[name] for point in points]
            if None not in values:
                panel.plot(scales, values, marker="o", label=METRICS[name][0])
        panel.set_xlabel("guidance scale")
        panel.legend()
    save_figure(figure, file)
