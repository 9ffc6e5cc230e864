"""Published checkpoints from the Hub, compared with the registry before and after the download."""

import os
import re
from pathlib import Path

from huggingface_hub import hf_hub_download

from var_hf.conversion.published import PublishedFile
from var_hf.hub.errors import HubError, hub_errors
from var_hf.hub.pull import Listing, Place, fetch_file, list_files
from var_hf.provenance import sha256
from var_hf.text import listed


def fetch_published(
    file: PublishedFile,
    *,
    repository: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> tuple[Path, str | None]:
    """Fetch one published file.

    Args:
        file: What to fetch.
        repository: Another Hub repository with a file of that name. Size and digest of the registry
            do not apply to it.
        revision: Branch, tag or commit; the main branch if not given.
        token: Access token; the stored one if not given.
        cache_dir: Folder of the cache.

    Returns:
        The file in the cache, and the commit that it is from where that is known.

    Raises:
        HubError: The file is not there, has another size or digest than in the registry, arrives
            damaged, or cannot be reached. An OSError.
    """
    from_registry = repository in (None, file.repository)
    repository = repository or file.repository
    place = Place(repository, revision, token, cache_dir)
    with hub_errors(repository, token=token):
        listing, _ = list_files(place)
        if listing is None:  # the cache may have it
            path = Path(hf_hub_download(**place.options(), filename=file.name, revision=revision))
            commit = re.search(r"/snapshots/([0-9a-f]{40})/", path.as_posix())
            sha = commit[1] if commit else None
        else:
            _check_listing(file, listing, repository, from_registry)
            path, sha = fetch_file(place, listing, file.name), listing.commit
    if from_registry and (file.size is not None or file.sha256 is not None):
        _compare(file, repository, path.stat().st_size, sha256(path) if file.sha256 else None)
    return path, sha


def _check_listing(
    file: PublishedFile, listing: Listing, repository: str, from_registry: bool
) -> None:
    if file.name not in listing.files:
        checkpoints = sorted(
            n for n in listing.files if n.endswith((".pth", ".pt", ".safetensors"))
        )
        has = f" It has {listed(checkpoints)}." if checkpoints else ""
        raise HubError(
            f"{repository} has no file {file.name} at {listing.commit[:12]}: it was moved or "
            f"removed there.{has}"
        )
    if from_registry and (lfs := listing.files[file.name].lfs) is not None:
        _compare(file, repository, lfs.size, lfs.sha256)


def _compare(file: PublishedFile, repository: str, size: int, digest: str | None) -> None:
    """Refuse a file that is not the one that the registry describes."""
    if file.size not in (None, size):
        difference = f"{size:,} bytes instead of {file.size:,}"
    elif file.sha256 is not None and digest not in (None, file.sha256):
        difference = f"the SHA-256 {digest} instead of {file.sha256}"
    else:
        return
    raise HubError(
        f"{file.name} of {repository} is not the file that was published: it has {difference}. "
        "If you know why, download it and convert the local file."
    )
