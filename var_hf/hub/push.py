"""From a folder to the Hub in one commit: weights, configurations, card, provenance, and code."""

import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import requires
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
)
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from var_hf.conversion import registry
from var_hf.conversion.code_export import LICENSE, TOOLS, single_file
from var_hf.files import writing_errors
from var_hf.hub.errors import HubError, hub_errors
from var_hf.hub.files import (
    BESIDE_CODE,
    COMPONENTS,
    HANDLER_FILE,
    HANDLER_MODULE,
    MODEL_TYPE,
    MODULAR_CLASS,
    MODULAR_CODE_FILE,
    MODULAR_CONFIG,
    MODULAR_DIFFUSERS,
    MODULAR_INDEX,
    MODULAR_MODULE,
    PIPELINE_CODE_FILE,
    PLAIN,
    REQUIREMENTS_FILE,
    is_adapter,
    is_code,
    is_pickle,
    is_weights,
    kind_of,
    read_index,
    read_weight_map,
    variant_of,
    weights_in,
)
from var_hf.model_card import CardOptions, is_generated, model_card
from var_hf.provenance import PROVENANCE_FILE, describe_files, new_provenance, read_provenance
from var_hf.text import listed, printable

logger = logging.getLogger(__name__)

_IMAGES = {".jpg", ".png", ".webp"}


class SavesItself(Protocol):
    """A pipeline or model."""

    def save_pretrained(self, save_directory: str, /, **kwargs: Any) -> Any: ...


Files = dict[
    str, Path | bytes
]  # path in the repository to a file here, or to what is to stand there


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    with_code: bool = False,
    card: CardOptions | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    accept_license: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
) -> CommitInfo:
    """Push a saved pipeline, transformer or VQVAE; the folder itself is left as it is.

    Everything goes up in a single commit: a push that breaks off leaves the repository as it was.
    The same commit deletes older files of the same variant. Those of other variants stay.

    Args:
        folder: What ``save_pretrained`` or ``var-hf convert`` wrote.
        repo_id: Such as ``"user/var-d16-256"``; made if it does not exist.
        with_code: Add the code that the files need where this package is not installed.
        card: What the files do not tell about the model.
        private: Whether a new repository is private; the account's habit if not given.
        revision: Branch to push to, made from the main branch if it does not exist.
        create_pr: Open a pull request instead of pushing to the main branch.
        accept_license: Push weights whose licence, by the folder's ``provenance.json``, sets
            conditions on sharing them.
        token: Access token with the right to write; the stored one if not given.
        commit_message: First line of the commit.
        commit_description: The rest of it.

    Returns:
        The commit: ``commit_url``, ``oid`` and, for a pull request, ``pr_url``.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It is not complete, holds pickles, or a name is wrong; or the licence of its
            weights sets conditions and was not accepted, or `card` names another one.
        HubError: The Hub refuses, or cannot be reached.
    """
    if create_pr and revision not in (None, constants.DEFAULT_REVISION):
        raise ValueError(
            "create_pr opens a pull request against the main branch and cannot be combined with "
            f"revision={revision!r}."
        )
    folder = Path(folder)
    files, parts = read_folder(folder)
    if card and card.gallery and card.gallery not in files:
        raise ValueError(
            f"There is no image {card.gallery} in {folder}: a gallery is a .png, .jpg or .webp "
            "file there."
        )
    _check_license(folder, card, accept_license)
    add_code(files, parts, with_code)
    api = HfApi(token=token)
    with hub_errors(repo_id, writing=True, token=token):
        repo_id, commit, remote = _prepare_repo(api, repo_id, private, revision, create_pr)
        _check_remote(repo_id, remote, is_pipeline="" not in parts)
        if with_code and parts == PLAIN.parts:
            _add_modular(files, repo_id)
        recorded = _remote_provenance(repo_id, commit, token) if PROVENANCE_FILE in remote else {}

        gone = _outdated(files, remote, recorded)
        staying = {
            path: entry
            for path, entry in recorded.items()
            if path in remote and path not in gone and path not in files
        }
        provenance = _provenance(folder, files, staying)
        options = replace(card or CardOptions(), with_code=with_code)
        own_card = _own_card(files, remote, repo_id, commit, token)
        files["README.md"] = own_card or (
            str(model_card(_configs(files), provenance, options, repo_id)).encode()
        )
        provenance["files"] |= describe_files({"README.md": files["README.md"]})
        provenance["files"] = dict(sorted(provenance["files"].items()))
        files[PROVENANCE_FILE] = (json.dumps(provenance, indent=2) + "\n").encode()

        return api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(path) for path in sorted(gone)),
                *(CommitOperationAdd(path, content) for path, content in sorted(files.items())),
            ],
            commit_message=commit_message
            or f"Upload {' and '.join(place or name for place, name in parts.items())}",
            commit_description=commit_description,
            revision=None if create_pr else revision,
            create_pr=create_pr,
            parent_commit=commit,
        )


