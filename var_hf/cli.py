"""The command ``var-hf``. Nothing heavy is imported before a command runs, so that ``--help`` answers at once.

Results go to stdout, talk and progress bars to stderr. Bad input is one line on stderr and exit code 1, a wrong
command line one line and exit code 2, an interrupt exit code 130; files appear complete or not at all.
"""

from __future__ import annotations

import json
import math
import secrets
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from var_hf import __version__
from var_hf.assets import VAR_EMOJI_64, shipped_model
from var_hf.cli_bench import app as bench_command
from var_hf.cli_demo import app as demo_commands
from var_hf.cli_evaluation import app as evaluation_commands
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
from var_hf.cli_scaling import app as scaling_command
from var_hf.cli_training import app as training_commands
from var_hf.text import file_name

if TYPE_CHECKING:
    from PIL import Image

    from var_hf.pipelines.base import NextScalePipeline
    from var_hf.pipelines.pipeline_var import VARPipeline

_BATCH_SIZE = 8
_SETTING_NAMES = (
    "guidance_scale",
    "top_k",
    "top_p",
    "sampling",
    "temperature",
    "guided_scales",
)

app = typer.Typer(
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help needs half the time of boxes, and stays plain in a pipe
)


class WeightType(StrEnum):
    """Number formats of stored weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


WithCodeOption = Annotated[
    bool,
    typer.Option(
        "--with-code",
        help="Add the code that diffusers and transformers need where var-hf is not installed.",
    ),
]
PrivateOption = Annotated[
    bool, typer.Option("--private", help="Make the repository a private one, if it is new.")
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=2**63 - 1,
        metavar="INT",
        help="Seed of the first image; each further image takes the next number.  [default: a fresh one, reported]",
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"var-hf {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Draw images with visual autoregressive (VAR) models, and convert their checkpoints."""


@app.command(
    epilog='\b\nExample:\n  var-hf generate "golden retriever" 207 --model var-d16-256 -o out.png'
)
def generate(
    labels: Annotated[
        list[str],
        typer.Argument(metavar="CLASS...", show_default=False, help="Class names or class ids."),
    ],
    model: ModelOption = VAR_EMOJI_64.name,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="PNG", help="File to write; one that exists is replaced."
        ),
    ] = Path("out.png"),
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
            help="Draw all images in one batch from one stream of random numbers, as the original code does.",
        ),
    ] = False,
    guidance_scale: GuidanceOption = None,
    cfg: CfgOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    smooth: SmoothOption = False,
    scales: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Also write the images after every scale: as a strip to a .png file, as an animation to a .gif or "
            ".webp file. Can be repeated.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="INT", help="Images drawn at a time.  [default: 8]")
    ] = None,
    dtype: DTypeOption = DType.auto,
    device: DeviceOption = "auto",
    as_json: JSONOption = False,
) -> None:
    """Draw images of classes into a PNG file, as a grid.

    The settings are stored in the file, as JSON in the PNG text chunk "var-hf".
    """
    _check_png(output)
    scales = scales or []
    for path in scales:
        _check_scales_file(path)
    guidance_scale = choose_guidance(guidance_scale, cfg)
    if one_stream and batch_size is not None:
        raise ValueError("--one-stream draws all images in one batch: leave --batch-size out.")

    pipe = _load_pipeline(model, dtype, device)
    class_ids = [
        class_id
        for class_id in pipe.resolve_labels([_label(label) for label in labels])
        for _ in range(num_images)
    ]
    settings = pipe.resolve_settings(
        guidance_scale, top_k, top_p, "gumbel_softmax" if smooth else None
    )
    request = _request(pipe, model, seed) | {"one_stream": one_stream, **asdict(settings)}
    _say_request(request)

    count = len(class_ids)
    batch_size = count if one_stream else batch_size or _BATCH_SIZE
    entries: list[dict[str, Any]] = []
    images = []
    previews = []  # per image, the pictures after every scale
    drawn = _draw(pipe, class_ids, batch_size, request, preview=bool(scales))
    for index, (image, by_scale) in enumerate(drawn):
        previews.append(by_scale)
        entry = {"class_id": class_ids[index], "class_name": pipe.id2label.get(class_ids[index])}
        if not one_stream:
            entry["seed"] = request["seed"] + index
        if separate:
            file = _file_of_image(output, index, count, entry)
            _write_png(image, file, request | {"images": [entry]})
            entry["file"] = str(file)
        else:
            images.append(image)
        entries.append(entry)
    # One row per class where there are several of several, else nearly a square.
    num_columns = num_images if 1 < num_images < count else math.ceil(math.sqrt(count))
    if not separate:
        _write_grid(images, num_columns, output, request | {"images": entries})
    files = [entry["file"] for entry in entries] if separate else [str(output)]
    for path in scales:
        _write_scales(previews, num_columns, path, request | {"images": entries})
        files.append(str(path))
    _print_result(request | {"images": entries, "files": files}, files, as_json)


