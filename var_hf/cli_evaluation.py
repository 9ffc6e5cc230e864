"""The commands `var-hf sample`, `evaluate` and `evaluate-tokenizer`."""

from __future__ import annotations

import logging
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from var_hf.assets import DEFAULT_MODEL
from var_hf.cli_options import (
    MODEL_HELP,
    CfgOption,
    DeviceOption,
    DraftScalesOption,
    DType,
    DTypeOption,
    GuidanceOption,
    GuidanceScheduleOption,
    GuidedScalesOption,
    JSONOption,
    ModelOption,
    RefinerOption,
    SamplingOption,
    SSGScaleOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    choose_guidance,
)
from var_hf.cli_shared import load_pipeline, print_result, resolve_model

if TYPE_CHECKING:
    from var_hf.evaluation.features import FeatureExtractor
    from var_hf.evaluation.sample_plan import Share
    from var_hf.pipelines.pipeline_var import VARPipeline
    from var_hf.sampling_settings import SamplingSettings

app = typer.Typer()


class SampleFormat(StrEnum):
    """File formats of a sample set."""

    png = "png"
    tar = "tar"
    npz = "npz"


class Preset(StrEnum):
    """Settings of published numbers and images."""

    fid = "fid"
    paper = "paper"
    visual = "visual"


ImagesPerClassOption = Annotated[
    int, typer.Option("--images-per-class", "-n", min=1, help="Images of each class.")
]
SeedOption = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="INT",
        help="Base seed; each image derives its own from it, its class and its index.",
    ),
]
ShuffleOption = Annotated[
    int, typer.Option(min=0, metavar="INT", help="Seed of the order of the images.")
]
BatchSizeOption = Annotated[
    int,
    typer.Option(
        min=1,
        help="Images generated at a time by each process; another size rounds differently.",
    ),
]
PresetOption = Annotated[
    Preset | None,
    typer.Option(
        help=(
            "fid: the release's settings for FID; paper: what the first versions of the paper "
            "name; visual: the release's notebook."
        )
    ),
]
FeaturesOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Feature network: inception, emoji, emoji-128, or a classifier's safetensors file.",
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Weights of Inception; the error message names a source."),
]  # fmt: skip
SplitOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Split of a data set, or sub-folder of images.")
]


@app.command(
    epilog=(
        "\b\n"
        "Examples:\n"
        "  var-hf sample --model var-d16-256 --preset fid -o samples\n"
        "  torchrun --nproc-per-node 8 $(which var-hf) sample --model var-d16-256 --format npz -o "
        "samples"
    )
)
def sample(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Sample set; the same command completes an unfinished one.",
        ),
    ],
    model: ModelOption = DEFAULT_MODEL.name,
    images_per_class: ImagesPerClassOption = 50,
    sample_format: Annotated[
        SampleFormat,
        typer.Option(
            "--format",
            help=(
                "png: a folder of files; tar: webdataset shards; npz: one file for ADM's evaluator."
            ),
        ),
    ] = SampleFormat.png,
    preset: PresetOption = None,
    guidance_scale: GuidanceOption = None,
    cfg: CfgOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    sampling: SamplingOption = None,
    temperature: TemperatureOption = None,
    guided_scales: GuidedScalesOption = None,
    guidance_schedule: GuidanceScheduleOption = None,
    ssg_scale: SSGScaleOption = None,
    seed: SeedOption = 0,
    shuffle_seed: ShuffleOption = 0,
    batch_size: BatchSizeOption = 32,
    shard_size: Annotated[
        int, typer.Option(min=1, help="Images per shard, the unit of writing and resuming.")
    ] = 256,
    refiner: RefinerOption = None,
    draft_scales: DraftScalesOption = None,
    dtype: DTypeOption = DType.auto,
    device: DeviceOption = "auto",
    as_json: JSONOption = False,
) -> None:
    """Generate a class-balanced sample set, with any number of processes and machines that share a
    folder.

    Each image has its own seed, derived from class and index: the set does not depend on the number
    of processes. The same command resumes an interrupted run. FOLDER/manifest.json appears once the
    set is complete. It holds settings and digests.
    """
    from var_hf.processes import joined

    guidance_scale = choose_guidance(guidance_scale, cfg)
    share = _start()
    pipe = _load(model, dtype, device, share, refiner, draft_scales)
    from var_hf.evaluation.sample_plan import SamplePlan
    from var_hf.evaluation.sampling import sample_images

    settings = _settings(
        pipe,
        preset,
        guidance_scale=guidance_scale,
        top_k=top_k,
        top_p=top_p,
        sampling=sampling,
        temperature=temperature,
        guided_scales=guided_scales,
        guidance_schedule=guidance_schedule,
        ssg_scale=ssg_scale,
    )
    plan = SamplePlan(
        num_classes=pipe.transformer.config.num_classes,
        images_per_class=images_per_class,
        seed=seed,
        shuffle_seed=shuffle_seed,
        batch_size=batch_size,
        shard_size=shard_size,
        format=str(sample_format),
    )
    with joined():
        manifest = sample_images(pipe, output, plan, settings, model=model, share=share)
    if manifest is not None:
        print_result(manifest, [output], as_json)


