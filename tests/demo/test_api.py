"""The API as callers use it: gradio_client and plain HTTP, against the command at work."""

import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from conftest import seeded
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from test_readme import blocks

from var_hf.demo.interface import MOST_SESSIONS
from var_hf.demo.queueing import LONGEST_QUEUE

WAIT = 300  # seconds, for machines that are busy with other things


@pytest.fixture(scope="module")
def client(served):
    client = Client(served.url, verbose=False)
    client.predict("pizza", api_name="/generate")  # waits until the model is there
    yield client
    client.close()


def pixels(file):
    return np.asarray(Image.open(file)).astype(int)


def size(file):
    with Image.open(file) as opened:
        return opened.size


def close(file, expected):
    """Whether an image is the expected one; processes with other numbers of threads round by one
    step.
    """
    return np.abs(pixels(file) - np.asarray(expected).astype(int)).max() <= 1


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.effect_noise((12, 8), 90).convert("RGB").save(path)
    return path


# What it offers


def test_the_three_names_are_fixed_and_nothing_else_is_public(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]

    assert sorted(endpoints) == ["/classify", "/edit", "/generate"]
    parameters = {
        name: [one["parameter_name"] for one in endpoint["parameters"]]
        for name, endpoint in endpoints.items()
    }
    sampling = ["num_images", "guidance_scale", "top_k", "top_p", "sampling", "temperature"]
    sampling += ["guidance_schedule", "ssg_scale", "seed"]
    assert parameters == {
        "/generate": ["class_labels", *sampling],
        "/edit": [
            "image",
            "mask_image",
            "class_labels",
            "expand",
            "strength",
            "padding_mask_crop",
            *sampling,
        ],
        "/classify": ["image", "top"],
    }
    assert [one["type"]["type"] for one in endpoints["/generate"]["returns"]] == ["array", "object"]


def test_images_stream_scale_by_scale(client, studio):
    job = client.submit("fox", num_images=2, seed=7, api_name="/generate")
    outputs = list(job)

    assert [info["scale"] for _, info in outputs] == [0, 1, 2, 3]
    files, info = outputs[-1]
    assert (info["class_id"], info["class_name"], info["seeds"]) == (7, "fox", [7, 8])
    expected = studio.pipe([7, 7], generator=[seeded(7), seeded(8)]).images
    assert all(close(file, one) for file, one in zip(files, expected, strict=True))
    assert all(file.endswith(".png") for file in files)


def test_a_fresh_seed_is_told(client):
    _, info = client.predict("fox", api_name="/generate")

    again, _ = client.predict("fox", seed=info["seeds"][0], api_name="/generate")
    assert len(again) == 1


def test_edits(client, image, tmp_path, studio):
    mask = tmp_path / "mask.png"
    Image.linear_gradient("L").resize((12, 8)).point(lambda v: 255 * (v > 128)).save(mask)

    files, info = client.predict(
        handle_file(str(image)), handle_file(str(mask)), "fox", seed=3, api_name="/edit"
    )
    expected = studio.inpaint(Image.open(image), Image.open(mask), 7, generator=[seeded(3)]).images
    assert info["class_id"] == 7 and close(files[0], expected[0])

    files, info = client.predict(handle_file(str(image)), expand=[2, 0, 0, 1], api_name="/edit")
    assert info["class_id"] is None and size(files[0]) == (14, 9)

    files, _ = client.predict(handle_file(str(image)), strength=0, api_name="/edit")
    assert size(files[0]) == (12, 8)


def test_classes(client, image, studio):
    answer = client.predict(handle_file(str(image)), top=3, api_name="/classify")

    expected = studio.pipe.classify(Image.open(image), top=3)[0]
    assert [one["class_id"] for one in answer] == [one["class_id"] for one in expected]
    assert answer[0]["score"] == pytest.approx(expected[0]["score"], abs=1e-3)


def test_the_documentation_runs(served, client, tmp_path, monkeypatch, capsys):
    """The block of Python in docs/demo.md, as it stands, with this page's address."""
    (code,) = (block.code for block in blocks("docs/demo.md") if block.language == "python")
    assert '"http://127.0.0.1:7860"' in code
    Image.effect_noise((12, 8), 90).convert("RGB").save(tmp_path / "dog.png")
    Image.linear_gradient("L").resize((12, 8)).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)

    exec(compile(code.replace("http://127.0.0.1:7860", served.url), "docs/demo.md", "exec"), {})
    assert capsys.readouterr().out.count("\n") >= 1 + 4 + 3  # two images, scales, classes