@app.command(
    epilog="\b\nExamples:\n"
    "  var-hf edit dog.png --mask mask.png --label beagle --model var-d16-256 -o edited.png\n"
    "  var-hf edit dog.png --expand 128,0,128,0 --model var-d16-256 -o wider.png\n"
    "  var-hf edit cat.png --label tabby --strength 0.5 -n 4 --model var-d16-256 -o variations.png"
)
def edit(
    image: Annotated[Path, typer.Argument(help="Picture to edit, of any size and format.")],
    model: ModelOption = VAR_EMOJI_64.name,
    mask: Annotated[
        Path | None,
        typer.Option(help="Mask in the size of the picture: white is redrawn, black kept."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", "-l", metavar="CLASS", help="Class name or id; none by default."),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="PNG", help="File to write; one that exists is replaced."
        ),
    ] = Path("out.png"),
    expand: Annotated[
        str | None,
        typer.Option(
            metavar="L,T,R,B", help="Pixels to draw beyond the left, top, right and bottom edge."
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
    redraw_coarsest: Annotated[
        bool,
        typer.Option(
            "--redraw-coarsest", help="Do not keep the 1 x 1 token map, the mood of the picture."
        ),
    ] = False,
    paste_back: Annotated[
        bool,
        typer.Option(help="Put the original pixels back where nothing was to be redrawn."),
    ] = True,
    mask_crop: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="PIXELS",
            help="Work on a window around the mask with this margin: sharper in large pictures.",
        ),
    ] = None,
    seed: SeedOption = None,
    guidance_scale: GuidanceOption = None,
    cfg: CfgOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    smooth: SmoothOption = False,
    dtype: DTypeOption = DType.auto,
    device: DeviceOption = "auto",
    as_json: JSONOption = False,
) -> None:
    """Redraw a part of a picture, draw on beyond its edges, or draw variations of it.

    The settings are stored in the file, as JSON in the PNG text chunk "var-hf".
    """
    _check_png(output)
    guidance_scale = choose_guidance(guidance_scale, cfg)
    by_strength = strength is not None
    if by_strength and (mask or expand or mask_crop is not None or redraw_coarsest):
        raise ValueError(
            "--strength redraws the whole picture: leave --mask, --expand, --mask-crop and --redraw-coarsest out."
        )
    if not (by_strength or mask or expand):
        raise ValueError("There is nothing to redraw: pass --mask, --expand or --strength.")
    from var_hf.pipelines.picture_files import open_picture

    picture = open_picture(image)
    if by_strength:
        what: dict[str, Any] = {"strength": strength}
    else:
        what = {
            "expand": _parse_expand(expand),
            "keep_coarsest": not redraw_coarsest,
            "paste_back": paste_back,
            "padding_mask_crop": mask_crop,
        }
    mask_image = open_picture(mask) if mask else None

    pipe = _load_pipeline(model, dtype, device)
    import torch

    from var_hf import VARImg2ImgPipeline, VARInpaintPipeline
    from var_hf.pipelines.streaming import last_image

    class_id = None if label is None else pipe.resolve_labels(_label(label))[0]
    settings = pipe.resolve_settings(
        guidance_scale, top_k, top_p, "gumbel_softmax" if smooth else None
    )
    request = _request(pipe, model, seed) | asdict(settings)
    seeds = range(request["seed"], request["seed"] + num_images)
    arguments = what | asdict(settings) | {"num_images_per_prompt": num_images}
    arguments["generator"] = [torch.Generator().manual_seed(one) for one in seeds]
    with _memory_hint(pipe, f"{num_images} images at a time", "Pass a smaller --num-images"):
        # The first call checks everything, the second works.
        if by_strength:
            img2img = VARImg2ImgPipeline.from_pipe(pipe)
            outputs = img2img.stream(picture, class_id, preview="last", **arguments)
        else:
            inpaint = VARInpaintPipeline.from_pipe(pipe)
            outputs = inpaint.stream(picture, mask_image, class_id, preview="last", **arguments)
        _say_request(request)
        edited = last_image(outputs)

    record = request | {
        "image": str(image),
        "mask": None if mask is None else str(mask),
        "class_id": class_id,
        "class_name": None if class_id is None else pipe.id2label.get(class_id),
        **what,
        "images": [{"seed": one} for one in seeds],
    }
    num_columns = math.ceil(math.sqrt(num_images))
    _write_grid(cast("list[Image.Image]", edited), num_columns, output, record)
    _print_result(record | {"files": [str(output)]}, [output], as_json)


