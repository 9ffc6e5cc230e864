"""Valid files, damaged at random: one clear error or an equal result, and nothing else."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz.targets import (
    TARGETS,
    examples,
    image,
    json_examples,
    json_file,
    npz,
    pth,
    zip_members,
    zip_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLES = examples()
JSON = json_examples()
PLACES = st.floats(0, 1, exclude_max=True)
CORPUS = Path(__file__).parent / "fuzz" / "corpus"


@st.composite
def damaged(draw, content):
    """Bytes with flipped bits, a part cut out, doubled, zeroed or moved, or cut off."""
    content = bytearray(content)
    start, end = sorted(int(draw(PLACES) * len(content)) for _ in range(2))
    match draw(st.sampled_from(("flip", "flip", "flip", "cut", "double", "zero", "noise", "end"))):
        case "flip":
            for _ in range(draw(st.integers(1, 4))):
                content[int(draw(PLACES) * len(content))] ^= 1 << draw(st.integers(0, 7))
        case "cut":
            del content[start:end]
        case "double":
            content[end:end] = content[start:end]
        case "zero":
            content[start:end] = bytes(end - start)
        case "noise":
            noise = draw(st.binary(min_size=1, max_size=8))
            content[start : start + len(noise)] = noise
        case "end":
            del content[start:]
    return bytes(content)


@st.composite
def members_swapped(draw, content):
    """An archive whose members have one another's contents, or others, with fitting checksums."""
    members = zip_members(content)
    names = sorted(members)
    one, other = draw(st.sampled_from(names)), draw(st.sampled_from(names))
    members[one], members[other] = members[other], members[one]
    if draw(st.booleans()):
        members[one] = draw(damaged(members[one] or b"\0"))
    return zip_of(members)


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from((0, 1, -1, 2**62, 1e400, -1e400, math.nan, "\x1b[2J", "../x", "a/b", "0")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def odd_json(draw, values):
    """A JSON object with an odd value, a renamed, exchanged or doubled name, or damaged text."""
    values = dict(values)
    name, other = draw(st.sampled_from(sorted(values))), draw(st.sampled_from(sorted(values)))
    text = None
    match draw(
        st.sampled_from(("value", "value", "value", "inner", "swap", "rename", "double", "text"))
    ):
        case "value":
            values[name] = draw(ODD)
        case "inner" if isinstance(values[name], list) and values[name]:
            values[name] = [draw(ODD), *values[name][1:]]
        case "swap":
            values[name], values[other] = values[other], values[name]
        case "rename":
            values[
                draw(st.sampled_from(("to_dict", "num_scales", "use_kernels", "x", "id2label")))
            ] = values.pop(name)
        case "double":
            text = json.dumps(values)[:-1] + f", {json.dumps(name)}: 1}}"
        case "text":
            text = draw(damaged(json.dumps(values).encode())).decode("latin-1")
    return (text or json.dumps(values)).encode()


@pytest.mark.parametrize("target", TARGETS)
def test_every_kept_input_is_refused_or_read_in_silence(target, capfd):
    """Among them, what the fuzzer has found."""
    kept = sorted((CORPUS / target).iterdir())
    assert {path.name for path in kept} >= EXAMPLES[target].keys()
    for path in kept:
        is_valid = path.name in EXAMPLES[target]
        assert (TARGETS[target](path.read_bytes()) is not None) == is_valid, path.name
        assert capfd.readouterr().err == "", path.name


@settings(max_examples=120)
@given(content=damaged(EXAMPLES["pth"]["small"]) | members_swapped(EXAMPLES["pth"]["small"]))
def test_a_damaged_checkpoint_is_refused_or_read_as_torch_reads_it(content, tmp_path_factory):
    tensors = pth(content)

    if tensors is not None:
        path = tmp_path_factory.getbasetemp() / "same.pth"
        path.write_bytes(content)
        try:
            expected = torch.load(path, weights_only=True)
        except Exception:  # torch reads members that say nothing of the tensors, such as version
            return
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in tensors)


@settings(max_examples=60)
@given(content=damaged(EXAMPLES["pth"]["small"]))
def test_a_checkpoint_with_damaged_bytes_never_gives_other_weights(content):
    tensors = pth(content)

    if tensors is not None:
        assert tensors["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert tensors["step"].tolist() == 3


@pytest.mark.parametrize("kind", sorted(EXAMPLES["image"]))
def test_a_damaged_image_is_refused_or_read(kind):
    @settings(max_examples=40)
    @given(content=damaged(EXAMPLES["image"][kind]))
    def check(content):
        image(content)

    assert image(EXAMPLES["image"][kind]) is not None
    check()


@pytest.mark.parametrize("kind", sorted(EXAMPLES["npz"]))
def test_a_damaged_npz_file_is_refused_or_equal(kind):
    original = npz(EXAMPLES["npz"][kind])

    @settings(max_examples=45)
    @given(content=damaged(EXAMPLES["npz"][kind]))
    def check(content):
        found = npz(content)
        if found is not None:
            for name in found.keys() & original.keys():
                np.testing.assert_array_equal(found[name], original[name])

    @settings(max_examples=20)
    @given(content=members_swapped(EXAMPLES["npz"][kind]))
    def check_swapped(content):
        npz(content)

    check()
    check_swapped()


@pytest.mark.parametrize("kind", sorted(JSON))
def test_an_odd_json_file_is_refused_or_taken_as_it_stands(kind):
    assert json_file(kind, json.dumps(JSON[kind]).encode()) is not None

    @settings(max_examples=60)
    @given(content=odd_json(JSON[kind]))
    def check(content):
        taken = json_file(kind, content)
        if taken is not None and kind != "weights":
            assert taken == json.loads(content)

    check()
