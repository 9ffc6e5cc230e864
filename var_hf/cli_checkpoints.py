"""The commands `var-hf convert`, `export-original`, `verify` and `push`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from var_hf.cli_options import MODEL_HELP, JSONOption
from var_hf.cli_registry import AcceptLicenseOption, check_license, published_name
from var_hf.cli_shared import print_result, resolve_model
from var_hf.text import printable

app = typer.Typer()


class WeightType(StrEnum):
    """Dtypes of stored weights."""

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
NewFolderOption = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write; must not exist."),
]
RevisionOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Branch, tag or commit of the Hub repository."),
]


class PublishedSize(StrEnum):
    """The published transformers; d36 draws 512 x 512 pixels, the others 256 x 256."""

    d16 = "d16"
    d20 = "d20"
    d24 = "d24"
    d30 = "d30"
    d36 = "d36"


@app.command(
    epilog=(
        "\b\n"
        "Examples:\n"
        "  var-hf convert var_d16.pth vae_ch160v4096z32.pth -o var-d16-256\n"
        "  var-hf convert FoundationVision/var --size d16 -o var-d16-256\n"
        "  var-hf convert FoundationVision/var --size d16 -o var-d16-256 --push me/var-d16-256\n"
        "  var-hf convert cca-d16 -o cca-d16-256\n"
        "  var-hf convert ar-ckpt-last.pth -o my-var --class-names classes.json"
    )
)
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="TRANSFORMER",
            show_default=False,
            help=(
                "Original transformer file, such as var_d16.pth; a checkpoint of the original "
                "trainer; the name of a published checkpoint, such as cca-d16 (var-hf list); or, "
                "with --size, a Hub repository."
            ),
        ),
    ],
    output: NewFolderOption,
    vqvae: Annotated[
        Path | None,
        typer.Argument(
            metavar="VQVAE",
            show_default=False,
            help=(
                "Original VQVAE file, such as vae_ch160v4096z32.pth; left out if the trainer's "
                "checkpoint holds it."
            ),
        ),
    ] = None,
    size: Annotated[
        PublishedSize | None,
        typer.Option(
            help="Download this size of the release, and its VQVAE, from the Hub repository."
        ),
    ] = None,
    revision: RevisionOption = None,
    dtype: Annotated[WeightType, typer.Option(help="Number format to store.")] = WeightType.float32,
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Weights above this size are split.")
    ] = "5GB",
    class_names: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            help=(
                "Names of the classes: a list, or a dictionary by id.  [default: ImageNet's, for "
                "1000 classes]"
            ),
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            show_default=False,
            help=(
                "A config value that the tensors do not determine: "
                "num_attention_heads=16 (without q/k norm; else one per 64 channels), "
                "layer_norm_eps, class_dropout_prob, token_map_sizes=[1,2,4], refiner_mix, "
                "norm_eps, norm_num_groups, commitment_weight. Repeatable."
            ),
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
    accept_license: AcceptLicenseOption = False,
    as_json: JSONOption = False,
) -> None:
    """Convert original VAR checkpoints to a pipeline folder.

    No code in the files is run: pickles that hold more than tensors are refused. The folder is
    written completely or not at all. provenance.json holds the digests of sources and results.
    """
    from var_hf.hub.files import is_hub_name

    options: dict[str, Any] = {"dtype": str(dtype), "max_shard_size": max_shard_size}
    options |= _parse_overrides(overrides or [])
    if class_names is not None:
        options["id2label"] = _read_class_names(class_names)
    name = published_name(source) if size is None and vqvae is None else None
    if name is None and size is None and revision is not None:
        raise ValueError("--revision names a version of a Hub repository: pass --size as well.")
    if size is None and not Path(source).exists() and is_hub_name(source):
        raise FileNotFoundError(
            f"There is no file {source}. If it is a Hub repository, choose a model in "
            "it: --size d16."
        )
    if size is not None and vqvae is not None:
        raise ValueError(f"--size {size} downloads the VQVAE as well: leave {vqvae} out.")
    if push_to is None and (with_code or private):
        raise ValueError("--with-code and --private need --push: pass a repository.")
    if name is not None and push_to is not None:
        check_license(name, accept_license)

    from var_hf.pipelines.loading import loading_errors
    from var_hf.pipelines.original import (
        convert_checkpoint,
        convert_from_hub,
        convert_published,
    )
    from var_hf.provenance import read_provenance

    if name is not None:
        with loading_errors(source):
            convert_published(name, output, revision=revision, **options)
    elif size is not None:
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

        commit = push_folder(
            output,
            push_to,
            with_code=with_code,
            private=private or None,
            accept_license=accept_license,
        )
        result |= {"repository": commit.repo_url.repo_id, "commit": commit.oid}
        lines.append(commit.commit_url)
    print_result(result, lines, as_json)


@app.command(
    "export-original", epilog="\b\nExample:\n  var-hf export-original var-d16-256 -o original"
)
def export_original(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help=f"A {MODEL_HELP}.",
        ),
    ],
    output: NewFolderOption,
    as_json: JSONOption = False,
) -> None:
    """Write a pipeline as the two files of the original code.

    They are named as the release names them, var_d<layers>.pth and vae_ch<channels>v<codes>z<latent
    channels>.pth, and hold float32 weights: converting them again gives the same ones.
    """
    from var_hf.hub.files import check_model

    where = resolve_model(model)
    check_model(where)
    from var_hf import MultiScaleVQVAE, VARConfig
    from var_hf.files import new_path
    from var_hf.pipelines import original
    from var_hf.pipelines.loading import loading_errors

    with loading_errors(model), new_path(output) as temporary:
        transformer = VARConfig.from_pretrained(where, subfolder="transformer")
        vqvae = MultiScaleVQVAE.load_config(where, subfolder="vqvae")
        names = (
            f"var_d{transformer.num_hidden_layers}.pth",
            "vae_ch{base_channels}v{codebook_size}z{latent_channels}.pth".format(**vqvae),
        )
        original.export_original(where, *(temporary / name for name in names))
    files = [str(output / name) for name in names]
    print_result({"files": files}, files, as_json)


@app.command(
    epilog=(
        "\b\nExamples:\n  var-hf verify var-d16-256\n  var-hf verify me/var-d16-256 --revision v1"
    )
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
    revision: RevisionOption = None,
    as_json: JSONOption = False,
) -> None:
    """Check a folder or repository against its provenance.json.

    Prints files that were changed, are missing or were added, pickles, and tensors that the
    published file has and the folder lacks. The exit code is 0 if there are none, else 1.
    """
    folder = Path(resolve_model(model))
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
        f"{kind:<8} {printable(name)}"
        for kind in ("changed", "missing", "extra", "pickles")
        for name in findings[kind]
    ] + [
        f"lacking  {part}: {printable(name)}"
        for part, names in found.lacking.items()
        for name in names
    ]
    if found.ok:
        lines = [f"{model}: all {len(read_provenance(folder)['files'])} files are as written"]
    print_result({"folder": str(folder), "ok": found.ok} | findings, lines, as_json)
    raise typer.Exit(0 if found.ok else 1)


@app.command(
    epilog=(
        "\b\n"
        "Examples:\n"
        "  var-hf push var-d16-256 me/var-d16-256\n"
        "  var-hf push my-var me/my-var --with-code --private --license mit --base-model "
        "me/var-d16-256"
    )
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
            help=(
                "Licence of the weights as the Hub names it, such as mit.  [default: mit for the "
                "published weights]"
            ),
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
        typer.Option(metavar="NAME", help="Image in the folder to show in the card."),
    ] = None,
    accept_license: AcceptLicenseOption = False,
    as_json: JSONOption = False,
) -> None:
    """Push a folder to the Hugging Face Hub, with model card and provenance.json.

    The push is one commit: an interrupted push leaves the repository unchanged. A README.md written
    by hand is kept. The access token comes from hf auth login or HF_TOKEN.
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
        resolve_model(str(folder)),
        repository,
        with_code=with_code,
        card=card,
        private=private or None,
        revision=revision,
        create_pr=create_pr,
        accept_license=accept_license,
        commit_message=message,
    )
    result = {
        "repository": commit.repo_url.repo_id,
        "commit": commit.oid,
        "url": commit.pr_url or commit.commit_url,
    }
    print_result(result, [result["url"]], as_json)


def _parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """``["norm_eps=1e-5", "token_map_sizes=[1,2]"]`` to a dictionary; the values are JSON."""
    overrides = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            overrides[name] = json.loads(value)
        except json.JSONDecodeError:
            raise ValueError(
                "--set takes NAME=VALUE with a number or a list, such as token_map_sizes=[1,2,4]. "
                f"Got {pair}."
            ) from None
    return overrides


def _read_class_names(path: Path) -> dict[int, str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        names = dict(enumerate(names)) if isinstance(names, list) else names
        names = {int(class_id): name for class_id, name in names.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} has to be JSON: a list of class names, or a dictionary from class id to name. "
            f"{error}"
        ) from error
    if not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{path} has class names that are no text.")
    return names