@app.command(
    epilog="\b\nExample:\n  var-hf classify dog.png cat.png --model var-d16-256 --top 3 --json"
)
def classify(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Pictures; their central squares are looked at."),
    ],
    model: ModelOption = VAR_EMOJI_64.name,
    top: Annotated[int, typer.Option(min=1, help="Classes to name for each picture.")] = 5,
    batch_size: Annotated[
        int,
        typer.Option(min=1, help="Pairs of a picture and a class computed at a time."),
    ] = 16,
    dtype: DTypeOption = DType.auto,
    device: DeviceOption = "auto",
    as_json: JSONOption = False,
) -> None:
    """Name the classes under which pictures are likeliest: one forward pass per picture and class.

    Prints, per picture and class, the file, the probability and the class, separated by tabs.
    """
    from var_hf.pipelines.picture_files import open_picture

    pictures = [open_picture(path) for path in images]
    pipe = _load_pipeline(model, dtype, device)
    with _memory_hint(pipe, f"{batch_size} pairs at a time", "Pass a smaller --batch-size"):
        guesses = pipe.classify(pictures, top=top, batch_size=batch_size)
    result = [
        {"image": str(path), "classes": row} for path, row in zip(images, guesses, strict=True)
    ]
    lines = [
        f"{path}\t{guess['score']:.4f}\t{guess['label'] or guess['class_id']}"
        for path, row in zip(images, guesses, strict=True)
        for guess in row
    ]
    _print_result({"model": model, "images": result}, lines, as_json)


class PublishedSize(StrEnum):
    """The published transformers; d36 draws 512 x 512 pixels, the others 256 x 256."""

    d16 = "d16"
    d20 = "d20"
    d24 = "d24"
    d30 = "d30"
    d36 = "d36"