# Bad input


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"class_labels": "zebra"}, "There is no class 'zebra'"),
        ({"class_labels": "piza"}, "Did you mean 'pizza'"),
        ({"class_labels": "<script>alert(1)</script>"}, "There is no class '<script>"),
        ({"class_labels": ["pizza"]}, "A class is a name or a number"),
        ({"class_labels": 10**40}, "Class ids lie in [0, 10]"),
        ({"class_labels": "fox", "num_images": 10**9}, "num_images must lie in [1, 8]"),
        ({"class_labels": "fox", "num_images": -1}, "num_images must lie in [1, 8]"),
        ({"class_labels": "fox", "guidance_scale": -1e300}, "guidance_scale must be a number in"),
        ({"class_labels": "fox", "top_k": -5}, "top_k must lie in"),
        ({"class_labels": "fox", "top_p": 7}, "top_p must be a number in [0, 1]"),
        ({"class_labels": "fox", "top_p": 0}, "top_p must be a finite number in (0, 1]"),
        ({"class_labels": "fox", "seed": 2**70}, "seed must lie in"),
        ({"class_labels": "fox", "temperature": 0}, "temperature must be a number in [0.01, 100]"),
        ({"class_labels": "fox", "sampling": {}}, "sampling must be multinomial or gumbel_softmax"),
    ],
)
def test_bad_values_are_answered_in_one_line(client, arguments, line):
    with pytest.raises(AppError) as error:
        client.predict(**arguments, api_name="/generate")

    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "There is nothing to redraw"),
        ({"expand": [0, 0, 0, 0]}, "There is nothing to redraw"),
        ({"expand": [1, 2]}, "expand must be four numbers"),
        ({"expand": [0, 0, 0, 10**9]}, "expand must lie in [0, 12]"),
        ({"strength": 2}, "strength must be a number in [0, 1]"),
        ({"strength": 0.5, "expand": [1, 1, 1, 1]}, "leave mask_image and expand out"),
        ({"mask_image": "/etc/passwd", "path": True}, "mask_image must be an uploaded image file"),
        ({"image": "/etc/passwd", "path": True}, "image must be an uploaded image file"),
    ],
)
def test_bad_edits_are_answered_in_one_line(client, image, changes, line):
    as_path = changes.pop("path", False)
    arguments = {"image": handle_file(str(image))} | {
        name: {"path": value} if as_path and isinstance(value, str) else value
        for name, value in changes.items()
    }
    with pytest.raises(AppError) as error:
        client.predict(**arguments, api_name="/edit")

    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_text_file_named_png(client, tmp_path):
    (tmp_path / "text.png").write_text("no image")

    for name in ("/edit", "/classify"):
        with pytest.raises(AppError, match=r"'text.png' cannot be read as an image"):
            client.predict(handle_file(str(tmp_path / "text.png")), api_name=name)


def test_50_million_pixels(client, tmp_path):
    Image.new("1", (10_000, 5_000)).save(tmp_path / "huge.png")

    with pytest.raises(AppError, match=r"'huge\.png' has 10000 x 5000 pixels"):
        client.predict(handle_file(str(tmp_path / "huge.png")), api_name="/classify")


def test_an_upload_beyond_the_limit(served, client):
    with httpx.Client(base_url=served.url, timeout=WAIT) as http:
        answer = http.post("gradio_api/upload", files={"files": ("big.png", bytes(32_000_000))})

    assert answer.status_code == 413


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../etc/passwd", __file__])
def test_files_of_the_server_stay_where_they_are(served, client, path):
    """Neither as an image of a request nor by their address."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    with httpx.Client(base_url=served.url, timeout=WAIT) as http:
        event = http.post("gradio_api/call/classify", json={"data": [file, 1]}).json()["event_id"]
        answer = http.get(f"gradio_api/call/classify/{event}").text
        fetched = http.get(f"gradio_api/file={path}")

    assert "event: error" in answer and "root:" not in answer
    assert fetched.status_code in (403, 404) and "root:" not in fetched.text


# Many at once


def events(http, name, data):
    """Call a function over plain HTTP; the event id, or `None` where the queue is full."""
    answer = http.post(f"gradio_api/call/{name}", json={"data": data})
    if answer.status_code == 503:
        assert "Queue is full" in answer.text
        return None
    return answer.raise_for_status().json()["event_id"]


def final(http, name, event):
    """The last event of a call and its data."""
    lines = http.get(f"gradio_api/call/{name}/{event}").text.splitlines()
    kinds = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return kinds[-1], json.loads(data[-1])


@pytest.mark.slow
def test_50_requests_of_8_clients_are_answered_each_with_its_own_image(served, client, studio):
    """And the server's memory stays what it is."""
    requests = [(index % 8, seed) for seed, index in enumerate(range(50))]

    def ask(request):
        class_id, seed = request
        with httpx.Client(base_url=served.url, timeout=WAIT) as http:
            data = [str(class_id), 1, *[None] * 7, seed]
            kind, (files, info) = final(http, "generate", events(http, "generate", data))
            assert kind == "complete"
            assert (info["class_id"], info["seeds"], info["scale"]) == (class_id, [seed], 3)
            content = http.get(files[0]["url"]).content
        path = served.log.with_name(f"{class_id}-{seed}.png")
        path.write_bytes(content)
        return path

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(ask, requests))  # the first round fills caches
        before = served.memory()
        files = list(clients.map(ask, requests))
        after = served.memory()

    assert after - before < 64_000_000
    for (class_id, seed), file in zip(requests, files, strict=True):
        assert close(file, studio.pipe(class_id, generator=[seeded(seed)]).images[0]), (
            class_id,
            seed,
        )