def push_model(
    model: SavesItself,
    repo_id: str,
    *,
    variant: str | None = None,
    max_shard_size: int | str | None = None,
    **options: Any,
) -> CommitInfo:
    """Save a pipeline or model into a temporary folder and push that; see `push_folder`.

    Args:
        model: What to push.
        repo_id: Such as ``"user/var-d16-256"``.
        variant: Put into the names of the weight files, ``"fp16"`` say.
        max_shard_size: Split larger weight files, in bytes or as ``"5GB"``.
        options: The other arguments of `push_folder`.
    """
    saving = {"variant": variant, "max_shard_size": max_shard_size}
    with tempfile.TemporaryDirectory(prefix="var-hf-") as folder:
        with writing_errors(folder):
            model.save_pretrained(folder, **{k: v for k, v in saving.items() if v is not None})
        return push_folder(folder, repo_id, **options)


# What goes up


def read_folder(folder: Path) -> tuple[Files, dict[str, str]]:
    """The files of a folder that belong into a repository, and where which part lies in it.

    Returns:
        The files, and for each folder of the repository (``""`` is its root) its part.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It is no saved model of this package, lacks something, or holds pickles.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    present = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    present = [path for path in present if not path.startswith((".git/", ".cache/"))]
    if pickles := [path for path in present if is_pickle(path)]:
        raise ValueError(
            f"{printable(folder)} holds {listed(pickles)}, which may run code when it is loaded: "
            "move it elsewhere."
        )
    parts = _parts(folder, present)
    files: Files = {}
    for place, name in parts.items():
        component = COMPONENTS[name]
        start = f"{place}/" if place else ""
        if start + component.config_file not in present:
            raise ValueError(
                f"{folder} is not complete: {start}{component.config_file} is missing."
            )
        if component.weights_stem:
            _check_weights(folder, name, place, present)
        for path in present:
            of_part = path.rpartition("/")[0] == place and not is_adapter(path)
            if of_part and path.endswith((".json", ".safetensors")):
                files[path] = folder / path
    for path in present:
        if "/" not in path and (
            path.startswith(("LICENSE", "README.md")) or Path(path).suffix in _IMAGES
        ):
            files[path] = folder / path
    if "model_index.json" in present:
        files["model_index.json"] = folder / "model_index.json"
    files.pop(PROVENANCE_FILE, None)  # written anew
    silent = (PROVENANCE_FILE, *BESIDE_CODE)
    left_out = [p for p in present if p not in files and p not in silent and not is_code(p)]
    if left_out:
        logger.warning("Not part of the model and not pushed: %s.", listed(left_out))
    return files, parts


def _parts(folder: Path, present: list[str]) -> dict[str, str]:
    if "model_index.json" in present:
        return dict(kind_of(read_index(folder)).parts)
    config = _json(folder / "config.json") if "config.json" in present else {}
    if config.get("model_type") == MODEL_TYPE:
        return {"": "transformer"}
    if config.get("_class_name") == COMPONENTS["vqvae"].class_name:
        return {"": "vqvae"}
    raise ValueError(
        f"{folder} is no model of this package: it has neither a model_index.json nor a "
        "config.json of a VARModel or MultiScaleVQVAE. var-hf convert and save_pretrained write "
        "such folders."
    )


def _check_license(folder: Path, card: CardOptions | None, accepted: bool) -> None:
    """Refuse weights under a licence with conditions unless those are accepted and kept."""
    if not (folder / PROVENANCE_FILE).is_file():
        return
    for source in read_provenance(folder)["sources"]:
        known = registry().licenses.get(source.get("license") or "")
        if known is None or known.restrictions is None:
            continue
        if not accepted:
            raise ValueError(
                f"{printable(folder)} is made from {printable(source['name'])}, which is under "
                f"{known.title} ({known.url}): {known.restrictions}. If you may share it, pass "
                "accept_license=True (--accept-license)."
            )
        if card and card.license not in (None, known.name):
            raise ValueError(
                f"The weights of {printable(folder)} are under {known.name} and stay so: "
                f"{card.license} cannot be their licence."
            )


def _check_weights(folder: Path, name: str, place: str, present: list[str]) -> None:
    available = weights_in(present, place)
    if not available:
        raise ValueError(f"{folder} is not complete: it has no weights for the {place or name}.")
    for paths in available.values():
        for index in (path for path in paths if path.endswith(".json")):
            shards = read_weight_map(folder / index)
            start = f"{place}/" if place else ""
            if missing := sorted(shard for shard in shards if start + shard not in present):
                raise ValueError(
                    f"{printable(folder)} is not complete: {printable(index)} names "
                    f"{listed(missing)}."
                )


def add_code(files: Files, parts: Mapping[str, str], with_code: bool) -> None:
    """Add the code files or remove every trace of them, and clean the configs.

    Args:
        files: Changed in place.
        parts: The part in each folder of the repository, as from `read_folder`.
        with_code: Add code.
    """
    for place, name in parts.items():
        component = COMPONENTS[name]
        start = f"{place}/" if place else ""
        changes: dict[str, Any] = {"auto_map": None, "_name_or_path": None}
        if with_code:
            source = single_file(component.module, absent=ABSENT_FROM_CODE).encode()
            files[f"{start}{component.code_file}.py"] = source
            # transformers loads the code of a part from the root, diffusers loads none.
            if place == "" or name == "transformer":
                files[f"{component.code_file}.py"] = source
                changes["auto_map"] = {
                    auto: f"{component.code_file}.{class_name}"
                    for auto, class_name in component.auto_map.items()
                }
        _change(files, start + component.config_file, changes)
    if "model_index.json" in files:
        class_name = _json(files["model_index.json"])["_class_name"]
        changes = {
            place: [component.code_file if with_code else component.module, component.class_name]
            for place, component in ((place, COMPONENTS[name]) for place, name in parts.items())
        }
        changes |= {"_name_or_path": None, "_class_name": class_name}
        if with_code:
            kind = kind_of(parts)
            changes["_class_name"] = [PIPELINE_CODE_FILE, kind.class_name]
            stand_ins = {component.class_name: component.base for component in COMPONENTS.values()}
            pipeline = single_file(kind.module, stand_ins, absent=ABSENT_FROM_CODE)
            files[f"{PIPELINE_CODE_FILE}.py"] = pipeline.encode()
            if kind is PLAIN:
                handler = single_file(HANDLER_MODULE, absent=ABSENT_FROM_CODE, tools=HANDLER_TOOLS)
                files[HANDLER_FILE] = handler.encode()
                files[REQUIREMENTS_FILE] = "".join(f"{one}\n" for one in code_needs()).encode()
        elif isinstance(class_name, list):
            changes["_class_name"] = class_name[-1]
        _change(files, "model_index.json", changes)
    if with_code and not any(path.startswith("LICENSE") for path in files):
        files["LICENSE-CODE"] = LICENSE.encode()


def _add_modular(files: Files, repo_id: str) -> None:
    """Add the blocks of Modular Diffusers.

    Their index names no components: diffusers knows the class of a component only if its module is
    imported, and where the package is not installed, none is. The blocks name classes and
    repository themselves.
    """
    index = _json(files["model_index.json"])
    version = index.get("_diffusers_version")
    code = single_file(MODULAR_MODULE, absent=ABSENT_FROM_CODE, constants={"REPOSITORY": repo_id})
    files[f"{MODULAR_CODE_FILE}.py"] = code.encode()
    files[MODULAR_CONFIG] = _dump(
        {
            "_class_name": MODULAR_CLASS,
            "_diffusers_version": version,
            "auto_map": {"ModularPipelineBlocks": f"{MODULAR_CODE_FILE}.{MODULAR_CLASS}"},
            "requirements": {"diffusers": MODULAR_DIFFUSERS},
        }
    )
    files[MODULAR_INDEX] = _dump(
        {
            "_blocks_class_name": MODULAR_CLASS,
            "_class_name": "ModularPipeline",
            "_diffusers_version": version,
            "id2label": index.get("id2label") or {},
        }
    )


def _dump(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _change(files: Files, path: str, changes: Mapping[str, Any]) -> None:
    """Set values of a JSON file, ``None`` to remove one; a file that has them is unchanged."""
    before = _json(files[path])
    after = {k: v for k, v in {**before, **changes}.items() if v is not None or k not in changes}
    if after != before:
        files[path] = _dump(after)


# Base classes that need the Hub, which exported code does without.
ABSENT_FROM_CODE = ("HubMixin", "CheckedModel")
# An endpoint classifies as well, which the other files leave to the package.
HANDLER_TOOLS = tuple(tool for tool in TOOLS if ".pipelines." not in tool)
# What exported code imports; the versions are those of the package.
_LIBRARIES = (
    "torch",
    "transformers",
    "diffusers",
    "huggingface_hub",
    "safetensors",
    "accelerate",
    "numpy",
    "Pillow",
)


def code_needs() -> list[str]:
    """The libraries that exported code needs, as lines of a ``requirements.txt``."""
    return [
        line
        for line in requires("var-hf") or []
        if "extra ==" not in line and re.split(r"[^\w-]", line)[0] in _LIBRARIES
    ]


def _configs(files: Files) -> dict[str, dict[str, Any]]:
    return {
        path: _json(content)
        for path, content in files.items()
        if path.endswith(".json") and not is_weights(path) and path != PROVENANCE_FILE
    }


def _provenance(folder: Path, files: Files, staying: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of a commit: sources as in the folder, digests of the commit's files."""
    if (folder / PROVENANCE_FILE).is_file():
        provenance = read_provenance(folder)
    else:
        provenance = new_provenance([], {})
    pushed = {path: content for path, content in files.items() if path != "README.md"}
    return {**provenance, "files": {**staying, **describe_files(pushed)}}


