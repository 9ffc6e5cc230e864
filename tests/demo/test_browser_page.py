"""The static page in a real browser: Debian's Chromium, with onnxruntime-web from npm.

Skipped where Chromium, Playwright or npm is missing, or the npm package cannot be downloaded.
"""

import base64
import functools
import io
import json
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from var_hf.demo import static
from var_hf.onnx import OnnxVARImg2ImgPipeline, OnnxVARPipeline

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
]
PATIENCE = 300_000  # milliseconds, for machines that are busy with other things
CLASSES = [3, 4, 6, 7, 9]
SEEDS = [0, 7, 2**40 + 1]


@pytest.fixture(scope="module")
def page_folder(exported, onnxruntime_web, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "page"
    static.write_page(folder, exported, runtime=onnxruntime_web)
    return folder


class Server:
    """A plain file server; `damage` maps the end of an address to a change of the content."""

    def __init__(self, folder):
        damage = self.damage = {}

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self):
                changes = [change for end, change in damage.items() if self.path.endswith(end)]
                if not changes:
                    return super().do_GET()
                content = changes[0]((folder / self.path.lstrip("/")).read_bytes())
                if content is None:
                    return self.send_error(404)
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=folder)
        )
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def stop(self):
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(page_folder):
    server = Server(page_folder)
    yield server
    server.stop()


class Watched:
    """A page, whose requests and errors are collected."""

    def __init__(self, browser, url, **options):
        self.problems, self.requests = [], []
        self.context = browser.new_context(**{"reduced_motion": "reduce"} | options)
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", self.told)
        self.page.on("pageerror", lambda error: self.problems.append(f"script: {error}"))
        self.url = url

    def told(self, message):
        if message.type in ("error", "warning"):
            self.problems.append(f"console: {message.text}")

    def close(self):
        self.context.close()
        others = [url for url in self.requests if not url.startswith((self.url, "data:", "blob:"))]
        assert others == []
        assert len(self.requests) > 10  # the page, its worker, the model


@pytest.fixture(scope="module")
def watched(browser, server):
    """A page with a loaded model, for all tests that leave it in order."""
    watched = Watched(browser, server.url, viewport={"width": 1240, "height": 900})
    watched.page.goto(server.url)
    ready(watched.page)
    yield watched
    assert watched.problems == []
    watched.close()


@pytest.fixture
def page(watched):
    return watched.page


def ready(page):
    page.locator("body[data-state]").wait_for()
    assert page.locator("#problem").inner_text() == ""
    assert page.locator("body").get_attribute("data-state") == "ready"


def drawn(page):
    """Wait until nothing is being drawn."""
    page.locator("body[data-drawing=false]").wait_for()


def go(page, address):
    """Put something into the address, and wait for what it draws."""
    page.evaluate(
        """async (address) => {
          for (const hash of location.hash ? ['', address] : [address]) {
            const changed = new Promise((done) => (onhashchange = done));
            location.hash = hash;
            await changed;
          }
        }""",
        address,
    )
    drawn(page)


def pixels(page):
    """The images of the page, (B, P, P, 3)."""
    addresses = page.evaluate(
        "[...document.querySelectorAll('#images canvas')].map((canvas) => canvas.toDataURL())"
    )
    contents = [base64.b64decode(address.partition(",")[2]) for address in addresses]
    return np.stack([Image.open(io.BytesIO(content)).convert("RGB") for content in contents])


def assert_close(images, expected):
    for image, other in zip(images, expected, strict=True):
        assert np.abs(image.astype(int) - np.asarray(other).astype(int)).max() <= 2


ASK_WORKER = """async (requests) => {
  const worker = new Worker('worker.js', {type: 'module'});
  const answers = [], waiting = [];
  worker.onmessage = ({data}) => {
    if (['ready', 'done', 'failed'].includes(data.type)) waiting.shift()(data);
    else if (data.type === 'scale') answers.at(-1).push(...data.tokens);
  };
  const ask = (message) => new Promise((resolve) => {
    waiting.push(resolve);
    worker.postMessage(message);
  });
  const loaded = await ask({type: 'load', backend: 'wasm'});
  if (loaded.type === 'failed') return loaded.text;
  for (const request of requests) {
    answers.push([]);
    const answer = await ask({type: 'draw', id: 1, request});
    if (answer.type === 'failed') answers[answers.length - 1] = answer.text;
  }
  worker.terminate();
  return answers;
}"""


