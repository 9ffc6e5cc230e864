"""Draw the curves of a transformer's training from its log.

python examples/emoji/plot_transformer_curves.py outputs/emoji/transformer
examples/emoji/transformer-curves.png
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed

from matplotlib import pyplot


def read_log(run: Path) -> tuple[dict[str, list[tuple[int, dict[str, Any]]]], list[int]]:
    """Training and evaluation lines with their steps, and the sides of the token maps."""
    lines: dict[str, list[tuple[int, dict[str, Any]]]] = {"training": [], "evaluation": []}
    for line in (run / "log.jsonl").read_text("utf-8").splitlines():
        entry = json.loads(line)
        for kind, found in lines.items():
            if kind in entry:
                found.append((entry["step"], entry[kind]))
    config = json.loads((run / "tokens" / "config.json").read_text("utf-8"))
    return lines, config["token_map_sizes"]


def plot(lines: dict[str, list[tuple[int, dict[str, Any]]]], sizes: list[int], file: Path) -> None:
    """Three panels: loss on seen and unseen images, loss per scale, accuracy per scale."""
    figure, panels = pyplot.subplots(1, 3, figsize=(15, 4), layout="constrained")
    for kind, name in (("training", "training"), ("evaluation", "unseen images")):
        steps = [step for step, _ in lines[kind]]
        losses = [values["loss"] for _, values in lines[kind]]
        panels[0].plot(steps, losses, label=name, marker="." if kind == "evaluation" else None)
    panels[0].set(title="cross-entropy per token", xlabel="step", ylabel="nats")
    panels[0].legend()
    for panel, quantity in ((panels[1], "loss"), (panels[2], "accuracy")):
        steps = [step for step, _ in lines["training"]]
        for scale, size in enumerate(sizes):
            values = [values[f"{quantity}_per_scale"][scale] for _, values in lines["training"]]
            panel.plot(steps, values, label=f"{size} x {size}", linewidth=1)
        panel.set(title=f"{quantity} per scale, training", xlabel="step")
        panel.legend(fontsize="small")
    figure.savefig(file, dpi=100)
    pyplot.close(figure)


def main() -> None:
    """Read the log and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder of var-hf train")
    parser.add_argument("output", type=Path, help="PNG to write")
    arguments = parser.parse_args()
    plot(*read_log(arguments.run), arguments.output)


if __name__ == "__main__":
    main()
