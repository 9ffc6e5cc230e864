"""The report of scaling laws says what is missing, off the curve, and left out."""

import json
import re

import numpy as np
import pytest

from var_hf.evaluation.scaling_laws import TARGETS, PowerLaw, describe_fit, describe_frontier
from var_hf.evaluation.scaling_report import result_tables, summary, write_scaling_report

LAW = PowerLaw(factor=0.5, exponent=-0.2, floor=1.5)


def a_size(parameters, off=1.0):
    compute = np.geomspace(1, 9, 3) * parameters / 1e7
    values = LAW(parameters / 1e9) * off * np.array([1.4, 1.1, 1.0])
    of_targets = {target: values / (1 if target.startswith("loss") else 20) for target in TARGETS}
    return {
        "size": f"{parameters}x1x1",
        "parameters": parameters,
        "all_parameters": parameters + 7,
        "flops_per_image": 3.0 * parameters,
        "tokens_per_image": 11,
        **{target: float(each[-1]) for target, each in of_targets.items()},
        "curve": {
            "images": [8, 16, 24],
            "compute": compute.tolist(),
            **{target: each.tolist() for target, each in of_targets.items()},
        },
    }


@pytest.fixture
def result():
    """Five sizes, the fourth off the curve, and a held-out size that is not trained."""
    sizes = [a_size(10**5 * 3**n, off=1.2 if n == 3 else 1.0) for n in range(5)]
    x = [each["parameters"] / 1e9 for each in sizes]
    laws = {
        target: describe_fit(x, [each[target] for each in sizes], at=0.1, draws=9)
        for target in TARGETS
    }
    frontier = {
        target: describe_frontier([each["curve"] for each in sizes], target, draws=9)
        for target in TARGETS
    }
    return {
        "sizes": sizes,
        "left_out": [],
        "waiting": ["big"],
        "batch_size": 8,
        "seed": 0,
        "bootstrap": 9,
        "parameters": laws,
        "compute": frontier,
        "held_out": {
            "size": "big", "parameters": 10**8, "measured": None, "relative_errors": None,
        },
        "warnings": [],
    }  # fmt: skip


def test_the_size_farthest_from_the_curve_is_named(result):
    text = summary(result)

    assert "5 sizes of 100,000 to 8,100,000 parameters, a factor of 81" in text
    assert "the same 24 images (264 tokens)" in text
    assert re.search(r"below 0\.99: 2700000x1x1 lies \+1\d\.\d\d% off the curve", text)
    assert "Not trained yet: big." in text
    assert "For big with 100,000,000 parameters, the law predicts a loss of " in text


def test_a_held_out_size_that_diverged_is_not_waited_for(result):
    def trained(result):
        (table,) = (t for t in result_tables(result) if t["heading"] == "Held-out size")
        return {row[4] for row in table["rows"]}

    assert trained(result) == {"not trained yet"}
    assert trained(result | {"left_out": [{"size": "big", "reason": "r"}]}) == {"left out"}


def test_too_few_sizes_make_a_page_without_laws(result, tmp_path):
    few = {"parameters": None, "compute": None, "held_out": None, "sizes": result["sizes"][:3]}

    file = write_scaling_report(tmp_path, result | few | {"waiting": []})

    page = file.read_text()
    assert "They are too few to fit laws to." in page
    assert "<h2>Sizes</h2>" in page
    assert "<h2>Exponents</h2>" not in page
    assert page.count("data:image/png;base64,") == 2
    assert json.loads((tmp_path / "scaling.json").read_text())["parameters"] is None


def test_nothing_trained_is_said():
    assert summary({"sizes": [], "waiting": ["a", "b"]}) == (
        "No size is trained yet; 2 are waiting."
    )
