"""Commits to Spaces."""

from collections.abc import Callable, Mapping, Set
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
)

from var_hf.hub.errors import hub_errors


def check_before_push(repo_id: str, token: str | None = None) -> None:
    """Check the name of a Space and the token, before anything is built for it.

    Raises:
        HubError: The Hub does not know the token, or cannot be reached.
        ValueError: The name is invalid.
    """
    with hub_errors(repo_id, writing=True, token=token):
        api = HfApi(token=token)
        api.repo_exists(repo_id, repo_type="space")  # refuses a wrong name
        api.whoami()


def commit_space(
    repo_id: str,
    sdk: str,
    files: Mapping[str, Path | bytes],
    is_stale: Callable[[str], bool],
    *,
    message: str,
    private: bool | None = None,
    token: str | None = None,
) -> CommitInfo:
    """Push files to a Space in a single commit.

    Args:
        repo_id: Repository such as ``"user/var"``. It is created if it does not exist.
        sdk: Kind of a new Space: ``"gradio"`` or ``"static"``.
        files: Paths in the Space, and what they hold.
        is_stale: Whether a path that the Space holds, and `files` does not, is deleted.
        message: Message of the commit.
        private: Whether a new Space is private. Default: the account's setting.
        token: Access token with write permission. Default: the stored token.

    Raises:
        HubError: The Hub refuses the push, or cannot be reached.
        ValueError: The name is invalid.
    """
    api = HfApi(token=token)
    with hub_errors(repo_id, writing=True, token=token):
        url = api.create_repo(
            repo_id, repo_type="space", space_sdk=sdk, private=private, exist_ok=True
        )
        present: Set[str] = {file.rfilename for file in api.space_info(url.repo_id).siblings or ()}
        gone = sorted(path for path in present - set(files) if is_stale(path))
        return api.create_commit(
            url.repo_id,
            [
                *(CommitOperationDelete(path) for path in gone),
                *(CommitOperationAdd(path, content) for path, content in sorted(files.items())),
            ],
            repo_type="space",
            commit_message=message,
        )
