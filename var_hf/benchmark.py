"""Measurement of generation: latency, images per second, memory, and the time of every part."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from var_hf import __version__
from var_hf.configuration_var import VARConfig
from var_hf.conversion import PUBLISHED_TRANSFORMERS, PUBLISHED_VQVAE
from var_hf.costs import DEVICES, Device, GenerationCost, generation_cost, joint_cost
from var_hf.generation import transformer_uses
from var_hf.modeling_var import VARModel
from var_hf.modeling_vqvae import MultiScaleVQVAE
from var_hf.pipelines.pipeline_var import VARPipeline
from var_hf.pipelines.pipeline_var_collaborative import (
    VARCollaborativePipeline,
    check_draft_scales,
    check_pair,
)
from var_hf.precision import stored_dtype
from var_hf.scheduling_next_scale import NextScaleScheduler

_PROCESS = Path("/proc/self")  # of Linux


def random_pipeline(
    size: str,
    dtype: torch.dtype,
    device: torch.device,
    *,
    refiner: str | None = None,
    draft_scales: int | None = None,
) -> VARPipeline:
    """Build a pipeline of a published size with random weights, which is as fast as the real one.

    Args:
        size: ``"d16"``, ``"d20"``, ``"d24"``, ``"d30"`` (256 px) or ``"d36"`` (512 px).
        dtype: Of the weights.
        device: Where they lie.
        refiner: Size of a second transformer, for the fine scales.
        draft_scales: As in [`VARCollaborativePipeline`].

    Raises:
        ValueError: The two sizes have other scales, or `draft_scales` is no number of them.
    """
    values = PUBLISHED_TRANSFORMERS[size].values
    with torch.device("meta"):
        transformer = VARModel(VARConfig(**values))
        vqvae = MultiScaleVQVAE(
            **{**PUBLISHED_VQVAE.values, "token_map_sizes": values["token_map_sizes"]}
        )
        second = refiner and VARModel(VARConfig(**PUBLISHED_TRANSFORMERS[refiner].values))
    vqvae.encoder = nn.Identity()  # generation only decodes
    if second:
        check_pair(transformer, second)
    generator = torch.Generator(device).manual_seed(0)
    for model in (transformer, vqvae, *([second] if second else [])):
        for name, module in model.named_modules():
            for key, tensor in module.named_parameters(recurse=False):
                stored = stored_dtype(model, f"{name}.{key}", dtype)
                weight = torch.empty(tensor.shape, dtype=stored, device=device)
                fan_in = weight[0].numel() if weight.ndim > 1 else 2500
                weight.normal_(std=fan_in**-0.5, generator=generator)
                setattr(module, key, nn.Parameter(weight, requires_grad=False))
            for key, buffer in module.named_buffers(recurse=False):
                module.register_buffer(key, torch.zeros_like(buffer, device=device))
    pipe = VARPipeline(transformer.eval(), vqvae.eval(), NextScaleScheduler())
    if second:
        pipe = VARCollaborativePipeline.from_pipe(
            pipe, refiner=second.eval(), draft_scales=draft_scales
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def benchmark(
    pipe: VARPipeline,
    batch_size: int,
    *,
    rounds: int = 5,
    guided_scales: int | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Measure the generation of `batch_size` images.

    One call warms up, `rounds` calls are timed from the call to the finished pixels, one more is
    taken apart into its parts, and the limit is computed from what this machine reaches in a large
    matrix product.

    Args:
        pipe: The pipeline, on its device.
        batch_size: Images B per call.
        rounds: Calls to time.
        guided_scales: As in [`VARPipeline.__call__`].
        **settings: `guidance_scale`, `top_k`, `top_p`, `sampling`.

    Returns:
        The figures, for JSON: seconds, bytes and images per second.
    """
    transformer = pipe.transformer
    labels = [i * 7 % transformer.config.num_classes for i in range(batch_size)]
    settings |= {"guided_scales": guided_scales, "output_type": "pt"}

    def call() -> None:
        # A CPU generator, as in the examples: the numbers then are the same on every machine.
        pipe(labels, generator=torch.Generator().manual_seed(0), **settings)

    with tqdm(total=rounds + 2, desc=f"batch {batch_size}", unit="call", leave=False) as progress:
        with peak_memory(pipe.device) as memory:
            first = timed(call, pipe.device)
            progress.update()
            seconds = []
            for _ in range(rounds):
                seconds.append(timed(call, pipe.device))
                progress.update()
        parts = time_parts(pipe, call)
        progress.update()
    guidance = settings.get("guidance_scale")
    guidance = pipe.scheduler.config.guidance_scale if guidance is None else guidance
    cost = pipeline_cost(
        transformer_uses(pipe.schedule(), pipe.num_timesteps),
        pipe.vqvae.config,
        batch_size=batch_size,
        guided_scales=guided_scales if guidance > 1 else 0,
        bytes_per_number=transformer.dtype.itemsize,
        device_type=pipe.device.type,
    )
    reached = reached_limits(transformer.dtype, pipe.device)
    median = statistics.median(seconds)
    return {
        "batch_size": batch_size,
        "dtype": pipe.precision,
        "settings": settings,
        "seconds_first_call": first,
        "seconds": seconds,
        "median_seconds": median,
        "images_per_second": batch_size / median,
        "parts": parts,
        "peak_bytes": memory["peak"],
        "flops": cost.flops,
        "limit": {
            "flops_per_second": reached.flops,
            "bytes_per_second": reached.bandwidth,
            "seconds": cost.least_seconds(reached)["total"],
        },
    }


