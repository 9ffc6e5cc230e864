import os
import re
import subprocess
import sys
import urllib.request
import zlib
from pathlib import Path

import pytest

import var_hf

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
ADDRESSES = sorted(
    {
        address
        for page in PAGES
        for address in re.findall(r"\]\((https?://[^)\s]+)\)", page.read_text(encoding="utf-8"))
    }
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as built by `make docs`. Warnings, including dead links and anchors, are errors."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_every_public_name_has_its_place_in_the_reference(site):
    header, packed = (site / "objects.inv").read_bytes().split(b"zlib.\n", 1)
    assert header.startswith(b"# Sphinx inventory version 2")
    documented = {line.split()[0] for line in zlib.decompress(packed).decode().splitlines()}

    public = {f"{module}.{name}" for name, module in var_hf._MODULE_OF_NAME.items()}
    assert public <= documented
    assert "var_hf.pipelines.pipeline_var.VARPipeline.__call__" in documented


@pytest.mark.slow
def test_the_pages_load_nothing_from_elsewhere(site):
    """Pages load no fonts, scripts, styles or images from other servers; they may link to them."""
    loaded = re.compile(
        r"""(?:<(?:script|img|iframe|source)[^>]+?src=|<link[^>]+?rel=["']?(?:stylesheet|preconnect|icon)[^>]+?href=)["']?(https?:)?//"""
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        assert not loaded.search(page.read_text(encoding="utf-8")), page.name
    for style in site.rglob("*.css"):
        assert not re.search(
            r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")
        )


@pytest.mark.slow
def test_pages_of_the_root_and_their_files_are_there(site):
    for page in ("index", "contributing", "changelog", "third-party-notices", "costs"):
        assert (site / f"{page}.html").exists(), page
    assert (site / "files/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.network
@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_answer(address):
    request = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0"}, method="HEAD")
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status < 400
