r"""Compare the speed of generation with the original code, in turn in one process.

    python benchmarks/compare_reference.py --checkout PATH/TO/VAR --depth 16 --batch 1 \
        --dtype bfloat16 -o result.json

PATH/TO/VAR is a checkout of FoundationVision/VAR (MIT). This project contains none of its code. All
variants run in turn in every round, with the same random weights, labels and settings, so that
other load slows them equally. In half precision, the original runs under autocast in two ways: as
in its notebook (`notebook`), and with weights that require a gradient (`cached`). The latter
enables autocast's cache of cast weights and is the fastest form.

`--memory` measures peak memory instead, with each variant in its own process. `--error` measures
the distance of half precision from float32, and `--operators` the time by operator with
torch.profiler. A table goes to stderr, and the result as JSON to stdout or to the file.
"""

import argparse
import contextlib
import ctypes
import functools
import gc
import json
import math
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from var_hf import MultiScaleVQVAE, NextScaleScheduler, VARModel, VARPipeline
from var_hf.benchmark import machine, now, peak_memory, random_pipeline
from var_hf.configuration_var import TOKEN_MAP_SIZES_256
from var_hf.files import write_json
from var_hf.precision import cast

CFG = 1.5  # the release's number; guidance_scale 2.5 here
SETTINGS = {"top_k": 900, "top_p": 0.96}
PATCHED = (nn.Linear, nn.LayerNorm, nn.BatchNorm2d, nn.SyncBatchNorm, nn.Conv1d, nn.Conv2d)
PATCHED += (nn.ConvTranspose1d, nn.ConvTranspose2d)

# Substrings of operator names; the first kind that matches counts.
OPERATORS = {
    "attention": ("attention", "bmm", "softmax"),
    "linear layers": ("linear", "mm"),
    "convolutions": ("convolution",),
    "casts and copies": ("copy", "cat"),
}


@contextlib.contextmanager
def initialisation_restored():
    """Restore torch's initialisation, which the original disables for the whole process."""
    saved = {cls: cls.__dict__.get("reset_parameters") for cls in PATCHED}
    try:
        yield
    finally:
        for cls, method in saved.items():
            if method is None:
                if "reset_parameters" in cls.__dict__:
                    del cls.reset_parameters
            else:
                cls.reset_parameters = method


def build_original(checkout: str, depth: int, device: str):
    """Build the original VQVAE and transformer with random weights of realistic magnitude."""
    sys.path.insert(0, checkout)
    import dist  # a module of the checkout, which sets the device at import
    from models import build_vae_var

    dist.get_device = lambda: device
    with initialisation_restored(), contextlib.redirect_stdout(sys.stderr):
        vae, var = build_vae_var(
            V=4096, Cvae=32, ch=160, share_quant_resi=4, device=device,
            patch_nums=TOKEN_MAP_SIZES_256, num_classes=1000, depth=depth, shared_aln=False,
        )  # fmt: skip
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for model in (vae, var):
            for name, weight in model.named_parameters():
                weight.normal_(generator=generator)
                if name.endswith("scale_mul_1H11"):
                    weight.mul_(0.1).add_(math.log(4))
                elif "norm" in name and weight.ndim == 1:
                    weight.mul_(0.1).add_(name.endswith("weight"))
                elif weight.ndim == 1:
                    weight.mul_(0.1)
                elif "embed" in name or "pos" in name or "class_emb" in name:
                    weight.mul_(0.5)
                else:
                    weight.div_(math.sqrt(weight[0].numel()))
    return vae.eval(), var.eval()


def convert(vae, var, options, int8: bool) -> VARPipeline:
    """Build our pipeline with copies of the same weights."""
    dtype, device = getattr(torch, options.dtype), options.device

    def copied(state_dict):
        return {name: tensor.detach().clone().cpu() for name, tensor in state_dict.items()}

    transformer = VARModel.from_original(copied(var.state_dict()))
    vqvae = MultiScaleVQVAE.from_original(copied(vae.state_dict()))
    for model in (transformer, vqvae):
        cast(model, dtype)
    pipe = VARPipeline(transformer, vqvae, NextScaleScheduler())
    pipe.set_progress_bar_config(disable=True)
    for model in (transformer, vqvae):
        model.requires_grad_(False)
    pipe.to(device)
    if int8:
        pipe.enable_int8()
    return pipe