def pipeline_cost(
    uses: Sequence[tuple[Any, Sequence[int]]], vqvae: Mapping[str, Any], **options: Any
) -> GenerationCost:
    """Compute the cost of a generation by one or more transformers, each with its scales.

    Args:
        uses: Transformers, or objects with their `config`, each with the scales that it predicts.
        vqvae: The VQVAE's configuration.
        **options: Those of `generation_cost`.
    """
    return joint_cost(
        [generation_cost(model.config, vqvae, scales=scales, **options) for model, scales in uses]
    )


def time_parts(pipe: VARPipeline, call: Callable[[], None]) -> dict[str, Any]:
    """Measure the seconds of one call by part: transformer per scale, decoder, and the rest.

    The device is waited for at every border, so that the sum may be a little more than a call
    takes. A compiled pipeline has no borders inside a scale.
    """
    spans: dict[str, list[float]] = {"transformer": [], "decoder": []}
    hooks = []
    started: dict[str, float] = {}
    modules = [("decoder", pipe.vqvae.decoder)]
    if not pipe.is_compiled:
        modules += [("transformer", module) for module in pipe.transformers.values()]
    for name, module in modules:

        def before(module: nn.Module, inputs: Any, name: str = name) -> None:
            started[name] = now(pipe.device)

        def after(module: nn.Module, inputs: Any, outputs: Any, name: str = name) -> None:
            spans[name].append(now(pipe.device) - started[name])

        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        total = timed(call, pipe.device)
    finally:
        for hook in hooks:
            hook.remove()
    transformer, decoder = sum(spans["transformer"]), sum(spans["decoder"])
    return {
        "transformer": transformer,
        "transformer_by_scale": spans["transformer"],
        "decoder": decoder,
        "sampling": total - transformer - decoder,
        "total": total,
    }


def now(device: torch.device) -> float:
    """Seconds on a clock, when all work handed to the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a call takes until its results are there."""
    start = now(device)
    call()
    return now(device) - start


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, int | None]]:
    """Measure the peak memory in bytes during the block, as ``peak``; `None` if it is unknown.

    On a CUDA device that of tensors; on a CPU that of the whole process, from Linux, which can
    forget earlier peaks.
    """
    found: dict[str, int | None] = {"peak": None}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (_PROCESS / "clear_refs").exists():
        (_PROCESS / "clear_refs").write_text("5")  # proc(5): resets the peak resident set size
    yield found
    if device.type == "cuda":
        found["peak"] = torch.cuda.max_memory_allocated(device)
    elif (_PROCESS / "status").exists():
        for line in (_PROCESS / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                found["peak"] = 1024 * int(line.split()[1])


def reached_limits(dtype: torch.dtype, device: torch.device) -> Device:
    """Measure the best speed of a large matrix product and of a memory pass in 20 tries."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    layer = torch.nn.functional.linear
    layer(left, right)
    product = min(timed(lambda: layer(left, right), device) for _ in range(20))
    numbers = torch.ones(2**26, dtype=torch.float32, device=device)  # 256 MB: no cache holds them
    numbers.sum()
    reading = min(timed(numbers.sum, device) for _ in range(20))
    return Device("this machine", 2 * side**3 / product, numbers.nbytes / reading)


def machine(device: torch.device) -> dict[str, Any]:
    """What figures depend on: processor, threads, accelerator, versions."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")  # Linux names it here
    if cpuinfo.exists():
        names = [
            s.partition(":")[2].strip()
            for s in cpuinfo.read_text().splitlines()
            if s.startswith("model name")
        ]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "instructions": instruction_sets(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "python": platform.python_version(),
        "var-hf": __version__,
        **{name: version(name) for name in ("torch", "transformers", "diffusers")},
    }


def instruction_sets() -> list[str]:
    """What the processor has of the instructions that half precision and int8 gain by."""
    known = {
        "avx2": "avx2",
        "avx512": "avx512f",
        "avx512_vnni": "avx512_vnni",
        "avx_vnni": "avx_vnni",
        "avx512_bf16": "avx512_bf16",
        "amx_bf16": "amx_bf16",
        "bf16 (ARM)": "bf16",
    }
    cpuinfo = Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return [name for name, word in known.items() if word in words]