# What stands there already


def _prepare_repo(
    api: HfApi, repo_id: str, private: bool | None, revision: str | None, create_pr: bool
) -> tuple[str, str, set[str]]:
    """Make repository and branch if absent; returns the full name, the commit and its files."""
    if "/" not in repo_id:
        repo_id = f"{api.whoami()['name']}/{repo_id}"
    branch = constants.DEFAULT_REVISION if create_pr or revision is None else revision
    try:
        api.model_info(repo_id)
    except RepositoryNotFoundError:
        for kind in ("dataset", "space"):
            if api.repo_exists(repo_id, repo_type=kind):
                raise HubError(
                    f"{repo_id} is a {'data set' if kind == 'dataset' else kind} on the Hub, not a "
                    "model. Choose another name."
                ) from None
        api.create_repo(repo_id, private=private)
    try:
        info = api.model_info(repo_id, revision=branch)
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=branch, exist_ok=True)
        info = api.model_info(repo_id, revision=branch)
    assert info.sha is not None
    return info.id, info.sha, {file.rfilename for file in info.siblings or []}


def _check_remote(repo_id: str, remote: set[str], is_pipeline: bool) -> None:
    """Refuse to push where the result could not be pulled."""
    if pickles := sorted(path for path in remote if is_pickle(path)):
        raise HubError(
            f"{repo_id} already holds {listed(pickles)}; nobody could pull a pipeline from it "
            "without switching the checks off. Delete it there, or choose another repository."
        )
    if not is_pipeline and "model_index.json" in remote:
        raise HubError(
            f"{repo_id} holds a whole pipeline: a single model beside it would not be found. "
            "Choose another repository."
        )
    if is_pipeline and "config.json" in remote:
        raise HubError(
            f"{repo_id} holds a single model (config.json in its root), no pipeline. Choose "
            "another repository."
        )


