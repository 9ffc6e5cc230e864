"""One clear error for whatever the Hub answers, or does not answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# Broken connections come as the errors of the HTTP library that huggingface_hub is built on,
# whichever that is.
TransportError = cast(type[Exception], HfHubHTTPError.__bases__[0])

_LOG_IN = "Log in with `hf auth login`, set HF_TOKEN, or pass token=..."


class HubError(OSError):
    """A repository or file on the Hub is missing, forbidden, invalid or unreachable."""


@contextmanager
def hub_errors(
    repo_id: str, *, writing: bool = False, token: str | bool | None = None
) -> Iterator[None]:
    """Turn the errors of huggingface_hub into one line that says what to do.

    Args:
        repo_id: The repository in question.
        writing: Whether something was to be written. A push is one commit: it has happened, or it
            has not.
        token: What the caller passed, to write with, and for a second look at a repository that was
            not found.

    Raises:
        HubError: Instead of any error of huggingface_hub or of the connection, or there is no token
            to write with.
        ValueError: `repo_id` cannot be the name of a repository.
    """
    if writing and not isinstance(token, str) and get_token() is None:
        raise HubError(f"Pushing to {repo_id} needs an access token. {_LOG_IN}")
    try:
        yield
    except HFValidationError as error:
        here = "" if writing else "is no folder here and "
        raise ValueError(
            f"{repo_id!r} {here}cannot be the name of a Hub repository. Names look like "
            f"user/var-d16-256: letters, digits, "
            "'-', '_' and '.', at most 96 of them, no '--' or '..'."
        ) from error
    except LocalTokenNotFoundError as error:
        raise HubError(f"There is no access token for the Hub. {_LOG_IN}") from error
    except GatedRepoError as error:
        raise HubError(
            f"{repo_id} is gated: accept its conditions on {constants.ENDPOINT}/{repo_id}, then "
            f"use the token of the "
            f"account that did. {_LOG_IN}"
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(_not_found(repo_id, token, writing)) from error
    except RevisionNotFoundError as error:
        raise HubError(
            f"{repo_id} has no such revision (branch, tag or commit): {_revision_of(error)}."
        ) from error
    except HfHubHTTPError as error:
        raise HubError(_refused(repo_id, error, writing)) from error
    except EntryNotFoundError as error:  # among them: offline, and not in the cache
        cause = error.__cause__ or error.__context__
        if isinstance(cause, HfHubHTTPError):
            raise HubError(_refused(repo_id, cause, writing)) from error
        raise HubError(_unreachable(repo_id, cause)) from error
    except (OfflineModeIsEnabled, TransportError) as error:
        raise HubError(_unreachable(repo_id, error, writing)) from error
    except ValueError as error:
        if isinstance(
            error.__cause__, HfHubHTTPError
        ):  # how huggingface_hub reports a card that is refused
            raise HubError(f"The Hub refuses this push to {repo_id}: {_one_line(error)}") from error
        raise
    except RuntimeError as error:
        # What huggingface_hub raises where an upload of several files broke off.
        if writing and isinstance(error.__cause__, HfHubHTTPError):
            raise HubError(_refused(repo_id, error.__cause__, writing)) from error
        if writing and isinstance(error.__cause__, TransportError):
            raise HubError(_unreachable(repo_id, error.__cause__, writing)) from error
        raise


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _after(writing: bool) -> str:
    return (
        "A push is one commit: the repository holds either all of it or none. Push again."
        if writing
        else "Try again."
    )


def _not_found(repo_id: str, token: str | bool | None, writing: bool) -> str:
    for kind in ("dataset", "space"):
        try:
            if HfApi(token=token).repo_exists(repo_id, repo_type=kind):
                return (
                    f"{repo_id} is a {'data set' if kind == 'dataset' else kind} on the Hub, "
                    f"not a model."
                )
        except (HfHubHTTPError, OfflineModeIsEnabled, TransportError):
            continue
    missing = (
        f"There is no model {repo_id} on the Hub"
        if writing
        else f"There is neither a folder {repo_id} nor a model of that name on the Hub"
    )
    return f"{missing}, or it is private and the token may not see it. Check the name. {_LOG_IN}"


def _revision_of(error: RevisionNotFoundError) -> str:
    message = error.server_message or ""
    return message.removeprefix("Invalid rev id: ") or "the one asked for"


def _refused(repo_id: str, error: HfHubHTTPError, writing: bool) -> str:
    status = error.response.status_code
    said = (error.server_message or "").strip().rstrip(".")
    if status == 401:
        return f"The Hub does not accept the access token: it is wrong or has expired. {_LOG_IN}"
    if status == 403:
        doing = "write to" if writing else "read"
        return (
            f"The token may not {doing} {repo_id}{f' ({said})' if said else ''}. Use one of an "
            f"account that may."
        )
    if status == 412:
        return f"Somebody else has pushed to {repo_id} in the meantime. Push again."
    if status == 400:
        return f"The Hub refuses this push to {repo_id}: {said or 'bad request'}."
    return (
        f"The Hub answered {status} for {repo_id}{f' ({said})' if said else ''}. {_after(writing)}"
    )


def _unreachable(repo_id: str, cause: BaseException | None, writing: bool = False) -> str:
    if isinstance(cause, OfflineModeIsEnabled) or constants.is_offline_mode():
        return (
            f"{repo_id} is not (completely) in the cache, and the Hub is switched off "
            f"(HF_HUB_OFFLINE). "
            "Load it once with a connection."
        )
    if cause is None:
        return (
            f"{repo_id} is not (completely) in the cache, and local_files_only forbids to download "
            f"it. "
            "Load it once without."
        )
    reason = _one_line(cause)[:200] or type(cause).__name__
    return (
        f"The connection to {constants.ENDPOINT} broke or could not be made ({reason}). "
        f"{_after(writing)}"
    )
