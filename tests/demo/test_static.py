"""Writing the static page, and pushing it to a Hub on the loopback interface."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from hub_server import HubServer
from huggingface_hub import SpaceCard

from var_hf.demo import static
from var_hf.demo.film import mark


@pytest.fixture(scope="module")
def written(exported, onnxruntime_web, tmp_path_factory):
    return static.write_page(
        tmp_path_factory.mktemp("written") / "page", exported, runtime=onnxruntime_web
    )


def files_in(folder):
    return {
        path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()
    }


# Writing


def test_the_folder_is_complete(written, exported):
    files = files_in(written.folder)
    names = json.loads((exported / "metadata.json").read_text())["files"]
    ours = {file.name for file in static.BROWSER.iterdir()} - {"onnxruntime-web.LICENSE"}
    assert set(files) == {
        *ours, "mark.svg", "icon.svg", "page.json", "runtime/LICENSE",
        "model/metadata.json", "model/README.md", *(f"model/{name}" for name in names),
        *(f"runtime/{name}" for name in static.RUNTIME_FILES),
    }  # fmt: skip
    page = json.loads(files["page.json"].read_text())["runtime"]
    assert page["version"] == static.RUNTIME_VERSION
    for name, entry in page["files"].items():
        content = files[f"runtime/{name}"].read_bytes()
        assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    stored = re.findall(r'^  "(.+)",$', files["sw.js"].read_text(), re.MULTILINE)
    assert set(stored) - {"./"} <= set(files)
    assert written.size == sum(path.stat().st_size for path in files.values())
    assert written.download < written.size
    assert (written.name, written.dtype) == ("tiny", "float32")


def test_the_logo_is_that_of_the_demo(written):
    squares = re.findall("<rect.*?/>", mark())
    assert re.findall("<rect.*?/>", (written.folder / "mark.svg").read_text()) == squares


def test_the_header_is_that_of_a_static_space(written):
    data = SpaceCard.load(written.folder / "README.md").data
    assert (data.sdk, data.app_file, data.license) == ("static", "index.html", "mit")
    assert len(data.short_description) <= 60


def test_what_stands_there_is_kept(exported, tmp_path):
    (tmp_path / "page").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        static.write_page(tmp_path / "page", exported, runtime=tmp_path)


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "exported")


def test_a_damaged_model_leaves_nothing_behind(copied, onnxruntime_web, tmp_path):
    (copied / "decoder.onnx").write_bytes(b"no graph")
    with pytest.raises(OSError, match=r"decoder\.onnx has 8 bytes"):
        static.write_page(tmp_path / "page", copied, runtime=onnxruntime_web)
    assert list(tmp_path.iterdir()) == [copied]


def test_a_model_too_large_for_a_browser_is_refused_first(copied, tmp_path):
    path = copied / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["files"]["transformer.onnx"]["size"] = 3 * 10**9
    path.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=r"too large for a browser: transformer\.onnx takes 3\.0"):
        static.write_page(tmp_path / "page", copied, runtime=tmp_path / "none")


def test_an_exported_model_has_its_dtype(exported):
    with static.exported_model(str(exported)) as folder:
        assert folder == exported
    with (
        pytest.raises(ValueError, match="is exported already"),
        static.exported_model(str(exported), "int8"),
    ):
        pass


def test_a_pipeline_is_exported_with_weights_of_half_the_size(model_folder, exported):
    (model_folder / "README.md").write_text("---\nlicense: mit\n---\n")
    with static.exported_model(str(model_folder)) as folder:
        metadata = json.loads((folder / "metadata.json").read_text())
    (model_folder / "README.md").unlink()
    assert (metadata["dtype"], metadata["name"], metadata["license"]) == ("float16", "tiny", "mit")
    assert not folder.exists()


# onnxruntime-web


def test_a_wrong_package_is_refused(onnxruntime_web, tmp_path):
    def refused(path, match, kind=ValueError):
        with pytest.raises(kind, match=match), static.runtime_files(path):
            pass

    refused(tmp_path, "Got no npm package, without dist/ort.wasm.min.mjs")
    (tmp_path / "package.json").write_text('{"name": "onnxruntime-web", "version": "1.0.0"}')
    refused(tmp_path, r"must be the unpacked npm package .*Got onnxruntime-web 1\.0\.0")
    (tmp_path / "cut.tgz").write_bytes(onnxruntime_web.read_bytes()[:-1])
    refused(tmp_path / "cut.tgz", "is damaged: its SHA-512 differs")
    refused(tmp_path / "none", "There is no folder or archive", FileNotFoundError)


def test_an_unpacked_package_will_do(onnxruntime_web, tmp_path):
    with tarfile.open(onnxruntime_web) as archive:
        archive.extractall(tmp_path, filter="data")
    with static.runtime_files(tmp_path / "package") as folder:
        assert folder == tmp_path / "package/dist"


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """An npm registry on the loopback interface: a folder, and the paths asked for."""
    (tmp_path / "registry").mkdir()
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path / "registry")

        def log_message(self, *_):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(static, "cached_assets_path", lambda *_, **__: tmp_path / "cache")
    yield tmp_path / "registry" / "onnxruntime-web" / "-", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_package_is_downloaded_once(registry, onnxruntime_web, tmp_path):
    folder, asked = registry
    folder.mkdir(parents=True)
    shutil.copy(onnxruntime_web, folder)
    for _ in range(2):
        with static.runtime_files() as files:
            assert {file.name for file in files.iterdir()} == set(static.RUNTIME_FILES)
    assert asked == [f"/onnxruntime-web/-/{onnxruntime_web.name}"]


def test_a_download_that_fails_or_differs_is_one_sentence(registry, onnxruntime_web, tmp_path):
    folder, _ = registry
    with pytest.raises(OSError, match=r"could not be downloaded from .*npm pack"):
        static.runtime_files().__enter__()
    folder.mkdir(parents=True)
    (folder / onnxruntime_web.name).write_bytes(b"something else")
    with pytest.raises(ValueError, match="its SHA-512 differs"):
        static.runtime_files().__enter__()
    assert list((tmp_path / "cache").iterdir()) == []


# Pushing


@pytest.mark.slow
def test_the_page_goes_up_in_one_commit_and_again_without_leftovers(
    written, exported, onnxruntime_web, tmp_path
):
    options = ["--model", exported, "--runtime", onnxruntime_web, "--json"]
    with HubServer() as hub:

        def push(*arguments, token="hf_writer"):
            command = [sys.executable, "-m", "var_hf.cli", "demo", "--static", *arguments]
            return subprocess.run(
                [*map(str, command), *map(str, options)],
                env=hub.environment(tmp_path / "home", token=token),
                cwd=tmp_path,
                capture_output=True,
                text=True,
            )

        first = push("--push", "user/page", "-o", "page")
        assert first.returncode == 0, first.stderr
        result = json.loads(first.stdout)
        assert result["space"] == "user/page" and result["download"] == written.download
        repo = hub.repos["space", "user/page"]
        expected = {name: path.read_bytes() for name, path in files_in(tmp_path / "page").items()}
        assert {k: v for k, v in repo.files().items() if k != ".gitattributes"} == expected
        assert len(repo.commits) == 2  # the one that made the repository, and ours

        repo.commit({**repo.files(), "old.js": b"old"}, "Outside", None, "main")
        assert push("--push", "user/page").returncode == 0
        assert "old.js" not in repo.files()
        refused = push("--push", "user/page", "-o", "refused", token=None)
        assert refused.returncode == 1 and "needs an access token" in refused.stderr
        assert not (tmp_path / "refused").exists()  # said before the page is written
