"""Measure the static page in Chromium: download, first image, seconds per image, memory.

python benchmarks/browser.py [--model MODEL] [--weights float16 ...] [--images 5]

Needs var-hf[onnx,test], Debian's Chromium, and onnxruntime-web, which is downloaded once.
"""

import argparse
import functools
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
from playwright.sync_api import Browser, Page, sync_playwright

from var_hf.assets import VAR_EMOJI_64, shipped_model
from var_hf.demo.static import StaticPage, exported_model, write_page

PATIENCE = 600_000  # milliseconds


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder and yield its address."""
    handler = functools.partial(QuietHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def written(model: str, weights: str, runtime: str | None) -> Iterator[StaticPage]:
    """Write the page into a temporary folder."""
    with (
        tempfile.TemporaryDirectory() as folder,
        exported_model(shipped_model(model), weights) as exported,
    ):
        yield write_page(Path(folder) / "page", exported, runtime=runtime)


def memory(name: str = "chrom") -> int:
    """Proportional memory in bytes of all processes below this one that belong to the browser."""
    sizes = []
    for process in psutil.Process().children(recursive=True):
        if name in process.name():
            sizes.append(process.memory_full_info().pss)
    return sum(sizes)


def wait_for_image(page: Page) -> None:
    """Wait until the page has drawn."""
    page.locator("body[data-drawing=false] #save:enabled").wait_for()


def measure(browser: Browser, url: str, count: int) -> tuple[list[float], int]:
    """Seconds to the first image, again from storage, and per image; bytes of memory."""
    empty = memory()
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    seconds = []
    for _ in range(2):  # from the network, from storage
        start = time.perf_counter()
        page.goto(f"{url}?{len(seconds)}#class=0&seed=0")
        wait_for_image(page)
        seconds.append(time.perf_counter() - start)
        page.locator("body[data-stored=true]").wait_for()
    page.locator("#fresh").check()
    each = []
    for _ in range(count):
        page.locator("#draw").click()
        wait_for_image(page)
        each.append(float(page.locator("#facts").inner_text().split(" s ")[0].split()[-1]))
    used = memory() - empty
    context.close()
    return [*seconds, statistics.median(each)], used


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=VAR_EMOJI_64.name)
    parser.add_argument("--weights", nargs="+", default=["float32", "float16", "int8"])
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--runtime", help="the npm package onnxruntime-web")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    print("| weights | download | first image | again | per image | memory |")
    print("|---|---|---|---|---|---|")
    for weights in arguments.weights:
        with (
            written(arguments.model, weights, arguments.runtime) as page,
            served(page.folder) as url,
            sync_playwright() as playwright,
        ):
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            (first, again, each), used = measure(browser, url, arguments.images)
            browser.close()
        cells = [f"{page.download / 1e6:.1f} MB", f"{first:.1f} s", f"{again:.1f} s"]
        print(f"| {weights} | {' | '.join([*cells, f'{each:.2f} s', f'{used / 1e6:.0f} MB'])} |")


if __name__ == "__main__":
    main()
