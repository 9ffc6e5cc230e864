"""Reports of an evaluation: a table, plots, and a self-contained HTML page."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from var_hf.evaluation.evaluate import (
    SHOWN_CLASSES,
    SHOWN_PER_CLASS,
    Evaluation,
    MeasuredSet,
    Reference,
)
from var_hf.files import new_path, write_json, write_text
from var_hf.pipelines.visualization import image_grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULT_NAME = "result.json"
REPORT_NAME = "report.html"
#: Name of each metric in tables, and its number of digits.
METRICS = {
    "fid": ("FID", 3),
    "sfid": ("sFID", 3),
    "inception_score": ("Inception Score", 2),
    "precision": ("precision", 4),
    "recall": ("recall", 4),
}
_CLASS_COLUMNS = (
    ("recognised", 3),
    ("precision", 3),
    ("recall", 3),
    ("mean_distance", 2),
    ("spread", 2),
    ("reference_spread", 2),
)


def check_matplotlib(advice: str = "Leave --output out for numbers alone.") -> None:
    """Raise an ``ImportError`` with a remedy if matplotlib is missing, before hours of work.

    Args:
        advice: The last sentence of the error.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"Plots need the library matplotlib: pip install var-hf[evaluation]. {advice}"
        ) from error


def metric_table(result: Mapping[str, Any]) -> list[str]:
    """Format the metrics as aligned lines ``name value``."""
    width = max(len(name) for name, _ in METRICS.values())
    return [f"{name:<{width}}  {value}" for name, value in _metrics(result)]


def _metrics(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, "not measured" if result[key] is None else f"{result[key]:.{digits}f}")
        for key, (name, digits) in METRICS.items()
    ]


def write_report(folder: str | Path, evaluation: Evaluation, reference: Reference) -> Path:
    """Write ``result.json`` and ``report.html`` to a folder; complete files replace earlier ones.

    Returns:
        The HTML file, which loads no other files.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: Writing failed.
    """
    check_matplotlib()
    folder, result = Path(folder), evaluation.result
    write_json(folder / RESULT_NAME, result)
    tiles = [_grid_section(evaluation)]
    tiles += [_section(*plot) for plot in _histograms(evaluation, reference)]
    if (plot := _class_plot(result["per_class"])) is not None:
        tiles.append(_section(*plot))
    file = folder / REPORT_NAME
    page = render(
        "report.html.j2",
        title=f"Evaluation of {Path(result['samples']['name']).name}",
        metrics=_metrics(result),
        warnings=result["warnings"],
        facts=_facts(result),
        images=tiles,
        per_class=_class_rows(result["per_class"]),
    )
    write_text(file, page)
    return file


def render(template: str, **values: Any) -> str:
    """Fill in a template of this folder; values are escaped."""
    from jinja2 import Environment, FunctionLoader

    folder = files("var_hf.evaluation")
    loader = FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8"))
    return Environment(autoescape=True, loader=loader).get_template(template).render(**values)


def save_figure(figure: "Figure", file: Path) -> None:
    """Write a plot as PNG, completely or not at all."""
    with new_path(file, replace=True) as temporary:
        temporary.write_bytes(to_png(figure))


def new_figure(width: float, height: float) -> "Figure":
    """Make an empty figure, sized in inches, without a display or matplotlib's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: "Figure") -> bytes:
    """The bytes of a plot's PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def _section(heading: str, text: str, figure: "Figure") -> tuple[str, str, str]:
    return embedded(heading, text, to_png(figure))


def embedded(heading: str, text: str, png: bytes) -> tuple[str, str, str]:
    """Heading, text and image as a part of a page, which holds the image itself."""
    return heading, text, base64.b64encode(png).decode()


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    samples, reference, features = (result[name] for name in ("samples", "reference", "features"))
    facts = [
        ("samples", f"{samples['name']}, {samples['images']} images, SHA-256 {samples['sha256']}"),
        (
            "reference",
            f"{reference['name']}, {reference['images']} images, SHA-256 {reference['sha256']}",
        ),
        ("features", f"{features['name']}, SHA-256 {features['sha256']}"),
    ]
    if "settings" in samples:
        facts.append(("model", f"{samples['model']}, SHA-256 {samples['model_sha256']}"))
        facts.append(("settings", json.dumps(samples["settings"])))
        facts.append(("plan", json.dumps(samples["plan"])))
    return facts


