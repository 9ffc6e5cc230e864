"""Take the screenshots of the static page for docs/browser.md: docs/images/browser-*.png.

python docs/make_browser_screenshots.py FOLDER

FOLDER is what `var-hf demo --static -o FOLDER` wrote. Needs what make_screenshots.py needs.
"""

import functools
import io
import shutil
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
DESKTOP: dict[str, Any] = {"viewport": {"width": 1240, "height": 900}}
TELEPHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
}
SHOTS: dict[str, tuple[str, dict[str, Any]]] = {
    "light": ("class=pizza&seed=2024", DESKTOP),
    "dark": ("class=octopus&seed=2024&images=8", DESKTOP | {"color_scheme": "dark"}),
    "telephone": ("class=sunflower&seed=2024", TELEPHONE),
}


def main(folder: str) -> None:
    """Take all screenshots."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (address, options) in SHOTS.items():
            page = browser.new_context(reduced_motion="reduce", **options).new_page()
            page.set_default_timeout(600_000)
            page.goto(f"http://127.0.0.1:{server.server_port}/#{address}")
            page.locator("body[data-drawing=false] #save:enabled").wait_for()
            taken = io.BytesIO(page.screenshot(full_page=name != "telephone"))
            Image.open(taken).convert("RGB").save(IMAGES / f"browser-{name}.png", optimize=True)
        browser.close()
        server.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
