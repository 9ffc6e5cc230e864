"""Take the screenshots of the demo for docs/demo.md: docs/images/demo-*.png.

python docs/make_screenshots.py [MODEL]

Uses the shipped model by default. Needs Debian's Chromium (apt-get install chromium) and Playwright
(in the extra `test`).
"""

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

IMAGES = Path(__file__).parent / "images"
PATIENCE = 600_000  # milliseconds
SEED = 2024
ALL_CLASSES = re.compile(r"(\d+) of \1 classes tried")
DESKTOP: dict[str, Any] = {"viewport": {"width": 1240, "height": 900}}
TELEPHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}


@contextmanager
def served(model: str | None) -> Iterator[str]:
    """Serve the demo and yield its address."""
    command = [sys.executable, "-m", "var_hf.cli", "demo"] + (
        [] if model is None else ["--model", model]
    )
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(600)


@contextmanager
def opened(browser: Browser, url: str, query: str = "", **options: Any) -> Iterator[Page]:
    """Open the page and wait until it is ready."""
    context = browser.new_context(reduced_motion="reduce", **options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(url + query)
    page.locator("#draw").wait_for()
    yield page
    context.close()


def draw(page: Page, class_name: str, count: int, seed: int = SEED) -> None:
    """Generate images of a class with a fixed seed."""
    box = page.locator("#class input")
    box.click()
    box.fill(class_name)
    page.get_by_role("option", name=class_name, exact=True).wait_for()
    box.press("Enter")
    expect(box).to_have_value(class_name)
    page.get_by_label("number input for Images").first.fill(str(count))
    page.get_by_label("Fresh seed each time").first.uncheck()
    page.get_by_label("Seed", exact=True).first.fill(str(seed))
    page.locator("#draw").click()
    wait_for(page, "#facts", f"seed {seed}")


def wait_for(page: Page, line: str, text: str | re.Pattern[str]) -> None:
    """Wait until an element shows a text and all images are loaded."""
    expect(page.locator(line)).to_contain_text(text, timeout=PATIENCE)
    page.wait_for_timeout(2000)


def photograph(page: Page, name: str, full_page: bool = True) -> None:
    """Write a screenshot of the page as a small PNG."""
    page.mouse.move(0, 0)
    taken = io.BytesIO(page.screenshot(full_page=full_page))
    Image.open(taken).convert("RGB").save(IMAGES / f"demo-{name}.png", optimize=True)


def main(model: str | None = None) -> None:
    """Take all screenshots."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with served(model) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        with opened(browser, url, **DESKTOP) as page:
            draw(page, "pizza", 1)
            photograph(page, "generate")
            page.locator("#to-inside").click()
            page.locator("#inside-image img").wait_for()
            page.locator("#look").click()
            wait_for(page, "#inside-facts", ALL_CLASSES)
            expect(page.locator("#classes li")).to_have_count(5, timeout=PATIENCE)
            photograph(page, "inside")
            page.get_by_role("tab", name="Edit").click()
            page.get_by_role("button", name="Pizza, half cookie").click()
            wait_for(page, "#edit-facts", "Done")
            photograph(page, "edit")
        with opened(browser, url, "?__theme=dark", **DESKTOP) as page:
            draw(page, "octopus", 8)
            photograph(page, "dark")
        with opened(browser, url, **TELEPHONE) as page:
            draw(page, "sunflower", 1)
            page.evaluate("window.scrollTo(0, 0)")
            photograph(page, "telephone", full_page=False)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
