"""The handler of an inference endpoint: answers equal those of the pipelines, also to many clients
at once; whatever is wrong with a request gets one sentence.
"""

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import quiet, seeded
from PIL import Image

from var_hf import VARImg2ImgPipeline, VARInpaintPipeline
from var_hf.pipelines.endpoint import EndpointHandler, as_base64

EDIT = {"task": "image-to-image"}
CLASSIFY = {"task": "image-classification"}


@pytest.fixture(scope="module")
def handler(pipe_folder):
    return EndpointHandler(str(pipe_folder))


@pytest.fixture(scope="module")
def photo():
    """An image that is not the model's square."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ask(handler, inputs, **parameters):
    """A request as it comes out of JSON."""
    return handler(json.loads(json.dumps({"inputs": inputs, "parameters": parameters})))


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def equal(one, other):
    return one.size == other.size and one.tobytes() == other.tobytes()


def test_one_class_gives_one_image_and_several_a_list(handler):
    settings = {"guidance_scale": 2.0, "top_k": 9, "temperature": [1.0, 0.9, 0.9, 0.8]}
    settings |= {"guided_scales": [1, 3], "guidance_schedule": "constant"}

    one = ask(handler, "hen", seed=3, **settings)
    several = ask(handler, ["hen", None], seed=3, num_images_per_prompt=2, **settings)

    assert equal(one, handler.pipe("hen", generator=seeded(3), **settings).images[0])
    expected = handler.pipe(
        ["hen", None], num_images_per_prompt=2, generator=seeded(3), **settings
    ).images
    assert all(equal(opened(text), image) for text, image in zip(several, expected, strict=True))
    assert [type(each) for each in ask(handler, ["hen"])] == [str]


def test_a_seed_per_image(handler):
    first, second = ask(handler, [3, "hen"], seed=[7, 8])

    drawn = handler.pipe([3, "hen"], generator=[seeded(7), seeded(8)]).images
    assert equal(opened(first), drawn[0]) and equal(opened(second), drawn[1])


def test_a_query_string_writes_numbers_as_text(handler):
    request = {"inputs": 3, "parameters": {"guidance_scale": "2.5", "seed": 3}}

    drawn = handler.pipe(3, generator=seeded(3), guidance_scale=2.5).images[0]
    assert equal(handler(request), drawn)


def test_edits_equal_those_of_the_pipelines(handler, photo):
    mask = Image.new("L", photo.size)
    mask.paste(255, (0, 0, 7, 9))
    inpaint = quiet(VARInpaintPipeline.from_pipe(handler.pipe))
    img2img = quiet(VARImg2ImgPipeline.from_pipe(handler.pipe))
    file, options = as_base64(photo), {"class_labels": "hen"}

    inpainted = ask(handler, file, **EDIT, **options, mask_image=as_base64(mask), seed=1)
    expanded = ask(handler, file, **EDIT, expand=[0, 0, 4, 2], seed=1)
    varied = ask(handler, f"data:image/png;base64,{file}", **EDIT, **options, strength=0.5, seed=1)

    assert equal(inpainted, inpaint(photo, mask, "hen", generator=seeded(1)).images[0])
    assert equal(expanded, inpaint(photo, expand=(0, 0, 4, 2), generator=seeded(1)).images[0])
    assert equal(varied, img2img(photo, "hen", generator=seeded(1)).images[0])


def test_classes_equal_those_of_the_pipeline(handler, photo):
    expected = handler.pipe.classify(photo, top=3)[0]

    assert ask(handler, as_base64(photo), **CLASSIFY, top_k=3) == expected
    # The toolkit opens a body that is an image.
    assert handler({"inputs": photo, "parameters": {"top_k": 3}}) == expected
    json.dumps(expected)


def test_answers_to_eight_clients_at_once_depend_on_their_requests_alone(handler):
    requests = [(label, seed) for seed in range(4) for label in ("hen", 3, None, "ostrich")]
    expected = [handler.pipe(label, generator=seeded(seed)).images[0] for label, seed in requests]

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda one: ask(handler, one[0], seed=one[1]), requests))

    assert all(map(equal, answers, expected))


@pytest.mark.parametrize(
    ("inputs", "parameters", "message"),
    [
        (3, {"num_images_per_prompt": 10_000}, "at most 16 images. Got 10000: send several"),
        ([3] * 9, {"num_images_per_prompt": 2}, "at most 16 images. Got 18"),
        (3, {"num_images_per_prompt": 0}, "num_images_per_prompt must be a whole number of at"),
        (3, {"num_images_per_prompt": 10**400}, "num_images_per_prompt must be a whole number"),
        (3, {"seed": -1}, "seed must be a whole number from 0 to 9223372036854775807, or one"),
        (3, {"seed": [1, 2]}, "seed is a list of 2 for 1 images"),
        (3, {"guidance_scale": "much"}, "guidance_scale must be a number. Got 'much'"),
        (3, {"guidance_scale": float("nan")}, "guidance_scale must be a finite number"),
        (3, {"top_k": 2.5}, "top_k must be a whole number. Got '2.5'"),
        (3, {"sampling": 4}, "sampling must be a text"),
        (3, {"steps": 4}, "There is no parameter 'steps' here. There are guidance_scale,"),
        (3, {"task": "text-to-video"}, "task must be one of text-to-image, image-to-image,"),
        ("walrus", {}, "There is no class 'walrus' among the 6 known names"),
        (99, {}, r"Class ids lie in \[0, 10\]"),
        ([], {}, "class_labels is empty"),
        ({"image": 1}, {}, "inputs must be a class name or id"),
        (3, EDIT, "inputs must be an image file as base64. Got int"),
        ("!!", EDIT, "inputs must be an image file as base64, and is no base64"),
        ("aGVsbG8=", CLASSIFY, "inputs cannot be read as an image. The formats PNG"),
        ("PHOTO", EDIT | {"expand": 5}, "expand must be four numbers"),
        ("PHOTO", EDIT | {"mask_image": "aGVsbG8="}, "mask_image cannot be read as an image"),
        ("PHOTO", EDIT | {"strength": 2}, r"strength must lie in \[0, 1\]"),
        ("PHOTO", EDIT | {"paste_back": 1, "expand": [1, 0, 0, 0]}, "paste_back must be true or"),
        ("PHOTO", CLASSIFY | {"top_k": 0}, "top_k must be a whole number of at least 1"),
    ],
)
def test_what_is_wrong_with_a_request_is_one_sentence(handler, photo, inputs, parameters, message):
    inputs = as_base64(photo) if inputs == "PHOTO" else inputs

    with pytest.raises(ValueError, match=message) as caught:
        handler({"inputs": inputs, "parameters": parameters})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("request_", [None, [], {}, {"parameters": {}}])
def test_a_request_without_inputs_is_refused(handler, request_):
    with pytest.raises(ValueError, match=r'A request is \{"inputs": '):
        handler(request_)


def test_parameters_are_an_object(handler):
    with pytest.raises(ValueError, match="parameters must be an object"):
        handler({"inputs": 3, "parameters": [1]})


def test_a_large_image_is_refused_before_it_is_unpacked(handler):
    large = as_base64(Image.new("1", (4097, 4096)))

    with pytest.raises(ValueError, match=r"inputs has 4097 x 4096 pixels.*at most 16\.8 million"):
        ask(handler, large, **CLASSIFY)
