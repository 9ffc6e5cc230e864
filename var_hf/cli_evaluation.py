"""The commands `var-hf sample`, `evaluate` and `evaluate-tokenizer`: options to arguments, and nothing else."""

from __future__ import annotations

import json
import logging
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from var_hf.assets import VAR_EMOJI_64
from var_hf.cli_options import (
    CfgOption,
    DeviceOption,
    DType,
    DTypeOption,
    GuidanceOption,
    JSONOption,
    ModelOption,
    SmoothOption,
    TopKOption,
    TopPOption,
    choose_guidance,
)

if TYPE_CHECKING:
    from var_hf.evaluation.features import FeatureExtractor
    from var_hf.evaluation.sample_plan import Share
    from var_hf.generation import SamplingSettings
    from var_hf.pipelines.pipeline_var import VARPipeline

app = typer.Typer()


class SampleFormat(StrEnum):
    """How a sample set is written."""

    png = "png"
    tar = "tar"
    npz = "npz"


class Preset(StrEnum):
    """Settings of published numbers and pictures."""

    fid = "fid"
    paper = "paper"
    visual = "visual"


PerClassOption = Annotated[
    int, typer.Option("--per-class", "-n", min=1, help="Images of each class.")
]
SeedOption = Annotated[
    int,
    typer.Option(min=0, metavar="INT", help="Decides the images, together with class and index."),
]
ShuffleOption = Annotated[
    int, typer.Option(min=0, metavar="INT", help="Decides the order of the images.")
]
DrawnOption = Annotated[
    int,
    typer.Option(
        "--batch-size", min=1, help="Images drawn at a time, by each process; another one rounds differently."
    ),
]  # fmt: skip
PresetOption = Annotated[
    Preset | None,
    typer.Option(
        help="fid: the release's settings for FID; paper: what the first versions of the paper name; visual: the "
        "release's notebook."
    ),
]
FeaturesOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What looks at the images: inception, emoji, or a classifier's safetensors file.",
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Inception's weights; its error message says where to get them."),
]  # fmt: skip
SplitOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Split of a data set, or sub-folder of images.")
]


@app.command(
    epilog="\b\nExamples:\n"
    "  var-hf sample --model var-d16-256 --preset fid -o samples\n"
    "  torchrun --nproc-per-node 8 $(which var-hf) sample --model var-d16-256 --format npz -o samples"
)
def sample(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Sample set; the same command goes on with what is missing.",
        ),
    ],
    model: ModelOption = VAR_EMOJI_64.name,
    per_class: PerClassOption = 50,
    sample_format: Annotated[
        SampleFormat,
        typer.Option(
            "--format",
            help="png: a folder of files; tar: webdataset shards; npz: one file for the evaluator of ADM.",
        ),
    ] = SampleFormat.png,
    preset: PresetOption = None,
    guidance_scale: GuidanceOption = None,
    cfg: CfgOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    smooth: SmoothOption = False,
    seed: SeedOption = 0,
    shuffle_seed: ShuffleOption = 0,
    batch_size: DrawnOption = 32,
    shard_size: Annotated[
        int, typer.Option(min=1, help="Images that are written and resumed together.")
    ] = 256,
    dtype: DTypeOption = DType.auto,
    device: DeviceOption = "auto",
    as_json: JSONOption = False,
) -> None:
    """Draw a class-balanced sample set, on any number of processes and machines that share a folder.

    Each image has a seed of its own, from class and index: the set is the same for any number of processes. A run that
    was cut off goes on. FOLDER/manifest.json appears when the set is complete and holds settings and digests.
    """
    guidance_scale = choose_guidance(guidance_scale, cfg)
    share = _start()
    pipe = _load(model, dtype, device, share)
    from var_hf.evaluation.sample_plan import SamplePlan
    from var_hf.evaluation.sampling import sample_images

    settings = _settings(pipe, preset, guidance_scale, top_k, top_p, smooth)
    plan = SamplePlan(
        num_classes=pipe.transformer.config.num_classes,
        images_per_class=per_class,
        seed=seed,
        shuffle_seed=shuffle_seed,
        batch_size=batch_size,
        shard_size=shard_size,
        format=str(sample_format),
    )
    manifest = sample_images(pipe, output, plan, settings, model=model, share=share)
    if manifest is not None:
        typer.echo(json.dumps(manifest, indent=2) if as_json else output)


