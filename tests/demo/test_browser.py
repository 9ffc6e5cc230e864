"""The page in a real browser: Debian's Chromium, driven by Playwright.

Skipped where either is missing: `apt-get install chromium` and `pip install playwright` (in the
extra `test`).
"""

import io
import re
import shutil

import httpx
import numpy as np
import pytest
from conftest import seeded
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
]

PATIENCE = 300_000  # milliseconds, for machines that are busy with other things
CANVAS = (  # the one that is painted on; another one, for cropping, lies below it
    "#editor .pixi-target canvas"
)
# What headless Chromium says about its own drawing by software, and not about the page.
OF_THE_BROWSER = re.compile(r"WebGL|GPU stall|GroupMarkerNotSet")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, served):
    """Opens the page; at the end nothing may have gone wrong in it, and nothing come from another
    server.
    """
    pages, problems = [], []

    def told(message):
        if message.type == "error" and not OF_THE_BROWSER.search(message.text):
            problems.append(f"console: {message.text}")

    def asked(request):
        if not request.url.startswith((served.url, "data:", "blob:")):
            problems.append(f"another server: {request.url}")

    def open_one(query="", **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", told)
        page.on("pageerror", lambda error: problems.append(f"script: {error}"))
        page.on("request", asked)
        page.goto(served.url + query)
        page.locator("#draw").wait_for()
        pages.append(context)
        return page

    yield open_one
    for context in pages:
        context.close()
    assert problems == []


def choose(page, where, name):
    """Search a list of classes by typing, and take what is found with the keyboard."""
    box = page.locator(f"{where} input")
    box.click()
    box.fill(name)
    page.get_by_role("option", name=name, exact=True).wait_for()
    box.press("Enter")
    sync_api.expect(box).to_have_value(name)


def wait_for(page, line, text):
    sync_api.expect(page.locator(line)).to_contain_text(text, timeout=PATIENCE)


def draw(page):
    page.locator("#draw").click()
    wait_for(page, "#facts", "seed")


def shown_image(page, where):
    """The pixels of the image that a gallery shows."""
    image = page.locator(f"{where} img").first
    image.wait_for()
    address = image.get_attribute("src")
    return np.asarray(
        Image.open(io.BytesIO(httpx.get(address, timeout=300).content)).convert("RGB")
    )


def close(pixels, image):
    return np.abs(pixels.astype(int) - np.asarray(image).astype(int)).max() <= 1


def test_choose_pizza_draw_and_see_every_scale_arrive(open_page, studio):
    page = open_page()
    # Keeps the number of images in the strip whenever it changes.
    page.evaluate("""() => {
            window.seen = [];
            const note = () => window.seen.push(document.querySelectorAll('#strip img').length);
            const strip = document.querySelector('#strip');
            new MutationObserver(note).observe(strip, {childList: true, subtree: true});
        }""")
    choose(page, "#class", "pizza")
    draw(page)

    assert page.locator("#strip img").count() == 4
    assert page.evaluate("[...new Set(window.seen)].filter(n => n > 0).length") >= 2
    seed = int(re.search(r"seed (\d+)", page.locator("#facts").inner_text())[1])
    expected = studio.pipe("pizza", generator=[seeded(seed)]).images[0]
    assert close(shown_image(page, "#images"), expected)

    page.get_by_role("button", name="The Python that draws this again").click()
    sync_api.expect(page.locator("#code")).to_contain_text(
        f"manual_seed(seed) for seed in [{seed}]"
    )


def test_an_example_draws_at_once(open_page):
    page = open_page()
    page.locator("#examples").get_by_role("button", name="octopus").click()
    wait_for(page, "#facts", "seed")

    sync_api.expect(page.locator("#class input")).to_have_value("octopus")


def test_paint_a_mask_and_redraw(open_page):
    page = open_page()
    choose(page, "#class", "pizza")
    draw(page)
    page.locator("#to-edit").click()
    canvas = page.locator(CANVAS)
    canvas.wait_for()
    choose(page, "#edit-class", "cookie")
    page.wait_for_timeout(2000)  # the editor fits the image into its frame
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.55, box["y"] + box["height"] * 0.3)
    page.mouse.down()
    for step in range(12):  # a wide zigzag over the right half
        x = box["x"] + box["width"] * (0.52 + 0.2 * (step % 2))
        page.mouse.move(x, box["y"] + box["height"] * (0.3 + 0.03 * step), steps=8)
    page.mouse.up()
    page.locator("#redraw").click()
    wait_for(page, "#edit-facts", "seed")

    before, after = shown_image(page, "#before"), shown_image(page, "#after")
    assert before.shape == after.shape
    changed = np.abs(before.astype(int) - after).max(axis=-1) > 8
    _, width = changed.shape
    assert changed[:, width // 2 :].mean() > 0.02
    assert not changed[:, : width // 8].any()  # far from what was painted


def test_nothing_painted_is_said_on_the_page(open_page):
    page = open_page()
    draw(page)
    page.locator("#to-edit").click()
    page.locator(CANVAS).wait_for()
    page.wait_for_timeout(2000)
    page.locator("#redraw").click()

    page.get_by_text("Nothing is painted").wait_for()


def test_an_example_edit_runs_at_once(open_page):
    page = open_page()
    page.get_by_role("tab", name="Edit").click()
    page.get_by_role("button", name="Panda, beyond its edges").click()
    wait_for(page, "#edit-facts", "seed")

    before, after = shown_image(page, "#before"), shown_image(page, "#after")
    assert after.shape[1] > before.shape[1] and after.shape[0] == before.shape[0]


def test_look_inside_a_drawn_image(open_page):
    page = open_page()
    draw(page)
    page.locator("#to-inside").click()
    page.locator("#inside-image img").wait_for()
    page.locator("#look").click()
    wait_for(page, "#inside-facts", "11 of 11 classes")

    assert page.locator(".film:visible img").count() == 8
    assert page.locator("#classes li").count() == 5
    assert page.locator("#surprise img").count() == 1


def test_a_text_file_named_png_is_said_on_the_page(open_page, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    page = open_page()
    page.get_by_role("tab", name="Look inside").click()
    page.locator("#inside-image input[type=file]").set_input_files(tmp_path / "text.png")
    page.locator("#inside-image img").wait_for(state="attached")
    page.locator("#look").click()

    page.get_by_text("cannot be read as an image").wait_for()


def test_markup_in_a_text_field_stays_text(open_page):
    page = open_page()
    evil = "<img src=x onerror=window.broken=1>"
    for where in ("#class input", "#edit-class input"):
        if "edit" in where:
            page.get_by_role("tab", name="Edit").click()
        page.locator(where).fill(evil)
        page.locator(where).press("Enter")
        page.locator(where).press("Tab")
    page.get_by_role("tab", name="Generate").click()
    choose(page, "#class", "<b>bold</b>")  # the name of a class
    draw(page)

    assert page.evaluate("window.broken") is None
    assert page.locator("b", has_text=re.compile("^bold$")).count() == 0


def test_dark_mode(open_page):
    def brightness(page):
        colour = page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
        return sum(int(one) for one in re.findall(r"\d+", colour)[:3])

    assert brightness(open_page("?__theme=dark")) < 120
    assert brightness(open_page(color_scheme="dark")) < 120
    assert brightness(open_page("?__theme=light", color_scheme="dark")) > 600
    assert brightness(open_page()) > 600


def test_a_telephone(open_page):
    """390 pixels wide: nothing sticks out, and what was drawn stands right under the button."""
    page = open_page(
        viewport={"width": 390, "height": 844},
        device_scale_factor=2,
        is_mobile=True,
        has_touch=True,
    )
    page.locator("#examples").get_by_role("button", name="fox").tap()
    wait_for(page, "#facts", "seed")

    parts = {
        "Generate": ("#class", "#images", "#strip"),
        "Edit": ("#editor", "#mode", "#edit-facts"),
        "Look inside": ("#inside-image", "#inside-facts", "#classes"),
    }
    for tab in ("Generate", "Edit", "Look inside", "About"):
        page.get_by_role("tab", name=tab).tap()
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") == 390, tab
        if tab in parts:  # one below the other, each as wide as the screen lets it be
            assert all(page.locator(one).bounding_box()["width"] > 300 for one in parts[tab]), tab
    draw_button, images = (
        page.locator(one).evaluate("e => e.offsetTop + e.offsetHeight")
        for one in ("#draw", "#strip")
    )
    assert images - draw_button < 1200


def test_everything_has_a_name_and_the_keyboard_reaches_it(open_page):
    page = open_page()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll(
                'button, input:not([type=file]):not([type=hidden]), textarea')]
            .filter(e => e.checkVisibility())
            .filter(e => !(e.innerText.trim() || e.ariaLabel || e.title || e.placeholder
                || e.labels?.length || e.closest('label')))
            .map(e => e.outerHTML.slice(0, 120))"""
    )
    assert nameless == []

    page.locator("#class input").focus()
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.id || document.activeElement.innerText.trim()")
        )
    assert {"draw", "random-class", "stop", "to-edit", "to-inside"} <= reached
    page.locator("#draw").focus()
    page.keyboard.press("Enter")
    wait_for(page, "#facts", "seed")
    assert page.locator("#facts [role=status][aria-live=polite]").count() == 1


def test_stop_says_so(open_page):
    page = open_page()
    page.locator("#stop").click()

    wait_for(page, "#facts", "Stopped")
