"""Names of files: weights and their variants, pickles, code."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from var_hf.hub.files import (
    COMPONENTS,
    PLAIN,
    choose_weights,
    is_code,
    is_pickle,
    is_weights,
    read_index,
    variant_of,
    weights_in,
)

VARIANTS = st.sampled_from([None, "fp16", "bf16", "ema"])


def file_names(stem: str, variant: str | None, shards: int) -> list[str]:
    """What transformers and diffusers call the weight files of a model."""
    middle = f".{variant}" if variant else ""
    if shards == 1:
        return [f"{stem}{middle}.safetensors"]
    parts = [f"{stem}{middle}-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    return [*parts, f"{stem}.safetensors.index{middle}.json"]


@given(st.sampled_from(["model", "diffusion_pytorch_model"]), VARIANTS, st.integers(1, 5))
def test_the_variant_is_read_from_every_weight_file(stem, variant, shards):
    for name in file_names(stem, variant, shards):
        assert is_weights(name) and is_weights(f"some/folder/{name}")
        assert variant_of(name) == variant


@given(
    stored=st.fixed_dictionaries(
        {name: st.dictionaries(VARIANTS, st.integers(1, 3)) for name in ("transformer", "vqvae")}
    ),
    variant=VARIANTS,
)
def test_each_part_is_loaded_whole_in_the_variant_or_else_plain(stored, variant):
    files = {
        f"{name}/{file}": (name, kind)
        for name, kinds in stored.items()
        for kind, shards in kinds.items()
        for file in file_names(COMPONENTS[name].weights_stem, kind, shards)
    }
    can_load = all({variant, None} & kinds.keys() for kinds in stored.values())
    has_variant = any(variant in kinds for kinds in stored.values())

    if not (can_load and has_variant):
        with pytest.raises(ValueError, match=r"^the/repo has "):
            choose_weights(files, PLAIN.parts, variant, "the/repo")
        return
    chosen = choose_weights(files, PLAIN.parts, variant, "the/repo")
    taken = {name: variant if variant in kinds else None for name, kinds in stored.items()}
    assert sorted(chosen) == sorted(file for file, of in files.items() if of in taken.items())


def test_weights_of_a_folder_are_its_own():
    files = ["model.safetensors", "a/model.safetensors", "a/b/model.safetensors", "a/config.json"]

    assert weights_in(files, "a") == {None: ["a/model.safetensors"]}
    assert weights_in(files, "") == {None: ["model.safetensors"]}


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors.json", "adapter_model.safetensors", "model.gguf"]
)
def test_other_files_are_no_weights(name):
    assert not is_weights(name)


def test_pickles_and_code_are_told_by_their_names():
    assert all(map(is_pickle, ["a.bin", "b/c.PT", "d.pth", "e.ckpt", "f.pkl"]))
    assert all(map(is_code, ["a.py", "b/c.SO", "d.sh", "e.ipynb", "f.dll"]))
    for name in (
        "model.safetensors",
        "config.json",
        "README.md",
        "LICENSE",
        "samples.png",
        ".gitattributes",
    ):
        assert not is_pickle(name) and not is_code(name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "model_index.json of user/x is damaged or not JSON"),
        ("[]", "must hold one JSON object"),
        ("{}", "is no VAR pipeline but a model of another kind"),
        ('{"_class_name": ["pipeline", "Other"]}', "is no VAR pipeline but Other"),
    ],
)
def test_other_indices_are_refused(text, words, tmp_path):
    (tmp_path / "model_index.json").write_text(text)

    with pytest.raises(ValueError, match=words):
        read_index(tmp_path, "user/x")