@app.command(
    epilog="\b\nExamples:\n"
    "  var-hf evaluate samples --reference VIRTUAL_imagenet256_labeled.npz --weights inception.pth -o report\n"
    "  var-hf evaluate samples --reference photos --features emoji --min-images 2000\n"
    "  var-hf evaluate --model var-d16-256 --guidance-scale 1,1.5,2,2.5 --reference ref.npz -o sweep"
)
def evaluate(
    samples: Annotated[
        str | None,
        typer.Argument(
            metavar="[SAMPLES]",
            show_default=False,
            help="Sample set, .npz file, folder of images, or data set.",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="What to compare with: the same kinds, or an .npz of statistics.",
        ),
    ] = None,
    reference_split: SplitOption = None,
    features: FeaturesOption = "inception",
    weights: WeightsOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Write result.json and report.html there; of a sweep also the samples and a plot.",
        ),
    ] = None,
    min_images: Annotated[
        int, typer.Option(help="Refuse fewer images: FID depends on their number.")
    ] = 50_000,
    statistics: Annotated[
        Path | None,
        typer.Option(metavar="NPZ", help="Write the statistics of the reference there."),
    ] = None,
    look_at: Annotated[int, typer.Option(min=1, help="Images looked at together.")] = 64,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Sample from this model first, instead of SAMPLES.",
        ),
    ] = None,
    guidance_scale: Annotated[
        str | None,
        typer.Option(
            metavar="FLOAT,...", help="With --model: the guidance scales of the sweep, 1 is off."
        ),
    ] = None,
    preset: PresetOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    smooth: SmoothOption = False,
    per_class: PerClassOption = 50,
    seed: SeedOption = 0,
    shuffle_seed: ShuffleOption = 0,
    batch_size: DrawnOption = 32,
    dtype: DTypeOption = DType.auto,
    device: DeviceOption = "auto",
    as_json: JSONOption = False,
) -> None:
    """Measure FID, sFID, Inception Score, precision and recall of a set of images against a reference.

    With --model the samples are drawn first, one set per guidance scale, and the trade-off is plotted; everything that
    was done before is kept.
    """
    if (samples is None) == (model is None):
        raise ValueError("Name the samples, or a model to sample from (--model): one of the two.")
    if reference is None:
        raise ValueError("Name what to compare with (--reference).")
    if model is not None and output is None:
        raise ValueError("With --model, name a folder for the samples (--output).")
    share = _start()
    from var_hf.evaluation.evaluate import (
        check_count,
        check_size,
        evaluate_samples,
        prepare_reference,
        write_statistics,
    )
    from var_hf.evaluation.image_sources import ImageSource, open_source
    from var_hf.evaluation.report import check_matplotlib, metric_table, write_report

    if output is not None:
        check_matplotlib()
    compared = open_source(reference, reference_split)
    extractor = _extractor(features, weights, device)
    if model is not None and output is not None:
        from var_hf.evaluation.sample_plan import SamplePlan
        from var_hf.evaluation.sweep import evaluate_sweep, sample_sweep

        pipe = _load(model, dtype, device, share)
        settings = _settings(pipe, preset, None, top_k, top_p, smooth)
        scales = _scales(guidance_scale, settings)
        plan = SamplePlan(
            num_classes=pipe.transformer.config.num_classes,
            images_per_class=per_class,
            seed=seed,
            shuffle_seed=shuffle_seed,
            batch_size=batch_size,
        )
        check_count(len(plan), min_images, "Every set of this sweep")
        check_size(pipe.vqvae.image_size, compared.image_size, model, compared.name)
        sample_sweep(pipe, output, plan, settings, scales, model=model, share=share)
        if not share.is_first:
            return
        del pipe  # its memory is wanted for the features
        found = prepare_reference(compared, extractor, look_at)
        if statistics is not None:
            write_statistics(statistics, found, extractor)
        sweep = evaluate_sweep(
            output, scales, found, extractor, min_images=min_images, batch_size=look_at
        )
        _print(sweep, _sweep_table(sweep), as_json)
        return
    if guidance_scale is not None or preset is not None:
        raise ValueError("--guidance-scale and --preset are for drawing samples, with --model.")
    source = open_source(str(samples))
    if not isinstance(source, ImageSource):
        raise ValueError(f"{samples} holds statistics and no images (arr_0); name the images.")
    check_count(source.count, min_images, source.name)
    check_size(source.image_size, compared.image_size, source.name, compared.name)
    found = prepare_reference(compared, extractor, look_at)
    if statistics is not None:
        write_statistics(statistics, found, extractor)
    evaluation = evaluate_samples(
        source, found, extractor, min_images=min_images, batch_size=look_at
    )
    if output is not None:
        write_report(output, evaluation, found)
    result = evaluation.result
    lines = [
        *metric_table(result),
        f"reference SHA-256  {result['reference']['sha256']}",
        f"features SHA-256   {result['features']['sha256']}",
    ]
    _print(result, lines, as_json)


