"""Draw the curves of a transformer's training from its log.

    python examples/emoji/plot_transformer_curves.py outputs/emoji/transformer \
        examples/emoji/transformer-curves.png

Several finished run folders are drawn one after another, as one run that was continued in the next.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed

from matplotlib import pyplot

#: Thousands of images seen, and values, of the lines of one kind.
Lines = list[tuple[float, dict[str, Any]]]

AXIS = "thousand images seen"


def read_run(run: Path, offset: float) -> dict[str, Lines]:
    """Training and evaluation lines, with the images counted on from `offset` thousand.

    Raises:
        ValueError: The run has not finished.
    """
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    summaries = [entry["summary"] for entry in entries if "summary" in entry]
    if not summaries:
        raise ValueError(f"{run}: the log has no summary. Finish this training, then plot it.")
    summary = summaries[-1]
    images = summary["train_samples_per_second"] * summary["train_runtime"]
    thousands_per_epoch = images / summary["epoch"] / 1000
    return {
        kind: [
            (offset + entry[kind]["epoch"] * thousands_per_epoch, entry[kind])
            for entry in entries
            if kind in entry
        ]
        for kind in ("training", "evaluation")
    }


def read_runs(folders: list[Path], model: Path) -> tuple[list[dict[str, Lines]], list[int]]:
    """The lines of every run, and the sides of the token maps of `model`, a pipeline folder."""
    runs: list[dict[str, Lines]] = []
    for folder in folders:
        runs.append(read_run(folder, runs[-1]["training"][-1][0] if runs else 0.0))
    config = json.loads((model / "vqvae" / "config.json").read_text("utf-8"))
    return runs, config["token_map_sizes"]


def plot(runs: list[dict[str, Lines]], sizes: list[int], file: Path) -> None:
    """Three panels: loss on seen and unseen images, loss per scale, accuracy per scale.

    A run that learns fewer scales has a mean loss of its own, so the runs are not joined.
    """
    figure, panels = pyplot.subplots(1, 3, figsize=(15, 4), layout="constrained")
    for kind, name, style in (
        ("training", "training", "C0-"),
        ("evaluation", "unseen images", "C1.-"),
    ):
        for number, lines in enumerate(runs):
            seen = [images for images, _ in lines[kind]]
            losses = [values["loss"] for _, values in lines[kind]]
            panels[0].plot(seen, losses, style, label=name if number == 0 else None)
    panels[0].set(title="cross-entropy per token", xlabel=AXIS, ylabel="nats")
    panels[0].legend()
    for panel, quantity in ((panels[1], "loss"), (panels[2], "accuracy")):
        for scale, size in enumerate(sizes):
            for number, lines in enumerate(runs):
                points = [
                    (images, values[f"{quantity}_per_scale"][scale])
                    for images, values in lines["evaluation"]
                    if scale < len(values[f"{quantity}_per_scale"])
                ]
                panel.plot(
                    [images for images, _ in points],
                    [value for _, value in points],
                    f"C{scale}.-",
                    linewidth=1,
                    label=f"{size} x {size}" if number == 0 else None,
                )
        panel.set(title=f"{quantity} per scale, unseen images", xlabel=AXIS)
    panels[2].legend(fontsize="small", bbox_to_anchor=(1, 1))
    figure.savefig(file, dpi=100)
    pyplot.close(figure)


def main() -> None:
    """Read the log and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, oldest first")
    parser.add_argument("output", type=Path, help="PNG to write")
    parser.add_argument(
        "--model", type=Path, help="pipeline folder (default: that in the last run folder)"
    )
    arguments = parser.parse_args()
    model = arguments.model or arguments.runs[-1] / "pipeline"
    plot(*read_runs(arguments.runs, model), arguments.output)


if __name__ == "__main__":
    main()