def plan(
    size: str,
    batch_size: int,
    *,
    bytes_per_number: int = 2,
    guided_scales: int | None = None,
    refiner: str | None = None,
    draft_scales: int | None = None,
) -> dict[str, Any]:
    """Compute the costs of a published size: memory, operations, and minimum time on devices.

    Args:
        size: ``"d16"`` to ``"d36"``.
        batch_size: Images B.
        bytes_per_number: Of the weights: 2 in half precision, 4 in float32.
        guided_scales: How many scales are guided; all by default, 0 without guidance.
        refiner: Size of a second transformer, for the fine scales.
        draft_scales: As in [`VARCollaborativePipeline`].

    Raises:
        ValueError: The two sizes have other scales, or `draft_scales` is no number of them.
    """
    with torch.device("meta"):
        models = [
            VARModel(VARConfig(**PUBLISHED_TRANSFORMERS[name].values))
            for name in (size, refiner)
            if name is not None
        ]
    config = models[0].config
    if refiner is not None:
        check_pair(*models)
        draft_scales = config.num_scales - 2 if draft_scales is None else draft_scales
        check_draft_scales(draft_scales, config.num_scales)
    drafted = config.num_scales if draft_scales is None else draft_scales
    cost = pipeline_cost(
        transformer_uses(lambda scale: models[scale >= drafted], config.num_scales),
        PUBLISHED_VQVAE.values,
        batch_size=batch_size,
        bytes_per_number=bytes_per_number,
        guided_scales=guided_scales,
        device_type="cuda",
    )
    pair = {} if refiner is None else {"refiner": refiner, "draft_scales": draft_scales}
    return {
        "size": size,
        **pair,
        "image_size": 16 * config.token_map_sizes[-1],
        "tokens": config.num_tokens,
        **asdict(cost),
        "flops": cost.flops,
        "memory_bytes": cost.weight_bytes + cost.call_bytes,
        # The devices' figures are of half precision.
        "least_seconds": {device.name: cost.least_seconds(device) for device in DEVICES.values()}
        if bytes_per_number == 2
        else {},
    }


def plan_lines(planned: dict[str, Any]) -> list[str]:
    """A plan as lines of text."""
    batch, name = planned["batch_size"], planned["size"]
    if "refiner" in planned:
        name += f" for {planned['draft_scales']} scales, then {planned['refiner']}"
    lines = [
        f"{name}, {batch} image{'s' if batch > 1 else ''} of {planned['image_size']} x "
        f"{planned['image_size']} "
        f"pixels, {planned['tokens']} tokens each",
        f"transformer       {planned['transformer_parameters'] / 1e6:10,.0f} M weights",
        f"decoder           {planned['decoder_parameters'] / 1e6:10,.0f} M weights",
        f"weights           {planned['weight_bytes'] / 1e9:10.2f} GB",
        f"keys and values   {planned['cache_bytes'] / 1e9:10.2f} GB",
        f"work              {planned['work_bytes'] / 1e9:10.2f} GB",
        f"memory together   {planned['memory_bytes'] / 1e9:10.2f} GB",
        f"operations        {planned['flops'] / 1e9:10,.0f} GFLOP, of which the decoder "
        f"{planned['decoder_flops'] / 1e9:,.0f}",
    ]
    return lines + [
        f"least time on {name}: {1e3 * parts['total']:,.1f} ms, {batch / parts['total']:,.1f} "
        f"images/s"
        for name, parts in planned["least_seconds"].items()
    ]


def result_lines(results: list[dict[str, Any]]) -> list[str]:
    """Measured results as a table in text, then the parts of each."""
    lines = [
        f"{'batch':>5} {'dtype':>9} {'median s':>9} {'min s':>8} {'max s':>8} {'images/s':>9} "
        f"{'limit s':>8} {'peak GB':>8}"
    ]
    for result in results:
        peak = result["peak_bytes"]
        lines.append(
            f"{result['batch_size']:>5} {result['dtype']:>9} {result['median_seconds']:9.3f} "
            f"{min(result['seconds']):8.3f} "
            f"{max(result['seconds']):8.3f} {result['images_per_second']:9.3f} "
            f"{result['limit']['seconds']:8.3f} "
            + (f"{peak / 1e9:8.2f}" if peak else f"{'unknown':>8}")
        )
    for result in results:
        parts = result["parts"]
        shares = ", ".join(
            f"{name} {parts[name]:.3f} s ({100 * parts[name] / parts['total']:.0f}%)"
            for name in ("transformer", "decoder", "sampling")
        )
        by_scale = " ".join(f"{seconds:.3f}" for seconds in parts["transformer_by_scale"])
        lines.append(f"batch {result['batch_size']}: {shares}")
        lines.append(
            f"batch {result['batch_size']}: transformer by scale, s: "
            f"{by_scale or 'not measured when compiled'}"
        )
    return lines
