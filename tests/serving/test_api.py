"""The HTTP API: pictures equal those of the pipeline, and whatever is wrong with a request gets one
sentence in the shape of the OpenAI API.
"""

import asyncio
import base64
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import quiet, seeded
from PIL import Image, ImageChops

from var_hf import VARImg2ImgPipeline, VARInpaintPipeline
from var_hf.serving.api import API_KEYS, api_keys
from var_hf.serving.model import png

PATH = "/v1/images/generations"


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def equals(text, image):
    return opened(text).convert("RGB").tobytes() == image.tobytes()


def error(answer, status, *words):
    """The error of an answer, checked for its shape."""
    assert answer.status_code == status, answer.text
    detail = answer.json()["error"]
    assert set(detail) == {"message", "type", "param", "code"}
    for word in words:
        assert word in detail["message"]
    return detail


def test_pictures_equal_those_of_the_pipeline_with_their_seeds(client, pipe):
    settings = {"guidance_scale": 2.0, "top_k": 9, "temperature": [1.0, 0.9, 0.9, 0.8]}
    answer = client.generate("hen", n=2, seed=5, size="10x10", model="tiny", **settings).json()

    assert answer["size"] == "10x10" and [one["seed"] for one in answer["data"]] == [5, 6]
    for one in answer["data"]:
        drawn = pipe("hen", generator=seeded(one["seed"]), **settings).images[0]
        assert equals(one["b64_json"], drawn) and one["url"] is None


@pytest.mark.parametrize(("prompt", "label"), [(3, 3), ("3", 3), ("Hen", 3), (None, None)])
def test_a_prompt_is_a_class_name_a_class_id_or_null(client, pipe, prompt, label):
    (one,) = client.generate(prompt, seed=[7], response_format="url", user="me").json()["data"]

    kind, _, text = one["url"].partition(",")
    assert kind == "data:image/png;base64" and equals(
        text, pipe(label, generator=seeded(7)).images[0]
    )


def test_a_random_seed_is_stated_and_draws_the_picture_again(client):
    first, second = (client.generate().json()["data"][0] for _ in range(2))
    again = client.generate(seed=first["seed"]).json()["data"][0]

    assert again == first and first["seed"] != second["seed"] and first["seed"] < 2**53


def events(client, **body):
    answer = client.generate(stream=True, **body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = [block.splitlines() for block in answer.text.strip().split("\n\n")]
    return [(name[7:], json.loads(data[6:])) for name, data in blocks]


def test_events_bring_the_pictures_after_their_scales(client, pipe):
    heard = events(client, prompt="hen", seed=3)

    streamed = [out.image[0] for out in pipe.stream("hen", generator=seeded(3), preview=True)]
    assert [name for name, _ in heard] == 3 * ["image_generation.partial_image"] + [
        "image_generation.completed"
    ]
    for (name, event), image in zip(heard, streamed, strict=True):
        assert event["type"] == name and event["seed"] == 3 and event["num_scales"] == 4
        assert equals(event["b64_json"], image)


def test_events_of_several_pictures_and_fewer_scales(client):
    heard = events(client, prompt="hen", n=2, partial_images=1)

    assert sorted((event["index"], event["scale"]) for _, event in heard) == [
        (0, 2), (0, 3), (1, 2), (1, 3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompt": "hem"}, "prompt", "'hen'"),
        ({"prompt": "crane"}, "prompt", "classes [2, 5]"),
        ({"prompt": 11}, "prompt", "[0, 10]"),
        ({"prompt": [3]}, "prompt", "prompt"),
        ({}, "prompt", "required"),
        ({"prompt": 3, "n": 0}, "n", "greater than or equal to 1"),
        ({"prompt": 3, "n": 17}, "n", "at most 16"),
        ({"prompt": 3, "size": "256x256"}, "size", "10x10"),
        ({"prompt": 3, "seed": -1}, "seed", "greater"),
        ({"prompt": 3, "seed": [1, 2]}, "seed", "2 numbers for 1"),
        ({"prompt": 3, "guidance_scale": -1}, "guidance_scale", "greater"),
        ({"prompt": 3, "guidance_scale": 1e300}, "guidance_scale", "less"),
        ({"prompt": 3, "top_p": 0}, "top_p", "greater than 0"),
        ({"prompt": 3, "temperature": [1, 1]}, None, "4"),
        ({"prompt": 3, "guided_scales": 9}, None, "0 to 4"),
        ({"prompt": 3, "quality": "hd"}, "quality", "not permitted"),
        ({"prompt": 3, "response_format": "gif"}, "response_format", "b64_json"),
    ],
)
def test_a_request_that_cannot_be_answered_gets_one_sentence(client, body, param, words):
    detail = error(client.ask("POST", PATH, json=body), 400, words)
    assert detail["param"] == param and detail["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "text",
    ['{"prompt": 3, "guidance_scale": NaN}', '{"prompt": 3, "top_p": Infinity}', "{", "7", ""],
)
def test_what_is_no_json_or_no_number_gets_one_sentence(client, text):
    answer = client.ask("POST", PATH, content=text, headers={"Content-Type": "application/json"})
    error(answer, 400)


def test_an_unknown_model_path_or_method_is_named(client):
    assert error(client.generate(model="big"), 404, "'big'")["code"] == "model_not_found"
    error(client.ask("GET", "/v1/nothing"), 404)
    error(client.ask("GET", PATH), 405)
    assert [one["id"] for one in client.ask("GET", "/v1/models").json()["data"]] == ["tiny"]


def test_keys_protect_the_api_and_not_the_health(make_client, monkeypatch):
    monkeypatch.setenv(API_KEYS, " one, two,")
    keys = api_keys()
    assert keys == ("one", "two")
    for header in ({}, {"Authorization": "Bearer three"}, {"Authorization": "Basic one"}):
        answer = make_client(keys, header).generate()
        assert error(answer, 401, "key")["code"] == "invalid_api_key"
    assert make_client(keys, {"Authorization": "Bearer two"}).generate().status_code == 200
    assert make_client(keys).ask("GET", "/healthz").json() == {"status": "ok"}


def test_a_full_queue_is_429_with_the_time_of_the_next_try(make_client):
    client = make_client(max_pending=4)

    async def many(http):
        body = {"prompt": 3, "n": 2}
        return await asyncio.gather(*[http.post(PATH, json=body) for _ in range(5)])

    answers = client.run(many)
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) == 3 and sum(answer.status_code == 200 for answer in answers) == 2
    assert error(refused[0], 429, "full")["code"] == "queue_full"
    assert int(refused[0].headers["Retry-After"]) >= 1
    assert client.generate().status_code == 200 and client.admission.pending == 0


