"""The report of scaling laws: a page, and the two figures of arXiv 2404.02905, section 5."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from var_hf.evaluation.report import embedded, new_figure, render, to_png
from var_hf.evaluation.scaling_laws import PAPER, TARGETS, PowerLaw
from var_hf.files import new_path, write_json, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESULT_NAME, REPORT_NAME = "scaling.json", "report.html"
PLOT_NAMES = {"parameters": "parameters.png", "compute": "compute.png"}


def write_scaling_report(folder: str | Path, result: Mapping[str, Any]) -> Path:
    """Write ``scaling.json``, the figures and ``report.html``; they replace earlier ones.

    Args:
        folder: Where.
        result: As from `var_hf.training.scaling.summarise`.

    Returns:
        The HTML file, which loads no other files.

    Raises:
        OSError: Writing failed.
    """
    folder = Path(folder)
    write_json(folder / RESULT_NAME, result)
    images = []
    if result["sizes"] and (result["parameters"] is not None or not result["waiting"]):
        plots = {"parameters": parameter_plot(result), "compute": compute_plot(result)}
        texts = {
            "parameters": (
                "Loss and token error rate after training, against the parameters of the layers' "
                "matrices. Dots were fitted; the star was predicted from them and then trained. "
                "Solid: with a floor. Dashed: the paper's form, without one."
            ),
            "compute": (
                "Loss and token error rate during training, one line per size. Red: the points of "
                "the frontier, and the power law through them."
            ),
        }
        headings = {"parameters": "Size", "compute": "Compute"}
        for name, figure in plots.items():
            png = to_png(figure)
            with new_path(folder / PLOT_NAMES[name], replace=True) as temporary:
                temporary.write_bytes(png)
            images.append(embedded(headings[name], texts[name], png))
    file = folder / REPORT_NAME
    page = render(
        "scaling.html.j2",
        title=f"Scaling laws of {folder.name}",
        warnings=result["warnings"],
        summary=summary(result),
        tables=result_tables(result),
        images=images,
    )
    write_text(file, page)
    return file


def summary(result: Mapping[str, Any]) -> str:
    """What was trained and found, in sentences."""
    count = len(result["sizes"])
    if not count:
        return f"No size is trained yet; {len(result['waiting'])} are waiting."
    last = result["sizes"][-1]
    smallest, images = result["sizes"][0]["parameters"], last["curve"]["images"][-1]
    tokens = images * last["tokens_per_image"]
    text = (
        f"{count} sizes of {smallest:,} to {last['parameters']:,} parameters, a factor of "
        f"{last['parameters'] / smallest:,.0f}, each trained on the same {images:,.0f} images "
        f"({tokens:,.0f} tokens)."
    )
    if result["waiting"]:
        text += f" Not trained yet: {', '.join(result['waiting'])}."
    if result["parameters"] is None:
        return f"{text} They are too few to fit laws to."
    of_loss = result["parameters"]["loss"]
    found = of_loss["with_floor"]["correlation"]
    paper_form = of_loss["without_floor"]["correlation"]
    text += (
        " The correlation of log(parameters) and log(loss) over all scales is "
        f"{_number(found)} above the floor, and {_number(paper_form)} without one."
    )
    if found is None or abs(found) < 0.99:
        size, error = _farthest(result, "loss")
        text += f" It is below 0.99: {size} lies {error:+.2%} off the curve, the farthest of all."
    held_out = result["held_out"]
    if held_out is not None:
        prediction = of_loss["with_floor"]["prediction"]
        low, high = prediction["interval"]
        text += (
            f" For {held_out['size']} with {held_out['parameters']:,} parameters, the law predicts "
            f"a loss of {prediction['value']:.4f} (95% interval {low:.4f} to {high:.4f})."
        )
        if held_out["measured"] is not None:
            text += (
                f" Trained afterwards, it has {held_out['measured']['loss']:.4f}: the prediction "
                f"is off by {held_out['relative_errors']['loss']:+.2%}."
            )
    return text


def _farthest(result: Mapping[str, Any], target: str) -> tuple[str, float]:
    """The size that lies farthest from the law with a floor, and its relative distance."""
    law = _law(result["parameters"][target]["with_floor"])
    errors = {
        rung["size"]: rung[target] / float(law(rung["parameters"] / 1e9)) - 1
        for rung in result["sizes"]
    }
    size = max(errors, key=lambda each: abs(errors[each]))
    return size, errors[size]


def _law(described: Mapping[str, Any]) -> PowerLaw:
    return PowerLaw(described["factor"], described["exponent"], described.get("floor", 0.0))


def result_tables(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables of a report that have rows: ``heading``, ``text``, ``columns`` and ``rows``."""
    law_columns = [
        "target", "against", "form", "exponent", "95% interval", "scale", "floor", "correlation",
        "paper's exponent",
    ]  # fmt: skip
    tables = [
        {
            "heading": "Exponents",
            "text": (
                "Exponents of (scale x) ^ exponent + floor, with 95% intervals. x is parameters in "
                "billions or compute in PFLOP. The paper fits without a floor, to ImageNet at 256 "
                "pixels (arXiv 2404.02905, equations 11 to 16)."
            ),
            "columns": law_columns,
            "rows": _exponents(result),
        },
        {
            "heading": "Held-out size",
            "text": "Predicted from the other sizes before it was trained.",
            "columns": ["target", "form", "predicted", "95% interval", "trained", "error"],
            "rows": _held_out(result),
        },
        {
            "heading": "Sizes",
            "text": (
                "Width x layers x heads. Parameters are the weights of the layers' matrices, "
                "as in the paper; embeddings, head and biases are in the second number."
            ),
            "columns": ["size", "parameters", "all", "PFLOP", *TARGETS.values()],
            "rows": [_size(trained) for trained in _trained(result)],
        },
    ]
    return [table for table in tables if table["rows"]]