@app.command(
    epilog="\b\nExamples:\n"
    "  var-hf convert var_d16.pth vae_ch160v4096z32.pth -o var-d16-256\n"
    "  var-hf convert FoundationVision/var --size d16 -o var-d16-256\n"
    "  var-hf convert FoundationVision/var --size d16 -o var-d16-256 --push me/var-d16-256\n"
    "  var-hf convert ar-ckpt-last.pth -o my-var --class-names classes.json"
)
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="TRANSFORMER",
            show_default=False,
            help="Original transformer file, such as var_d16.pth; a checkpoint of the original trainer; or, with --size, a Hub repository.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write; must not exist."),
    ],
    vqvae: Annotated[
        Path | None,
        typer.Argument(
            metavar="VQVAE",
            show_default=False,
            help="Original VQVAE file, such as vae_ch160v4096z32.pth; left out if the trainer's checkpoint holds it.",
        ),
    ] = None,
    size: Annotated[
        PublishedSize | None,
        typer.Option(
            help="Download this size of the release, and its VQVAE, from the Hub repository."
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Branch, tag or commit of the Hub repository."),
    ] = None,
    dtype: Annotated[WeightType, typer.Option(help="Number format to store.")] = WeightType.float32,
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Weights above this size are split.")
    ] = "5GB",
    class_names: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            help="Names of the classes: a list, or a dictionary by id.  [default: ImageNet's, for 1000 classes]",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            show_default=False,
            help="A config value that the tensors do not tell, in place of the release's: num_attention_heads=16 "
            "(without q/k norm; else one per 64 channels), layer_norm_eps, class_dropout_prob, "
            "token_map_sizes=[1,2,4], refiner_mix, norm_eps, norm_num_groups, commitment_weight. Can be repeated.",
        ),
    ] = None,
    push_to: Annotated[
        str | None,
        typer.Option(
            "--push", metavar="REPO", help="Push the folder to this Hub repository as well."
        ),
    ] = None,
    with_code: WithCodeOption = False,
    private: PrivateOption = False,
    as_json: JSONOption = False,
) -> None:
    """Turn original VAR checkpoints into a pipeline folder.

    Nothing in the files is run: pickles that hold more than tensors are refused. The folder appears complete or not
    at all, with the digests of sources and results in provenance.json.
    """
    from var_hf.hub.files import is_hub_name

    options: dict[str, Any] = {"dtype": str(dtype), "max_shard_size": max_shard_size}
    options |= _parse_overrides(overrides or [])
    if class_names is not None:
        options["id2label"] = _read_class_names(class_names)
    if size is None and revision is not None:
        raise ValueError("--revision names a version of a Hub repository: pass --size as well.")
    if size is None and not Path(source).exists() and is_hub_name(source):
        raise FileNotFoundError(
            f"There is no file {source}. If it is a Hub repository, say which model to take from it: --size d16."
        )
    if size is not None and vqvae is not None:
        raise ValueError(f"--size {size} downloads the VQVAE as well: leave {vqvae} out.")
    if push_to is None and (with_code or private):
        raise ValueError("--with-code and --private are about --push: pass a repository.")

    from var_hf.pipelines.loading import loading_errors
    from var_hf.pipelines.original import convert_checkpoint, convert_from_hub
    from var_hf.provenance import read_provenance

    if size is not None:
        with loading_errors(source):
            convert_from_hub(source, size, output, revision=revision, **options)
    else:
        try:
            convert_checkpoint(source, vqvae or source, output, **options)
        except ValueError as error:
            if vqvae is not None:
                raise
            raise ValueError(
                f"{error} (No VQVAE was named, so it was looked for in {source} as well.)"
            ) from error
    result = {"folder": str(output)} | read_provenance(output)
    lines: list[str | Path] = [output]
    if push_to is not None:
        from var_hf.hub import push_folder

        commit = push_folder(output, push_to, with_code=with_code, private=private or None)
        result |= {"repository": commit.repo_url.repo_id, "commit": commit.oid}
        lines.append(commit.commit_url)
    _print_result(result, lines, as_json)