def original_context(var, dtype: torch.dtype, device: str, cached: bool):
    """Enter the context of the notebook, or the one that enables the cache of cast weights."""
    for parameter in var.parameters():
        parameter.requires_grad_(cached)
    stack = contextlib.ExitStack()
    stack.enter_context(torch.no_grad() if cached else torch.inference_mode())
    stack.enter_context(
        torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=True)
    )
    return stack


def make_variants(vae, var, pipes, options) -> dict:
    """Map each variant's name to a function that generates the images."""
    dtype, device = getattr(torch, options.dtype), options.device
    labels = torch.arange(options.batch, device=device) * 7 % 1000

    def original(cached: bool):
        with original_context(var, dtype, device, cached):
            return var.autoregressive_infer_cfg(
                B=len(labels), label_B=labels, cfg=CFG, g_seed=0, more_smooth=False, **SETTINGS
            )

    def ours(pipe):
        generator = torch.Generator(device).manual_seed(0)
        settings = SETTINGS | {"guidance_scale": 1 + CFG}
        return pipe(labels, generator=generator, output_type="pt", **settings).images

    variants = {name: functools.partial(ours, pipe) for name, pipe in pipes.items()}
    variants["notebook"] = lambda: original(cached=False)
    if dtype != torch.float32:
        variants["cached"] = lambda: original(cached=True)
    return variants


def time_variants(variants: dict, rounds: int, device: str) -> dict:
    """Measure wall and processor seconds per variant and round; the order alternates."""
    names = list(variants)
    seconds = {name: [] for name in names}
    cpu_seconds = {name: [] for name in names}
    with tqdm(total=(rounds + 1) * len(names), unit="call") as progress:
        for number in range(rounds + 1):
            for name in names if number % 2 else reversed(names):
                start, cpu_start = now(torch.device(device)), time.process_time()
                variants[name]()
                cpu = time.process_time() - cpu_start
                if number > 0:  # the first round is a warm-up
                    seconds[name].append(now(torch.device(device)) - start)
                    cpu_seconds[name].append(cpu)
                progress.update()

    def ratios(times):
        return {
            name: [theirs / ours for theirs, ours in zip(times[name], times["ours"], strict=True)]
            for name in names
            if name != "ours"
        }

    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "ratios": ratios(seconds),
        "median_ratio": {name: statistics.median(r) for name, r in ratios(seconds).items()},
        "median_cpu_ratio": {name: statistics.median(r) for name, r in ratios(cpu_seconds).items()},
    }


def profile_operators(variants: dict, rounds: int) -> dict:
    """Measure the self time in seconds of every kind of operator per call, median over rounds."""
    seconds = {name: {kind: [] for kind in [*OPERATORS, "other"]} for name in variants}
    with tqdm(total=(rounds + 1) * len(variants), unit="call") as progress:
        for number in range(rounds + 1):
            for name, call in variants.items():
                with torch.profiler.profile(
                    activities=[torch.profiler.ProfilerActivity.CPU]
                ) as profiler:
                    call()
                found = dict.fromkeys(seconds[name], 0.0)
                for event in profiler.key_averages():
                    found[kind_of(event.key)] += event.self_cpu_time_total / 1e6
                if number > 0:  # the first round is a warm-up
                    for kind, one in found.items():
                        seconds[name][kind].append(one)
                progress.update()
    return {
        "operator_seconds": {
            name: {kind: statistics.median(ones) for kind, ones in kinds.items()}
            for name, kinds in seconds.items()
        }
    }


def kind_of(operator: str) -> str:
    """Return the kind of a profiler's operator."""
    for kind, words in OPERATORS.items():
        if any(word in operator for word in words):
            return kind
    return "other"


def measure_memory(options) -> dict:
    """Measure the peak bytes of processes that run one variant once, one per variant and round."""
    names = ["ours", "notebook"] + ["cached"] * (options.dtype != "float32")
    if options.int8:
        names = ["ours", "ours, float"]
    peaks = {name: [] for name in names}
    for name in tqdm(names * options.rounds, unit="process"):
        command = [sys.executable, __file__, "--only", name, "--checkout", options.checkout]
        command += ["--int8"] * options.int8
        for key in ("depth", "batch", "dtype", "device"):
            command += [f"--{key}", str(getattr(options, key))]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        peaks[name].append(json.loads(done.stdout)["peak_bytes"])
    return {"peak_bytes": peaks}


