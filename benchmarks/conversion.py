"""Convert and export a full-size checkpoint, compare every tensor, and measure time and memory.

    python benchmarks/conversion.py --size d30 --folder /some/disk/with/room

The script writes two files in the layout of the release with random numbers (about 1.7 GB for d16,
10 GB for d36) to a temporary folder. It needs three times that much disk. Conversion and export run
in separate processes, which report their peak resident set and its size after the imports. The
result is JSON on stdout. Linux only.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import torch

from var_hf.conversion import (
    PUBLISHED_TRANSFORMERS,
    PUBLISHED_VQVAE,
    convert_transformer,
    export_transformer,
    read_original,
    write_original,
)
from var_hf.conversion.layout import BUFFERS, leaf, meta_tensors, transformer_layout

STEP = """
    import json, re, sys, time

    def peak():  # GB so far; ru_maxrss would start at the parent's value
        with open("/proc/self/status") as status:
            return int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1]) * 1024 / 1e9

    import var_hf.pipelines.original as original
    before, start = peak(), time.perf_counter()
    getattr(original, sys.argv[1])(*sys.argv[2:])
    seconds = time.perf_counter() - start
    print(json.dumps({"imported_gb": before, "peak_gb": peak(), "seconds": seconds}))
"""


def measure(function: str, *arguments: Path) -> dict[str, float]:
    command = [sys.executable, "-c", textwrap.dedent(STEP), function, *map(str, arguments)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {name: round(value, 3) for name, value in json.loads(result.stdout).items()}


def computed_buffers(file) -> dict[str, torch.Tensor]:
    """Compute masks and level ids of a published file by exporting a model of width 1."""
    values = {**file.values, "hidden_size": 1, "num_attention_heads": 1, "intermediate_size": 1}
    narrow, _ = convert_transformer(meta_tensors(transformer_layout(values)))
    zeros = {name: torch.zeros(tensor.shape) for name, tensor in narrow.items()}
    exported = export_transformer(zeros, values)
    return {name: exported[name] for name in ("lvl_1L", "attn_bias_for_masking")}


def write_published(file, path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    buffers = computed_buffers(file) if file.part == "transformer" else {}
    weights = {}
    for name, (_, shape) in file.layout().items():
        if name in buffers:
            weights[name] = buffers[name]
        elif leaf(name) in BUFFERS and leaf(name) != "ema_vocab_hit_SV":
            weights[name] = torch.zeros(shape)
        else:
            weights[name] = torch.randn(shape, generator=generator)
    write_original(weights, path)
    return path


def identical(one: Path, other: Path) -> bool:
    a, b = read_original(one), read_original(other)
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=PUBLISHED_TRANSFORMERS, default="d16")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()

    folder = Path(tempfile.mkdtemp(dir=arguments.folder, prefix="var-hf-conversion-"))
    try:
        published = (PUBLISHED_TRANSFORMERS[arguments.size], PUBLISHED_VQVAE)
        files = [write_published(file, folder / file.name) for file in published]
        output, exported = folder / "pipeline", [folder / "var.pth", folder / "vqvae.pth"]
        result = {
            "size": arguments.size,
            "files_gb": round(sum(file.stat().st_size for file in files) / 1e9, 3),
            "convert": measure("convert_checkpoint", *files, output),
            "export": measure("export_original", output, *exported),
            "identical": all(map(identical, files, exported)),
        }
    finally:
        shutil.rmtree(folder)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
