"""`var-hf scaling`: options become settings, and the result is a report."""

import json

import pytest

from var_hf.training import scaling

NEEDED = ("--data", "d", "--validation", "v", "--tokenizer", "t", "-o", "run")
FOUR = ("--size", "12x1x2", "--size", "20x1x2", "--size", "28x2x7", "--size", "36x2x3")


@pytest.fixture
def seen(monkeypatch):
    configs = []
    monkeypatch.setattr(
        scaling,
        "train_ladder",
        lambda config, output: configs.append(config) or {"report": f"{output}/report.html"},
    )
    return configs


def test_options_become_settings_and_the_report_is_printed(seen, var_hf):
    code, out, err = var_hf(
        "scaling", *NEEDED, *FOUR, "--held-out", "44x3x4", "--num-train-epochs", 0.5,
        "--set", "bootstrap=7",
    )  # fmt: skip

    assert code == 0, err
    assert out == "run/report.html\n"
    (config,) = seen
    assert config.sizes == ("12x1x2", "20x1x2", "28x2x7", "36x2x3")
    assert (config.held_out, config.num_train_epochs, config.bootstrap) == ("44x3x4", 0.5, 7)
    assert config.optimizer == "muon"  # from the recipe


def test_other_sizes_come_without_the_recipes_held_out_one(seen, var_hf):
    assert var_hf("scaling", *NEEDED, *FOUR)[0] == 0
    assert var_hf("scaling", *NEEDED)[0] == 0

    assert [config.held_out is None for config in seen] == [True, False]


def test_the_result_as_json(seen, var_hf):
    _, out, _ = var_hf("scaling", *NEEDED, "--json")

    assert json.loads(out) == {"report": "run/report.html"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "12x1x2"), "A law needs at least 4 sizes"),
        ((*FOUR, "--held-out", "large"), "A size is written WIDTHxLAYERSxHEADS"),
        (("--set", "lora_rank=4"), "leave out lora_rank"),
        (("--recipe", "d16"), "architecture: hidden_size follows from sizes. Leave it out."),
    ],
)
def test_bad_input_is_one_line(fails, arguments, message):
    assert message in fails("scaling", *NEEDED, *arguments)