def measure_one(options) -> dict:
    """Measure one variant in this process, after freeing the memory of the others."""
    vae = var = None
    pipes = {}
    if options.int8:  # no conversion, whose traces in memory would hide the difference
        size, dtype = f"d{options.depth}", getattr(torch, options.dtype)
        pipe = random_pipeline(size, dtype, torch.device(options.device))
        if options.only == "ours":
            pipe.enable_int8()
        pipes = {options.only: pipe}
    else:
        vae, var = build_original(options.checkout, options.depth, options.device)
        if options.only == "ours":
            pipes = {"ours": convert(vae, var, options, int8=False)}
            vae = var = None
    call = make_variants(vae, var, pipes, options)[options.only]
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # return free memory to the system
    with peak_memory(torch.device(options.device)) as memory:
        call()
    return {"peak_bytes": memory["peak"]}


@torch.no_grad()
def measure_error(vae, var, pipe, options) -> dict:
    """Measure the distance from the original in float32.

    Compares the logits of all scales for the same tokens, and images of the same latents.
    """
    dtype, device = getattr(torch, options.dtype), options.device
    generator = torch.Generator(device).manual_seed(1)
    tokens = torch.randint(4096, (options.batch, 680), generator=generator, device=device)
    labels = torch.arange(options.batch, device=device) * 7 % 1000
    quantizer = pipe.vqvae.quantizer
    inputs = quantizer.teacher_inputs(quantizer.split(tokens))
    latents = quantizer.decode(quantizer.split(tokens))

    def original(dtype):
        # The original's forward disables autocast, but its notebook's call does not. Therefore this
        # calls the layers one by one.
        with original_context(var, dtype, device, cached=False):
            x = var.class_emb(labels)
            condition = x
            x = x.unsqueeze(1) + var.pos_start
            x = torch.cat((x, var.word_embed(inputs)), dim=1)
            x = x + var.lvl_embed(var.lvl_1L) + var.pos_1LC
            mask = var.attn_bias_for_masking.to(dtype)
            for block in var.blocks:
                x = block(x=x, cond_BD=condition, attn_bias=mask)
            return var.get_logits(x, condition).float(), vae.fhat_to_img(latents.clone()).float()

    exact_logits, exact_images = original(torch.float32)

    def distances(logits, images):
        by_logit, by_pixel = (logits - exact_logits).abs(), (images - exact_images).abs() / 2
        return {
            "logits_max": by_logit.max().item(), "logits_mean": by_logit.mean().item(),
            "pixels_max": by_pixel.max().item(), "pixels_mean": by_pixel.mean().item(),
        }  # fmt: skip

    ours = (
        pipe.transformer(labels, inputs).logits,
        pipe.vqvae.decode_latents(latents).sample.float(),
    )
    return {
        "logits_std": exact_logits.std().item(),
        "error": {"ours": distances(*ours), "original": distances(*original(dtype))},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkout", required=True, help="folder with FoundationVision/VAR")
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--int8", action="store_true", help="enable_int8() in this package, and measure both forms"
    )
    parser.add_argument("--output", "-o", type=Path, help="JSON file to write")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--memory", action="store_true", help="measure peak memory instead of time")
    what.add_argument("--error", action="store_true", help="measure rounding instead of time")
    what.add_argument("--operators", action="store_true", help="profile operators instead")
    what.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    # The checkout calls functions that torch has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning)

    result = {
        name: getattr(options, name) for name in ("depth", "batch", "dtype", "device", "int8")
    }
    result |= {"machine": machine(torch.device(options.device))}
    if options.memory:
        result |= measure_memory(options)
    elif options.only:
        result |= measure_one(options)
    else:
        vae, var = build_original(options.checkout, options.depth, options.device)
        pipes = {"ours": convert(vae, var, options, options.int8)}
        if options.int8 and not options.error:
            pipes["ours, float"] = convert(vae, var, options, int8=False)
        variants = make_variants(vae, var, pipes, options)
        if options.error:
            result |= measure_error(vae, var, pipes["ours"], options)
        elif options.operators:
            result |= profile_operators(variants, options.rounds)
        else:
            result |= time_variants(variants, options.rounds, options.device)
            if options.dtype == "float32" and not options.int8:
                difference = variants["ours"]() - variants["notebook"]()
                result["largest_pixel_difference"] = difference.abs().max().item()

    if options.output:
        write_json(options.output, result)
    else:
        print(json.dumps(result, indent=2))
    for name, ratio in result.get("median_ratio", {}).items():
        times = result["seconds"]
        print(
            f"{name} {statistics.median(times[name]):.2f} s, ours "
            f"{statistics.median(times['ours']):.2f} s, "
            f"ratio {ratio:.2f} (processor time {result['median_cpu_ratio'][name]:.2f})",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
