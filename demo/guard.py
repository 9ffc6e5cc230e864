"""Protection of the server: checks of host, origin and size of requests, and safe headers."""

import ipaddress
import json
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from anyio.to_thread import run_sync
from gradio.utils import get_upload_folder
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_REQUEST = 40 * 2**20  # bytes: one upload with its form data
MOST_BYTES = 2**30  # total size of all files of uploads and results
FORWARDED = frozenset(
    {
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-gradio-server",
    }
)
HUB_PAGES = "https://huggingface.co https://*.hf.space"  # the sites that show a Space in a frame
# Gradio's page has inline scripts and styles, and its image editor compiles shaders.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors "
)


@dataclass(frozen=True)
class Access:
    """The rules that decide which requests are answered.

    A page of another site cannot use the demo through a visitor's browser. A name of that site,
    made to resolve to this machine (DNS rebinding), is not among the hosts, and its other requests
    carry a foreign origin.

    Attributes:
        hosts: Names under which the demo is reached, besides IP addresses, `localhost` and the name
            of this machine.
        proxy_headers: Whether a reverse proxy sets the `X-Forwarded-*` headers. They are ignored
            otherwise.
        is_space: Whether this is a public Space. Any site may use it, and the Hub shows it in a
            frame.
    """

    hosts: frozenset[str] = frozenset()
    proxy_headers: bool = False
    is_space: bool = False

    def problem(self, headers: Headers) -> str | None:
        """Return the reason to refuse a request, or `None`."""
        if self.is_space:
            return None
        host = headers.get("host", "")
        if self.proxy_headers:
            host = headers.get("x-forwarded-host", host).split(",")[0].strip()
        name = host_name(host)
        if not self._is_ours(name):
            return f"This server does not answer for the host {name!r}. Allow it with --allow-host."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return "This server does not answer requests from the pages of other sites."
        return None

    def _is_ours(self, name: str) -> bool:
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in {"localhost", socket.gethostname().lower(), *self.hosts}
        return True  # an address needs no name server, so DNS rebinding is impossible


def host_name(host: str) -> str:
    """Return the name or address in a `Host` header in lower case, without port or final dot."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        name = None
    return (name or "").removesuffix(".")


class Guard:
    """ASGI middleware that refuses foreign or oversized requests and bounds the size of all files.

    It also adds safe headers to all responses.

    Args:
        app: The application.
        access: The rules that decide which requests are answered.
        seconds_per_request: Returns the time in seconds until a place in a full queue is free.
        most_bytes: Limit of the total size of all files.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        seconds_per_request: Callable[[], float],
        most_bytes: int = MOST_BYTES,
    ):
        self.app = app
        self.access = access
        self.seconds_per_request = seconds_per_request
        self.most_bytes = most_bytes
        self.arriving = 0  # bytes of uploads that are being received

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not self.access.proxy_headers:
            kept = [(key, value) for key, value in scope["headers"] if key not in FORWARDED]
            scope = {**scope, "headers": kept}
        send = self._with_safe_headers(send)
        if problem := self.access.problem(headers):
            await JSONResponse({"detail": problem}, 403)(scope, receive, send)
        elif "transfer-encoding" in headers:
            detail = "A request has to state its length (Content-Length)."
            await JSONResponse({"detail": detail}, 411)(scope, receive, send)
        elif (length := int(headers.get("content-length", 0))) > LARGEST_REQUEST:
            detail = f"A request has at most {LARGEST_REQUEST / 2**20:g} MiB."
            await JSONResponse({"detail": detail}, 413)(scope, receive, send)
        elif scope["path"].endswith("/upload"):
            await self._upload(length, scope, receive, send)
        else:
            await self.app(scope, receive, self._with_time_to_retry(send))

    async def _upload(self, length: int, scope: Scope, receive: Receive, send: Send) -> None:
        """Receive an upload after old files were removed to make room for it."""
        self.arriving += length
        try:
            room = self.most_bytes - self.arriving
            if await run_sync(remove_old_files, Path(get_upload_folder()), room):
                await self.app(scope, receive, send)
            else:
                detail = "Too many uploads at a time. Try again in 10 seconds."
                response = JSONResponse({"detail": detail}, 503, {"Retry-After": "10"})
                await response(scope, receive, send)
        finally:
            self.arriving -= length

    def _with_safe_headers(self, send: Send) -> Send:
        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
                if self.access.is_space:
                    headers["Content-Security-Policy"] = (
                        f"{CONTENT_SECURITY_POLICY}'self' {HUB_PAGES}"
                    )
                else:
                    headers["Content-Security-Policy"] = f"{CONTENT_SECURITY_POLICY}'self'"
                    headers["X-Frame-Options"] = "SAMEORIGIN"
                    headers["Cross-Origin-Resource-Policy"] = "same-origin"
            await send(message)

        return send_safely

    def _with_time_to_retry(self, send: Send) -> Send:
        """Add the time of the next try to the response of a full queue, which has status 503."""
        seconds = 0

        async def send_time(message: Message) -> None:
            nonlocal seconds
            if message["type"] == "http.response.start" and message["status"] == 503:
                seconds = max(1, math.ceil(self.seconds_per_request()))
                headers = MutableHeaders(scope=message)
                headers["Retry-After"] = str(seconds)
                del headers["Content-Length"]
            elif message["type"] == "http.response.body" and seconds and message.get("body"):
                detail = json.loads(message["body"]).get("detail", "The server is busy.")
                detail = f"{detail} Try again in {seconds} seconds."
                message = {**message, "body": json.dumps({"detail": detail}).encode()}
            await send(message)

        return send_time


def remove_old_files(folder: Path, room: int) -> bool:
    """Remove the oldest files of a folder until the remaining ones need at most `room` bytes.

    Returns:
        Whether that was possible.
    """
    files = []
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except FileNotFoundError:  # Gradio removes old files as well
            continue
        if path.is_file():
            files.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= room:
            break
        path.unlink(missing_ok=True)
        total -= size
    return total <= room


@contextmanager
def private_files() -> Iterator[Path]:
    """Give Gradio a private folder for uploads and results, and remove it at the end.

    All Gradio programs of a user share the default folder.
    """
    usual = os.environ.get("GRADIO_TEMP_DIR")
    if usual is not None:
        Path(usual).mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="var-hf-demo-", dir=usual)
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        yield Path(folder)
    finally:
        if usual is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = usual
        shutil.rmtree(folder, ignore_errors=True)
