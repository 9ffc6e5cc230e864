"""A small Hugging Face Hub on the loopback interface, for tests with the real clients.

It speaks the part of the Hub's HTTP interface that huggingface_hub, diffusers and transformers use
to create, push, list and pull repositories, with classic LFS storage (no Xet). Everything is kept
in memory.

    with HubServer() as hub:
        environment = hub.environment(cache_folder, token="hf_writer")
        subprocess.run([sys.executable, "push_something.py"], env=environment)

The clients read their addresses at import, so they run in subprocesses. What the real Hub may
answer in more than one way is a field of `Habits`; what can go wrong on the way is a field of
`Faults`. Both may be changed while the server runs.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

CHUNK = 1 << 16

# What the Hub accepts in a card, as far as this project's cards go
# (huggingface.co/docs/hub/repositories-licenses, and the tasks of huggingface.co/tasks that concern
# images).
LICENSES = {
    "apache-2.0",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc0-1.0",
    "mit",
    "openrail",
    "other",
    "unknown",
}
PIPELINE_TAGS = {
    "feature-extraction",
    "image-classification",
    "image-feature-extraction",
    "image-to-image",
    "text-to-image",
    "unconditional-image-generation",
}


SPACE_SDKS = {"gradio", "docker", "static"}
SPACE_COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


@dataclass
class Habits:
    """Answers that differ between Hub deployments and versions, all of them correct.

    Attributes:
        lfs_redirect: Send LFS files from another host, by a 302 with the ``X-Linked-*`` headers;
            else directly.
        regular_redirect: Send other files ``"directly"``, or by a ``"relative"`` or an
            ``"absolute"`` redirect.
        lfs_upload: Take LFS files in one ``"basic"`` request, or in parts (``"multipart"``).
        page_size: Entries per page of a file listing; more pages follow by a ``Link`` header.
        in_lfs: Ends of the names of files that are kept in LFS (the ``.gitattributes`` of a
            repository decide).
    """

    lfs_redirect: bool = True
    regular_redirect: str = "relative"
    lfs_upload: str = "basic"
    page_size: int = 1000
    in_lfs: tuple[str, ...] = (
        ".safetensors",
        ".bin",
        ".pt",
        ".pth",
        ".pkl",
        ".png",
        ".jpg",
        ".webp",
    )


@dataclass
class Faults:
    """What goes wrong.

    Attributes:
        one_in: Every n-th request fails, by turns with 500, 503, a closed connection and a body cut
            short; 0 is never.
        seconds_per_chunk: Pause before every 64 KiB of an LFS file, up or down.
        cut_off: Send only the first half of files whose path ends so, though the headers promise
            all of it.
        corrupted: Flip a bit in files whose path ends so, that many times; length and headers stay
            right.
        gone_after: Close every connection after this many more requests, as a server that has gone;
            ``None`` is never.
        storage_full: Refuse LFS uploads with 507.
    """

    one_in: int = 0
    seconds_per_chunk: float = 0.0
    cut_off: tuple[str, ...] = ()
    corrupted: dict[str, int] = field(default_factory=dict)
    gone_after: int | None = None
    storage_full: bool = False


@dataclass
class Commit:
    """The files of a repository at one time."""

    files: dict[str, bytes]
    title: str
    parent: str | None


@dataclass
class Repo:
    """A repository: commits by id, and branches, tags and pull requests (``refs/pr/N``)."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], title: str, parent: str | None, ref: str) -> str:
        """Add a commit and move `ref` to it; returns its id."""
        digest = hashlib.sha1(
            f"{len(self.commits)} {title} {parent}".encode(), usedforsecurity=False
        )
        for path, content in sorted(files.items()):
            digest.update(path.encode() + hashlib.sha256(content).digest())
        sha = digest.hexdigest()
        self.commits[sha] = Commit(files, title, parent)
        self.refs[ref] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        """The commit id of a branch, tag, pull request or (short) commit id."""
        if revision in self.refs:
            return self.refs[revision]
        matching = [sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)]
        return matching[0] if len(matching) == 1 else None

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The files at a revision."""
        return self.commits[self.refs[revision]].files


def blob_id(content: bytes) -> str:
    """Git's id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def sha256(content: bytes) -> str:
    """LFS's id of a file."""
    return hashlib.sha256(content).hexdigest()