def _grid_section(evaluation: Evaluation) -> tuple[str, str, str]:
    file = io.BytesIO()
    sample_grid(evaluation.samples).save(file, format="png")
    classes = -1 not in evaluation.samples.shown
    text = (
        f"Up to {SHOWN_PER_CLASS} of each of the first {SHOWN_CLASSES} classes, in the order of "
        f"their numbers."
        if classes
        else "The first of the set."
    )
    return "Samples", text, base64.b64encode(file.getvalue()).decode()


def sample_grid(samples: MeasuredSet) -> Image.Image:
    """Make a grid of the first samples, with two classes per row if the set has classes."""
    shown = [samples.shown[class_id] for class_id in sorted(samples.shown)]
    side = shown[0][0].shape[0]
    white = Image.new("RGB", (side, side), "white")
    if len(shown) == 1:
        return image_grid([Image.fromarray(image) for image in shown[0]], 10)
    columns = max(len(images) for images in shown)
    tiles: list[Image.Image] = []
    for images in shown:
        tiles += [Image.fromarray(image) for image in images]
        tiles += [white] * (columns - len(images))
    return image_grid(tiles, columns * max(1, 2 * SHOWN_PER_CLASS // columns))


def _histograms(evaluation: Evaluation, reference: Reference) -> list[tuple[str, str, "Figure"]]:
    if reference.measured is None or evaluation.coverage is None:
        return []
    covered = evaluation.coverage
    figure = new_figure(9, 3)
    left, right = figure.subplots(1, 2)
    pairs = (
        (left, covered.nearest, covered.reference_nearest),
        (
            right,
            evaluation.samples.probabilities.amax(dim=1),
            reference.measured.probabilities.amax(dim=1),
        ),
    )
    for panel, of_samples, of_reference in pairs:
        values = [array.cpu().double().numpy() for array in (of_samples, of_reference)]
        edges = np.histogram_bin_edges(np.concatenate(values), bins=40)
        for array, name in zip(values, ("samples", "reference"), strict=True):
            panel.hist(
                array, edges, weights=np.full(len(array), 1 / len(array)), alpha=0.6, label=name
            )
        panel.set_ylabel("share of the images")
        panel.legend()
    left.set_xlabel("distance to the nearest image of the reference")
    right.set_xlabel("probability of the likeliest class")
    text = (
        "Left: how far samples lie from the reference, beside how far its images lie from one "
        "another. Samples that are "
        "nearer than these are copies. Right: how sure the extractor is."
    )
    return [("Histograms", text, figure)]


def _class_plot(
    per_class: Sequence[Mapping[str, Any]] | None,
) -> tuple[str, str, "Figure"] | None:
    """Plot bars per class, at most the worst forty."""
    measures = [
        name
        for name in ("recognised", "precision", "recall")
        if per_class and per_class[0][name] is not None
    ]
    if not per_class or not measures:
        return None
    rows = sorted(per_class, key=lambda row: row[measures[0]])[:40]
    figure = new_figure(9, 1 + 2 * len(measures))
    panels = np.atleast_1d(figure.subplots(len(measures), 1, sharex=True))
    for panel, measure in zip(panels, measures, strict=True):
        panel.bar(range(len(rows)), [row[measure] for row in rows])
        panel.set_ylabel(measure)
        panel.set_ylim(0, 1)
    names = [row["class_name"].partition(",")[0] for row in rows]
    panels[-1].set_xticks(range(len(rows)), names, rotation=90)
    return "Classes, the worst first", f"Ordered by {measures[0]}.", figure


def _class_rows(per_class: Sequence[Mapping[str, Any]] | None) -> list[list[str]]:
    return [
        [row["class_name"], str(row["images"])]
        + [
            "" if row[name] is None else f"{row[name]:.{digits}f}"
            for name, digits in _CLASS_COLUMNS
        ]
        for row in per_class or ()
    ]
