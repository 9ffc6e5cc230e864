import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import distribution
from importlib.metadata import version as installed_version
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

import var_hf

ROOT = Path(__file__).parents[1]
LOCKED = r"(?P<name>[a-z0-9-]+)==(?P<version>\S+)( ; .*?)? (?P<hashes>( *--hash=\S+)+)"
OUTSIDE_THE_PACKAGE = {"tests", "examples", "benchmarks", "docs", "build", "dist", "outputs"}


def read_setup_cfg():
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def setup_cfg():
    return read_setup_cfg()


def folder_of_package(setup_cfg):
    """The packages of setup.cfg, each with the folder its code lies in."""
    folders = dict(
        line.split(" = ") for line in setup_cfg["options"]["package_dir"].strip().splitlines()
    )
    packages = setup_cfg["options"]["packages"].split()
    return {
        package: ROOT / (folders.get(package) or package.replace(".", "/")) for package in packages
    }


def test_every_folder_with_code_is_a_listed_package(setup_cfg):
    """A forgotten package works in an editable install and is missing from the wheel."""
    with_code = {
        file.parent
        for file in ROOT.glob("[!.]*/**/*.py")
        if file.relative_to(ROOT).parts[0] not in OUTSIDE_THE_PACKAGE
    }

    assert with_code == set(folder_of_package(setup_cfg).values())


def test_every_data_file_of_a_package_is_declared(setup_cfg):
    declared = setup_cfg["options.package_data"]
    folders = folder_of_package(setup_cfg)
    for package, folder in folders.items():
        patterns = declared.get(package, "").split()
        included = {file for pattern in patterns for file in folder.glob(pattern)}
        # The nearest package above a file is the one that has to declare it.
        data = {
            file
            for file in folder.rglob("*")
            if file.is_file()
            and file.suffix not in {".py", ".pyc"}
            and next(above for above in file.parents if above in folders.values()) == folder
        }

        assert data == included, package


def locked(name):
    """The packages of a lock file: name, version and hashes."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    assert "://" not in text  # no address of an index
    lines = [re.fullmatch(LOCKED, line) for line in text.splitlines()]
    assert all(lines)
    return {line["name"]: (line["version"], line["hashes"].split()) for line in lines}


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("requirements.lock", ["demo", "train", "quantization", "evaluation"]),
        ("requirements-dev.lock", ["test", "docs", "release", "quality"]),
    ],
)
def test_a_lock_file_holds_the_pinned_versions_with_hashes(setup_cfg, name, extras):
    """If not: make lock."""
    packages = locked(name)
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
    pins = {canonicalize_name(package): version for package, version in pins.items()}
    wanted = [setup_cfg["options"]["install_requires"]]
    wanted += [setup_cfg["options.extras_require"][extra] for extra in extras]
    for line in "\n".join(wanted).splitlines():
        if line and not line.startswith(("#", "var-hf")):
            assert canonicalize_name(re.match(r"[\w.-]+", line)[0]) in packages, line
    for package, (version, hashes) in packages.items():
        assert version == pins.get(package, version), package
        assert hashes and all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", one) for one in hashes)


def test_the_version_is_the_same_everywhere():
    assert installed_version("var-hf") == var_hf.__version__


def test_the_command_is_installed_and_its_function_exists():
    (command,) = distribution("var-hf").entry_points.select(group="console_scripts")

    assert command.name == "var-hf"
    assert callable(command.load())


def test_public_names_are_the_listed_ones():
    assert var_hf.__all__ == sorted(var_hf.__all__)
    assert set(var_hf.__all__) == {"__version__", *var_hf._MODULE_OF_NAME}
    assert set(var_hf.__all__) <= set(dir(var_hf))


@pytest.mark.parametrize("name", var_hf._MODULE_OF_NAME)
def test_every_public_name_is_defined_where_the_map_says(name):
    """The module's path is written into model_index.json: it is part of the saved format."""
    assert getattr(var_hf, name).__module__ == var_hf._MODULE_OF_NAME[name]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'var_hf' has no attribute 'VARmodel'"):
        _ = var_hf.VARmodel


def test_import_loads_no_heavy_library():
    code = (
        "import sys, var_hf; "
        "print(*(m for m in ('torch', 'transformers', 'diffusers', 'gradio') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert done.stdout.split() == []


def test_the_way_from_label_to_pixels_stays_short():
    """A newcomer reads it in an hour. Optional features are imported where they are used."""
    code = (
        "import sys, var_hf.pipelines.pipeline_var; "
        "print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'var_hf'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    files = [Path(file) for file in done.stdout.split() if not file.endswith("__init__.py")]
    assert sum(len(file.read_text("utf-8").splitlines()) for file in files) <= 3700