def _trained(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    held_out = result["held_out"] and result["held_out"]["measured"]
    return [*result["sizes"], *([held_out] if held_out else [])]


def _size(trained: Mapping[str, Any]) -> list[str]:
    counts = [f"{trained[name]:,}" for name in ("parameters", "all_parameters")]
    compute = f"{trained['curve']['compute'][-1]:.4g}"
    return [trained["size"], *counts, compute, *(f"{trained[target]:.4f}" for target in TARGETS)]


def _exponents(result: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    forms = {"with_floor": "with floor", "without_floor": "without"}
    for target, name in TARGETS.items():
        if result["parameters"] is not None:
            paper = f"{PAPER['parameters'][target][1]:g}"
            for form, form_name in forms.items():
                law = result["parameters"][target][form]
                rows.append([
                    name, "parameters", form_name, f"{law['exponent']:.4f}",
                    _interval(law["intervals"]["exponent"]), f"{law['scale']:.3g}",
                    f"{law['floor']:.4f}", _number(law["correlation"]),
                    paper if form == "without_floor" else "",
                ])  # fmt: skip
        if result["compute"] is not None:
            paper = f"{PAPER['compute'][target][1]:g}"
            law = result["compute"][target]
            if law["reason"] is not None:
                rows.append([name, "compute", law["reason"], *[""] * 5, paper])
                continue
            interval = law["intervals"] and law["intervals"]["exponent"]
            rows.append([
                name, "compute", "without", f"{law['exponent']:.4f}",
                _interval(interval) if interval else "not found", f"{law['scale']:.3g}", "0",
                _number(law["correlation"]), paper,
            ])  # fmt: skip
    return rows


def _held_out(result: Mapping[str, Any]) -> list[list[str]]:
    held_out = result["held_out"]
    if held_out is None:
        return []
    is_left_out = any(each["size"] == held_out["size"] for each in result["left_out"])
    rows = []
    for target, name in TARGETS.items():
        for form, form_name in (("with_floor", "with floor"), ("without_floor", "without")):
            prediction = result["parameters"][target][form]["prediction"]
            row = [
                name, form_name, f"{prediction['value']:.4f}", _interval(prediction["interval"])
            ]  # fmt: skip
            if held_out["measured"] is None:
                rows.append([*row, "left out" if is_left_out else "not trained yet", ""])
            else:
                value = held_out["measured"][target]
                rows.append([*row, f"{value:.4f}", f"{prediction['value'] / value - 1:+.2%}"])
    return rows


def _interval(interval: list[float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"


def parameter_plot(result: Mapping[str, Any]) -> "Figure":
    """Plot the targets against the parameters, as figure 5 of the paper."""
    figure = new_figure(14, 3.6)
    panels = figure.subplots(1, len(TARGETS))
    sizes = [rung["parameters"] for rung in result["sizes"]]
    held_out = result["held_out"]
    largest = max([*sizes, held_out["parameters"] if held_out else 0])
    grid = np.geomspace(min(sizes), largest, 100)
    for panel, (target, name) in zip(panels, TARGETS.items(), strict=True):
        panel.plot(sizes, [rung[target] for rung in result["sizes"]], "o", color="tab:blue")
        if result["parameters"] is not None:
            for form, style in (("with_floor", "-"), ("without_floor", "--")):
                law = result["parameters"][target][form]
                panel.plot(
                    grid, _law(law)(grid / 1e9), style, color="tab:red", label=_equation(law)
                )
            panel.legend(fontsize=7)
        if held_out is not None:
            prediction = result["parameters"][target]["with_floor"]["prediction"]
            low, high = prediction["interval"]
            panel.vlines(held_out["parameters"], low, high, color="tab:grey")
            if held_out["measured"] is not None:
                panel.plot(
                    held_out["parameters"], held_out["measured"][target], "*", markersize=12,
                    color="tab:orange",
                )  # fmt: skip
        _logarithmic(panel, "parameters N", name)
    return figure


def compute_plot(result: Mapping[str, Any]) -> "Figure":
    """Plot the targets against training compute with the frontier, as figure 6 of the paper."""
    figure = new_figure(14, 3.6)
    panels = figure.subplots(1, len(TARGETS))
    for panel, (target, name) in zip(panels, TARGETS.items(), strict=True):
        for number, rung in enumerate(result["sizes"]):
            shade = str(0.75 - 0.6 * number / max(1, len(result["sizes"]) - 1))
            panel.plot(
                rung["curve"]["compute"], rung["curve"][target], color=shade, linewidth=1,
                label=rung["size"],
            )  # fmt: skip
        if result["compute"] is not None:
            law = result["compute"][target]
            if law["points"]:
                compute, values, _ = np.array(law["points"]).T
                panel.plot(compute, values, ".", color="tab:red")
            if law["reason"] is None:
                grid = np.geomspace(compute.min(), compute.max(), 100)
                panel.plot(
                    grid, _law(law)(grid), "--", color="tab:red",
                    label=_equation({**law, "floor": 0.0}, "C"),
                )  # fmt: skip
        panel.legend(fontsize=6)
        _logarithmic(panel, "training compute C, PFLOP", name)
    return figure


def _equation(law: Mapping[str, Any], variable: str = "N") -> str:
    floor = f" + {law['floor']:.3g}" if law["floor"] else ""
    return f"({law['scale']:.2g} {variable})^{law['exponent']:.3g}{floor}"


def _logarithmic(panel: "Axes", x_label: str, y_label: str) -> None:
    from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter

    panel.set(xscale="log", yscale="log", xlabel=x_label, title=y_label)
    # Losses span much less than a power of ten, which is where a log axis has its ticks.
    panel.yaxis.set_major_locator(MaxNLocator(6))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:.4g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(labelsize=7, which="both")