def _remote_provenance(repo_id: str, commit: str, token: str | None) -> dict[str, Any]:
    path = Path(hf_hub_download(repo_id, PROVENANCE_FILE, revision=commit, token=token))
    try:
        files: dict[str, Any] = read_provenance(path.parent)["files"]
    except ValueError:
        logger.warning("The %s of %s is damaged; it is written anew.", PROVENANCE_FILE, repo_id)
        return {}
    return files


def _outdated(files: Files, remote: set[str], recorded: Mapping[str, Any]) -> set[str]:
    """What a former push has left behind: code, and shards of the variants that go up now."""
    places = {path.rpartition("/")[0] for path in files}
    variants = {(path.rpartition("/")[0], variant_of(path)) for path in files if is_weights(path)}
    return {
        path
        for path in remote - set(files)
        if ((is_code(path) or path in BESIDE_CODE) and path in recorded)
        or (
            is_weights(path)
            and (path.rpartition("/")[0], variant_of(path)) in variants
            and path.rpartition("/")[0] in places
        )
    }


def _own_card(
    files: Files, remote: set[str], repo_id: str, commit: str, token: str | None
) -> bytes | None:
    """The card that somebody has written by hand, here or there. Ours are written anew."""
    cards = [files["README.md"]] if "README.md" in files else []
    if "README.md" in remote:
        cards.append(Path(hf_hub_download(repo_id, "README.md", revision=commit, token=token)))
    for card in cards:
        if not is_generated(text := _text(card)):
            return text.encode()
    return None


def _text(content: Path | bytes) -> str:
    return (content if isinstance(content, bytes) else content.read_bytes()).decode()


def _json(content: Path | bytes) -> dict[str, Any]:
    try:
        value = json.loads(_text(content))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{content if isinstance(content, Path) else 'A file'} is no JSON."
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{content if isinstance(content, Path) else 'A file'} is no JSON object.")
    return value
