"""Update the tables in docs/scale.md from the formulas in `var_hf.costs` and the measured speeds.

python docs/update_scale.py
"""

import json
import re
from pathlib import Path

from var_hf.configuration_var import VARConfig
from var_hf.conversion import PUBLISHED_TRANSFORMERS, PUBLISHED_VQVAE
from var_hf.costs import DEVICES, generation_cost, training_flops, transformer_parameters

PAGE = Path(__file__).with_name("scale.md")
RESULT = Path(__file__).parents[1] / "benchmarks/results/process-scaling.json"
TABLE = re.compile(
    r"<!-- (measured|training|sampling) -->\n.*?(?=<!-- end of table -->)", re.DOTALL
)

#: Operations per second of a training step on one H100, the assumption of the recipes.
TRAINING_SPEED = 400e12
#: Bytes per second and direction between GPUs: NVLink 4 within a machine (900 GB/s in both
#: directions together), and one ConnectX-7 adapter of 400 Gb/s for each GPU between machines.
LINKS = {8: ("NVLink", 450e9), 64: ("InfiniBand", 50e9)}
IMAGENET, EPOCHS, BATCH = 1_281_167, 350, 768  # of the recipe d36
PICTURES, AT_A_TIME = 1_000_000_000, 64
BITS_OF_A_TOKEN = 12  # 4,096 codes


def formatted(rows: list[list[str]]) -> str:
    """Format a table in Markdown; the first row is the heading."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def measured() -> str:
    """Format the measured speeds of CPU processes."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    rows = [["engine", "processes", "images per second", "of one process", "efficiency per core"]]
    for run in result["runs"]:
        speeds = sorted(run["images_per_second"])
        rows.append(
            [
                run["engine"],
                str(run["processes"]),
                " / ".join(f"{speed:.1f}" for speed in speeds),
                f"{run['ratio']:.2f}",
                f"{run['efficiency']:.0%}",
            ]
        )
    return formatted(rows)


def training() -> str:
    """Format the arithmetic of training d36."""
    config = VARConfig(**PUBLISHED_TRANSFORMERS["d36"].values)
    weights = transformer_parameters(config)
    flops = training_flops(config) * 4 / 3  # gradient checkpointing computes the layers again
    columns = []
    for gpus, (_, link) in LINKS.items():
        compute = BATCH * flops / (gpus * TRAINING_SPEED)
        sent = 12 * weights * (gpus - 1) / gpus
        exchange = sent / link
        hidden = max(compute, exchange)
        days = EPOCHS * IMAGENET / BATCH * hidden / 86400
        columns.append(
            [
                f"{BATCH // gpus}",
                f"{BATCH * flops / gpus / 1e15:.2f} PFLOP",
                f"{compute:.2f} s",
                f"{sent / 1e9:.1f} GB",
                f"{exchange:.2f} s",
                f"{compute / (compute + exchange):.0%}",
                f"{compute / hidden:.0%}",
                f"{days:.0f} days",
            ]
        )
    names = [
        f"images of a GPU, of {BATCH}",
        "operations of a GPU in a step",
        f"time for them at {TRAINING_SPEED / 1e12:.0f} TFLOP/s",
        "bytes that a GPU sends in a step",
        "time for them",
        "efficiency, nothing overlaps",
        "efficiency, everything overlaps",
        f"{EPOCHS} epochs of ImageNet, everything overlaps",
    ]
    heading = ["d36, FSDP2", *(f"{gpus} GPUs, {name}" for gpus, (name, _) in LINKS.items())]
    return formatted([heading, *([name, *row] for name, *row in zip(names, *columns, strict=True))])


def sampling() -> str:
    """Format the arithmetic of a billion pictures."""
    device = DEVICES["h100"]
    rows = [["", "most pictures per second and H100", "H100 hours", "as tokens", "as pixels"]]
    for size, published in PUBLISHED_TRANSFORMERS.items():
        config = VARConfig(**published.values)
        cost = generation_cost(
            config, PUBLISHED_VQVAE.values, batch_size=AT_A_TIME, device_type="cuda"
        )
        speed = AT_A_TIME / cost.least_seconds(device)["total"]
        side = 16 * config.token_map_sizes[-1]
        tokens = config.num_tokens * BITS_OF_A_TOKEN / 8 * PICTURES
        rows.append(
            [
                size,
                f"{speed:,.0f}",
                f"{PICTURES / speed / 3600:,.0f}",
                f"{tokens / 1e12:.1f} TB",
                f"{3 * side**2 * PICTURES / 1e12:,.0f} TB",
            ]
        )
    return formatted(rows)


def updated(page: str) -> str:
    """Return the page with the current tables."""
    tables = {"measured": measured, "training": training, "sampling": sampling}
    return TABLE.sub(lambda match: f"<!-- {match[1]} -->\n{tables[match[1]]()}", page)


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