def test_large_bodies_are_refused_by_their_length_and_while_they_arrive(make_client):
    client = make_client(max_body=2**20)
    stated = client.ask("POST", PATH, content=b"x", headers={"Content-Length": str(10**9)})
    error(stated, 413, "1 MiB")
    sent = 0

    async def chunks():
        nonlocal sent
        for _ in range(1000):
            sent += 2**16
            yield b" " * 2**16

    answer = client.ask(
        "POST", PATH, content=chunks(), headers={"Content-Type": "application/json"}
    )
    error(answer, 413, "1 MiB")
    assert sent < 2**21


def test_a_drained_server_finishes_what_it_accepted_and_refuses_the_rest(client):
    async def drained(http):
        running = asyncio.create_task(http.post(PATH, json={"prompt": 3, "n": 3}))
        while not client.admission.pending:
            await asyncio.sleep(0)
        unfinished = await client.admission.drain(30)
        return unfinished, await running, await http.post(PATH, json={"prompt": 3})

    assert client.ask("GET", "/readyz").json() == {"status": "ok"}
    unfinished, accepted, refused = client.run(drained)
    assert unfinished == 0 and accepted.status_code == 200
    assert error(refused, 503, "shutting down") and refused.headers["Retry-After"]
    ready = client.ask("GET", "/readyz")
    assert ready.status_code == 503 and ready.json() == {"status": "draining"}
    assert client.ask("GET", "/healthz").status_code == 200


def test_a_client_that_leaves_cancels_its_pictures(client, served):
    async def left(http):
        running = asyncio.create_task(http.post(PATH, json={"prompt": 3, "n": 16}))
        while not served.thread.batcher.groups:
            await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        while served.thread.batcher.has_work:
            await asyncio.sleep(0.001)

    client.run(left)
    assert client.admission.pending == client.admission.requests == 0


def test_an_error_of_the_server_is_500_and_says_nothing_of_its_inside(make_client, served):
    async def broken(task):
        raise KeyError("secret")
        yield

    async def facts():
        return served.facts

    client = make_client(backend=SimpleNamespace(facts=facts, draw=broken))
    assert "secret" not in error(client.generate(), 500)["message"]
    ((name, event),) = events(client, prompt=3)
    assert name == "error" and event["error"]["type"] == "server_error"