@app.command(
    epilog="\b\nExamples:\n"
    "  var-hf evaluate-tokenizer --model var-d16-256 --data imagenet-val --weights inception.pth -o report\n"
    "  var-hf evaluate-tokenizer --model runs/tokenizer/vqvae --data photos --features none"
)
def evaluate_tokenizer(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Multi-scale VQVAE, or a pipeline that holds one: folder or Hub repository.",
        ),
    ],
    data: Annotated[
        str, typer.Option(metavar="SOURCE", help="Folder of images, data file, or data set name.")
    ],
    split: SplitOption = None,
    max_images: Annotated[
        int | None,
        typer.Option(
            min=2, metavar="INT", help="Measure on so many, evenly spread.  [default: all]"
        ),
    ] = None,
    resize_factor: Annotated[
        float,
        typer.Option(min=1, help="Resize to this multiple of the side before the central crop."),
    ] = 1.0,
    features: FeaturesOption = "inception",
    weights: WeightsOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Write result.json and reconstructions.png there.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JSONOption = False,
) -> None:
    """Measure reconstructions: PSNR, SSIM, LPIPS where its library is installed, rFID, and the use of the codebook.

    rFID is of the reconstructions against the very images they were made from. --features none leaves it out.
    """
    _start()
    from var_hf.evaluation.tokenizer import measure_tokenizer
    from var_hf.hub.errors import TransportError
    from var_hf.images import open_images
    from var_hf.pipelines.loading import choose_device, loading_errors
    from var_hf.training.loading import load_vqvae

    images = open_images(data, split)
    extractor = None if features == "none" else _extractor(features, weights, device)
    with loading_errors(model):
        try:
            vqvae = load_vqvae(model).to(choose_device(device))
        except TransportError as error:
            raise OSError(f"{model} could not be loaded: {error}") from error
    result, grid = measure_tokenizer(vqvae, images, extractor, max_images, resize_factor)
    if output is not None:
        from var_hf.evaluation.report import RESULT_NAME
        from var_hf.files import new_path, write_json

        write_json(output / RESULT_NAME, result)
        with new_path(output / "reconstructions.png", replace=True) as temporary:
            grid.save(temporary)
    _print(result, _tokenizer_table(result), as_json)


def _start() -> Share:
    """What this process's share is; talk goes to stderr, of the first process only."""
    from var_hf.evaluation.sample_plan import Share

    share = Share.from_environment()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("var_hf").setLevel(logging.INFO if share.is_first else logging.ERROR)
    return share


def _load(model: str, dtype: DType, device: str, share: Share) -> VARPipeline:
    """The pipeline, on the device of this process: of several, each takes one."""
    import torch

    from var_hf.pipelines.loading import choose_device, load_pipeline

    chosen = choose_device(device)
    if share.count > 1 and chosen.type != "cpu" and chosen.index is None:
        count = torch.accelerator.device_count()
        device = f"{chosen.type}:{share.local_index % count}"
    return load_pipeline(model, dtype, device)


def _settings(
    pipe: VARPipeline,
    preset: Preset | None,
    guidance_scale: float | None,
    top_k: int | None,
    top_p: float | None,
    smooth: bool,
) -> SamplingSettings:
    """A preset or the checkpoint's defaults, and what was given over them."""
    from var_hf.evaluation.presets import PRESETS

    sampling = "gumbel_softmax" if smooth else None
    if preset is None:
        return pipe.resolve_settings(guidance_scale, top_k, top_p, sampling)
    chosen = PRESETS[preset]
    return pipe.resolve_settings(
        chosen.guidance_scale if guidance_scale is None else guidance_scale,
        chosen.top_k if top_k is None else top_k,
        chosen.top_p if top_p is None else top_p,
        sampling or chosen.sampling,
    )


def _scales(text: str | None, settings: SamplingSettings) -> list[float]:
    """``"1,1.5,2"`` to numbers; the one of the settings if there are none."""
    if text is None:
        return [settings.guidance_scale]
    try:
        scales = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--guidance-scale takes numbers with commas between them, such as 1,1.5,2. Got {text}."
        ) from None
    if not all(0 <= scale < float("inf") for scale in scales) or len(set(scales)) < len(scales):
        raise ValueError(
            f"--guidance-scale takes different finite numbers of at least 0. Got {text}."
        )
    return scales


def _extractor(features: str, weights: Path | None, device: str) -> FeatureExtractor:
    from var_hf.evaluation.features import load_features
    from var_hf.pipelines.loading import choose_device

    return load_features(features, weights, choose_device(device))


def _sweep_table(sweep: dict[str, Any]) -> list[str]:
    from var_hf.evaluation.report import METRICS

    lines = ["guidance  " + "  ".join(f"{name:>15}" for name, _ in METRICS.values())]
    for point in sweep["points"]:
        cells = [
            f"{'not measured':>15}" if point[key] is None else f"{point[key]:>15.{digits}f}"
            for key, (_, digits) in METRICS.items()
        ]
        lines.append(f"{point['guidance_scale']:>8g}  " + "  ".join(cells))
    return lines


def _tokenizer_table(result: dict[str, Any]) -> list[str]:
    lines = []
    for name, digits in (
        ("psnr", 3),
        ("ssim", 4),
        ("l1", 5),
        ("lpips", 4),
        ("rfid", 3),
        ("rsfid", 3),
    ):
        value = result[name]
        lines.append(f"{name:<5}  {'not measured' if value is None else f'{value:.{digits}f}'}")
    lines.append("scale  codes used  of possible  perplexity")
    rows = zip(
        result["token_map_sizes"],
        result["distinct_codes"],
        result["possible_codes"],
        result["perplexity"],
        strict=True,
    )
    for size, distinct, possible, perplexity in rows:
        lines.append(f"{f'{size}x{size}':<5}  {distinct:>10}  {possible:>11}  {perplexity:>10.1f}")
    return lines


def _print(result: dict[str, Any], lines: list[str], as_json: bool) -> None:
    for line in [json.dumps(result, indent=2)] if as_json else lines:
        typer.echo(line)