def space_errors(metadata: dict[str, Any]) -> list[str]:
    """Errors in the header of a Space (huggingface.co/docs/hub/spaces-config-reference)."""
    errors = []
    if metadata.get("sdk") not in SPACE_SDKS:
        errors.append(f'"sdk" must be one of {sorted(SPACE_SDKS)}')
    for key in ("colorFrom", "colorTo"):
        if metadata.get(key) not in SPACE_COLOURS:
            errors.append(f'"{key}" must be one of {sorted(SPACE_COLOURS)}')
    if not metadata.get("emoji") or re.search(r"[\w\s]", metadata["emoji"]):
        errors.append('"emoji" must be a single emoji')
    if len(metadata.get("short_description", "")) > 60:
        errors.append('"short_description" must have at most 60 characters')
    for key in ("title", "app_file", "sdk_version", "python_version"):
        if not isinstance(metadata.get(key, ""), str):
            errors.append(f'"{key}" must be a string')
    return errors


def card_errors(content: str, kind: str = "model") -> list[str]:
    """What the Hub would find wrong with the metadata of a card."""
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---", content, re.DOTALL)
    if match is None:
        return []  # a card without metadata is valid; the Hub warns
    try:
        metadata = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    if not isinstance(metadata, dict):
        return ["the metadata must be a mapping"]
    errors = []
    licenses = metadata.get("license", [])
    for name in [licenses] if isinstance(licenses, str) else licenses:
        if name not in LICENSES:
            errors.append(f'"license" must be one of {sorted(LICENSES)}')
        if name == "other" and not metadata.get("license_name"):
            errors.append('"license_name" is required with license "other"')
    if (tag := metadata.get("pipeline_tag")) is not None and tag not in PIPELINE_TAGS:
        errors.append(f'"pipeline_tag" must be one of the Hub\'s tasks, not {tag!r}')
    if kind == "space":
        errors += space_errors(metadata)
    for key in ("tags", "datasets", "metrics", "language", "models"):
        value = metadata.get(key, [])
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str) for one in values):
            errors.append(f'"{key}" must be an array of strings')
    for key in ("datasets", "base_model"):
        value = metadata.get(key, [])
        for one in value if isinstance(value, list) else [value]:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(one)):
                errors.append(f'"{key}" holds {one!r}, which is no repository id')
    for key in ("library_name", "model_name"):
        if not isinstance(metadata.get(key, ""), str):
            errors.append(f'"{key}" must be a string')
    if "model-index" in metadata:
        try:
            name, results = model_index_to_eval_results(metadata["model-index"])
            if not name or not results:
                errors.append('"model-index" needs a name and results')
            ModelCardData(model_name=name, eval_results=results)
        except (KeyError, TypeError, ValueError) as error:
            errors.append(f'"model-index" is malformed: {error!r}')
    return errors


