"""Measure everything that docs/performance.md shows, and generate the page from the results.

    python benchmarks/performance.py measure --checkout PATH/TO/VAR   # half an hour on two quiet
    cores python benchmarks/performance.py page

Every measurement runs in its own process and stores its result in benchmarks/results/. Existing
results are not measured again. `page` writes docs/performance.md and its plots from the existing
results and marks the rest as not measured.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
IMAGES = ROOT / "docs" / "images"
TARGETS = {("bfloat16", 1): 1.6, ("float32", 1): 1.1, ("bfloat16", 4): 1.5, ("float32", 4): 1.1}
COMPARED = list(TARGETS)
BATCHES = (1, 2, 4)
INT8_BATCHES = (1, 4)
GPU_ROWS = (("d16", 1), ("d16", 64), ("d30", 1), ("d30", 64), ("d36", 1))
NOT_MEASURED = "not measured"


def steps(checkout: str, rounds: int) -> dict[str, list[str]]:
    """Map each result's name to the command that measures it."""
    compare = ["benchmarks/compare_reference.py", "--checkout", checkout]
    bench = ["-m", "var_hf.cli", "bench", "--size", "d16", "--rounds", str(rounds)]
    batches = [word for batch in BATCHES for word in ("--batch-size", str(batch))]
    found = {}
    # The most important results first, in case the run is interrupted.
    for dtype, batch in COMPARED:
        how = ["--dtype", dtype, "--batch", str(batch)]
        found[f"compare-{dtype}-{batch}"] = [*compare, *how, "--rounds", str(rounds)]
    for dtype in ("bfloat16", "float32"):
        found[f"error-{dtype}"] = [*compare, "--dtype", dtype, "--batch", "4", "--error"]
    found["bench-bfloat16"] = [*bench, *batches, "--dtype", "bfloat16"]
    found["operators"] = [*compare, "--dtype", "bfloat16", "--rounds", str(rounds), "--operators"]
    first_image = ["benchmarks/first_image.py", "--checkout", checkout]
    found["first-image"] = [*first_image, "--rounds", str(rounds)]
    found["choices"] = ["benchmarks/choices.py", "--rounds", str(rounds)]
    for dtype, batch in COMPARED:
        how = ["--dtype", dtype, "--batch", str(batch)]
        found[f"memory-{dtype}-{batch}"] = [*compare, *how, "--rounds", str(rounds), "--memory"]
    found["bench-float32"] = [*bench, *batches, "--dtype", "float32"]
    for batch in INT8_BATCHES:
        how = ["--int8", "--batch", str(batch)]
        found[f"int8-{batch}"] = [*compare, *how, "--rounds", str(rounds)]
    found["int8-error"] = [*compare, "--int8", "--batch", "4", "--error"]
    for dtype in ("float32", "bfloat16"):
        how = ["--int8", "--dtype", dtype, "--rounds", "1", "--memory"]
        found[f"int8-memory-{dtype}"] = [*compare, *how]
    return found


def measure(checkout: str, rounds: int, only: list[str] | None) -> None:
    """Run the measurements without a result, one after the other."""
    RESULTS.mkdir(exist_ok=True)
    for name, command in steps(checkout, rounds).items():
        path = RESULTS / f"{name}.json"
        if path.exists() or (only and name not in only):
            continue
        print(f"{name}: {shlex.join(command)}", file=sys.stderr)
        subprocess.run(
            [sys.executable, *command, "-o", str(path)],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )


def result(name: str) -> dict[str, Any] | None:
    """Return a stored result, or ``None``."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def spread(values: list[float]) -> str:
    """Format median and range, as in ``3.01 (2.95 to 3.20)``."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def comparison() -> str:
    """Format the comparison with the original code."""
    rows = []
    for dtype, batch in COMPARED:
        found = result(f"compare-{dtype}-{batch}")
        target = f"{TARGETS[dtype, batch]:.1f}"
        if found is None:
            rows.append([dtype, str(batch), *[NOT_MEASURED] * 5, target])
            continue
        seconds = found["seconds"]
        fastest = min(found["median_ratio"], key=lambda name: found["median_ratio"][name])
        rows.append(
            [
                dtype,
                str(batch),
                spread(seconds["notebook"]),
                spread(seconds[fastest]),
                spread(seconds["ours"]),
                f"**{spread(found['ratios'][fastest])}**",
                f"{found['median_cpu_ratio'][fastest]:.2f}",
                target,
            ]
        )
    head = ["dtype", "batch", "original, notebook, s", "original, fastest, s", "var-hf, s"]
    return table([*head, "fastest / var-hf", "by processor time", "target"], rows)


