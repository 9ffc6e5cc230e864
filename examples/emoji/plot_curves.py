"""Draw the curves of a tokenizer's training from its log.

    python examples/emoji/plot_curves.py runs/emoji-tokenizer examples/emoji/tokenizer-curves.png

Several run folders are drawn one after another, as one run that was fine-tuned in the next.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed

from matplotlib import pyplot


def read_runs(folders: list[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Read all log lines, with steps counted on over the runs, and the names of the scales."""
    entries: list[dict[str, Any]] = []
    offset = 0
    for folder in folders:
        lines = [
            json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()
        ]
        entries += [line | {"step": line["step"] + offset} for line in lines]
        offset = entries[-1]["step"]
    (config_file,) = folders[-1].glob("vqvae/config.json")
    sizes = json.loads(config_file.read_text("utf-8"))["token_map_sizes"]
    return entries, [f"{size} x {size}" for size in sizes]


def plot(entries: list[dict[str, Any]], scales: list[str], file: Path) -> None:
    """Three panels: losses, quality on unseen images, codebook usage per scale."""
    training = [(entry["step"], entry["training"]) for entry in entries if "training" in entry]
    measured = [(entry["step"], entry["evaluation"]) for entry in entries if "evaluation" in entry]
    figure, (losses, quality, usage) = pyplot.subplots(1, 3, figsize=(15, 4), layout="constrained")

    steps = [step for step, _ in training]
    for name in ("l1", "l2", "codebook"):
        losses.plot(steps, [values[name] or float("nan") for _, values in training], label=name)
    losses.set(title="training losses", xlabel="step", yscale="log")
    losses.legend()

    steps = [step for step, _ in measured]
    quality.plot(steps, [values["psnr"] for _, values in measured], marker=".", label="PSNR, dB")
    quality.set(title="reconstruction of unseen images", xlabel="step", ylabel="PSNR in dB")
    similarity = quality.twinx()
    similarity.plot(steps, [values["ssim"] for _, values in measured], color="C1", marker=".")
    similarity.set_ylabel("SSIM", color="C1")
    quality.legend(loc="lower right")

    quantized = [(step, values) for step, values in measured if values["quantized"]]
    for scale, name in enumerate(scales):
        shares = [
            values["distinct_codes"][scale] / values["possible_codes"][scale]
            for _, values in quantized
        ]
        usage.plot([step for step, _ in quantized], shares, marker=".", label=name)
    usage.set(title="codes in use, share of what is possible", xlabel="step", ylim=(0, 1))
    usage.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=100)


def main() -> None:
    """Read the logs and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, oldest first")
    parser.add_argument("output", type=Path, help="PNG to write")
    arguments = parser.parse_args()
    plot(*read_runs(arguments.runs), arguments.output)


if __name__ == "__main__":
    main()
