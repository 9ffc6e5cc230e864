"""Whose requests are answered, through real HTTP."""

import os
import socket
import threading
import time

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route

from var_hf.demo.guard import Access, Guard, private_files, remove_old_files

FORM = {"files": ("image.png", b"\x89PNG" + bytes(996))}


@pytest.fixture
def ask(served):
    client = httpx.Client(base_url=served.url, timeout=300)
    yield client
    client.close()


def host_of(client):
    return client.base_url.netloc.decode()


# The command at work


def test_another_sites_name_for_this_machine_is_refused(ask):
    """DNS rebinding: the page of the attacker's name comes from this server."""
    answer = ask.get("/config", headers={"Host": "evil.example:7860"})
    assert answer.status_code == 403
    assert "'evil.example'" in answer.json()["detail"] and "--allow-host" in answer.json()["detail"]

    port = host_of(ask).rpartition(":")[2]
    for name in ("localhost", "127.0.0.1", "[::1]", "192.168.0.7"):
        assert ask.get("/config", headers={"Host": f"{name}:{port}"}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
def test_other_sites_can_neither_upload_nor_call(ask, origin):
    upload = ask.post("/gradio_api/upload", files=FORM, headers={"Origin": origin})
    call = ask.post("/gradio_api/call/generate", json={"data": ["fox"]}, headers={"Origin": origin})

    assert (upload.status_code, call.status_code) == (403, 403)


def test_the_page_itself_can_upload(ask):
    origin = {"Origin": f"http://{host_of(ask)}"}

    assert ask.post("/gradio_api/upload", files=FORM, headers=origin).status_code == 200
    assert ask.post("/gradio_api/upload", files=FORM).status_code == 200  # no browser


def test_forwarded_hosts_are_not_trusted(ask):
    forwarded = {"X-Forwarded-Host": "evil.example", "X-Gradio-Server": "http://evil.example"}

    assert "evil.example" not in ask.get("/config", headers=forwarded).text


def test_every_answer_has_safe_headers(ask):
    for path in ("/", "/config", "/nowhere"):
        headers = ask.get(path).headers
        assert "frame-ancestors 'self'" in headers["Content-Security-Policy"]
        assert headers["X-Frame-Options"] == "SAMEORIGIN"
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_request_is_bounded_before_it_is_read(ask):
    assert ask.post("/gradio_api/upload", content=iter([b"--x"])).status_code == 411

    with socket.create_connection((ask.base_url.host, ask.base_url.port), 60) as connection:
        connection.sendall(
            f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host_of(ask)}\r\n"
            f"Content-Length: {2**30}\r\n\r\n".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


# Parts of it


@pytest.mark.parametrize(
    ("access", "headers", "is_fine"),
    [
        (Access(frozenset({"demo.example"})), {"host": "Demo.Example.:80"}, True),
        (Access(), {"host": "demo.example", "x-forwarded-host": "localhost"}, False),
        (
            Access(proxy_headers=True),
            {"host": "demo.example", "x-forwarded-host": "localhost"},
            True,
        ),
        (
            Access(proxy_headers=True),
            {"host": "localhost", "x-forwarded-host": "evil.example"},
            False,
        ),
        (Access(), {}, False),
        (Access(), {"host": "[::1"}, False),
        (Access(), {"host": "localhost", "origin": "https://localhost"}, True),
        (Access(), {"host": "localhost:80", "origin": "http://localhost:81"}, False),
        (Access(is_space=True), {"host": "me-var.hf.space", "origin": "https://a.example"}, True),
    ],
)
def test_whose_requests_are_answered(access, headers, is_fine):
    assert (access.problem(Headers(headers)) is None) == is_fine


def test_the_oldest_files_go_first(tmp_path):
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "image.png"
        file.write_bytes(bytes(100))
        os.utime(file, (time.time() - age, time.time() - age))

    assert remove_old_files(tmp_path, 300) and len(list(tmp_path.rglob("*.png"))) == 3
    assert remove_old_files(tmp_path, 299)
    assert sorted(path.parent.name for path in tmp_path.rglob("*.png")) == ["middle", "new"]
    assert not remove_old_files(tmp_path, -1)


def test_files_lie_in_a_folder_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "usual"))
    with private_files() as folder:
        assert folder.parent == tmp_path / "usual"
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        (folder / "file").touch()
    assert not folder.exists() and os.environ["GRADIO_TEMP_DIR"] == str(tmp_path / "usual")


@pytest.fixture
def guarded(tmp_path, monkeypatch):
    """A guard with room for 5000 bytes before an app that keeps uploads and whose queue is full, on
    127.0.0.1.
    """
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))

    async def upload(request):
        async with request.form() as form:
            (tmp_path / f"{time.time_ns()}.png").write_bytes(await form["files"].read())
        return JSONResponse([])

    async def join(request):
        return JSONResponse({"detail": "Queue is full."}, 503)

    routes = [Route("/upload", upload, methods=["POST"]), Route("/join", join, methods=["POST"])]
    guard = Middleware(Guard, Access(), lambda: 3.2, most_bytes=5000)
    config = uvicorn.Config(
        Starlette(routes=routes, middleware=[guard]), port=0, log_level="error", ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client
    server.should_exit = True
    thread.join()


def test_uploads_together_stay_within_their_bound(guarded, tmp_path):
    for _ in range(12):
        assert guarded.post("/upload", files=FORM).status_code == 200
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 5000
    assert len(list(tmp_path.iterdir())) >= 3

    too_large = {"files": ("image.png", bytes(5000))}
    answer = guarded.post("/upload", files=too_large)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")


def test_a_full_queue_states_when_to_try_again(guarded):
    answer = guarded.post("/join", json={})

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "4")
    assert answer.json() == {"detail": "Queue is full. Try again in 4 seconds."}