@app.command(
    epilog=(
        "\b\n"
        "Examples:\n"
        "  var-hf evaluate samples --reference VIRTUAL_imagenet256_labeled.npz --weights "
        "inception.pth -o report\n"
        "  var-hf evaluate samples --reference photos --features emoji --min-images 2000\n"
        "  var-hf evaluate --model var-d16-256 --guidance-scale 1,1.5,2,2.5 --reference ref.npz "
        "-o sweep"
    )
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
            help="Images to compare with: the same kinds of source, or an .npz file of statistics.",
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
            help="Folder for result.json and report.html; a sweep adds its samples and a plot.",
        ),
    ] = None,
    min_images: Annotated[
        int, typer.Option(help="Refuse fewer images, because FID depends on their number.")
    ] = 50_000,
    statistics: Annotated[
        Path | None,
        typer.Option(metavar="NPZ", help="Write the statistics of the reference to this file."),
    ] = None,
    feature_batch_size: Annotated[
        int, typer.Option(min=1, help="Images per forward pass of the feature network.")
    ] = 64,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help=f"Generate the samples with this model instead of SAMPLES: {MODEL_HELP}.",
        ),
    ] = None,
    guidance_scale: Annotated[
        str | None,
        typer.Option(
            metavar="FLOAT,...", help="With --model: guidance scales of the sweep; 1 is off."
        ),
    ] = None,
    preset: PresetOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    sampling: SamplingOption = None,
    temperature: TemperatureOption = None,
    guided_scales: GuidedScalesOption = None,
    guidance_schedule: GuidanceScheduleOption = None,
    ssg_scale: SSGScaleOption = None,
    images_per_class: ImagesPerClassOption = 50,
    seed: SeedOption = 0,
    shuffle_seed: ShuffleOption = 0,
    batch_size: BatchSizeOption = 32,
    refiner: RefinerOption = None,
    draft_scales: DraftScalesOption = None,
    dtype: DTypeOption = DType.auto,
    device: DeviceOption = "auto",
    as_json: JSONOption = False,
) -> None:
    """Measure FID, sFID, Inception Score, precision and recall of a set of images against a
    reference.

    Several processes, on any machines, divide the images. With --model, the command first generates
    one sample set per guidance scale, and plots the
    trade-off. It keeps finished sets of an earlier run.
    """
    if (samples is None) == (model is None):
        raise ValueError("Name the samples, or a model to sample from (--model): one of the two.")
    if reference is None:
        raise ValueError("Name the images to compare with (--reference).")
    if model is not None and output is None:
        raise ValueError("With --model, name a folder for the samples (--output).")
    share = _start()
    from var_hf.evaluation.evaluate import (
        check_count,
        check_size,
        evaluate_samples,
        help_to_measure,
        prepare_reference,
        write_statistics,
    )
    from var_hf.evaluation.image_sources import ImageSource, open_source
    from var_hf.evaluation.report import check_matplotlib, metric_table, write_report
    from var_hf.processes import joined

    if output is not None:
        check_matplotlib()
    compared = open_source(reference, reference_split)
    extractor = _extractor(features, weights, _own_device(device, share))
    if model is not None and output is not None:
        from var_hf.evaluation.sample_plan import SamplePlan
        from var_hf.evaluation.sweep import evaluate_sweep, sample_sweep

        pipe = _load(model, dtype, device, share, refiner, draft_scales)
        settings = _settings(
            pipe,
            preset,
            top_k=top_k,
            top_p=top_p,
            sampling=sampling,
            temperature=temperature,
            guided_scales=guided_scales,
            guidance_schedule=guidance_schedule,
            ssg_scale=ssg_scale,
        )
        scales = _scales(guidance_scale, settings)
        plan = SamplePlan(
            num_classes=pipe.transformer.config.num_classes,
            images_per_class=images_per_class,
            seed=seed,
            shuffle_seed=shuffle_seed,
            batch_size=batch_size,
        )
        check_count(len(plan), min_images, "Every set of this sweep")
        check_size(pipe.vqvae.image_size, compared.image_size, model, compared.name)
        with joined():
            sample_sweep(pipe, output, plan, settings, scales, model=model, share=share)
        if not share.is_first:
            return
        del pipe  # its memory is wanted for the features
        found = prepare_reference(compared, extractor, feature_batch_size)
        if statistics is not None:
            write_statistics(statistics, found, extractor)
        sweep = evaluate_sweep(
            output, scales, found, extractor, min_images=min_images, batch_size=feature_batch_size
        )
        print_result(sweep, _sweep_table(sweep), as_json)
        return
    if any(value is not None for value in (guidance_scale, preset, refiner, draft_scales)):
        raise ValueError(
            "--guidance-scale, --preset, --refiner and --draft-scales are for drawing samples, with"
            " --model."
        )
    source = open_source(str(samples))
    if not isinstance(source, ImageSource):
        raise ValueError(f"{samples} holds statistics and no images (arr_0); name the images.")
    check_count(source.count, min_images, source.name)
    check_size(source.image_size, compared.image_size, source.name, compared.name)
    with joined() as others:
        digests = {"samples": source.sha256, "reference": compared.sha256}
        others.compare({**digests, "features": extractor.sha256})
        if not share.is_first:
            images = [compared if isinstance(compared, ImageSource) else compared.images, source]
            for each in images if others.count > 1 else ():
                if each is not None:
                    help_to_measure(each, extractor, feature_batch_size)
            return
        divided = others.count > 1
        found = prepare_reference(compared, extractor, feature_batch_size, divided)
        evaluation = evaluate_samples(
            source,
            found,
            extractor,
            min_images=min_images,
            batch_size=feature_batch_size,
            divided=divided,
        )
    if statistics is not None:
        write_statistics(statistics, found, extractor)
    if output is not None:
        write_report(output, evaluation, found)
    result = evaluation.result
    lines = [
        *metric_table(result),
        f"reference SHA-256  {result['reference']['sha256']}",
        f"features SHA-256   {result['features']['sha256']}",
    ]
    print_result(result, lines, as_json)


