"""From the Hub to a folder in the cache, with nothing damaged, changed or out of place in it."""

import hashlib
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.hf_api import RepoSibling

from var_hf.hub.errors import HubError, TransportError, hub_errors
from var_hf.hub.files import (
    COLLABORATIVE,
    COMPONENTS,
    PLAIN,
    choose_weights,
    is_adapter,
    is_code,
    is_pickle,
    is_weights,
    kind_of,
    read_index,
    read_weight_map,
    weights_in,
)
from var_hf.provenance import PROVENANCE_FILE, read_provenance, sha256
from var_hf.text import listed, printable

logger = logging.getLogger(__name__)

_PARTS = {*PLAIN.parts, *COLLABORATIVE.parts}
_TRUST = "If you know what it is and trust the repository, pass verify=False."


@dataclass(frozen=True)
class Place:
    """Where files come from, in the words of huggingface_hub."""

    repo_id: str
    revision: str | None
    token: str | bool | None
    cache_dir: str | os.PathLike[str] | None

    def options(self) -> dict[str, Any]:
        return {"repo_id": self.repo_id, "token": self.token, "cache_dir": self.cache_dir}


@dataclass(frozen=True)
class Listing:
    """A commit and its files with their digests, as the Hub lists them."""

    commit: str
    files: Mapping[str, RepoSibling]


def pull_pipeline(
    repo_id: str,
    *,
    skip: Collection[str] = (),
    variant: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    verify: bool = True,
) -> str:
    """Fetch a pipeline repository and return its folder in the cache.

    Only configurations and the requested weights are fetched, never a pickle or an adapter. Code
    files are fetched to be compared, and are not run.

    Args:
        repo_id: Such as ``"user/var-d16-256"``.
        skip: Parts (``"vqvae"``, say) whose weights are not needed.
        variant: Such as ``"fp16"``; parts that do not have it come with their plain weights.
        revision: Branch, tag, commit, or pull request (``"refs/pr/1"``); the main branch if not
            given.
        token: Access token; the stored one if not given.
        cache_dir: Folder of the cache.
        local_files_only: Use the cache alone.
        force_download: Fetch again what is in the cache.
        verify: Refuse a repository with a pickle, an adapter or an unlisted code file in it, and
            weights or code that are not those of its ``provenance.json``. Transfers are checked
            against the Hub's own digests in any case.

    Raises:
        HubError: The repository is not there, may not be read, is no pipeline, cannot be reached,
            or is refused.
        ValueError: A bad name, another kind of model, no weights, or not in this variant.
    """
    source = Place(repo_id, revision, token, cache_dir)
    with hub_errors(repo_id, token=token):
        listing, reason = (None, None) if local_files_only else list_files(source)
        if listing is None:
            try:
                folder = _from_cache(source, skip, variant)
            except EntryNotFoundError:
                if reason is not None:
                    raise reason from None
                raise
            if verify:
                _check_cached(source, folder)
            return str(folder)
        index = read_index(_fetch_index(source, listing).parent, repo_id)
        wanted = {n: part for n, part in kind_of(index).parts.items() if n not in skip}
        weights = choose_weights(listing.files, wanted, variant, repo_id)
        recorded = _recorded(source, listing) if verify else {}
        if verify:
            _check_names(repo_id, listing.files, recorded)
            _check_listed_digests(repo_id, listing, weights, recorded)
        others = [path for path in listing.files if _is_small(path)]
        folder = _download(source, listing, [*others, *weights], force_download)
        _check_shards(repo_id, [folder / path for path in weights if path.endswith(".json")])
        if verify:
            # The Hub lists files in git without a SHA-256: code, and in some repositories small
            # weight files.
            in_git = [
                path
                for path in (*others, *weights)
                if (is_code(path) or is_weights(path)) and listing.files[path].lfs is None
            ]
            changed = [p for p in in_git if p in recorded and sha256(folder / p) != recorded[p]]
            _refuse_changed(repo_id, changed, [])
        return str(folder)


