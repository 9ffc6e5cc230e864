"""`var-hf post-train`: options become settings, and the result is a pipeline."""

import json

import pytest
from training.post_training_runs import same_weights, weights, write_inputs

from var_hf.training import cca


def test_the_command_trains_and_prints_the_pipeline(tmp_path, var_hf):
    inputs, run = write_inputs(tmp_path / "inputs"), tmp_path / "run"

    code, out, err = var_hf(
        "post-train", "cca", "--model", inputs / "base", "--data", inputs / "images",
        "--beta", 0, "--batch-size", 8, "--set", "sample_steps=0", "-o", run,
    )  # fmt: skip

    assert code == 0, err
    assert out == f"{run / 'pipeline'}\n"
    assert same_weights(weights(run / "pipeline"), weights(inputs / "base"))
    stored = json.loads((run / "config.json").read_text())
    assert (stored["kind"], stored["beta"], stored["lambda_"]) == ("cca", 0, 50)


def test_options_become_settings(monkeypatch, var_hf):
    seen = []
    monkeypatch.setattr(
        cca, "train_cca", lambda config, output: seen.append(config) or {"pipeline": "x"}
    )

    code, _, err = var_hf(
        "post-train", "cca", "-m", "m", "--data", "d", "--lambda", 7, "--reference", "r",
        "--lora-rank", 4, "--num-train-epochs", 0.5, "--learning-rate", 0.001, "-o", "run",
    )  # fmt: skip

    assert code == 0, err
    (config,) = seen
    assert (config.lambda_, config.reference, config.lora_rank) == (7, "r", 4)
    assert (config.num_train_epochs, config.learning_rate) == (0.5, 0.001)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cca", "--beta", "-1"), "beta must be at least 0. Got -1.0."),
        (("neon", "--beta", "1"), "neon: unknown settings beta."),
        (("neon", "--weight", "nan"), "weights must be"),
        (("ddo", "--rounds", "0"), "rounds must be above 0. Got 0."),
        (("ddo", "--set", "new_classes=true"), "leave out new_classes"),
    ],
)
def test_bad_input_is_one_line(fails, arguments, message):
    method, *rest = arguments
    assert message in fails("post-train", method, "-m", "m", "--data", "d", "-o", "run", *rest)