def request(class_id, seeds, guidance_scale=2.0, edit=None):
    return {"classId": class_id, "seeds": seeds, "guidanceScale": guidance_scale, "edit": edit}


def test_tokens_are_those_of_python(page, exported):
    """Three seeds and five classes, each alone, in a batch, and as a variation."""
    image = np.random.default_rng(0).integers(0, 256, (10, 10, 3), np.uint8)
    rgba = np.dstack([image, np.full((10, 10), 255, np.uint8)]).ravel().tolist()
    edit = {"pixels": rgba, "painted": None, "strength": 0.5}
    cases = [(class_id, [seed]) for class_id in CLASSES for seed in SEEDS]
    asked = [
        *(request(*case) for case in cases),
        request(5, [3, 4, 5], 1.0),
        request(11, [6]),
        request(2, [8], edit=edit),
    ]
    got = page.evaluate(ASK_WORKER, asked)

    draw = OnnxVARPipeline.from_pretrained(exported, num_threads=1)
    vary = OnnxVARImg2ImgPipeline.from_pipe(draw)
    streams = [
        *(draw.stream(label, seed=seeds, guidance_scale=2.0) for label, seeds in cases),
        draw.stream([5] * 3, seed=[3, 4, 5], guidance_scale=1.0),
        draw.stream(None, seed=6, guidance_scale=2.0),
        vary.stream(image, 2, strength=0.5, seed=8, guidance_scale=2.0),
    ]
    expected = [[int(t) for scale in stream for t in scale.tokens.ravel()] for stream in streams]
    assert got == expected


def test_the_worker_refuses_what_the_controls_do_not_offer(page):
    cases = {
        "between 1 and 8. Got 10000": request(0, list(range(10_000))),
        "whole number from 0 to 9007199254740991": request(0, [2**53]),
        "a number from 0 to 11. Got 12": request(12, [0]),
        "Guidance must lie between 1 and 100": request(0, [0], 1e9),
    }
    for sentence, got in zip(cases, page.evaluate(ASK_WORKER, [*cases.values()]), strict=True):
        assert sentence in got


def test_an_image_is_that_of_the_python_on_the_page(page, page_folder, monkeypatch):
    go(page, "class=fox&seed=3&images=2&guidance=4")

    assert "2 images" in page.locator("#facts").inner_text()
    assert page.locator("#class").input_value() == "fox"
    expected = run_shown_code(page, page_folder, monkeypatch)
    assert_close(pixels(page), expected)
    assert len(page.locator("#strip canvas").all()) == 4
    assert page.url.endswith("#class=fox&seed=3&guidance=4&images=2")


def run_shown_code(page, folder, monkeypatch):
    """The images that the Python code of the page draws."""
    code = page.locator("#code").text_content()
    assert code.startswith("from ")
    monkeypatch.chdir(folder)
    names = {}
    exec(code, names)
    return names["images"]


def test_variations_and_painted_parts_of_an_upload(page, page_folder, monkeypatch, tmp_path):
    size = json.loads((page_folder / "model/metadata.json").read_text())["model"]["image_size"]
    image = Image.fromarray(
        np.random.default_rng(2).integers(0, 256, (size, size, 3), np.uint8), "RGB"
    )
    image.save(tmp_path / "upload.png")
    page.get_by_label("Edit", exact=True).check()
    page.locator("#upload").set_input_files(tmp_path / "upload.png")
    sync_api.expect(page.locator("#status")).to_have_text("upload.png is loaded.")
    page.locator("#seed").fill("5")
    page.locator("#count").fill("1")
    page.locator("#draw").click()
    drawn(page)
    with page.expect_download() as download:
        page.locator("#python summary").click()
        page.get_by_text("Save image.png").click()
    download.value.save_as(page_folder / "image.png")
    assert np.array_equal(np.asarray(Image.open(page_folder / "image.png").convert("RGB")), image)
    assert_close(pixels(page), run_shown_code(page, page_folder, monkeypatch))

    page.get_by_label("A painted part").check()
    page.locator("#draw").click()
    sync_api.expect(page.locator("#problem")).to_contain_text("Nothing is painted")
    page.locator("#sheet").focus()
    for key in ("ArrowRight", " ", "ArrowDown", " "):  # the cells of the second column
        page.keyboard.press(key)
    assert page.locator("#sheet").get_attribute("aria-label").endswith("2 of 25 cells are painted.")
    page.locator("#draw").click()
    drawn(page)
    (result,) = pixels(page)
    right = slice(size - size // 5, size)
    assert np.array_equal(result[:, right], np.asarray(image)[:, right])
    assert not np.array_equal(result, np.asarray(image))
    assert page.locator("#code").text_content() == ""

    page.locator("#upload").set_input_files({
        "name": "notes.png", "mimeType": "image/png", "buffer": b"no image",
    })  # fmt: skip
    sync_api.expect(page.locator("#problem")).to_contain_text("notes.png is no image")
    page.get_by_label("Generate", exact=True).check()


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("class=unicorn", "names the class “unicorn”, which this model does not know"),
        ("class=crane", "“crane”, which stands for the classes 1, 2"),
        ("class=fox&images=10000", "images must be a whole number from 1 to 8"),
        ("class=fox&seed=-1", "seed must be a whole number from 0"),
        ("class=fox&guidance=none", "guidance must be a number from 1 to 10"),
    ],
)
def test_an_address_that_cannot_be_drawn_is_one_sentence(page, address, sentence):
    go(page, address)

    sync_api.expect(page.locator("#problem")).to_contain_text(sentence)
    assert page.locator("#problem").get_attribute("role") == "alert"