@pytest.mark.slow
def test_callers_are_forgotten_in_the_end(served, client):
    """Each call over plain HTTP is a session of its own, for which Gradio keeps some 0.4 MB."""

    def ask(number):
        with httpx.Client(base_url=served.url, timeout=WAIT) as http:
            data = ["zebra", 1, *[None] * 7, number]  # refused, so nothing is drawn
            return final(http, "generate", events(http, "generate", data))[0]

    with ThreadPoolExecutor(4) as clients:
        assert set(clients.map(ask, range(MOST_SESSIONS + 20))) == {"error"}
        before = served.memory()
        assert set(clients.map(ask, range(400))) == {"error"}

    assert served.memory() - before < 64_000_000  # 400 sessions take 120 MB


@pytest.mark.slow
def test_200_requests_are_answered_or_told_that_the_queue_is_full(served, client):
    with httpx.Client(base_url=served.url, timeout=WAIT) as http, ThreadPoolExecutor(50) as many:
        data = ["fox", 8, *[None] * 7, 1]
        waiting = list(many.map(lambda _: events(http, "generate", data), range(200)))
        accepted = [event for event in waiting if event is not None]
        assert len(accepted) >= LONGEST_QUEUE
        assert len(accepted) < 200
        answers = list(many.map(lambda event: final(http, "generate", event)[0], accepted))

    assert set(answers) == {"complete"}
    assert client.predict("pizza", seed=1, api_name="/generate")[1]["class_id"] == 3


def test_a_caller_who_waits_sees_the_place_and_can_leave_the_queue(served, client):
    with contextlib.closing(Client(served.url, verbose=False)) as other:
        jobs = [client.submit("fox", num_images=8, api_name="/generate") for _ in range(11)]
        leaving = other.submit("fox", num_images=8, api_name="/generate")
        ranks = []
        while not leaving.done() and not ranks:
            status = leaving.status()
            if status.rank is not None and status.queue_size:
                ranks.append((status.rank, status.queue_size))
            time.sleep(0.01)
        assert ranks and ranks[0][0] < ranks[0][1] <= LONGEST_QUEUE
        leaving.cancel()
        for job in jobs:
            assert job.result(timeout=WAIT)[1]["scale"] == 3

        assert client.predict("pizza", seed=1, api_name="/generate")[1]["class_id"] == 3
        assert leaving.outputs() == []  # not even begun


def test_a_client_that_leaves_in_the_middle_holds_nobody_up(served, client):
    data = ["fox", 8, *[None] * 7, 1]
    with httpx.Client(base_url=served.url, timeout=WAIT) as http:
        for _ in range(5):
            event = events(http, "generate", data)
            with (
                contextlib.suppress(httpx.HTTPError),
                http.stream("GET", f"gradio_api/call/generate/{event}") as stream,
            ):
                next(stream.iter_lines())

    assert client.predict("pizza", seed=1, api_name="/generate")[1]["class_id"] == 3


def test_threads_of_one_client_get_what_they_asked_for(client):
    def ask(name):
        return client.predict(name, seed=1, api_name="/generate")[1]["class_name"]

    names = ["fox", "pizza", "cookie"]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(ask, names)) == names


def test_bad_input_left_no_traceback_in_the_log_of_the_server(served, client):
    """What visitors do wrong is their business; a traceback means a defect of ours."""
    client.predict("pizza", api_name="/generate")
    lines = served.log.read_text().splitlines()

    ours = [line for line in lines if "/demo/" in line and line.strip().startswith("File")]
    assert ours == []
