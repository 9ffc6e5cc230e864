"""A repository with code, served by the inference toolkit of Hugging Face, unchanged.

    git clone https://github.com/huggingface/huggingface-inference-toolkit
    pip install --no-deps --target libs "starlette<1" uvicorn orjson
    VAR_HF_INFERENCE_TOOLKIT=libs:huggingface-inference-toolkit/src \
        python -m pytest -m upstream tests/upstream/test_inference_toolkit.py

The toolkit is on no package index. It was written for transformers 4 and starlette 0: the server
process puts a function back that transformers 5 no longer has.
"""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import diffusers
import pytest
from conftest import make_pipe, quiet, seeded
from PIL import Image

from var_hf import VARPipeline
from var_hf.hub.push import add_code, read_folder

pytestmark = pytest.mark.upstream
TOOLKIT = os.environ.get("VAR_HF_INFERENCE_TOOLKIT")
if TOOLKIT is None:
    pytest.skip("VAR_HF_INFERENCE_TOOLKIT names no toolkit", allow_module_level=True)

SERVER = """
import importlib.util, sys
assert importlib.util.find_spec("var_hf") is None
import transformers.file_utils
transformers.file_utils.is_tf_available = lambda: False
import uvicorn
app = "huggingface_inference_toolkit.webservice_starlette:app"
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A repository with code, as it lies in an endpoint."""
    saved, folder = (tmp_path_factory.mktemp(name) for name in ("saved", "repository"))
    make_pipe().save_pretrained(saved)
    files, parts = read_folder(saved)
    add_code(files, parts, with_code=True)
    for path, content in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        content = content if isinstance(content, bytes) else content.read_bytes()
        (folder / path).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def url(folder, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Without site, the path has the libraries but not an editable installation.
    libraries = str(Path(diffusers.__file__).parents[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([TOOLKIT, libraries]),
        "HF_MODEL_DIR": str(folder),
    }
    log = (tmp_path_factory.mktemp("log") / "server.txt").open("w+")
    server = subprocess.Popen(
        [sys.executable, "-P", "-S", "-c", SERVER, str(port)],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except urllib.error.URLError:
                assert server.poll() is None, Path(log.name).read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def post(url, body, **headers):
    """Status and body of the answer."""
    headers = {"content-type": "application/json"} | headers
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def png(content):
    return Image.open(io.BytesIO(content)).tobytes()


def test_eight_clients_at_once_get_the_images_of_their_seeds(url, folder):
    pipe = quiet(VARPipeline.from_pretrained(folder))
    requests = [(label, seed) for seed in range(4) for label in ("hen", 3, None, "ostrich")]
    expected = [pipe(label, generator=seeded(seed)).images[0] for label, seed in requests]
    bodies = [{"inputs": label, "parameters": {"seed": seed}} for label, seed in requests]

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda body: post(url, body), bodies))

    assert {status for status, _ in answers} == {200}
    images = [png(base64.b64decode(json.loads(answer))) for _, answer in answers]
    assert images == [image.tobytes() for image in expected]


def test_an_image_as_body_and_as_answer(url):
    status, image = post(url, {"inputs": "hen"}, accept="image/png")
    assert status == 200 and len(png(image)) == 300

    status, classes = post(f"{url}?top_k=2", image, **{"content-type": "image/png"})

    assert status == 200
    assert [set(one) for one in json.loads(classes)] == [
        {"label", "score", "class_id", "log_likelihood"}
    ] * 2


def test_an_edit_of_several_images(url):
    _, image = post(url, {"inputs": "hen"}, accept="image/png")
    parameters = {"task": "image-to-image", "strength": 0.5, "num_images_per_prompt": 3}

    body = {"inputs": base64.b64encode(image).decode(), "parameters": parameters}
    status, answer = post(url, body)

    assert status == 200
    assert [len(png(base64.b64decode(one))) for one in json.loads(answer)] == [300] * 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": 3, "parameters": {"num_images_per_prompt": 10_000}}, "at most 16 images"),
        ({"inputs": "walrus"}, "There is no class 'walrus'"),
        ({"inputs": "!!", "parameters": {"task": "image-to-image"}}, "is no base64"),
        ({"input": 3}, "inputs"),
        (b'{"inputs":', "unexpected end of data"),
    ],
)
def test_a_bad_request_gets_status_400_and_the_sentence(url, body, message):
    status, answer = post(url, body)

    assert status == 400
    assert message in json.loads(answer)["error"]