@app.command(
    epilog=(
        "\b\n"
        "Examples:\n"
        "  var-hf evaluate-tokenizer --model var-d16-256 --data imagenet-val --weights "
        "inception.pth -o report\n"
        "  var-hf evaluate-tokenizer --model runs/tokenizer/vqvae --data photos --features none"
    )
)
def evaluate_tokenizer(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help=f"Multi-scale VQVAE, or a pipeline that contains one: {MODEL_HELP}.",
        ),
    ],
    data: Annotated[
        str, typer.Option(metavar="SOURCE", help="Folder of images, data file, or data set name.")
    ],
    split: SplitOption = None,
    max_images: Annotated[
        int | None,
        typer.Option(
            min=2, metavar="INT", help="Measure this many images, evenly spread.  [default: all]"
        ),
    ] = None,
    resize_factor: Annotated[
        float,
        typer.Option(
            min=1,
            help="Resize the shorter side to this multiple of the model's before the centre crop.",
        ),
    ] = 1.0,
    features: FeaturesOption = "inception",
    weights: WeightsOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder for result.json and reconstructions.png.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JSONOption = False,
) -> None:
    """Measure reconstructions: PSNR, SSIM, LPIPS if its library is installed, rFID, and codebook
    usage.

    rFID compares the reconstructions with the images they were made from. --features none omits it.
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
            vqvae = load_vqvae(resolve_model(model)).to(choose_device(device))
        except TransportError as error:
            raise OSError(f"{model} could not be loaded: {error}") from error
    result, grid = measure_tokenizer(vqvae, images, extractor, max_images, resize_factor)
    if output is not None:
        from var_hf.evaluation.report import RESULT_NAME
        from var_hf.files import new_path, write_json

        write_json(output / RESULT_NAME, result)
        with new_path(output / "reconstructions.png", replace=True) as temporary:
            grid.save(temporary)
    print_result(result, _tokenizer_table(result), as_json)


def _start() -> Share:
    """Return this process's share of the work. Only the first process logs to stderr."""
    from var_hf.evaluation.sample_plan import Share

    share = Share.from_environment()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("var_hf").setLevel(logging.INFO if share.is_first else logging.ERROR)
    return share


def _load(
    model: str,
    dtype: DType,
    device: str,
    share: Share,
    refiner: str | None,
    draft_scales: int | None,
) -> VARPipeline:
    """Load the pipeline on the device of this process."""
    return load_pipeline(model, dtype, _own_device(device, share), refiner, draft_scales)


def _own_device(device: str, share: Share) -> str:
    """The device of this process; the processes of a machine take its accelerators in turn."""
    import torch

    from var_hf.pipelines.loading import choose_device

    chosen = choose_device(device)
    if share.count > 1 and chosen.type != "cpu" and chosen.index is None:
        return f"{chosen.type}:{share.local_index % torch.accelerator.device_count()}"
    return device


def _settings(pipe: VARPipeline, preset: Preset | None, **options: Any) -> SamplingSettings:
    """Return the settings of the options; the preset or the checkpoint provides the others."""
    from var_hf.evaluation.presets import PRESETS

    given = {name: value for name, value in options.items() if value is not None}
    for name in ("sampling", "guidance_schedule"):
        if name in given:
            given[name] = str(given[name])
    chosen = {} if preset is None else asdict(PRESETS[preset])
    return pipe.resolve_settings(**chosen | given)


def _scales(text: str | None, settings: SamplingSettings) -> list[float]:
    """Parse numbers such as ``"1,1.5,2"``. Without a text, return the settings' guidance scale."""
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
