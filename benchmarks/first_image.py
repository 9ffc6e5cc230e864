"""Measure the time to the first image of a new process, by part, for this and the original code.

    python benchmarks/first_image.py --checkout PATH/TO/VAR -o result.json

The parts are imports, loading and generation. Both codes load files with the same random weights of
VAR-d16, which the script first writes to a temporary folder (3.3 GB). Every process runs alone,
with the files in the system's page cache. Use an environment with only the package and its
requirements, because transformers and diffusers import many optional packages if they are
installed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import torch
from compare_reference import build_original, convert
from tqdm import tqdm

from var_hf.benchmark import machine
from var_hf.files import write_json

MARKS = """
import json, sys, time
marks, last = [], (time.perf_counter(), time.process_time())
def mark(name):
    global last
    now = (time.perf_counter(), time.process_time())
    marks.append((name, now[0] - last[0], now[1] - last[1]))
    last = now
"""
OURS = """
import torch
mark("import torch")
import transformers.modeling_utils
mark("import transformers")
from diffusers import DiffusionPipeline
mark("import diffusers")
from var_hf import VARPipeline
mark("import var_hf")
pipe = VARPipeline.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
mark("load")
pipe(207, generator=torch.Generator().manual_seed(0))
mark("draw")
"""
ORIGINAL = """
import contextlib, warnings
warnings.filterwarnings("ignore")
import torch
mark("import torch")
sys.path.insert(0, sys.argv[3])
with contextlib.redirect_stdout(sys.stderr):
    import dist
    dist.get_device = lambda: "cpu"
    from models import build_vae_var
mark("import the original")
with contextlib.redirect_stdout(sys.stderr):
    vae, var = build_vae_var(
        V=4096, Cvae=32, ch=160, share_quant_resi=4, device="cpu",
        patch_nums=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16), num_classes=1000, depth=16, shared_aln=False,
    )
for model, file in ((vae, "vae.pth"), (var, "var.pth")):
    model.load_state_dict(torch.load(f"{sys.argv[1]}/{file}", map_location="cpu"))
    model.eval().requires_grad_(False)
mark("load")
dtype = getattr(torch, sys.argv[2])
with torch.inference_mode(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
    images = var.autoregressive_infer_cfg(
        B=1, label_B=torch.tensor([207]), cfg=1.5, top_k=900, top_p=0.96, g_seed=0
    )
from PIL import Image
Image.fromarray(images[0].permute(1, 2, 0).float().mul(255).byte().numpy())
mark("draw")
"""


def run(code: str, *arguments: str) -> dict:
    """Run a program and return its wall and processor seconds by part."""
    program = MARKS + textwrap.dedent(code) + "\nprint(json.dumps(marks))"
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    marks = json.loads(done.stdout)
    return {
        "seconds": {name: wall for name, wall, _ in marks},
        "cpu_seconds": {name: cpu for name, _, cpu in marks},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkout", required=True, help="folder with FoundationVision/VAR")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", "-o", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        vae, var = build_original(options.checkout, 16, "cpu")
        torch.save(vae.state_dict(), f"{folder}/vae.pth")
        torch.save(var.state_dict(), f"{folder}/var.pth")
        convert(vae, var, torch.float32, "cpu").save_pretrained(f"{folder}/pipeline")
        del vae, var
        runs = []
        for number in tqdm(range(options.rounds), unit="round"):
            for dtype in ("float32", "bfloat16"):
                for code, name, place in (
                    (OURS, "ours", f"{folder}/pipeline"),
                    (ORIGINAL, "original", folder),
                ):
                    found = run(code, place, dtype, options.checkout)
                    runs.append({"who": name, "dtype": dtype, "round": number} | found)
    write_json(options.output, {"machine": machine(torch.device("cpu")), "runs": runs})


if __name__ == "__main__":
    main()