def pull_everything(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Fetch every file of a repository, to look at it; returns the folder in the cache.

    Raises:
        HubError: The repository is not there, may not be read, or cannot be reached.
    """
    source = Place(repo_id, revision, token, cache_dir)
    with hub_errors(repo_id, token=token):
        listing, _ = list_files(source)
        if listing is None:
            return Path(snapshot_download(**source.options(), revision=revision))
        return _download(source, listing, list(listing.files), force_download=False)


def verified_place(args: Sequence[Any], place: Mapping[str, Any]) -> dict[str, Any]:
    """Check a folder or repository before a library loads a single model from it.

    A folder is refused if it holds an adapter, which transformers would load as well. A repository
    is refused for all that `pull_pipeline` refuses: pickles, adapters and unlisted code anywhere in
    it, and weights or code that are not those of its ``provenance.json``.

    Args:
        args: What `from_pretrained` was called with; the folder or repository comes first.
        place: Its keyword arguments, of which `revision`, `subfolder`, `token`, `cache_dir` and
            `local_files_only` are read.

    Returns:
        The keyword arguments with `revision` set to the commit that was checked, so that no other
        is loaded, and with `use_safetensors`, so that no pickle is. Those of folders, and of
        repositories that only the cache can serve, are unchanged.

    Raises:
        HubError: The repository is not there, may not be read, or is refused.
        ValueError: The folder holds an adapter.
    """
    name = args[0] if args else place.get("pretrained_model_name_or_path")
    if name is None:
        return dict(place)
    place = {**place, "use_safetensors": True}
    if os.path.isdir(name):
        _check_no_adapter(Path(name, place.get("subfolder") or ""))
        return place
    if place.get("local_files_only"):
        return place
    repo_id = os.fspath(name)
    token = place.get("token")
    source = Place(repo_id, place.get("revision"), token, place.get("cache_dir"))
    with hub_errors(repo_id, token=token):
        listing, _ = list_files(source)
        if listing is None:
            return place
        recorded = _recorded(source, listing)
        _check_names(repo_id, listing.files, recorded)
        weights = [path for path in listing.files if is_weights(path)]
        _check_listed_digests(repo_id, listing, weights, recorded)
        _check_in_git(source, listing, recorded)
        lists = [path for path in weights if path.endswith(".json")]
        _check_shards(repo_id, [fetch_file(source, listing, path) for path in lists])
    return {**place, "revision": listing.commit}


# Steps


def list_files(source: Place) -> tuple[Listing | None, Exception | None]:
    """The files at the revision; or why the Hub cannot be reached, when the cache may do."""
    try:
        info = HfApi(token=source.token).model_info(
            source.repo_id, revision=source.revision, files_metadata=True
        )
    except (OfflineModeIsEnabled, TransportError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise
        logger.info("The Hub cannot be reached (%s); looking into the cache.", error)
        return None, error
    assert info.sha is not None
    return Listing(info.sha, {file.rfilename: file for file in info.siblings or []}), None


def fetch_file(source: Place, listing: Listing, path: str, force_download: bool = False) -> Path:
    """One file, compared with the Hub's digest and fetched a second time if it arrives damaged."""
    for force in (force_download, True):
        local = Path(
            hf_hub_download(
                **source.options(), filename=path, revision=listing.commit, force_download=force
            )
        )
        if _is_intact(local, listing.files[path]):
            return local
        logger.warning("%s of %s arrived damaged; fetching it again.", path, source.repo_id)
    raise HubError(
        f"{path} of {source.repo_id} arrives damaged again and again: its digest is not the one "
        "that the Hub lists. Try again later, or over another network."
    )


def _fetch_index(source: Place, listing: Listing) -> Path:
    if "model_index.json" not in listing.files:
        single = " It holds a single model: load that with VARModel or MultiScaleVQVAE."
        hint = single if "config.json" in listing.files else ""
        raise HubError(f"{source.repo_id} is no pipeline: it has no model_index.json.{hint}")
    return fetch_file(source, listing, "model_index.json")


def _recorded(source: Place, listing: Listing) -> dict[str, str]:
    """What ``provenance.json`` says: paths to SHA-256."""
    if PROVENANCE_FILE not in listing.files:
        logger.warning(
            "%s has no %s: whether its files are those that were pushed cannot be told.",
            source.repo_id,
            PROVENANCE_FILE,
        )
        return {}
    folder = fetch_file(source, listing, PROVENANCE_FILE).parent
    return {path: entry["sha256"] for path, entry in read_provenance(folder)["files"].items()}


def _is_small(path: str) -> bool:
    """Configurations, the card, and code: what is fetched besides weights."""
    top = path.split("/")[0]
    of_pipeline = "/" not in path or (top in _PARTS and path.count("/") == 1)
    return (
        of_pipeline
        and not is_weights(path)
        and not is_adapter(path)
        and (path.endswith((".json", ".py")) or path == "README.md")
    )


def _download(
    source: Place, listing: Listing, files: Collection[str], force_download: bool
) -> Path:
    """Fetch files in parallel, then compare each with the Hub's digest."""
    folder = Path(
        snapshot_download(
            **source.options(),
            revision=source.revision,
            allow_patterns=[_escape(path) for path in files],
            force_download=force_download,
        )
    )
    if folder.name != listing.commit:
        # The branch has moved while we looked at it. What was looked at is what is taken.
        folder = folder.with_name(listing.commit)
    for path in files:
        local = folder / path
        if not local.is_file() or not _is_intact(local, listing.files[path]):
            logger.warning("%s of %s arrived damaged; fetching it again.", path, source.repo_id)
            fetch_file(source, listing, path, force_download=True)
    return folder


def _escape(path: str) -> str:
    """A path as a pattern that matches nothing else."""
    return path.replace("[", "[[]").replace("*", "[*]").replace("?", "[?]")


def _is_intact(local: Path, listed: RepoSibling) -> bool:
    """Whether a file has the digest that the Hub lists: SHA-256 for LFS, else git's SHA-1."""
    if listed.lfs is not None:
        return local.stat().st_size == listed.lfs.size and sha256(local) == listed.lfs.sha256
    if listed.blob_id is None:
        return True
    content = local.read_bytes()
    header = f"blob {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest() == listed.blob_id


def _from_cache(source: Place, skip: Collection[str], variant: str | None) -> Path:
    """The folder in the cache, if it is complete; a broken download may have left less."""
    folder = Path(
        snapshot_download(
            **source.options(),
            revision=source.revision,
            local_files_only=True,
            allow_patterns=["model_index.json"],
        )
    )
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    index = read_index(folder, source.repo_id) if "model_index.json" in present else {}
    wanted = {n: part for n, part in kind_of(index).parts.items() if n not in skip}
    configs = (f"{n}/{COMPONENTS[part].config_file}" for n, part in wanted.items())
    if missing := [path for path in ("model_index.json", *configs) if path not in present]:
        raise LocalEntryNotFoundError(f"Not in the cache: {listed(missing)}.")
    known = set(present)
    if PROVENANCE_FILE in present:
        known |= read_provenance(folder)["files"].keys()
    elif any(COMPONENTS[p].weights_stem and not weights_in(present, n) for n, p in wanted.items()):
        raise LocalEntryNotFoundError("Not in the cache: weights.")
    weights = choose_weights(known, wanted, variant, f"{source.repo_id} in the cache")
    for path in [path for path in weights if path.endswith(".json") and path in present]:
        shards = read_weight_map(folder / path)
        weights += {f"{path.rpartition('/')[0]}/{shard}" for shard in shards}
    if missing := [path for path in weights if path not in present]:
        raise LocalEntryNotFoundError(f"Not in the cache: {listed(missing)}.")
    return folder


# Refusing


def _check_names(repo_id: str, files: Collection[str], recorded: Collection[str]) -> None:
    pickles = sorted(path for path in files if is_pickle(path))
    if pickles:
        raise HubError(
            f"{repo_id} is refused: it holds {listed(pickles)}, which may run code when it is "
            f"loaded. A VAR repository holds safetensors files alone. {_TRUST}"
        )
    if adapters := sorted(path for path in files if is_adapter(path)):
        raise HubError(
            f"{repo_id} is refused: it holds {listed(adapters)}, an adapter that transformers "
            "would load on top of the weights. Load a model, then the adapter by "
            f"model.load_adapter. {_TRUST}"
        )
    code = sorted(path for path in files if is_code(path) and path not in recorded)
    if code:
        raise HubError(
            f"{repo_id} is refused: it holds code that {PROVENANCE_FILE} does not list: "
            f"{listed(code)}. {_TRUST}"
        )


def _check_no_adapter(folder: Path) -> None:
    """Refuse a folder with an adapter.

    transformers loads it on top of the weights, or of another model that the adapter names.
    """
    if folder.is_dir() and (names := sorted(filter(is_adapter, os.listdir(folder)))):
        raise ValueError(
            f"{printable(folder)} is refused: it holds {listed(names)}, an adapter that would be "
            "loaded on top of the weights. Load a model, then the adapter by model.load_adapter. "
            "If that is what you want, pass verify=False."
        )


def _check_shards(repo_id: str, lists: Collection[Path]) -> None:
    """Refuse lists of shards that lead out of their folder."""
    for path in lists:
        try:
            read_weight_map(path)
        except ValueError as error:
            raise HubError(f"{repo_id} is refused: {error}") from error


def _check_listed_digests(
    repo_id: str, listing: Listing, weights: Collection[str], recorded: Mapping[str, str]
) -> None:
    """Compare weights and code with the provenance before anything large is fetched."""
    if not recorded:
        return
    unlisted = [path for path in weights if path not in recorded]
    changed = [
        path
        for path in weights
        if path in recorded
        and (lfs := listing.files[path].lfs) is not None
        and lfs.sha256 != recorded[path]
    ]
    _refuse_changed(repo_id, changed, unlisted)


def _check_in_git(source: Place, listing: Listing, recorded: Mapping[str, str]) -> None:
    """Compare the weights and code that the Hub keeps in git, and lists without a SHA-256."""
    in_git = [
        path
        for path, file in listing.files.items()
        if path in recorded and (is_code(path) or is_weights(path)) and file.lfs is None
    ]
    changed = [
        path for path in in_git if sha256(fetch_file(source, listing, path)) != recorded[path]
    ]
    _refuse_changed(source.repo_id, changed, [])


def _check_cached(source: Place, folder: Path) -> None:
    """Compare what lies in the cache with the provenance beside it."""
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    if not (folder / PROVENANCE_FILE).is_file():
        _check_names(source.repo_id, files, ())
        logger.warning("%s has no %s.", source.repo_id, PROVENANCE_FILE)
        return
    entries = read_provenance(folder)["files"]
    _check_names(source.repo_id, files, entries)
    listed = [path for path in files if path in entries and (is_weights(path) or is_code(path))]
    changed = [path for path in listed if sha256(folder / path) != entries[path]["sha256"]]
    _refuse_changed(
        source.repo_id, changed, [p for p in files if is_weights(p) and p not in entries]
    )


def _refuse_changed(repo_id: str, changed: Collection[str], unlisted: Collection[str]) -> None:
    problems = []
    if changed:
        problems.append(f"{listed(changed)} changed after {PROVENANCE_FILE} was written")
    if unlisted:
        problems.append(f"{listed(unlisted)} not listed in {PROVENANCE_FILE}")
    if problems:
        raise HubError(f"{repo_id} is refused: {'; '.join(problems)}. {_TRUST}")
