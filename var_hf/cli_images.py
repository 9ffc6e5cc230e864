"""The commands `var-hf generate`, `edit` and `classify`."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from var_hf import __version__
from var_hf.assets import DEFAULT_MODEL
from var_hf.cli_options import (
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
from var_hf.cli_shared import load_pipeline, print_result
from var_hf.labels import parse_label
from var_hf.text import file_name, printable

if TYPE_CHECKING:
    from PIL import Image

    from var_hf.pipelines.pipeline_var import VARPipeline

BATCH_SIZE = 8
SCALES_SUFFIXES = (".png", ".gif", ".webp")

app = typer.Typer()

OutputOption = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="PNG", help="File to write; an existing one is replaced."
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=2**63 - 1,
        metavar="INT",
        help=(
            "Seed of the first image; each further image takes the next number.  [default: a new "
            "one, shown]"
        ),
    ),
]


@app.command(
    epilog='\b\nExample:\n  var-hf generate "golden retriever" 207 --model var-d16-256 -o out.png'
)
def generate(
    class_labels: Annotated[
        list[str],
        typer.Argument(metavar="CLASS...", show_default=False, help="Class names or class ids."),
    ],
    model: ModelOption = DEFAULT_MODEL.name,
    output: OutputOption = Path("out.png"),
    separate: Annotated[
        bool,
        typer.Option(
            "--separate",
            help="One file per image instead of a grid: out-000-golden_retriever.png, ...",
        ),
    ] = False,
    num_images: Annotated[
        int, typer.Option("--num-images", "-n", min=1, help="Images per class.")
    ] = 1,
    seed: SeedOption = None,
    one_stream: Annotated[
        bool,
        typer.Option(
            "--one-stream",
            help=(
                "Draw all images in one batch from one stream of random numbers, as the original "
                "code does."
            ),
        ),
    ] = False,
    guidance_scale: GuidanceOption = None,
    cfg: CfgOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    sampling: SamplingOption = None,
    temperature: TemperatureOption = None,
    guided_scales: GuidedScalesOption = None,
    guidance_schedule: GuidanceScheduleOption = None,
    ssg_scale: SSGScaleOption = None,
    best_of: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="INT",
            help="Draw each image this many times and keep the one that the judge likes best.",
        ),
    ] = 1,
    judge: Annotated[
        str,
        typer.Option(
            metavar="likelihood|emoji-128|emoji|FILE",
            help=(
                "Judge of --best-of: likelihood under the model; a shipped classifier of the "
                "classes of var-emoji-128 or var-emoji-64; or one that "
                "examples/emoji/train_classifier.py wrote, a .safetensors file."
            ),
        ),
    ] = "likelihood",
    scales: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help=(
                "Also write the images after every scale: a .png file holds a strip, a .gif or "
                ".webp file an animation. Repeatable."
            ),
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="INT", help=f"Images generated at a time.  [default: {BATCH_SIZE}]"
        ),
    ] = None,
    refiner: RefinerOption = None,
    draft_scales: DraftScalesOption = None,
    dtype: DTypeOption = DType.auto,
    device: DeviceOption = "auto",
    as_json: JSONOption = False,
) -> None:
    """Generate images of classes and write them to a PNG file, as a grid.

    The file also stores the settings, as JSON in the PNG text chunk "var-hf".
    """
    _check_png(output)
    scales = scales or []
    for path in scales:
        _check_scales_file(path)
    guidance_scale = choose_guidance(guidance_scale, cfg)
    if one_stream and batch_size is not None:
        raise ValueError("--one-stream generates all images in one batch: leave --batch-size out.")
    if scales and best_of > 1:
        raise ValueError("--scales shows one image after every scale: leave --best-of out.")

    pipe = load_pipeline(model, dtype, device, refiner, draft_scales)
    class_ids = [
        class_id
        for class_id in pipe.resolve_labels([parse_label(label) for label in class_labels])
        for _ in range(num_images)
    ]
    settings = pipe.resolve_settings(
        guidance_scale=guidance_scale,
        top_k=top_k,
        top_p=top_p,
        sampling=sampling and str(sampling),
        temperature=temperature,
        guided_scales=guided_scales,
        guidance_schedule=guidance_schedule and str(guidance_schedule),
        ssg_scale=ssg_scale,
    )
    record = _record(pipe, model, seed, refiner) | {"one_stream": one_stream, **asdict(settings)}
    search: dict[str, Any] = {}
    if best_of > 1:
        search = {"candidates": best_of, "judge": _load_judge(judge, pipe)}
        record |= {"best_of": best_of, "judge": judge}
    count = len(class_ids)
    generated = _generate(
        pipe,
        class_ids,
        count if one_stream else batch_size or BATCH_SIZE,
        record["seed"],
        one_stream=one_stream,
        preview=bool(scales),
        **search,
        **asdict(settings),
    )
    entries: list[dict[str, Any]] = []
    images = []
    previews = []  # per image, the images after every scale
    for index, (image, by_scale) in enumerate(generated):
        previews.append(by_scale)
        entry = {"class_id": class_ids[index], "class_name": pipe.id2label.get(class_ids[index])}
        if not one_stream:
            entry["seed"] = record["seed"] + index
        if separate:
            file = _file_of_image(output, index, count, entry)
            _write_png(image, file, record | {"images": [entry]})
            entry["file"] = str(file)
        else:
            images.append(image)
        entries.append(entry)
    record["images"] = entries
    # One row per class if there are several images of several classes, else nearly a square.
    num_columns = num_images if 1 < num_images < count else math.ceil(math.sqrt(count))
    if not separate:
        _write_grid(images, num_columns, output, record)
    files = [entry["file"] for entry in entries] if separate else [str(output)]
    for path in scales:
        _write_scales(previews, num_columns, path, record)
        files.append(str(path))
    print_result(record | {"files": files}, files, as_json)


@app.command(
    epilog=(
        "\b\n"
        "Examples:\n"
        "  var-hf edit dog.png --mask mask.png --class-labels beagle --model var-d16-256 -o "
        "edited.png\n"
        "  var-hf edit dog.png --expand 128,0,128,0 --model var-d16-256 -o wider.png\n"
        "  var-hf edit cat.png -l tabby --strength 0.5 -n 4 --model var-d16-256 -o variations.png"
    )
)
def edit(
    image: Annotated[Path, typer.Argument(help="Image to edit, of any size.")],
    model: ModelOption = DEFAULT_MODEL.name,
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask-image",
            "--mask",
            help="Mask in the size of the image: white is redrawn, black is kept.",
        ),
    ] = None,
    class_labels: Annotated[
        str | None,
        typer.Option(
            "--class-labels", "-l", metavar="CLASS", help="Class name or id; none by default."
        ),
    ] = None,
    output: OutputOption = Path("out.png"),
    expand: Annotated[
        str | None,
        typer.Option(
            metavar="L,T,R,B", help="Pixels to add beyond the left, top, right and bottom edge."
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            metavar="FLOAT",
            help="Instead of a mask: redraw this share of the scales, the finest first, in [0, 1].",
        ),
    ] = None,
    num_images: Annotated[
        int, typer.Option("--num-images", "-n", min=1, help="Results, side by side in one file.")
    ] = 1,
    keep_coarsest: Annotated[
        bool,
        typer.Option(help="Keep the 1 x 1 token map, which holds the overall colour of the image."),
    ] = True,
    paste_back: Annotated[
        bool,
        typer.Option(help="Paste the original pixels over the result where the mask is black."),
    ] = True,
    padding_mask_crop: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="PIXELS",
            help="Edit a crop around the mask with this margin: sharper in large images.",
        ),
    ] = None,
    seed: SeedOption = None,
    guidance_scale: GuidanceOption = None,
    cfg: CfgOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    sampling: SamplingOption = None,
    temperature: TemperatureOption = None,
    guided_scales: GuidedScalesOption = None,
    guidance_schedule: GuidanceScheduleOption = None,
    ssg_scale: SSGScaleOption = None,
    refiner: RefinerOption = None,
    draft_scales: DraftScalesOption = None,
    dtype: DTypeOption = DType.auto,
    device: DeviceOption = "auto",
    as_json: JSONOption = False,
) -> None:
    """Redraw a part of an image, extend it beyond its edges, or generate variations of it.

    The file also stores the settings, as JSON in the PNG text chunk "var-hf".
    """
    _check_png(output)
    guidance_scale = choose_guidance(guidance_scale, cfg)
    by_strength = strength is not None
    if by_strength and (mask or expand or padding_mask_crop is not None or not keep_coarsest):
        raise ValueError(
            "--strength redraws the whole image: leave --mask, --expand, --padding-mask-crop and "
            "--no-keep-coarsest out."
        )
    if not (by_strength or mask or expand):
        raise ValueError("There is nothing to redraw: pass --mask, --expand or --strength.")
    from var_hf.image_files import open_image

    original = open_image(image)
    what: dict[str, Any] = {"strength": strength}
    if not by_strength:
        what = {
            "expand": _parse_expand(expand),
            "keep_coarsest": keep_coarsest,
            "paste_back": paste_back,
            "padding_mask_crop": padding_mask_crop,
        }
    mask_image = open_image(mask) if mask else None

    pipe = load_pipeline(model, dtype, device, refiner, draft_scales)
    import torch

    from var_hf.memory_errors import memory_errors
    from var_hf.pipelines.pipeline_var_collaborative import edit_classes

    class_id = None if class_labels is None else pipe.resolve_labels(parse_label(class_labels))[0]
    settings = pipe.resolve_settings(
        guidance_scale=guidance_scale,
        top_k=top_k,
        top_p=top_p,
        sampling=sampling and str(sampling),
        temperature=temperature,
        guided_scales=guided_scales,
        guidance_schedule=guidance_schedule and str(guidance_schedule),
        ssg_scale=ssg_scale,
    )
    record = _record(pipe, model, seed, refiner) | asdict(settings)
    seeds = range(record["seed"], record["seed"] + num_images)
    arguments = what | asdict(settings) | {"class_labels": class_id}
    arguments["num_images_per_prompt"] = num_images
    arguments["generator"] = [torch.Generator().manual_seed(one) for one in seeds]
    variations, inpainting = edit_classes(pipe)
    editor: Any = (variations if by_strength else inpainting).from_pipe(pipe)
    editor.set_progress_bar_config(desc=_summary(record))
    inputs = [original] if by_strength else [original, mask_image]
    with memory_errors(
        f"{num_images} images at a time",
        pipe.device,
        "Pass a smaller --num-images, or --dtype bfloat16",
    ):
        edited = editor(*inputs, **arguments).images

    record |= {
        "image": str(image),
        "mask": None if mask is None else str(mask),
        "class_id": class_id,
        "class_name": None if class_id is None else pipe.id2label.get(class_id),
        **what,
        "images": [{"seed": one} for one in seeds],
    }
    _write_grid(edited, math.ceil(math.sqrt(num_images)), output, record)
    print_result(record | {"files": [str(output)]}, [output], as_json)


@app.command(
    epilog=(
        "\b\n"
        "Examples:\n"
        "  var-hf classify dog.png cat.png --model var-d16-256 --top 3 --json\n"
        "  var-hf classify dog.png --model var-d16-256 --budget a-varc"
    )
)
def classify(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Images; each image is centre-cropped."),
    ],
    model: ModelOption = DEFAULT_MODEL.name,
    top: Annotated[int, typer.Option(min=1, help="Classes to print for each image.")] = 5,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Pairs of image and class per forward pass.")
    ] = 16,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="BUDGET",
            help=(
                "full, fast or a-varc, or stages CANDIDATES:SCALES[:SAMPLES] such as "
                "10:6,3:10,1:10:3: classes kept after the first scales.  [default: full up to 100 "
                "classes, else fast]"
            ),
        ),
    ] = None,
    dtype: DTypeOption = DType.auto,
    device: DeviceOption = "auto",
    as_json: JSONOption = False,
) -> None:
    """Rank the classes of images by likelihood.

    Prints one line per image and class: file, probability and class, separated by tabs. The number
    of operations goes to stderr. Noise of samples has the seed 0.
    """
    from var_hf.budgets import parse_budget, resolve_budget
    from var_hf.image_files import open_image

    opened = [open_image(path) for path in images]
    chosen = None if budget is None else parse_budget(budget)
    pipe = load_pipeline(model, dtype, device)
    import torch

    from var_hf.costs import classification_cost
    from var_hf.memory_errors import memory_errors

    config = pipe.transformer.config
    stages, full = (
        resolve_budget(one, config.num_classes, config.num_scales) for one in (chosen, "full")
    )
    operations, of_full = (sum(classification_cost(config, one)) for one in (stages, full))

    with memory_errors(
        f"{batch_size} pairs at a time",
        pipe.device,
        "Pass a smaller --batch-size, or --dtype bfloat16",
    ):
        guesses = pipe.classify(
            opened,
            top=top,
            batch_size=batch_size,
            budget=stages,
            generator=torch.Generator().manual_seed(0),
        )
    typer.echo(
        f"{operations / 1e12:.3g} TFLOP per image, {of_full / operations:.1f} times fewer than the "
        "full search",
        err=True,
    )
    result = [
        {"image": str(path), "classes": row} for path, row in zip(images, guesses, strict=True)
    ]
    lines = [
        f"{printable(path)}\t{guess['score']:.4f}\t{printable(guess['label'] or guess['class_id'])}"
        for path, row in zip(images, guesses, strict=True)
        for guess in row
    ]
    record = {
        "model": model,
        "budget": [stage._asdict() for stage in stages],
        "flops_per_image": operations,
        "flops_of_full_search": of_full,
    }
    print_result(record | {"images": result}, lines, as_json)


# Arguments


def _parse_expand(text: str | None) -> tuple[int, ...]:
    if text is None:
        return (0, 0, 0, 0)
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(part.isdecimal() for part in parts):
        raise ValueError(
            "--expand takes four numbers of pixels, left, top, right and bottom, such as "
            f"128,0,128,0. Got {text}."
        )
    return tuple(int(part) for part in parts)


def _check_png(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise ValueError(f"The output has to be a .png file. Got {path}.")
    if path.is_dir():
        raise IsADirectoryError(f"The output {path} is a folder. Pass the name of a .png file.")


def _check_scales_file(path: Path) -> None:
    if path.suffix.lower() not in SCALES_SUFFIXES:
        raise ValueError(f"--scales takes a .png, .gif or .webp file. Got {path}.")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Pass the name of a file to --scales.")


# Generation


def _record(
    pipe: VARPipeline, model: str, seed: int | None, refiner: str | None = None
) -> dict[str, Any]:
    """Return the settings of the images for the file and for `--json`."""
    from var_hf.pipelines.pipeline_var_collaborative import pair_settings

    second = {} if refiner is None else {"refiner": refiner}
    return {
        "software": f"var-hf {__version__}",
        "model": model,
        **second,
        **pair_settings(pipe),
        "device": str(pipe.device),
        "dtype": pipe.precision,
        "seed": secrets.randbelow(2**32) if seed is None else seed,
    }


def _summary(record: dict[str, Any]) -> str:
    """Return the text of the progress bar: the values that the command may have chosen."""
    return f"seed {record['seed']}, {record['device']}, {record['dtype']}"


def _load_judge(judge: str, pipe: VARPipeline) -> Any:
    """Return the judge of a search, by its name or file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no classifier, or one of other classes.
    """
    if judge == "likelihood":
        return judge
    from var_hf.evaluation.classifier import load_classifier
    from var_hf.pipelines.search import ClassifierJudge

    module, names = load_classifier(judge)
    of_model = [pipe.id2label.get(i) for i in range(pipe.transformer.config.num_classes)]
    missing = [i for i, name in enumerate(of_model) if name not in names]
    if missing:
        raise ValueError(
            f"The judge {judge} does not know {len(missing)} of the model's {len(of_model)} "
            f"classes, such as {printable(of_model[missing[0]] or missing[0])}. Use one that "
            "was trained on the same classes, or --judge likelihood."
        )
    return ClassifierJudge(module.to(pipe.device), [names.index(str(name)) for name in of_model])


def _generate(
    pipe: VARPipeline,
    class_ids: Sequence[int],
    batch_size: int,
    seed: int,
    *,
    one_stream: bool,
    preview: bool,
    **settings: Any,
) -> Iterator[tuple[Image.Image, tuple[Image.Image, ...]]]:
    """Generate one image per class id; `preview` adds the images after every scale."""
    import torch
    from tqdm import tqdm

    from var_hf.memory_errors import memory_errors

    count = len(class_ids)
    pipe.set_progress_bar_config(disable=True)
    summary = _summary(_record(pipe, "", seed))
    # A step is one scale of one image: the bar moves within a batch as well.
    with tqdm(
        total=count * pipe.num_timesteps,
        desc=f"{summary}: 0/{count} images",
        bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
    ) as progress:
        for start in range(0, count, batch_size):
            batch = class_ids[start : start + batch_size]
            seeds = [seed] if one_stream else range(seed + start, seed + start + len(batch))
            generators = [torch.Generator().manual_seed(one) for one in seeds]
            outputs = pipe.stream(
                batch,
                generator=generators[0] if one_stream else generators,
                preview=preview,
                **settings,
            )
            previews = []
            with memory_errors(
                f"{len(batch)} images at a time",
                pipe.device,
                "Pass a smaller --batch-size, or --dtype bfloat16",
            ):
                for output in outputs:
                    progress.update(len(batch))
                    previews.append(cast("list[Image.Image]", output.image))
                images = previews[-1] if preview else pipe.decode(output.latents, "pil")
            progress.set_description_str(f"{summary}: {start + len(batch)}/{count} images")
            by_image = zip(*previews, strict=True) if preview else [()] * len(batch)
            yield from zip(cast("list[Image.Image]", images), by_image, strict=True)


# Files


def _file_of_image(output: Path, index: int, count: int, entry: dict[str, Any]) -> Path:
    """Turn ``out.png`` into ``out-000-golden_retriever.png``."""
    usual_name = (entry["class_name"] or "").partition(",")[0]
    name = file_name(usual_name) or f"class_{entry['class_id']}"
    digits = max(3, len(str(count - 1)))
    return output.with_name(f"{output.stem}-{index:0{digits}d}-{name}{output.suffix}")


def _write_png(image: Image.Image, path: Path, record: dict[str, Any]) -> None:
    from PIL.PngImagePlugin import PngInfo

    from var_hf.files import new_path

    text = PngInfo()
    text.add_text("var-hf", json.dumps(record))
    with new_path(path, replace=True) as temporary:
        image.save(temporary, pnginfo=text)


def _write_grid(
    images: Sequence[Image.Image], num_columns: int, path: Path, record: dict[str, Any]
) -> None:
    from var_hf.pipelines.visualization import image_grid

    _write_png(image_grid(images, num_columns), path, record)


def _write_scales(
    previews: Sequence[Sequence[Image.Image]],
    num_columns: int,
    path: Path,
    record: dict[str, Any],
) -> None:
    """Write the images after every scale: one strip per image, or an animation of the grid."""
    from var_hf.pipelines.visualization import image_grid, save_animation, scale_strip

    by_scale = list(zip(*previews, strict=True))
    if path.suffix.lower() == ".png":
        _write_png(scale_strip(by_scale), path, record)
    else:
        save_animation([image_grid(images, num_columns) for images in by_scale], path)