def test_metrics_count_requests_and_pictures(client):
    client.generate(n=2)
    client.generate(prompt="nothing")
    client.ask("GET", "/anything")
    text = client.ask("GET", "/metrics").text

    assert f'var_hf_requests_total{{path="{PATH}",status="200"}} 1.0' in text
    assert f'var_hf_requests_total{{path="{PATH}",status="400"}} 1.0' in text
    assert 'var_hf_requests_total{path="other",status="404"} 1.0' in text
    assert "var_hf_images_total 2.0" in text and "var_hf_pending_images 0.0" in text
    assert 'var_hf_images_per_pass_bucket{le="2.0"}' in text


def test_the_description_names_the_paths(client):
    paths = client.ask("GET", "/openapi.json").json()["paths"]
    assert {PATH, "/v1/models", "/healthz", "/readyz", "/metrics"} <= set(paths)
    assert client.ask("GET", "/docs").status_code == 200


# Edits and classification

EDITS, CLASSES = "/v1/images/edits", "/v1/images/classifications"


@pytest.fixture(scope="module")
def photo():
    """An image that is not the model's square."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def mask(photo):
    mask = Image.new("L", photo.size)
    mask.paste(255, (0, 0, 7, 9))
    return mask


def upload(**images):
    return {name: (f"{name}.png", png(image), "image/png") for name, image in images.items()}


def test_edits_equal_those_of_the_pipelines(client, pipe, photo, mask):
    inpaint = quiet(VARInpaintPipeline.from_pipe(pipe))
    img2img = quiet(VARImg2ImgPipeline.from_pipe(pipe))
    transparent = Image.merge("RGBA", [*photo.split(), ImageChops.invert(mask)])
    ways = [
        (upload(image=photo), {"strength": "0.3"}, img2img, (photo, 3), {"strength": 0.3}),
        (upload(image=photo, mask=mask), {}, inpaint, (photo, mask, 3), {}),
        (upload(image=photo, mask=transparent), {}, inpaint, (photo, mask, 3), {}),
        (
            upload(image=photo, mask=mask), {"paste_back": "false", "guidance_scale": "2"},
            inpaint, (photo, mask, 3), {"paste_back": False, "guidance_scale": 2.0},
        ),
    ]  # fmt: skip
    for files, fields, edit, inputs, options in ways:
        form = {"prompt": "hen", "seed": "4", "n": "2", **fields}
        data = client.ask("POST", EDITS, files=files, data=form).json()["data"]
        for i, one in enumerate(data):
            drawn = edit(*inputs, generator=seeded(4 + i), **options).images[0]
            assert one["seed"] == 4 + i and equals(one["b64_json"], drawn)


def test_the_scales_of_an_edit_come_as_events(client, photo):
    form = {"stream": "true", "partial_images": "1", "seed": "1"}
    answer = client.ask("POST", EDITS, files=upload(image=photo), data=form)

    names = [line[7:] for line in answer.text.splitlines() if line.startswith("event")]
    assert names == ["image_generation.partial_image", "image_generation.completed"]


def test_classes_equal_those_of_the_pipeline(client, pipe, photo):
    form = {"top_k": "3", "seed": "2"}
    answer = client.ask("POST", CLASSES, files=upload(image=photo), data=form)
    data = answer.json()["data"]

    assert data == pipe.classify(photo, top=3, generator=seeded(2))[0]
    every = client.ask("POST", CLASSES, files=upload(image=photo), data={"top_k": "99"}).json()
    assert len(every["data"]) == 11


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        (EDITS, {"strength": "2"}, "less than or equal to 1"),
        (EDITS, {"strength": "nan"}, "finite"),
        (EDITS, {"guidance_scale": "nan"}, "finite"),
        (EDITS, {"paste_back": "true"}, "with a mask"),
        (EDITS, {"seed": "x"}, "integer"),
        (EDITS, {"prompt": "hem"}, "'hen'"),
        (EDITS, {"anything": "1"}, "not permitted"),
        (CLASSES, {"top_k": "0"}, "greater"),
    ],
)
def test_a_form_that_cannot_be_answered_gets_one_sentence(client, photo, path, fields, words):
    error(client.ask("POST", path, files=upload(image=photo), data=fields), 400, words)


@pytest.mark.parametrize("path", [EDITS, CLASSES])
def test_what_is_no_image_gets_one_sentence(client, photo, mask, path):
    error(
        client.ask("POST", path, files={"image": ("a.png", b"nothing", "image/png")}), 400, "image"
    )
    error(client.ask("POST", path, files={"image": ("a.png", b"", "image/png")}), 400, "image")
    error(client.ask("POST", path, data={"image": "text"}), 400, "image")
    error(client.ask("POST", path), 400, "image")
    if path == EDITS:
        files = upload(image=photo, mask=mask.resize((3, 3)))
        error(client.ask("POST", path, files=files), 400, "14 x 9")