def operators() -> str:
    """Format the seconds by kind of operator, of both codes."""
    found = result("operators")
    if found is None:
        return "Not measured.\n"
    seconds = found["operator_seconds"]
    kinds = list(seconds["ours"])
    names = {"notebook": "original, notebook", "cached": "original, cached", "ours": "var-hf"}
    rows = [
        [
            name,
            *(f"{seconds[who][kind]:.2f}" for kind in kinds),
            f"{sum(seconds[who].values()):.2f}",
        ]
        for who, name in names.items()
    ]
    return table(["code", *(f"{kind}, s" for kind in kinds), "total, s"], rows)


def bound() -> str:
    """State the speedup of a code that only ran the linear layers and convolutions."""
    found = result("operators")
    if found is None:
        return ""
    seconds = found["operator_seconds"]
    products = sum(seconds["ours"][kind] for kind in ("linear layers", "convolutions"))
    ratio = sum(seconds["cached"].values()) / products
    return (
        "A code that ran only these linear layers and convolutions, at the same speed, would "
        f"be {ratio:.1f} times as fast as the original in its fastest form."
    )


def memory() -> str:
    """Format the peak memory of both codes."""
    rows = []
    for dtype, batch in COMPARED:
        found = result(f"memory-{dtype}-{batch}")
        names = ("notebook", "cached", "ours")
        peaks = {} if found is None else found["peak_bytes"]
        rows.append(
            [dtype, str(batch)]
            + [
                spread([peak / 2**30 for peak in peaks[name]])
                if name in peaks
                else ("-" if found else NOT_MEASURED)
                for name in names
            ]
        )
    return table(["dtype", "batch", "original, notebook", "original, cached", "var-hf"], rows)


def rounding() -> str:
    """Format the rounding errors relative to the original code in float32."""
    rows = []
    for dtype in ("float32", "bfloat16"):
        found = result(f"error-{dtype}")
        for who in ("ours", "original"):
            if dtype == "float32" and who == "original":
                continue
            name = {"ours": "var-hf", "original": "original, autocast"}[who]
            if found is None:
                rows.append([dtype, name, *[NOT_MEASURED] * 4])
                continue
            error = found["error"][who]
            keys = ("logits_max", "logits_mean", "pixels_max", "pixels_mean")
            rows.append([dtype, name, *(f"{error[key]:.1e}" for key in keys)])
    return table(
        ["dtype", "code", "logits, largest", "logits, mean", "pixels, largest", "pixels, mean"],
        rows,
    )


def latency() -> str:
    """Format the results of `var-hf bench`, with the limit."""
    rows = []
    for dtype in ("bfloat16", "float32"):
        found = result(f"bench-{dtype}")
        for one in found["results"] if found else []:
            limit = one["limit"]["seconds"]
            rows.append(
                [
                    dtype,
                    str(one["batch_size"]),
                    spread(one["seconds"]),
                    f"{one['images_per_second']:.2f}",
                    f"{limit:.2f}",
                    f"{100 * limit / one['median_seconds']:.0f}%",
                    f"{one['peak_bytes'] / 2**30:.2f}",
                    *(
                        f"{100 * one['parts'][part] / one['parts']['total']:.0f}%"
                        for part in ("transformer", "decoder", "sampling")
                    ),
                ]
            )
        if not found:
            rows.append([dtype, *[NOT_MEASURED] * 9])
    head = ["dtype", "batch", "seconds", "images/s", "limit, s", "reached", "peak, GiB"]
    return table([*head, "transformer", "decoder", "sampling"], rows)


def choices() -> str:
    """Format the results of the optional trade-offs."""
    found = result("choices")
    if found is None:
        return "Not measured.\n"
    rows = []
    for name, seconds in found["seconds"].items():
        moved = found["logits_moved_by"].get(name)
        rows.append(
            [
                name,
                spread(seconds),
                f"{found['median_ratio'][name]:.2f}",
                f"{found['median_cpu_ratio'][name]:.2f}",
                "-" if moved is None else f"{moved / found['logits_std']:.1e}",
            ]
        )
    head = ["variant", "seconds", "plain / variant", "by processor time"]
    return table([*head, "change of the first logits (in standard deviations)"], rows)


