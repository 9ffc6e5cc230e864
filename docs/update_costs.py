"""Update the tables of costs in docs/costs.md from the formulas in `var_hf.costs`.

python docs/update_costs.py
"""

import re
from pathlib import Path

from var_hf.configuration_var import VARConfig
from var_hf.conversion import PUBLISHED_TRANSFORMERS, PUBLISHED_VQVAE
from var_hf.costs import DEVICES, GenerationCost, generation_cost, training_memory

PAGE = Path(__file__).with_name("costs.md")
TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end of table -->)", re.DOTALL)
TRAINING_TABLE = re.compile(
    r"(?<=<!-- training table -->\n).*?(?=<!-- end of training table -->)", re.DOTALL
)
BATCH = 64
#: Sizes, images of a process, and engines with their numbers of processes in the training table.
TRAINED_SIZES, TRAINED_IMAGES = ("d30", "d36"), 4
ENGINES = [
    ("one process", 1, False), ("DDP", 8, False), ("FSDP2", 2, True), ("FSDP2", 4, True),
    ("FSDP2", 8, True), ("FSDP2", 64, True),
]  # fmt: skip
DEVICE = DEVICES["h100"]


def columns(size: str) -> list[str]:
    """Compute the cells of one size, one per row of the table."""
    config = VARConfig(**PUBLISHED_TRANSFORMERS[size].values)

    def cost(batch_size: int) -> GenerationCost:
        return generation_cost(
            config, PUBLISHED_VQVAE.values, batch_size=batch_size, device_type="cuda"
        )

    one, many = cost(1), cost(BATCH)
    return [
        str(16 * config.token_map_sizes[-1]),
        f"{config.num_tokens:,}",
        f"{one.transformer_parameters / 1e6:,.0f} M",
        f"{one.weight_bytes / 1e9:.2f} GB",
        f"{one.cache_bytes / 1e9:.2f} GB",
        f"{(one.weight_bytes + one.call_bytes) / 1e9:.2f} GB",
        f"{(many.weight_bytes + many.call_bytes) / 1e9:.1f} GB",
        f"{(one.flops - one.decoder_flops) / 1e9:,.0f} GFLOP",
        f"{one.decoder_flops / 1e9:,.0f} GFLOP",
        f"{1e3 * one.least_seconds(DEVICE)['total']:.0f} ms",
        f"{BATCH / many.least_seconds(DEVICE)['total']:.0f} images/s",
    ]


def table() -> str:
    """Format the table in Markdown."""
    rows = [
        "side in pixels",
        "tokens L",
        "weights of the transformer",
        "memory: weights, with the decoder's",
        "memory: keys and values, per image",
        "memory together, 1 image",
        f"memory together, {BATCH} images",
        "operations per image: transformer, guided",
        "operations per image: decoder",
        f"least time, 1 image, {DEVICE.name}",
        f"most images, {BATCH} at a time, {DEVICE.name}",
    ]
    sizes = list(PUBLISHED_TRANSFORMERS)
    cells = zip(*(columns(size) for size in sizes), strict=True)
    lines = [["", *sizes], ["---"] * (len(sizes) + 1)]
    lines += [[name, *row] for name, row in zip(rows, cells, strict=True)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def training_table() -> str:
    """Format the memory of a training in Markdown."""
    lines = [
        [
            "", "processes", "engine", "weights", "gradients", "AdamW", "whole for a moment",
            f"activations of {TRAINED_IMAGES} images", "together",
        ]
    ]  # fmt: skip
    lines.append(["---"] * len(lines[0]))
    for size in TRAINED_SIZES:
        config = VARConfig(**PUBLISHED_TRANSFORMERS[size].values)
        for engine, processes, shard in ENGINES:
            cost = training_memory(
                config, images=TRAINED_IMAGES, processes=processes, shard=shard,
                gradient_checkpointing=True, bf16=True,
            )  # fmt: skip
            parts = (
                cost.parameters, cost.gradients, cost.optimizer, cost.gathered, cost.activations,
                cost.total,
            )  # fmt: skip
            cells = [f"{part / 1e9:.1f} GB" for part in parts]
            lines.append([size, str(processes), engine, *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def updated(page: str) -> str:
    """Return the page with the current tables."""
    return TRAINING_TABLE.sub(lambda _: training_table(), TABLE.sub(lambda _: table(), page))


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