class HubServer:
    """The server; a context manager.

    Attributes:
        repos: Repositories by kind (``"model"``, ``"dataset"``, ``"space"``) and id.
        tokens: User and role (``"write"``, ``"read"`` or ``"expired"``) of every token.
        moved: New ids of renamed models.
        requests: Method and path of every request so far.
    """

    def __init__(self) -> None:
        self.habits, self.faults = Habits(), Faults()
        self.repos: dict[tuple[str, str], Repo] = {}
        self.tokens = {
            "hf_other": ("other", "write"),
            "hf_me": ("me", "write"),
            "hf_writer": ("user", "write"),
            "hf_reader": ("other", "read"),
            "hf_expired": ("user", "expired"),
        }
        self.moved: dict[str, str] = {}
        self.lfs: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.requests: list[str] = []
        self.lock = threading.Lock()

    def __enter__(self) -> Self:
        hub = self

        class BoundHandler(Handler):
            pass

        BoundHandler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), BoundHandler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def port(self) -> int:
        """The port; chosen by the system."""
        return self.server.server_address[1]

    @property
    def endpoint(self) -> str:
        """What goes into ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def other_host(self) -> str:
        """The same server under the name of another host, as the Hub's file storage is one."""
        return f"http://localhost:{self.port}"

    def environment(self, home: Path, token: str | None = "hf_writer") -> dict[str, str]:
        """Environment of a client process: this server, its own cache, and a token."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING"))
        }
        environment |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
        }
        return environment | ({"HF_TOKEN": token} if token else {})

    def in_lfs(self, path: str) -> bool:
        """Whether files of this name are kept in LFS."""
        return path.endswith(self.habits.in_lfs)

    def address(self, kind: str, repo_id: str) -> str:
        """The page of a repository."""
        return f"{self.endpoint}/{'' if kind == 'model' else f'{kind}s/'}{repo_id}"

    def model(self, repo_id: str) -> Repo:
        """A model repository that exists."""
        return self.repos["model", repo_id]

    def add(
        self, repo_id: str, files: dict[str, bytes], kind: str = "model", **options: bool
    ) -> Repo:
        """Put a repository on the server from the outside."""
        repo = self.repos[kind, repo_id] = Repo(**options)
        repo.commit(files, "Outside", None, "main")
        return repo

    def change(self, repo_id: str, changes: dict[str, bytes | None], revision: str = "main") -> str:
        """Commit to a model from the outside; ``None`` deletes a file. Returns the commit id."""
        repo = self.model(repo_id)
        files = {**repo.files(revision), **changes}
        kept = {path: content for path, content in files.items() if content is not None}
        return repo.commit(kept, "Changed from the outside", repo.refs[revision], revision)


@dataclass
class HubError(Exception):
    """An error as the Hub answers it."""

    status: int
    message: str
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    routes: tuple[tuple[str, str, Callable[..., None]], ...] = ()

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""

    # From bytes to a route and back

    def handle_request(self) -> None:
        parts = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        path, method = parts.path, self.command
        self.mutilate: str | None = None
        self.unread = int(self.headers.get("Content-Length") or 0)
        with self.hub.lock:
            self.hub.requests.append(f"{method} {self.path}")
            number, faults = len(self.hub.requests), self.hub.faults
            if faults.gone_after is not None:
                if faults.gone_after <= 0:
                    return self.hang_up()
                faults.gone_after -= 1
        if faults.one_in and number % faults.one_in == 0:
            kind = ("500", "503", "hang up", "cut off")[number // faults.one_in % 4]
            if kind == "hang up":
                return self.hang_up()
            if kind == "cut off" and method == "GET":
                self.mutilate = "cut off"
            else:
                return self.fail(
                    HubError(503 if kind == "503" else 500, "The server is having a bad day")
                )
        for wanted, pattern, function in self.routes:
            match = re.fullmatch(pattern, path)
            if match and (wanted == method or (wanted == "GET" and method == "HEAD")):
                groups = {k: unquote(v) for k, v in match.groupdict().items() if v is not None}
                try:
                    return function(self, **groups)
                except HubError as error:
                    return self.fail(error)
        self.fail(HubError(404, f"No such address: {method} {path}"))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def body(self) -> bytes:
        """The body of the request, however it is framed."""
        content = bytearray()
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return bytes(content)
        while self.unread:
            if pause := self.hub.faults.seconds_per_chunk:
                time.sleep(pause)
            chunk = self.rfile.read(min(CHUNK, self.unread))
            if not chunk:
                raise ConnectionError("The client has gone")
            content += chunk
            self.unread -= len(chunk)
        return bytes(content)

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body() or b"{}")

    def hang_up(self) -> None:
        """Close the connection without an answer."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def answer(
        self, content: bytes, headers: dict[str, str] | None = None, status: int = 200
    ) -> None:
        """Send an answer; on a HEAD request its headers alone."""
        if self.unread or self.headers.get("Transfer-Encoding"):
            self.close_connection = (
                True  # whatever of the request was not read must not look like the next one
            )
        headers = {"Content-Length": str(len(content))} | (headers or {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.mutilate == "cut off" and len(content) > 1:
            self.wfile.write(content[: len(content) // 2])
            return self.hang_up()
        self.wfile.write(content)

    def answer_json(
        self, value: Any, headers: dict[str, str] | None = None, status: int = 200
    ) -> None:
        """Send JSON."""
        headers = {"Content-Type": "application/json; charset=utf-8"} | (headers or {})
        self.answer(json.dumps(value).encode(), headers, status)

    def fail(self, error: HubError) -> None:
        """Send an error with the headers that the clients read."""
        headers = {"X-Error-Message": error.message} | error.headers
        if error.code:
            headers["X-Error-Code"] = error.code
        self.answer_json({"error": error.message}, headers, error.status)

    # Who asks for what

    def user(self) -> tuple[str | None, str]:
        """User and role of the request's token; a stale one is an error."""
        authorization = self.headers.get("Authorization")
        if authorization is None:
            return None, "none"
        user, role = self.hub.tokens.get(authorization.removeprefix("Bearer "), (None, "expired"))
        if role == "expired":
            raise HubError(401, "Invalid credentials in Authorization header")
        return user, role

    def repo(self, kind: str, repo_id: str, write: bool = False, files: bool = False) -> Repo:
        """A repository that the token may read, write, or take files from."""
        user, role = self.user()
        owner = repo_id.split("/")[0] == user
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None or (repo.private and not owner):
            # The Hub tells strangers nothing about what exists.
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        if files and repo.gated and not owner:
            status, message = (
                (403, "not in the authorized list") if user else (401, "you must be authenticated")
            )
            raise HubError(
                status, f"Access to {kind} {repo_id} is restricted and {message}", "GatedRepo"
            )
        if write and user is None:
            raise HubError(401, "Invalid username or password.")
        if write and (role != "write" or not owner):
            raise HubError(403, f"You don't have the rights to write to {repo_id}")
        return repo

    def commit_of(self, repo: Repo, revision: str) -> str:
        """The commit id of a revision."""
        sha = repo.resolve(revision)
        if sha is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    # Accounts and repositories

    def whoami(self) -> None:
        user, role = self.user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        self.answer_json(
            {"type": "user", "name": user, "orgs": [], "auth": {"accessToken": {"role": role}}}
        )

    def create_repo(self) -> None:
        wanted = self.json()
        user, role = self.user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        namespace = wanted.get("organization") or user
        repo_id, kind = f"{namespace}/{wanted['name']}", wanted.get("type") or "model"
        if kind == "space" and wanted.get("sdk") not in SPACE_SDKS:
            raise HubError(400, f'"sdk" must be one of {sorted(SPACE_SDKS)}')
        if role != "write" or namespace != user:
            raise HubError(
                403,
                f"You don't have the rights to create a {kind} under the namespace {namespace!r}",
            )
        if (kind, repo_id) in self.hub.repos:
            return self.answer_json(
                {
                    "error": f"You already created this {kind} repo",
                    "url": self.hub.address(kind, repo_id),
                },
                {"X-Error-Message": f"You already created this {kind} repo"},
                409,
            )
        repo = Repo(private=wanted.get("visibility") == "private")
        repo.commit(
            {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit", None, "main"
        )
        self.hub.repos[kind, repo_id] = repo
        self.answer_json({"url": self.hub.address(kind, repo_id), "name": repo_id})

    def delete_repo(self) -> None:
        wanted = self.json()
        user, _ = self.user()
        repo_id, kind = (
            f"{wanted.get('organization') or user}/{wanted['name']}",
            wanted.get("type") or "model",
        )
        self.repo(kind, repo_id, write=True)
        del self.hub.repos[kind, repo_id]
        self.answer_json({})

    def info(self, kind: str, repo_id: str, revision: str = "main") -> None:
        if (new_id := self.hub.moved.get(repo_id)) is not None:
            rest = f"/revision/{quote(revision, safe='')}" if "/revision/" in self.path else ""
            return self.answer(b"", {"Location": f"/api/{kind}s/{new_id}{rest}"}, 307)
        repo = self.repo(kind, repo_id)
        sha = self.commit_of(repo, revision)
        files = repo.commits[sha].files
        siblings: list[dict[str, Any]] = []
        for path, content in sorted(files.items()):
            sibling: dict[str, Any] = {"rfilename": path}
            if self.query.get("blobs"):
                sibling |= {"size": len(content), "blobId": blob_id(content)}
                if self.hub.in_lfs(path):
                    sibling["lfs"] = {
                        "size": len(content),
                        "sha256": sha256(content),
                        "pointerSize": 134,
                    }
            siblings.append(sibling)
        gated = "manual" if repo.gated else False
        self.answer_json(
            {
                "_id": "0",
                "id": repo_id,
                "modelId": repo_id,
                "sha": sha,
                "private": repo.private,
                "gated": gated,
                "disabled": False,
                "tags": [],
                "siblings": siblings,
            }
        )

    def tree(self, kind: str, repo_id: str, revision: str) -> None:
        repo = self.repo(kind, repo_id)
        files = repo.commits[self.commit_of(repo, revision)].files
        entries: list[dict[str, Any]] = [
            {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            for folder in sorted({path.rsplit("/", 1)[0] for path in files if "/" in path})
        ]
        for path, content in sorted(files.items()):
            entry: dict[str, Any] = {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": blob_id(content),
            }
            if self.hub.in_lfs(path):
                entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        start, size = int(self.query.get("cursor", 0)), self.hub.habits.page_size
        headers = {}
        if start + size < len(entries):
            path = urlsplit(self.path).path
            address = f"{self.hub.endpoint}{path}?recursive=true&cursor={start + size}"
            headers["Link"] = f'<{address}>; rel="next"'
        self.answer_json(entries[start : start + size], headers)

    def paths_info(self, kind: str, repo_id: str, revision: str) -> None:
        repo = self.repo(kind, repo_id)
        files = repo.commits[self.commit_of(repo, revision)].files
        body = self.body().decode()
        wanted = (
            json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
        )
        entries = []
        for path in wanted:
            if (content := files.get(path)) is not None:
                entry: dict[str, Any] = {
                    "type": "file",
                    "path": path,
                    "size": len(content),
                    "oid": blob_id(content),
                }
                if self.hub.in_lfs(path):
                    entry["lfs"] = {
                        "oid": sha256(content),
                        "size": len(content),
                        "pointerSize": 134,
                    }
                entries.append(entry)
        self.answer_json(entries)

    def refs(self, kind: str, repo_id: str) -> None:
        repo = self.repo(kind, repo_id)
        requests = [
            {"name": f"pr/{name[8:]}", "ref": name, "targetCommit": sha}
            for name, sha in repo.refs.items()
            if name.startswith("refs/pr/")
        ]
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
            for name, sha in repo.refs.items()
            if not name.startswith("refs/pr/")
        ]
        self.answer_json(
            {"branches": branches, "tags": [], "converts": [], "pullRequests": requests}
        )

    def create_branch(self, kind: str, repo_id: str, branch: str) -> None:
        start = self.json().get("startingPoint", "main")
        repo = self.repo(kind, repo_id, write=True)
        if branch in repo.refs:
            raise HubError(409, f"Reference already exists: refs/heads/{branch}")
        repo.refs[branch] = self.commit_of(repo, start)
        self.answer_json({})

    # Pushing

    def validate_card(self) -> None:
        wanted = self.json()
        errors = card_errors(wanted["content"], wanted.get("repoType") or "model")
        if "Accept" in self.headers and "text/plain" in self.headers["Accept"] and errors:
            return self.answer("\n".join(errors).encode(), status=400)
        messages = {"errors": [{"message": error} for error in errors], "warnings": []}
        self.answer_json(messages, status=400 if errors else 200)

    def preupload(self, kind: str, repo_id: str, revision: str) -> None:
        request = self.json()
        repo = self.repo(kind, repo_id, write="create_pr" not in self.query)
        sha = self.commit_of(repo, revision)
        files = []
        for file in request["files"]:
            present = repo.commits[sha].files.get(file["path"])
            lfs = self.hub.in_lfs(file["path"])
            oid = None if present is None else sha256(present) if lfs else blob_id(present)
            mode = "lfs" if lfs else "regular"
            files.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
                | ({"oid": oid} if oid else {})
            )
        self.answer_json({"files": files, "commitOid": sha})

    def lfs_batch(self, repo_id: str, plural: str = "models") -> None:
        request = self.json()
        self.repo(plural.removesuffix("s"), repo_id)
        if self.user()[0] is None:
            raise HubError(401, "Invalid username or password.")
        parts_wanted = (
            self.hub.habits.lfs_upload == "multipart" and "multipart" in request["transfers"]
        )
        objects = []
        for wanted in request["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.hub.lfs:
                address = f"{self.hub.other_host}/storage/{oid}"
                upload: dict[str, Any] = {"href": address}
                if parts_wanted:
                    chunk = max(1, -(-size // 3))  # three parts
                    parts = {f"{n + 1:05}": f"{address}/{n + 1}" for n in range(-(-size // chunk))}
                    upload = {
                        "href": f"{address}/complete",
                        "header": {"chunk_size": str(chunk), **parts},
                    }
                answer["actions"] = {
                    "upload": upload,
                    "verify": {"href": f"{self.hub.endpoint}/api/lfs-verify"},
                }
            objects.append(answer)
        self.answer_json({"transfer": "multipart" if parts_wanted else "basic", "objects": objects})

    def store(self, oid: str, part: str | None = None) -> None:
        if "Authorization" in self.headers:
            raise HubError(400, "Only one way of authorization is allowed")  # as S3 has it
        if self.hub.faults.storage_full:
            raise HubError(507, "Insufficient storage")
        content = self.body()
        if part is not None:
            self.hub.parts.setdefault(oid, {})[int(part)] = content
        elif sha256(content) != oid:
            raise HubError(400, "The content does not have the promised digest")
        else:
            self.hub.lfs[oid] = content
        self.answer(b"", {"ETag": f'"{sha256(content)}"'})

    def complete(self, oid: str) -> None:
        wanted = [part["partNumber"] for part in self.json()["parts"]]
        content = b"".join(self.hub.parts[oid][number] for number in wanted)
        if sha256(content) != oid:
            raise HubError(400, "The parts do not make up the promised digest")
        self.hub.lfs[oid] = content
        self.answer_json({})

    def verify(self) -> None:
        wanted = self.json()
        if len(self.hub.lfs.get(wanted["oid"], b"")) != wanted["size"]:
            raise HubError(404, "No such object")
        self.answer_json({})

    def commit(self, kind: str, repo_id: str, revision: str) -> None:
        lines = [json.loads(line) for line in self.body().splitlines() if line.strip()]
        pull_request = self.query.get("create_pr") == "1"
        repo = self.repo(kind, repo_id, write=not pull_request)
        if pull_request and self.user()[0] is None:
            raise HubError(401, "Invalid username or password.")
        with self.hub.lock:
            parent = self.commit_of(repo, revision)
            header = next(line["value"] for line in lines if line["key"] == "header")
            if header.get("parentCommit") not in (None, parent):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(repo.commits[parent].files)
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    if value["oid"] not in self.hub.lfs:
                        raise HubError(400, f"LFS object of {value['path']} was not uploaded")
                    files[value["path"]] = self.hub.lfs[value["oid"]]
                elif line["key"] == "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                elif line["key"] == "deletedFolder":
                    files = {
                        path: c
                        for path, c in files.items()
                        if not path.startswith(value["path"].rstrip("/") + "/")
                    }
            if errors := card_errors(files.get("README.md", b"").decode(), kind):
                raise HubError(400, "Invalid metadata in README.md: " + "; ".join(errors))
            number = 1 + sum(name.startswith("refs/pr/") for name in repo.refs)
            sha = repo.commit(
                files, header["summary"], parent, f"refs/pr/{number}" if pull_request else revision
            )
        answer = {
            "success": True,
            "commitOid": sha,
            "commitUrl": f"{self.hub.address(kind, repo_id)}/commit/{sha}",
            "hookOutput": "",
        }
        if pull_request:
            answer["pullRequestUrl"] = f"{self.hub.endpoint}/{repo_id}/discussions/{number}"
        self.answer_json(answer)

    # Pulling

    def resolve(self, repo_id: str, revision: str, path: str, plural: str = "models") -> None:
        if (new_id := self.hub.moved.get(repo_id)) is not None:
            return self.answer(
                b"",
                {"Location": f"/{new_id}/resolve/{quote(revision, safe='')}/{quote(path)}"},
                307,
            )
        repo = self.repo(plural.removesuffix("s"), repo_id, files=True)
        sha = self.commit_of(repo, revision)
        content = repo.commits[sha].files.get(path)
        headers = {"X-Repo-Commit": sha}
        if content is None:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        habits = self.hub.habits
        if self.hub.in_lfs(path):
            if not habits.lfs_redirect:
                return self.send_file(content, sha256(content), path, headers)
            self.hub.lfs[sha256(content)] = content
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{sha256(content)}"'}
            headers["Location"] = (
                f"{self.hub.other_host}/storage/{sha256(content)}?path={quote(path)}"
            )
            return self.answer(b"Found. Redirecting", headers, 302)
        if habits.regular_redirect == "directly":
            return self.send_file(content, blob_id(content), path, headers)
        start = "" if habits.regular_redirect == "relative" else self.hub.endpoint
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{blob_id(content)}"'}
        headers["Location"] = (
            f"{start}/api/resolve-cache/{plural}/{repo_id}/{sha}/{quote(path, safe='')}"
        )
        self.answer(b"Temporary Redirect", headers, 307)

    def resolve_cache(self, plural: str, repo_id: str, sha: str, path: str) -> None:
        repo = self.repo(plural.removesuffix("s"), repo_id, files=True)
        content = repo.commits[sha].files[path]
        self.send_file(content, blob_id(content), path, {"X-Repo-Commit": sha})

    def stored(self, oid: str) -> None:
        if "Authorization" in self.headers:
            raise HubError(400, "Only one way of authorization is allowed")  # as S3 has it
        self.send_file(self.hub.lfs[oid], oid, self.query.get("path", ""), {})

    def send_file(self, content: bytes, etag: str, path: str, headers: dict[str, str]) -> None:
        """Send a file or the range asked for, with whatever is to go wrong."""
        faults = self.hub.faults
        for suffix, times in faults.corrupted.items():
            if path.endswith(suffix) and times and self.command == "GET":
                faults.corrupted[suffix] -= 1
                content = content[:-1] + bytes([content[-1] ^ 1])
        if path.endswith(faults.cut_off or ("\0",)):
            self.mutilate = "cut off"
        headers |= {
            "ETag": f'"{etag}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        status = 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), int(match[2] or len(content) - 1)
            if start >= len(content):
                return self.answer(b"", headers | {"Content-Range": f"bytes */{len(content)}"}, 416)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        if faults.seconds_per_chunk and self.hub.in_lfs(path) and self.command == "GET":
            time.sleep(faults.seconds_per_chunk * -(-len(content) // CHUNK))
        self.answer(content, headers, status)


API = r"/api/(?P<kind>model|dataset|space)s/(?P<repo_id>[^/]+/[^/]+)"
PLAIN = r"(?:/(?P<plural>datasets|spaces))?/(?P<repo_id>[^/]+/[^/]+?)"
Handler.routes = (
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create_repo),
    ("DELETE", r"/api/repos/delete", Handler.delete_repo),
    ("POST", r"/api/validate-yaml", Handler.validate_card),
    ("POST", r"/api/lfs-verify", Handler.verify),
    ("GET", API, Handler.info),
    ("GET", API + r"/revision/(?P<revision>[^/]+)", Handler.info),
    ("GET", API + r"/tree/(?P<revision>[^/]+)", Handler.tree),
    ("POST", API + r"/paths-info/(?P<revision>[^/]+)", Handler.paths_info),
    ("GET", API + r"/refs", Handler.refs),
    ("POST", API + r"/branch/(?P<branch>[^/]+)", Handler.create_branch),
    ("POST", API + r"/preupload/(?P<revision>[^/]+)", Handler.preupload),
    ("POST", API + r"/commit/(?P<revision>[^/]+)", Handler.commit),
    ("POST", PLAIN + r"\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/storage/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\d+))?", Handler.store),
    ("POST", r"/storage/(?P<oid>[0-9a-f]{64})/complete", Handler.complete),
    ("GET", r"/storage/(?P<oid>[0-9a-f]{64})", Handler.stored),
    (
        "GET",
        r"/api/resolve-cache/(?P<plural>models|datasets|spaces)/(?P<repo_id>[^/]+/[^/]+)/(?P<sha>[0-9a-f]+)/(?P<path>[^/]+)",
        Handler.resolve_cache,
    ),
    ("GET", PLAIN + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
)