def int8() -> str:
    """Format speed, memory, error and quality of `enable_int8`."""
    rows = []
    machines = []
    for batch in INT8_BATCHES:
        if (found := result(f"int8-{batch}")) is None:
            continue
        machines.append(found["machine"])
        seconds = found["cpu_seconds"]
        names = ("notebook", "ours, float", "ours")
        rows.append(
            [str(batch), *(spread(seconds[name]) for name in names)]
            + [f"{found['median_cpu_ratio'][name]:.2f}" for name in names[:2]]
            + [f"{found['median_ratio'][name]:.2f}" for name in names[:2]]
        )
    if not rows:
        return "Not measured.\n"
    head = ["batch", "original", "float32", "int8", "original / int8", "float32 / int8"]
    lines = [
        f"VAR-d16, {machine_of(machines[0])}, beside other work. Processor seconds per call:\n",
        table([*head, "original / int8 by wall", "float32 / int8 by wall"], rows),
    ]
    rows = []
    error, half = result("int8-error"), result("error-bfloat16")
    for name, found in (("int8", error), ("bfloat16", half)):
        if found is not None:
            moved = found["error"]["ours"]
            rows.append([name, f"{moved['logits_max']:.1e}", f"{moved['logits_mean']:.1e}"])
    lines += [
        "Distance of teacher-forced logits from the original in float32 (standard deviation "
        f"{error['logits_std']:.2g}):\n"
        if error
        else "",
        table(["precision", "largest", "mean"], rows),
    ]
    rows = []
    for dtype in ("float32", "bfloat16"):
        if (found := result(f"int8-memory-{dtype}")) is not None:
            peaks = found["peak_bytes"]
            rows.append(
                [dtype, *(f"{peaks[name][0] / 2**30:.2f}" for name in ("ours, float", "ours"))]
            )
    head = ["dtype of the other layers", "peak without int8, GiB", "with int8, GiB"]
    lines += ["Memory of a process that generates one image:\n", table(head, rows)]
    if (found := result("int8-emoji")) is not None:
        rows = [
            [
                name,
                f"{100 * one['recognised']['mean']:.1f}% ± {100 * one['recognised']['std']:.1f}",
                f"{one['fid']['mean']:.1f} ± {one['fid']['std']:.1f}",
                f"{one['spread']['mean']:.1f} ± {one['spread']['std']:.1f}",
                f"{one['logits_error']['mean']:.1e}",
            ]
            for name, one in found["precisions"].items()
        ]
        lines += [
            f"Images of var-emoji-64, three seeds of {found['images_per_seed']} "
            "(`examples/emoji/measure_precision.py`); the logits' standard deviation is "
            f"{found['logits_std']:.2g}:\n",
            table(["precision", "recognised", "FID", "spread", "mean error of logits"], rows),
        ]
    return "\n".join(line for line in lines if line)


def first_image() -> str:
    """Format the time from the start of a process to its first image."""
    found = result("first-image")
    if found is None:
        return "Not measured.\n"
    rows = []
    for dtype in ("float32", "bfloat16"):
        for who in ("original", "ours"):
            runs = [r for r in found["runs"] if (r["who"], r["dtype"]) == (who, dtype)]
            parts = {
                part: statistics.median(
                    sum(s for name, s in run["seconds"].items() if name.startswith(part))
                    for run in runs
                )
                for part in ("import", "load", "draw")
            }
            totals = [sum(run["seconds"].values()) for run in runs]
            name = "var-hf" if who == "ours" else who
            rows.append([dtype, name, *(f"{s:.2f}" for s in parts.values()), spread(totals)])
    return table(["dtype", "code", "imports, s", "loading, s", "generation, s", "total, s"], rows)


def graphics_cards() -> str:
    """Format the computed limits of GPUs; nothing was measured on one yet."""
    from var_hf.benchmark import plan

    rows = []
    for size, batch in GPU_ROWS:
        planned = plan(size, batch)
        seconds = planned["least_seconds"]["H100 SXM"]["total"]
        rows.append(
            [
                size,
                str(batch),
                f"{1e3 * seconds:.1f}",
                f"{batch / seconds:.0f}",
                f"{planned['memory_bytes'] / 2**30:.1f}",
                NOT_MEASURED,
            ]
        )
    return table(
        ["model", "batch", "limit, ms", "limit, images/s", "memory, GiB", "measured"], rows
    )


