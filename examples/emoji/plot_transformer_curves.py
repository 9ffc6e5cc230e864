"""Draw the curves of a transformer's training from its log.

    python examples/emoji/plot_transformer_curves.py outputs/emoji/transformer \
        examples/emoji/transformer-curves.png

Several run folders are drawn one after another, as one run that was continued in the next.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed

from matplotlib import pyplot

#: Epochs and values of the lines of one kind.
Lines = list[tuple[float, dict[str, Any]]]


def read_run(run: Path, offset: float) -> dict[str, Lines]:
    """Training and evaluation lines, with the epoch counted on from `offset`."""
    lines: dict[str, Lines] = {"training": [], "evaluation": []}
    for line in (run / "log.jsonl").read_text("utf-8").splitlines():
        entry = json.loads(line)
        for kind, found in lines.items():
            if kind in entry:
                found.append((offset + entry[kind]["epoch"], entry[kind]))
    return lines


def read_runs(folders: list[Path]) -> tuple[list[dict[str, Lines]], list[int]]:
    """The lines of every run, and the sides of the token maps."""
    runs: list[dict[str, Lines]] = []
    for folder in folders:
        runs.append(read_run(folder, runs[-1]["training"][-1][0] if runs else 0.0))
    config = json.loads((folders[-1] / "pipeline" / "vqvae" / "config.json").read_text("utf-8"))
    return runs, config["token_map_sizes"]


def plot(runs: list[dict[str, Lines]], sizes: list[int], file: Path) -> None:
    """Three panels: loss on seen and unseen images, loss per scale, accuracy per scale.

    A run that learns fewer scales has a mean loss of its own, so the runs are not joined there.
    """
    figure, panels = pyplot.subplots(1, 3, figsize=(15, 4), layout="constrained")
    for kind, name, style in (
        ("training", "training", "C0-"),
        ("evaluation", "unseen images", "C1.-"),
    ):
        for number, lines in enumerate(runs):
            epochs = [epoch for epoch, _ in lines[kind]]
            losses = [values["loss"] for _, values in lines[kind]]
            panels[0].plot(epochs, losses, style, label=name if number == 0 else None)
    panels[0].set(title="cross-entropy per token", xlabel="epoch", ylabel="nats")
    panels[0].legend()
    training = [line for lines in runs for line in lines["training"]]
    for panel, quantity in ((panels[1], "loss"), (panels[2], "accuracy")):
        for scale, size in enumerate(sizes):
            points = [
                (epoch, values[f"{quantity}_per_scale"][scale])
                for epoch, values in training
                if scale < len(values[f"{quantity}_per_scale"])
            ]
            panel.plot(*zip(*points, strict=True), label=f"{size} x {size}", linewidth=1)
        panel.set(title=f"{quantity} per scale, training", xlabel="epoch")
        panel.legend(fontsize="small")
    figure.savefig(file, dpi=100)
    pyplot.close(figure)


def main() -> None:
    """Read the log and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, oldest first")
    parser.add_argument("output", type=Path, help="PNG to write")
    arguments = parser.parse_args()
    plot(*read_runs(arguments.runs), arguments.output)


if __name__ == "__main__":
    main()