@app.command(
    "export-original", epilog="\b\nExample:\n  var-hf export-original var-d16-256 -o original"
)
def export_original(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="Pipeline folder, or Hub repository as user/name.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write; must not exist."),
    ],
    as_json: JSONOption = False,
) -> None:
    """Write a pipeline as the two files of the original code.

    They are named as the release names them, var_d<layers>.pth and vae_ch<channels>v<codes>z<latent channels>.pth,
    and hold float32 weights: converting them again gives the same ones.
    """
    from var_hf.hub.files import check_model

    check_model(model)
    from var_hf import MultiScaleVQVAE, VARConfig
    from var_hf.files import new_path
    from var_hf.pipelines import original
    from var_hf.pipelines.loading import loading_errors

    with loading_errors(model), new_path(output) as temporary:
        transformer = VARConfig.from_pretrained(model, subfolder="transformer")
        vqvae = MultiScaleVQVAE.load_config(model, subfolder="vqvae")
        names = (
            f"var_d{transformer.num_hidden_layers}.pth",
            "vae_ch{base_channels}v{codebook_size}z{latent_channels}.pth".format(**vqvae),
        )
        original.export_original(model, *(temporary / name for name in names))
    files = [str(output / name) for name in names]
    _print_result({"files": files}, files, as_json)


@app.command(
    epilog="\b\nExamples:\n  var-hf verify var-d16-256\n  var-hf verify me/var-d16-256 --revision v1"
)
def verify(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="Folder that var-hf convert wrote, or Hub repository as user/name.",
        ),
    ],
    revision: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Branch, tag or commit of the Hub repository."),
    ] = None,
    as_json: JSONOption = False,
) -> None:
    """Check a folder or repository against its provenance.json.

    Prints files that were changed, are missing or were added, pickles, and tensors that the published file has and the
    folder lacks. The exit code is 0 if there are none, else 1.
    """
    folder = Path(model)
    if not folder.is_dir():
        from var_hf.hub import pull_everything
        from var_hf.hub.files import is_hub_name

        if not is_hub_name(model):
            raise FileNotFoundError(f"There is no folder {model}.")

        folder = pull_everything(model, revision=revision)
    elif revision is not None:
        raise ValueError(
            f"--revision names a version of a Hub repository, and {model} is a folder."
        )
    from var_hf.pipelines.original import verify_folder
    from var_hf.provenance import read_provenance

    found = verify_folder(folder)
    findings = asdict(found)
    lines = [
        f"{kind:<8} {name}"
        for kind in ("changed", "missing", "extra", "pickles")
        for name in findings[kind]
    ] + [f"lacking  {part}: {name}" for part, names in found.lacking.items() for name in names]
    if found.ok:
        lines = [f"{model}: all {len(read_provenance(folder)['files'])} files are as written"]
    _print_result({"folder": str(folder), "ok": found.ok} | findings, lines, as_json)
    raise typer.Exit(0 if found.ok else 1)


@app.command(
    epilog="\b\nExamples:\n"
    "  var-hf push var-d16-256 me/var-d16-256\n"
    "  var-hf push my-var me/my-var --with-code --private --license mit --base-model me/var-d16-256"
)
def push(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            show_default=False,
            help="Pipeline folder, or folder of a single transformer or VQVAE.",
        ),
    ],
    repository: Annotated[
        str,
        typer.Argument(
            metavar="REPO",
            show_default=False,
            help="Hub repository as user/name; made if it does not exist.",
        ),
    ],
    with_code: WithCodeOption = False,
    private: PrivateOption = False,
    revision: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Branch to push to; made if it does not exist."),
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of pushing.")
    ] = False,
    message: Annotated[
        str | None,
        typer.Option("--message", "-m", metavar="TEXT", help="First line of the commit."),
    ] = None,
    license_name: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="NAME",
            help="Licence of the weights as the Hub names it, such as mit.  [default: mit for the published weights]",
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="REPO", help="Hub repository whose weights these were trained on from."
        ),
    ] = None,
    training_data: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="A sentence for the card about the training data."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            help="Measured numbers for the card: a list of {metric, value, command, dataset}.",
        ),
    ] = None,
    gallery: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Picture in the folder to show in the card."),
    ] = None,
    as_json: JSONOption = False,
) -> None:
    """Push a folder to the Hugging Face Hub, with model card and provenance.json.

    Everything goes up in one commit: a push that breaks off leaves the repository as it was. A README.md that somebody
    wrote by hand is kept. The access token is that of hf auth login, or HF_TOKEN.
    """
    from var_hf.hub import push_folder
    from var_hf.model_card import CardOptions, read_results

    card = CardOptions(
        license=license_name,
        base_model=base_model,
        training_data=training_data,
        results=() if results is None else read_results(results),
        gallery=gallery,
    )
    commit = push_folder(
        folder,
        repository,
        with_code=with_code,
        card=card,
        private=private or None,
        revision=revision,
        create_pr=create_pr,
        commit_message=message,
    )
    result = {
        "repository": commit.repo_url.repo_id,
        "commit": commit.oid,
        "url": commit.pr_url or commit.commit_url,
    }
    _print_result(result, [result["url"]], as_json)


