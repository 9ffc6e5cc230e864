"""Adds pages outside docs/, notebooks, linked files and the code to document to the site."""

import configparser
import posixpath
import re
import shutil
from pathlib import Path, PurePosixPath

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
#: The package as it is once installed, for the API reference; mkdocs.yml names it.
TREE = ROOT / "build/docs-tree"
#: Pages outside docs/, and what they are called on the site.
ROOT_PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "README.md": "readme.md",
    "examples/emoji/README.md": "emoji.md",
    "examples/emoji/128/README.md": "emoji-128.md",
    "THIRD_PARTY_NOTICES.md": "third-party-notices.md",
}
NOTEBOOKS = "examples/notebooks"
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?(?=\))")


@event_priority(100)  # before the plugin that reads the code
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Copy the folders of the package to the places that setup.cfg maps them to."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    mapping = setup["options"]["package_dir"].strip().splitlines()
    shutil.rmtree(TREE, ignore_errors=True)
    # Outer packages first: var_hf before var_hf.pipelines.
    for package, folder in sorted(line.split(" = ") for line in mapping):
        shutil.copytree(
            ROOT / folder,
            TREE / package.replace(".", "/"),
            ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"),
        )
    return config


def place_on_site(path: str) -> str | None:
    """Map a path of the repository to its place on the site; None if it is no such file."""
    if path in ROOT_PAGES:
        return ROOT_PAGES[path]
    if path.startswith(f"{NOTEBOOKS}/") and path.endswith(".ipynb"):
        return f"notebooks/{PurePosixPath(path).stem}.md"
    if path.startswith("docs/") and not path.endswith(".py"):
        return path.removeprefix("docs/")
    return f"files/{path}" if (ROOT / path).is_file() else None


def with_links_of_the_site(markdown: str, page: str, site_page: str) -> tuple[str, set[str]]:
    """Rewrite the links of a page from the repository's folders to the site's.

    Args:
        markdown: The page.
        page: Its path in the repository; its links start there.
        site_page: Its path on the site.

    Returns:
        The page, and the paths in the repository of the files that it links to and that are no
        pages.
    """
    linked: set[str] = set()

    def replace(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link["path"]))
        place = place_on_site(target)
        if place is None:
            return link[0]  # the build names it as a link that leads nowhere
        if place.startswith("files/"):
            linked.add(target)
        return posixpath.relpath(place, PurePosixPath(site_page).parent) + (link["anchor"] or "")

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):  # code is left as it is
        parts += [LINK.sub(replace, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(replace, markdown[end:])]), linked


def notebook_page(file: Path) -> str:
    """Convert a notebook to Markdown: its text, its code, and its stored outputs."""
    parts = []
    for cell in nbformat.read(file, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                image = data["image/png"].replace("\n", "")
                parts.append(f'<img alt="output" src="data:image/png;base64,{image}">')
            elif text := output.get("text") or data.get("text/plain"):
                parts.append(f"```text\n{text.rstrip()}\n```")
    title, *rest = parts
    download = posixpath.relpath(f"files/{NOTEBOOKS}/{file.name}", "notebooks")
    # As HTML, since a link in Markdown would be turned into one to this very page.
    note = f'<p><em>This page is <a href="{download}">a notebook</a>, to be run.</em></p>'
    return "\n\n".join([title, note, *rest])


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/ and the files that pages link to."""
    sources = {
        file.src_uri: (file.content_string, f"docs/{file.src_uri}")
        for file in list(files.documentation_pages())
    }
    for page, place in ROOT_PAGES.items():
        sources[place] = (ROOT / page).read_text(encoding="utf-8"), page
    linked = set()
    for notebook in sorted((ROOT / NOTEBOOKS).glob("*.ipynb")):
        path = notebook.relative_to(ROOT).as_posix()
        place = place_on_site(path)
        assert place is not None
        sources[place] = notebook_page(notebook), path
        linked.add(path)
    for place, (text, page) in sources.items():
        before = files.get_file_from_path(place)
        if before is not None:
            files.remove(before)
        text, of_page = with_links_of_the_site(text, page, place)
        files.append(File.generated(config, place, content=text))
        linked |= of_page
    for path in sorted(linked):
        files.append(File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path)))
    return files
