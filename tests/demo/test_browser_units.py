"""The modules of the browser page that need no browser, run by Node."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from var_hf.onnx import drawing
from var_hf.onnx.random_numbers import philox4x32, uniform
from var_hf.pipelines.pipeline_var_inpaint import keep_masks

NODE = shutil.which("node")
BROWSER = Path(__file__).parents[2] / "demo" / "browser"
pytestmark = pytest.mark.skipif(NODE is None, reason="Node is not installed")


@pytest.fixture(scope="module")
def run_js(tmp_path_factory):
    """Run a script beside the modules, with a value as `input`; what it returns comes back."""
    folder = tmp_path_factory.mktemp("browser")
    for file in BROWSER.glob("*.js"):
        shutil.copy(file, folder)
    (folder / "package.json").write_text('{"type": "module"}')

    def run(body, value):
        (folder / "script.js").write_text(
            "import { readFileSync } from 'node:fs';\n"
            "import * as random from './random.js';\nimport * as sampling from './sampling.js';\n"
            "import * as runner from './runner.js';\nimport * as classes from './classes.js';\n"
            "import * as files from './files.js';\n"
            f"const input = JSON.parse(readFileSync(0));\nconst result = () => {{{body}}};\n"
            "console.log(JSON.stringify(result()));"
        )
        done = subprocess.run(
            [NODE, str(folder / "script.js")],
            input=json.dumps(value),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_random_numbers_are_those_of_python(run_js):
    words = [[0] * 6, [2**32 - 1] * 6, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 7, 2**31]]
    rng = np.random.default_rng(0)
    words += rng.integers(0, 2**32, (50, 6)).tolist()
    seeds = [0, 1, 42, 2**32 + 7, 2**53 - 1]
    got = run_js(
        "return [input.words.map((w) => random.philox4x32(w.slice(0, 4), w.slice(4))),"
        "input.seeds.map((s) => [0, 17, 679].map((p) => random.uniform(s, 3, p)))];",
        {"words": words, "seeds": seeds},
    )

    expected = [
        philox4x32(np.array(w[:4], np.uint32)[:, None], tuple(w[4:]))[:, 0].tolist() for w in words
    ]
    assert got[0] == expected
    assert got[1] == [uniform(s, 3, np.array([0, 17, 679])).tolist() for s in seeds]


def test_tokens_are_those_of_python_for_the_same_logits(run_js):
    """Ties, top-k and top-p included."""
    rng = np.random.default_rng(1)
    cases = []
    for number in range(300):
        logits = rng.normal(size=29) * rng.choice([0.1, 1, 8])
        if number % 3 == 0:
            logits = logits.round()  # ties
        top_k, top_p = int(rng.choice([0, 1, 5, 29, 40])), float(rng.choice([1, 0.95, 0.5, 1e-9]))
        cases.append(
            [logits.tolist(), top_k, top_p, float(rng.choice([0, 1 - 2**-53, rng.random()]))]
        )
    got = run_js(
        "return input.map(([l, k, p, u]) => sampling.drawToken(Float64Array.from(l), k, p, u));",
        cases,
    )

    expected = [
        int(drawing.draw(drawing.weights(np.array([logits]), top_k, top_p), np.array([u]))[0])
        for logits, top_k, top_p, u in cases
    ]
    assert got == expected


def test_kept_tokens_of_a_painted_part_are_those_of_the_inpainting_pipeline(run_js):
    sizes = [1, 2, 3, 4, 5, 6, 8]
    keep = torch.rand(12, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.4
    got = run_js(
        "return input.masks.map((m) => runner.keptByMask(m, input.sizes));",
        {"masks": (~keep).flatten(1).tolist(), "sizes": sizes},
    )

    assert got == torch.cat(keep_masks(keep, sizes, True), dim=1).tolist()


def test_variations_keep_the_scales_that_python_keeps(run_js):
    strengths = [0, 0.05, 0.25, 0.5, 0.75, 1]
    got = run_js(
        "return input.map((s) => [4, 7, 10].map((n) => runner.firstRedrawnScale(s, n)));", strengths
    )

    assert got == [[n - round(s * n) for n in (4, 7, 10)] for s in strengths]


def test_settings_by_scale(run_js):
    settings = {"guidance_scale": 3.0, "guidance_schedule": "ramp", "temperature": 1.0}
    got = run_js(
        "return input.map((s) => [sampling.numGuidedScales(s, 5),"
        "...[0, 1, 2, 3, 4].map((n) => sampling.guidanceStrength(s, n, 5))]);",
        [
            settings | {"guided_scales": None},
            settings | {"guided_scales": 2},
            settings | {"guided_scales": [1, 3], "guidance_schedule": "constant"},
            settings | {"guided_scales": None, "guidance_scale": 1.0},
        ],
    )

    assert got == [
        [5, 0, 0.5, 1, 1.5, 2],
        [2, 0, 0.5, 0, 0, 0],
        [3, 0, 2, 2, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def test_classes_are_found_as_in_python(run_js):
    names = {"0": "tench, Tinca tinca", "1": "crane", "2": "crane", "3": "ice cream"}
    metadata = {"model": {"num_classes": 5}, "id2label": names}
    got = run_js(
        "return input.texts.map((t) => classes.findClass(t, input.metadata));",
        {
            "metadata": metadata,
            "texts": [" Tench ", "tinca tinca", "crane", "3", "4", "5", "nothing", "", "-1"],
        },
    )

    assert got == [[0], [0], [1, 2], [3], [4], [], [], [], []]


def test_the_number_of_images_is_bounded_by_memory(run_js):
    emoji = {"num_hidden_layers": 6, "hidden_size": 256, "num_tokens": 155}
    d30 = {"num_hidden_layers": 30, "hidden_size": 1920, "num_tokens": 680}
    assert run_js("return input.map(runner.mostImages);", [emoji, d30]) == [8, 1]


def metadata(**changes):
    graphs = {name: f"{name}.onnx" for name in ("condition", "transformer")}
    files = {file: {"size": 1000, "sha256": "0" * 64} for file in graphs.values()}
    return {
        "format": "var-hf-onnx",
        "format_version": 1,
        "dtype": "float32",
        "graphs": graphs,
        "files": files,
    } | changes


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, None),
        ({"format": "other"}, "does not describe a model of var-hf-onnx"),
        ({"format_version": 2}, "has the format version 2, and this page reads 1"),
        ({"graphs": {"condition": "condition.onnx"}}, "does not describe the graph transformer"),
        ({"files": {}}, "does not describe the graph condition"),
        (
            {"files": {f"{n}.onnx": {"size": 2**31} for n in ("condition", "transformer")}},
            "too large for a browser: condition.onnx takes 2.1 GB",
        ),
        (
            {"files": {f"{n}.onnx": {"size": 12 * 10**8} for n in ("condition", "transformer")}},
            "too large for a browser: loading it takes about 4.8 GB",
        ),
    ],
)
def test_metadata_that_the_page_cannot_use_are_one_sentence(run_js, changes, sentence):
    problem = run_js(
        "try { files.checkMetadata(input, ['condition', 'transformer']); return null; }"
        "catch (error) { return error.message; }",
        metadata(**changes),
    )

    assert problem is None if sentence is None else sentence in problem


def test_the_service_worker_stores_every_file_of_the_page():
    """The model and the code of the runtime are stored by files.js."""
    text = (BROWSER / "sw.js").read_text()
    listed = set(re.findall(r'^  "(.+)",$', text, re.MULTILINE))
    own = {file.name for file in BROWSER.iterdir()} - {
        "index.html", "README.md", "sw.js", "onnxruntime-web.LICENSE",
    }  # fmt: skip
    assert own <= listed
    written = {"./", "mark.svg", "icon.svg", "page.json", "model/metadata.json"}
    assert {name for name in listed - own if not name.startswith("runtime/")} == written


def test_the_page_names_no_other_server():
    for file in BROWSER.iterdir():
        if file.name not in {"README.md"}:
            assert "://" not in file.read_text().replace("http://localhost", ""), file.name