app.add_typer(training_commands)
app.add_typer(scaling_command)
app.add_typer(bench_command)
app.add_typer(demo_commands)
app.add_typer(evaluation_commands)


def _parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """``["norm_eps=1e-5", "token_map_sizes=[1,2]"]`` to a dictionary; the values are JSON."""
    overrides = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            overrides[name] = json.loads(value)
        except json.JSONDecodeError:
            raise ValueError(
                f"--set takes NAME=VALUE with a number or a list, such as token_map_sizes=[1,2,4]. Got {pair}."
            ) from None
    return overrides


def _read_class_names(path: Path) -> dict[int, str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        names = dict(enumerate(names)) if isinstance(names, list) else names
        names = {int(class_id): name for class_id, name in names.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} has to be JSON: a list of class names, or a dictionary from class id to name. {error}"
        ) from error
    if not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{path} has class names that are no text.")
    return names


# Pictures and labels


def _label(text: str) -> int | str:
    """A class id or a class name."""
    return int(text) if text.isdecimal() else text


def _parse_expand(text: str | None) -> tuple[int, ...]:
    if text is None:
        return (0, 0, 0, 0)
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(part.isdecimal() for part in parts):
        raise ValueError(
            f"--expand takes four numbers of pixels, left, top, right and bottom, such as 128,0,128,0. Got {text}."
        )
    return tuple(int(part) for part in parts)


# Drawing


def _request(pipe: NextScalePipeline, model: str, seed: int | None) -> dict[str, Any]:
    """What the files and the JSON say about how pictures were made."""
    return {
        "software": f"var-hf {__version__}",
        "model": model,
        "device": str(pipe.device),
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "seed": secrets.randbelow(2**32) if seed is None else seed,
    }


def _say_request(request: dict[str, Any]) -> None:
    _say(
        f"drawing with {request['model']} on {request['device']} in {request['dtype']}, seed {request['seed']}"
    )


def _draw(
    pipe: VARPipeline,
    class_ids: Sequence[int],
    batch_size: int,
    request: dict[str, Any],
    preview: bool,
) -> Iterator[tuple[Image.Image, tuple[Image.Image, ...]]]:
    """Draw one image per class id, with one progress bar for all; with `preview` also after every scale."""
    import torch
    from tqdm import tqdm

    count, num_scales = len(class_ids), pipe.num_timesteps
    pipe.set_progress_bar_config(disable=True)
    # Steps are scales of single images, so that the bar moves within a batch as well.
    with tqdm(
        total=count * num_scales,
        desc=f"0/{count} images",
        bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
    ) as progress:
        for start in range(0, count, batch_size):
            batch = class_ids[start : start + batch_size]
            first = request["seed"] + start
            seeds = [first] if request["one_stream"] else range(first, first + len(batch))
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            outputs = pipe.stream(
                batch,
                **{name: request[name] for name in _SETTING_NAMES},
                generator=generators[0] if request["one_stream"] else generators,
                preview=preview,
            )
            previews = []
            with _memory_hint(
                pipe, f"{len(batch)} images at a time", "Pass a smaller --batch-size"
            ):
                for output in outputs:
                    progress.update(len(batch))
                    previews.append(cast("list[Image.Image]", output.image))
                images = previews[-1] if preview else pipe.decode(output.latents, "pil")
            progress.set_description_str(f"{start + len(batch)}/{count} images")
            by_image = zip(*previews, strict=True) if preview else [()] * len(batch)
            yield from zip(cast("list[Image.Image]", images), by_image, strict=True)