def test_the_page_works_with_the_keyboard_alone(page):
    page.evaluate("document.activeElement.blur()")
    page.locator("#class").focus()
    page.keyboard.type("octo")
    options = page.get_by_role("option")
    sync_api.expect(options).to_have_text(["octopus"])
    assert page.locator("#class").get_attribute(
        "aria-activedescendant"
    ) == options.first.get_attribute("id")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#class")).to_have_value("octopus")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "draw"
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#status")).to_contain_text("Done: octopus", timeout=PATIENCE)
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.innerText"))
    assert reached >= {"random", "pizza", "to-edit", "save", "count", "guidance", "seed", "fresh"}


def test_every_control_has_a_name(page):
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, canvas[role], summary')]
          .filter((one) => one.offsetParent && !(one.getAttribute('aria-label')
            || one.textContent.trim() || one.labels?.length)).map((one) => one.outerHTML)"""
    )
    assert nameless == []


def test_a_telephone_needs_no_sideways_scrolling(page):
    page.set_viewport_size({"width": 390, "height": 844})
    for mode in ("Edit", "Generate"):
        page.get_by_label(mode, exact=True).check()
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1240, "height": 900})


def test_a_stop_ends_the_drawing(page):
    page.locator("#count").fill("8")
    page.evaluate("for (const id of ['draw', 'stop']) document.getElementById(id).click()")
    drawn(page)
    assert page.locator("#facts").inner_text().startswith("Stopped")


@pytest.mark.parametrize(
    ("file", "damage", "sentence"),
    [
        ("decoder.onnx", lambda content: content[:-1] + b"!", "model/decoder.onnx is corrupted"),
        ("decoder.onnx", lambda content: content[:99], "has 99 bytes and should have"),
        ("latents.onnx", lambda content: None, "model/latents.onnx is missing on the server"),
        ("metadata.json", lambda content: b"{", "model/metadata.json is damaged"),
        (
            "metadata.json",
            lambda content: content.replace(b'"format_version": 1', b'"format_version": 9'),
            "format version 9, and this page reads 1",
        ),
    ],
)  # fmt: skip
def test_a_damaged_model_is_one_sentence(browser, server, file, damage, sentence):
    server.damage[file] = damage
    try:
        watched = Watched(browser, server.url)
        watched.page.goto(server.url)
        watched.page.locator("body[data-state=failed]").wait_for()
        assert sentence in watched.page.locator("#problem").inner_text()
        assert watched.page.locator("#draw").is_disabled()
        watched.close()
    finally:
        server.damage.clear()


def test_the_page_works_without_a_network_after_the_first_load(browser, page_folder):
    server = Server(page_folder)
    try:
        watched = Watched(browser, server.url)
        page = watched.page
        page.goto(f"{server.url}#class=fox&seed=1")
        ready(page)
        page.locator("body[data-stored=true]").wait_for()
        page.evaluate("navigator.serviceWorker.ready")
        drawn(page)
        before = pixels(page)
    finally:
        server.stop()  # nothing answers from now on
    page.reload()
    ready(page)
    drawn(page)
    assert np.array_equal(pixels(page), before)
    watched.close()
