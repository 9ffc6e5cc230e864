"""Single-file modules: what they hold, what they leave out, and that they stay readable."""

import ast
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from var_hf.conversion.code_export import LICENSE, _check_names, _Exporter, _Import, single_file
from var_hf.hub.files import COLLABORATIVE, COMPONENTS, HANDLER_MODULE, MODULAR_MODULE, PLAIN
from var_hf.hub.push import ABSENT_FROM_CODE, HANDLER_TOOLS, code_needs

ROOT = Path(__file__).parents[2]
STAND_INS = {component.class_name: component.base for component in COMPONENTS.values()}


def exported() -> dict[str, str]:
    modules = {
        component.module: single_file(component.module, absent=ABSENT_FROM_CODE)
        for component in COMPONENTS.values()
    }
    pipelines = {
        kind.module: single_file(kind.module, STAND_INS, ABSENT_FROM_CODE)
        for kind in (PLAIN, COLLABORATIVE)
    }
    blocks = single_file(
        MODULAR_MODULE, absent=ABSENT_FROM_CODE, constants={"REPOSITORY": "user/name"}
    )
    handler = single_file(HANDLER_MODULE, absent=ABSENT_FROM_CODE, tools=HANDLER_TOOLS)
    return modules | pipelines | {MODULAR_MODULE: blocks, HANDLER_MODULE: handler}


@pytest.fixture(scope="module")
def files():
    return exported()


def classes(text: str) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}


def members(node: ast.ClassDef) -> set[str]:
    return {member.name for member in node.body if isinstance(member, ast.FunctionDef)}


def test_nothing_of_the_package_is_imported(files):
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0 and not str(node.module).startswith("var_hf"), name
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("var_hf") for alias in node.names), name


def test_a_component_holds_what_it_imports_and_no_more(files):
    transformer, vqvae = files["var_hf.modeling_var"], files["var_hf.modeling_vqvae"]

    assert {"VARConfig", "VARModel", "VARAttention"} <= classes(transformer).keys()
    assert {"MultiScaleQuantizer", "MultiScaleVQVAE", "Encoder"} <= classes(vqvae).keys()
    assert "VARConfig" not in classes(vqvae)
    assert "def refiner_table" in vqvae and "def refiner_table" not in transformer


def test_what_needs_the_package_is_left_out(files):
    for name, class_name in (("modeling_var", "VARModel"), ("modeling_vqvae", "MultiScaleVQVAE")):
        left = members(classes(files[f"var_hf.{name}"])[class_name])
        assert "forward" in left
        assert left.isdisjoint({"from_original", "to_original", "push_to_hub"})
    pipeline = classes(files[PLAIN.module])
    names = set.union(*(members(node) for node in pipeline.values()))
    assert {"__call__", "stream", "get_label_ids"} <= names
    assert names.isdisjoint({"from_original", "push_to_hub", "load_config", "download"})
    assert [ast.unparse(base) for base in pipeline["NextScalePipeline"].bases] == [
        "CallbackControls",
        "DiffusionPipeline",
    ]


def test_two_imports_of_one_name_are_an_error():
    exporter = _Exporter({}, set(), {}, ())
    exporter.imports = {
        _Import("logging", None, "logging"),
        _Import("diffusers.utils", "logging", "logging"),
    }
    with pytest.raises(ValueError, match="'logging' is imported from "):
        exporter.import_lines()


def test_the_requirements_name_every_library_that_the_code_imports(files):
    imported = {
        alias.split(".")[0]
        for text in files.values()
        for node in ast.walk(ast.parse(text))
        for alias in (
            [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    required = {re.split(r"[^\w-]", line)[0] for line in code_needs()}

    foreign = imported - set(sys.stdlib_module_names)
    assert {"Pillow" if name == "PIL" else name for name in foreign} <= required
    assert all(re.search(r"[<>]", line) for line in code_needs())


def test_constants_get_the_value_of_the_file(files):
    assert 'REPOSITORY: str | None = "user/name"' in files[MODULAR_MODULE]


def test_importing_a_file_registers_nothing(files):
    for text in files.values():
        kinds = {type(node) for node in ast.parse(text).body[1:]}
        assert kinds <= {
            ast.Import,
            ast.ImportFrom,
            ast.Assign,
            ast.AnnAssign,
            ast.ClassDef,
            ast.FunctionDef,
        }


def test_the_text_of_what_is_kept_is_the_text_of_the_source(files):
    source = (ROOT / "var_hf" / "modeling_var.py").read_text()
    start, end = source.index("class VARAttention"), source.index("class VARMLP")

    assert source[start:end].strip() in files["var_hf.modeling_var"]


def test_the_files_are_the_same_each_time(files):
    code = (
        "import hashlib; from test_code_export import exported; "
        "print(hashlib.sha256(repr(exported()).encode()).hexdigest())"
    )
    path = {"PYTHONPATH": f"{Path(__file__).parent}:{ROOT / 'tests'}", "PYTHONHASHSEED": "5"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=path, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == hashlib.sha256(repr(files).encode()).hexdigest()


def test_ruff_finds_nothing_to_change(files, tmp_path):
    pytest.importorskip("ruff", reason="the linter belongs to the extra 'quality'")
    for name, text in files.items():
        (tmp_path / f"{name.rsplit('.')[-1]}.py").write_text(text)
    # The sources are exempt from the length of lines file by file, which other names are not.
    for verb in (["check", "--ignore", "E501,TID251"], ["format", "--check"]):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "ruff",
                *verb,
                "--no-cache",
                "--config",
                ROOT / "pyproject.toml",
                tmp_path,
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_file_carries_the_licence_of_the_project(files):
    assert (ROOT / "LICENSE").read_text() == LICENSE
    licence = " ".join(LICENSE.split())
    for text in files.values():
        comments = [
            line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")
        ]
        assert licence in " ".join(" ".join(comments).split())


def test_what_cannot_be_left_out_is_an_error():
    with pytest.raises(
        ValueError, match=r"cannot stand alone: NextScalePipeline.__init__ needs the"
    ):
        single_file(PLAIN.module, absent=[*STAND_INS, *ABSENT_FROM_CODE])


def test_only_modules_of_the_package_are_exported():
    with pytest.raises(ValueError, match="json is not a module of var_hf"):
        single_file("json")


def test_a_name_that_nothing_defines_is_found():
    _check_names("import os\n\ndef f(x, *y):\n    return [os.path, x, y, len(z := x), z]", "good")
    with pytest.raises(
        ValueError, match="The code of bad cannot stand alone: it needs helper, other"
    ):
        _check_names("def f(x):\n    return helper(x) + other", "bad")
