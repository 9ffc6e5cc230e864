"""The report of a scaling ladder: a page, two plots, and the numbers as JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from var_hf.evaluation.report import new_figure
from var_hf.files import new_path, write_json, write_text

#: Exponents of the paper (arXiv 2404.02905, section 4.3), for parameters and for compute.
PAPER = {
    "loss": (-0.20, -0.16),
    "loss_finest_scale": (-0.23, -0.13),
    "error": (-0.010, -0.011),
    "error_finest_scale": (-0.016, -0.0067),
}
NAMES = {
    "loss": "loss, all scales",
    "loss_finest_scale": "loss, finest scale",
    "error": "token error, all scales",
    "error_finest_scale": "token error, finest scale",
}


def write_report(folder: Path, result: Mapping[str, Any]) -> None:
    """Write ``scaling.json``, ``report.md``, ``parameters.png`` and ``compute.png``.

    Args:
        folder: Where to write; complete files replace earlier ones.
        result: What `var_hf.training.scaling.summarize` returned.

    Raises:
        ImportError: matplotlib is not installed.
    """
    for name, plot in (("parameters", _plot_parameters), ("compute", _plot_compute)):
        with new_path(folder / f"{name}.png", replace=True) as temporary:
            plot(result).savefig(temporary, format="png", dpi=100)
    write_text(folder / "report.md", report_text(result))
    write_json(folder / "scaling.json", dict(result))


def report_text(result: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    rungs = [rung for rung in result["rungs"] if rung["failure"] is None]
    rows = [
        f"| {rung['size']} | {rung['parameters']:,} | {rung['points'][-1]['loss']:.4f} "
        f"| {rung['points'][-1]['loss_finest_scale']:.4f} | {rung['points'][-1]['error']:.4f} |"
        for rung in rungs
    ]
    laws = [_law_row(name, law) for name, law in result["laws"].items()]
    lines = [
        "# Scaling laws",
        "",
        f"{len(rungs)} sizes, each trained on the same {result['tokens']:,} tokens.",
        *(f"\n{sentence}" for sentence in result["left_out"]),
        "",
        "| size | parameters | loss | loss, finest scale | token error |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "`L = (b N)^a + L0`, with N in billions of parameters of the layers; intervals of 95% from a "
        "bootstrap of the residuals. The paper fits without L0.",
        "",
        "| quantity | a | interval of a | a, paper | L0 | correlation | a of compute | paper |",
        "|---|---|---|---|---|---|---|---|",
        *laws,
        "",
        *_held_out(result),
        "![Loss and token error against parameters](parameters.png)",
        "",
        "![Loss and token error against compute, with the frontier](compute.png)",
    ]
    return "\n".join(lines) + "\n"


def _law_row(name: str, law: Mapping[str, Any]) -> str:
    fitted, compute = law["parameters"], law["compute"]
    low, high = fitted["exponent_interval"]
    of_compute = "too few points" if compute is None else f"{compute['exponent']:.3f}"
    of_parameters, paper_compute = PAPER[name]
    return (
        f"| {NAMES[name]} | {fitted['exponent']:.3f} | {low:.3f} to {high:.3f} | {of_parameters} "
        f"| {fitted['offset']:.3f} | {fitted['correlation']:.4f} | {of_compute} | {paper_compute} |"
    )


def _held_out(result: Mapping[str, Any]) -> list[str]:
    rung = result["held_out"]
    if rung is None:
        return []
    if rung["failure"] is not None:
        return [rung["failure"], ""]
    checks = {name: law["held_out"] for name, law in result["laws"].items()}
    return [
        f"The size {rung['size']} ({rung['parameters']:,} parameters) took no part in the fits:",
        "",
        "| quantity | predicted | measured | difference |",
        "|---|---|---|---|",
        *(
            f"| {NAMES[name]} | {check['predicted']:.4f} | {check['measured']:.4f} "
            f"| {check['relative_error']:+.1%} |"
            for name, check in checks.items()
        ),
        "",
    ]


def _plot_parameters(result: Mapping[str, Any]) -> Any:
    rungs = [rung for rung in result["rungs"] if rung["failure"] is None]
    sizes = np.array([rung["parameters"] for rung in rungs], dtype=np.float64)
    figure = new_figure(10, 4)
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "error"), strict=True):
        for number, name in enumerate((quantity, f"{quantity}_finest_scale")):
            values = [rung["points"][-1][name] for rung in rungs]
            law = result["laws"][name]["parameters"]
            along = np.geomspace(sizes.min() / 1.3, sizes.max() * 1.3)
            axes.plot(sizes, values, "o", color=f"C{number}", label=NAMES[name])
            axes.plot(along, _values(law, along / 1e9), color=f"C{number}", linewidth=1)
            check = result["laws"][name]["held_out"]
            if check is not None:
                axes.plot(
                    result["held_out"]["parameters"], check["measured"], "x", color=f"C{number}"
                )
        axes.set(xscale="log", yscale="log", xlabel="parameters of the layers", ylabel=quantity)
        axes.legend()
    return figure


def _plot_compute(result: Mapping[str, Any]) -> Any:
    figure = new_figure(10, 4)
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "error"), strict=True):
        for rung in result["rungs"]:
            points = [point for point in rung["points"] if point["compute"] > 0]
            costs, values = ([point[key] for point in points] for key in ("compute", quantity))
            axes.plot(costs, values, linewidth=1, label=rung["size"])
        law = result["laws"][quantity]
        costs, values = zip(*law["frontier"], strict=True)
        axes.plot(costs, values, "k.", markersize=3)
        if law["compute"] is not None:
            along = np.geomspace(min(costs), max(costs))
            axes.plot(along, _values(law["compute"], along), "k--", label="fit of the frontier")
        axes.set(xscale="log", yscale="log", xlabel="training compute in PFLOP", ylabel=quantity)
        axes.legend(fontsize="small")
    return figure


def _values(law: Mapping[str, Any], x: Any) -> Any:
    return (law["scale"] * x) ** law["exponent"] + law["offset"]