def machine_of(one: dict[str, Any]) -> str:
    """Describe a processor and its threads."""
    threads = f"{one['threads']} thread{'s' * (one['threads'] > 1)}"
    instructions = ", ".join(one["instructions"])
    return f"{one['cores']} cores of an {one['processor']} ({instructions}), {threads}"


def conditions() -> str:
    """Describe the machine and the versions stored in the results."""
    known = [
        found["machine"]
        for name in steps("", 0)
        if not name.startswith("int8")  # that section names its machine
        and (found := result(name)) is not None
        and "machine" in found
    ]
    if not known:
        return "No results are stored yet."
    one = known[0]
    words = [
        machine_of(one),
        f"Python {one['python']}, torch {one['torch']}, transformers {one['transformers']}, "
        f"diffusers {one['diffusers']}",
    ]
    if any(other != one for other in known):
        words.append("some results come from another machine or version, see benchmarks/results")
    return "; ".join(words) + "."


def draw_plots() -> list[str]:
    """Plot latency by batch size and the share of every part; return the names of the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    benches = {
        dtype: found
        for dtype in ("bfloat16", "float32")
        if (found := result(f"bench-{dtype}")) is not None
    }
    if not benches:
        return []
    IMAGES.mkdir(exist_ok=True)
    colours = {"bfloat16": "#0b6e99", "float32": "#c05621"}
    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for dtype, found in benches.items():
        batches = [one["batch_size"] for one in found["results"]]
        medians = [one["median_seconds"] for one in found["results"]]
        low = [m - min(one["seconds"]) for m, one in zip(medians, found["results"], strict=True)]
        high = [max(one["seconds"]) - m for m, one in zip(medians, found["results"], strict=True)]
        limits = [one["limit"]["seconds"] for one in found["results"]]
        axes.errorbar(
            batches, medians, (low, high), marker="o", capsize=3, color=colours[dtype], label=dtype
        )
        axes.plot(
            batches, limits, linestyle="--", color=colours[dtype], label=f"{dtype}, computed limit"
        )
    axes.set(xlabel="images per call", ylabel="seconds per call", ylim=(0, None), xticks=BATCHES)
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(IMAGES / "performance-latency.png", dpi=150)

    figure, axes = pyplot.subplots(figsize=(6, 2.8), layout="constrained")
    parts = {"transformer": "#0b6e99", "decoder": "#c05621", "sampling": "#718096"}
    names, lefts = [], []
    for dtype, found in benches.items():
        for one in found["results"]:
            names.append(f"{dtype}, batch {one['batch_size']}")
            lefts.append(one["parts"])
    start = [0.0] * len(names)
    for part, colour in parts.items():
        widths = [100 * one[part] / one["total"] for one in lefts]
        axes.barh(names, widths, left=start, color=colour, label=part)
        start = [a + b for a, b in zip(start, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="share of the time of a call, %", xlim=(0, 100))
    axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(IMAGES / "performance-parts.png", dpi=150)
    return ["performance-latency.png", "performance-parts.png"]


def write_page() -> None:
    """Write docs/performance.md from the template beside this script."""
    template = (ROOT / "benchmarks" / "performance.md.template").read_text(encoding="utf-8")
    plots = draw_plots()
    captions = {
        "performance-latency.png": "Seconds per call against images per call, and the computed "
        "limit",
        "performance-parts.png": "Share of transformer, decoder and sampling in a call",
    }
    error = result("error-bfloat16")
    sections = {
        "conditions": conditions(),
        "comparison": comparison(),
        "operators": operators(),
        "bound": bound(),
        "memory": memory(),
        "rounding": rounding(),
        "logits_std": "unknown" if error is None else f"{error['logits_std']:.2g}",
        "latency": latency(),
        "plots": "\n\n".join(f"![{captions[name]}](images/{name})" for name in plots),
        "choices": choices(),
        "int8": int8(),
        "first_image": first_image(),
        "graphics_cards": graphics_cards(),
    }
    for name, text in sections.items():
        template = template.replace("{{" + name + "}}", text.rstrip("\n"))
    PAGE.write_text(template, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="run the measurements without a result")
    measuring.add_argument("--checkout", required=True, help="folder with FoundationVision/VAR")
    measuring.add_argument("--rounds", type=int, default=3)
    measuring.add_argument("--only", nargs="+", metavar="NAME", help="measure only these")
    commands.add_parser("page", help="write docs/performance.md from the results")
    options = parser.parse_args()
    if options.command == "measure":
        measure(options.checkout, options.rounds, options.only)
    else:
        write_page()


if __name__ == "__main__":
    main()
