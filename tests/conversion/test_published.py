import json
import re
from functools import cache
from importlib.resources import files

import pytest
import torch

from var_hf import NextScaleScheduler, VARConfig, VARModel
from var_hf.conversion import (
    PUBLISHED_TRANSFORMERS,
    PUBLISHED_VQVAE,
    convert_transformer,
    find_checkpoint,
    published_file,
    registry,
)
from var_hf.conversion.layout import meta_tensors, parameter_count
from var_hf.conversion.published import read_registry

TABLE = files("var_hf.conversion").joinpath("published.json").read_text("utf-8")
ENTRIES = registry().checkpoints
DATA = json.loads(TABLE)


def test_the_table_has_the_six_files_of_the_release(published_layout):
    file = published_file(published_layout["release"])

    assert file.name == published_layout["release"]
    assert len(PUBLISHED_TRANSFORMERS) + 1 == 6


def test_any_other_name_is_not_published():
    assert published_file("var_d12.pth") is None


def test_all_families_have_their_sizes():
    by_family = {}
    for entry in ENTRIES.values():
        by_family.setdefault(entry.family.name, []).append((entry.size, entry.image_size))

    assert by_family["var"] == [
        ("d16", 256),
        ("d20", 256),
        ("d24", 256),
        ("d30", 256),
        ("d36", 512),
    ]
    assert by_family["cca"] == [("d16", 256), ("d20", 256), ("d24", 256), ("d30", 256)]
    assert by_family["ddo"] == [("d16", 256), ("d30", 256)]
    assert by_family["neon"] == [("d16", 256), ("d36", 512)]
    assert by_family["code"] == [("d30", 256)] * 4 + [("d16", 256)] * 4


@cache
def shapes_of_model(size):
    with torch.device("meta"):
        model = VARModel(VARConfig(**PUBLISHED_TRANSFORMERS[size].values))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_converts_at_full_shape(name):
    """On the meta device: all tensors of the file, and all of the model that they become."""
    entry = ENTRIES[name]
    layout = entry.file.layout()
    tensors, values = convert_transformer(meta_tensors(layout))

    assert {n: tuple(t.shape) for n, t in tensors.items()} == shapes_of_model(entry.size)
    assert {key: values[key] for key in entry.file.values} == entry.file.values
    assert parameter_count(layout) == entry.file.parameters
    assert 16 * entry.file.values["token_map_sizes"][-1] == entry.image_size


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_is_complete_and_its_facts_have_sources(name):
    entry = ENTRIES[name]

    assert (
        NextScaleScheduler(**entry.sampling).config.guidance_scale
        == entry.sampling["guidance_scale"]
    )
    assert {"guidance_scale", "top_k", "top_p"} == entry.sampling.keys() - {"temperature"}
    assert entry.sampling_source and entry.family.license_source and entry.family.copyright
    assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", entry.family.paper)
    assert re.fullmatch(r"[0-9a-f]{40}", entry.family.commit)
    assert re.fullmatch(r"[\w-]+/[\w-]+", entry.family.repository)
    assert "FID" in entry.metrics[0].values
    for report in entry.metrics:
        assert report.source and report.url.startswith("https://")
        assert report.values.keys() <= {"FID", "IS", "precision", "recall"}
    assert entry.file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", entry.file.sha256)


@pytest.mark.parametrize("name", ENTRIES)
def test_the_settings_are_those_that_the_source_states(name):
    """guidance_scale is the cfg of the release's sampler plus 1, and where it says 0, top-k and
    top-p are off.
    """
    entry = ENTRIES[name]
    stated = re.findall(r"(?:--)?(cfg|top_k|top_p)[= ]([\d.]+\d|\d)", entry.sampling_source)
    stated = {key: float(value) for key, value in stated}

    assert entry.sampling["guidance_scale"] == pytest.approx(stated["cfg"] + 1)
    assert entry.sampling["top_k"] == stated["top_k"]
    assert entry.sampling["top_p"] == (stated["top_p"] or 1.0)
    per_scale = re.search(r"temp=\[([\d.]+)\]\*(\d+)\+\[([\d.]+)\]\*(\d+)", entry.sampling_source)
    if per_scale is not None:
        first, count, last, others = map(float, per_scale.groups())
        stated_list = [first] * int(count) + [last] * int(others)
        assert entry.sampling["temperature"] == stated_list
    assert ("temperature" in entry.sampling) == (per_scale is not None)


def test_both_readings_of_ddos_guidance_are_stated():
    note = find_checkpoint("ddo-d16").note

    assert "guidance_scale 2.4 and 2.0" in note and "guidance_scale 1.4 and 1.0" in note


def test_a_digest_is_stated_with_its_source_or_not_at_all():
    assert DATA["vqvae"]["sha256"] == PUBLISHED_VQVAE.sha256 and DATA["vqvae"]["digest_source"]
    assert all(entry["sha256"] is None for entry in DATA["checkpoints"])


def test_names_and_files_are_unique():
    names = [entry["name"] for entry in DATA["checkpoints"]]
    base_names = [entry["file"].rpartition("/")[2] for entry in DATA["checkpoints"]]

    assert len(set(names)) == len(names) == len(ENTRIES)
    assert len(set(base_names)) == len(base_names)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cca-d61", "Did you mean cca-d16"),
        ("neon-d36-512", "Did you mean neon-d36"),
        ("CCA-D16", "cca-d16"),
        ("xyz", "`var-hf list`"),
    ],
)
def test_a_close_name_is_suggested(name, hint):
    with pytest.raises(ValueError, match=f"There is no published checkpoint {name}") as error:
        find_checkpoint(name)
    assert hint in str(error.value)


def test_only_a_licence_with_conditions_has_a_notice():
    assert find_checkpoint("var-d16").notice() is None
    notice = find_checkpoint("ddo-d30").notice()
    assert "ddo-d30 is under Creative Commons" in notice and "no commercial use" in notice


def test_adding_an_entry_is_adding_data():
    entry = DATA["checkpoints"][0] | {"name": "mine-d9", "family": "mine", "size": "d9"}
    table = DATA | {
        "families": {**DATA["families"], "mine": DATA["families"]["cca"] | {"title": "Mine"}},
        "architectures": {
            "d9": {"depth": 9, "image_size": 256, "parameters": 1},
            **DATA["architectures"],
        },
        "checkpoints": [*DATA["checkpoints"], entry],
    }

    added = read_registry(json.dumps(table)).checkpoints["mine-d9"]

    assert added.family.title == "Mine" and added.file.values["hidden_size"] == 576


def test_the_converted_vqvae_has_our_names():
    shapes = PUBLISHED_VQVAE.converted_shapes()

    assert shapes["quantizer.codebook.weight"] == (4096, 32)
    assert shapes["quantizer.refiners.3.weight"] == (32, 32, 3, 3)


def test_the_converted_transformer_has_split_projections_and_no_buffers():
    shapes = PUBLISHED_TRANSFORMERS["d36"].converted_shapes()

    assert shapes["layers.35.self_attn.k_proj.weight"] == (2304, 2304)
    assert shapes["layers.0.modulation_table"] == (1, 1, 6, 2304)
    assert not any("mask" in name or "lvl" in name for name in shapes)
