import json
import re

import pytest

from var_hf.conversion import registry

ENTRIES = registry().checkpoints


def rows(text):
    return [re.split(r"  +", line) for line in text.splitlines()]


def test_the_table_agrees_with_the_registry(var_hf):
    code, out, err = var_hf("list")
    head, *lines = rows(out)

    assert (code, err) == (0, "")
    assert [line[0] for line in lines] == list(ENTRIES)
    for line in lines:
        shown, entry = dict(zip(head, line, strict=True)), ENTRIES[line[0]]
        assert shown["licence"] == entry.license.name
        assert shown["repository"] == entry.family.repository
        assert float(shown["guidance"]) == entry.sampling["guidance_scale"]
        assert float(shown["FID"]) == entry.metrics[0].values["FID"]


def test_the_json_agrees_with_the_registry(var_hf):
    code, out, _ = var_hf("list", "--json")

    assert code == 0
    for shown, entry in zip(json.loads(out), ENTRIES.values(), strict=True):
        assert shown["name"] == entry.name and shown["sampling"] == entry.sampling
        assert [one["values"] for one in shown["metrics"]] == [r.values for r in entry.metrics]
        assert shown["note"] == entry.note and shown["restrictions"] == entry.license.restrictions


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--family", "ddo"], ["ddo-d16", "ddo-d30"]),
        (["--size", "d36"], ["var-d36", "neon-d36"]),
        (["--license", "cc-by-nc-sa-4.0", "--size", "d30"], ["ddo-d30"]),
        (["--family", "cca", "--family", "neon", "--size", "d16"], ["cca-d16", "neon-d16"]),
    ],
)
def test_filters(var_hf, arguments, names):
    assert [line[0] for line in rows(var_hf("list", *arguments)[1])[1:]] == names


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["list", "--family", "ccc"], "--family takes var, cca, ddo, neon, code. Got ccc."),
        (["list", "--size", "d12"], "--size takes d16, d20, d24, d30, d36. Got d12."),
        (
            ["convert", "cca-d61", "-o", "x"],
            "no published checkpoint cca-d61. Did you mean cca-d16",
        ),
        (
            ["convert", "ddo-d16", "-o", "x", "--push", "a/b"],
            "If you may share it, pass --accept-license.",
        ),
    ],
)
def test_bad_requests_are_one_line(fails, arguments, problem):
    assert problem in fails(*arguments)