@contextmanager
def _memory_hint(pipe: NextScalePipeline, what: str, advice: str) -> Iterator[None]:
    """Turn running out of the device's memory into one clear error."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{what} do not fit into the memory of {pipe.device}. {advice}, or --dtype bfloat16."
        ) from error


def _check_scales_file(path: Path) -> None:
    if path.suffix.lower() not in (".png", ".gif", ".webp"):
        raise ValueError(f"--scales takes a .png, .gif or .webp file. Got {path}.")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Pass the name of a file to --scales.")


def _write_scales(
    previews: Sequence[Sequence[Image.Image]],
    num_columns: int,
    path: Path,
    record: dict[str, Any],
) -> None:
    """Write pictures after every scale, given per image: one strip per image, or the grid growing finer."""
    from var_hf.pipelines.visualization import picture_grid, save_animation, scale_strip

    by_scale = list(zip(*previews, strict=True))
    if path.suffix.lower() == ".png":
        _write_png(scale_strip(by_scale), path, record)
    else:
        save_animation([picture_grid(images, num_columns) for images in by_scale], path)


def _check_png(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise ValueError(f"The output has to be a .png file. Got {path}.")
    if path.is_dir():
        raise IsADirectoryError(f"The output {path} is a folder. Pass the name of a .png file.")


def _write_png(image: Image.Image, path: Path, record: dict[str, Any]) -> None:
    from PIL.PngImagePlugin import PngInfo

    from var_hf.files import new_path

    text = PngInfo()
    text.add_text("var-hf", json.dumps(record))
    with new_path(path, replace=True) as temporary:
        image.save(temporary, pnginfo=text)


def _file_of_image(output: Path, index: int, count: int, entry: dict[str, Any]) -> Path:
    """``out.png`` to ``out-000-golden_retriever.png``."""
    usual_name = (entry["class_name"] or "").partition(",")[0]
    name = file_name(usual_name) or f"class_{entry['class_id']}"
    digits = max(3, len(str(count - 1)))
    return output.with_name(f"{output.stem}-{index:0{digits}d}-{name}{output.suffix}")


def _write_grid(
    images: Sequence[Image.Image], num_columns: int, path: Path, record: dict[str, Any]
) -> None:
    from var_hf.pipelines.visualization import picture_grid

    _write_png(picture_grid(images, num_columns), path, record)


# Loading


def _load_pipeline(model: str, dtype: DType, device: str) -> VARPipeline:
    from var_hf.hub.files import check_model

    check_model(shipped_model(model))
    from var_hf.pipelines.loading import load_pipeline

    return load_pipeline(model, dtype, device)


# Talking


def _say(message: str) -> None:
    typer.echo(message, err=True)


def _print_result(result: dict[str, Any], lines: Sequence[str | Path], as_json: bool) -> None:
    """Print what a command made: as one JSON document, or as lines."""
    for line in [json.dumps(result, indent=2)] if as_json else lines:
        typer.echo(line)


def main() -> None:
    """Run the command line and exit: 0 done, 1 bad input, 2 wrong command line, 130 interrupted."""
    # A batch system's SIGTERM then ends like an interrupt: half-written files are removed on the way out.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], prog_name="var-hf", standalone_mode=False))
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "var-hf"
        _fail(f"{error.format_message().rstrip('.')}. See {command} --help.", error.exit_code)
    except (ImportError, ValueError, OSError) as error:
        _fail(str(error), 1)
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, exit_code: int) -> None:
    _say("var-hf: " + " ".join(message.split()))
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
