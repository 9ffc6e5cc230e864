"""A ladder of tiny transformers: trained once, resumed, fitted, reported, and checked."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from training.transformer_runs import log_lines, settings, write_inputs

from var_hf import VARConfig, VARPipeline
from var_hf.costs import matrix_parameters, training_flops
from var_hf.training import scaling
from var_hf.training.scaling import ScalingConfig, measure_run, model_config, train_ladder
from var_hf.training.tokenizer import DivergedError
from var_hf.training.transformer_config import TransformerTrainingConfig, read_recipe

SIZES = ("12x1x2", "20x1x2", "28x2x7", "36x2x3")
HELD_OUT = "44x3x4"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def ladder(inputs, **changes):
    values = settings(inputs) | {
        "sizes": SIZES,
        "held_out": HELD_OUT,
        "validation": str(inputs / "images"),
        "architecture": {"drop_path_rate": 0.3},
        "copies": 1,
        "num_train_epochs": 2,
        "eval_steps": 0.4,
        "save_steps": 3,
        "bootstrap": 50,
    }
    return ScalingConfig(**values | changes)


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """A ladder that was interrupted after two sizes and went on, and its report until then."""
    output = tmp_path_factory.mktemp("finished") / "ladder"
    real = scaling.train_transformer

    def interrupted(config, folder):
        if folder.name == SIZES[2]:
            raise KeyboardInterrupt
        return real(config, folder)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scaling, "train_transformer", interrupted)
        train_ladder(ladder(inputs), output)
    partial = (output / "report.html").read_text()
    return output, train_ladder(ladder(inputs), output), partial


def test_an_interrupted_ladder_has_a_report_of_what_is_finished(finished):
    _, _, partial = finished

    assert "They are too few to fit laws to." in partial
    assert f"Not trained yet: {', '.join([*SIZES[2:], HELD_OUT])}." in partial


def test_every_size_is_trained_on_the_same_tokens_and_measured(finished):
    output, result, _ = finished

    assert [rung["size"] for rung in result["sizes"]] == list(SIZES)
    assert len(list(output.glob("**/shard-*.safetensors"))) == 2  # encoded once, for all
    for rung in result["sizes"]:
        config = VARConfig.from_pretrained(output / rung["size"] / "pipeline" / "transformer")
        width, layers, heads = map(int, rung["size"].split("x"))
        assert (config.hidden_size, config.num_hidden_layers) == (width, layers)
        assert config.num_attention_heads == heads
        assert config.drop_path_rate == 0.3
        assert rung["parameters"] == matrix_parameters(config) == 18 * layers * width**2
        # 18 images, two epochs, batches of eight: five steps, measured after two, four and five.
        assert rung["curve"]["images"] == [16, 32, 40]
        assert rung["curve"]["compute"][-1] == 40 * training_flops(config) / 1e15
        last = log_lines(output / rung["size"], "evaluation")[-1]
        assert rung["loss"] == last["loss"]
        assert rung["error_finest_scale"] == 1 - last["accuracy_finest_scale"]
    pipe = VARPipeline.from_pretrained(output / SIZES[0] / "pipeline")
    assert pipe.transformer.config.hidden_size == 12


def test_the_held_out_size_is_predicted_from_the_others_and_then_measured(finished):
    _, result, _ = finished

    held_out, laws = result["held_out"], result["parameters"]
    assert held_out["size"] == held_out["measured"]["size"] == HELD_OUT
    assert held_out["parameters"] == 18 * 3 * 44**2
    law = laws["loss"]["with_floor"]
    predicted = (law["scale"] * held_out["parameters"] / 1e9) ** law["exponent"] + law["floor"]
    assert predicted == pytest.approx(law["prediction"]["value"], rel=1e-6)
    assert held_out["relative_errors"]["loss"] == pytest.approx(
        predicted / held_out["measured"]["loss"] - 1, abs=1e-6
    )


def test_the_report_holds_plots_laws_and_the_papers_exponents(finished):
    output, result, _ = finished

    page = (output / "report.html").read_text()
    assert result["report"] == str(output / "report.html")
    assert page.count("data:image/png;base64,") == 2
    for text in ("-0.23", "-0.0067", HELD_OUT, "Trained afterwards", "Held-out size"):
        assert text in page
    stored = json.loads((output / "scaling.json").read_text())
    assert stored == json.loads(json.dumps({k: v for k, v in result.items() if k != "report"}))
    assert {"parameters.png", "compute.png"} <= {file.name for file in output.iterdir()}


def test_a_finished_ladder_is_not_trained_again(finished, inputs):
    output, result, _ = finished
    weights = [output / size / "pipeline" / "transformer" for size in (*SIZES, HELD_OUT)]
    written = [(folder / "model.safetensors").stat().st_mtime_ns for folder in weights]

    again = train_ladder(ladder(inputs, bootstrap=40), output)  # a setting that touches no model

    assert again["sizes"] == result["sizes"]
    assert written == [(folder / "model.safetensors").stat().st_mtime_ns for folder in weights]


LADDER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import conftest
from var_hf.training.scaling import ScalingConfig, train_ladder
train_ladder(ScalingConfig.from_values(json.loads(sys.argv[2]), {}), sys.argv[3])
"""


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(finished, inputs, tmp_path):
    output, _, _ = finished
    config = ladder(
        inputs, held_out=None, data=None, validation=None,
        token_cache=str(output / "tokens"), validation_cache=str(output / "tokens-validation"),
    )  # fmt: skip
    (tmp_path / "ladder.py").write_text(LADDER)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--main_process_port", "0", str(tmp_path / "ladder.py")]

    subprocess.run(
        [*launch, str(Path(__file__).parents[1]), json.dumps(config.to_dict()), tmp_path / "run"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        check=True,
        stderr=subprocess.DEVNULL,
    )

    result = json.loads((tmp_path / "run" / "scaling.json").read_text())
    for got, expected in zip(result["sizes"], finished[1]["sizes"], strict=True):
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert got["curve"]["images"] == expected["curve"]["images"]
    assert result["waiting"] == result["warnings"] == []


def test_other_settings_are_refused(finished, inputs):
    output, _, _ = finished

    with pytest.raises(ValueError, match=r"other settings: num_train_epochs was 2, is 3"):
        train_ladder(ladder(inputs, num_train_epochs=3), output)


def test_a_size_that_diverges_is_left_out_with_a_sentence(
    finished, inputs, tmp_path, monkeypatch, caplog
):
    output, result, _ = finished
    copy = tmp_path / "ladder"
    shutil.copytree(output, copy)
    calls = []

    def diverging(config, folder):
        calls.append(folder.name)
        if folder.name == SIZES[1]:
            raise DivergedError("Step 3: loss became NaN or infinite.")
        return {"steps": 5}

    monkeypatch.setattr(scaling, "train_transformer", diverging)
    reason = "its training diverged. Step 3: loss became NaN or infinite."

    with caplog.at_level("WARNING", logger="var_hf"):
        left = train_ladder(ladder(inputs), copy)

    assert f"{SIZES[1]} is left out: {reason}" in caplog.messages
    assert left["left_out"] == [{"size": SIZES[1], "reason": reason}]
    assert left["sizes"] == [rung for rung in result["sizes"] if rung["size"] != SIZES[1]]
    assert left["parameters"] is left["compute"] is left["held_out"] is None  # three are too few
    assert f"{SIZES[1]} is left out: {reason}" in (copy / "report.html").read_text()
    # What diverged is not tried again.
    calls.clear()
    assert train_ladder(ladder(inputs), copy)["left_out"] == left["left_out"]
    assert SIZES[1] not in calls


@pytest.mark.parametrize("value", [math.nan, math.log(29) + 0.1])
def test_a_loss_that_a_guess_beats_does_not_count(finished, tmp_path, value):
    output, _, _ = finished
    run = tmp_path / "run"
    shutil.copytree(output / SIZES[0], run)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for line in lines:
        if "evaluation" in line and line["step"] == 5:
            line["evaluation"]["loss"] = value
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    reason = measure_run(run, 5, 8)

    assert reason.startswith("its training diverged. Its last loss is ")
    assert "a guess costs 3.367" in reason


def test_a_run_without_its_last_measurement_is_named(finished, tmp_path):
    output, _, _ = finished

    reason = measure_run(output / SIZES[0], 6, 8)

    assert "holds no measurement after the last step, 6" in reason


def test_overfitting_is_a_warning(finished, inputs):
    _, result, _ = finished
    rung = json.loads(json.dumps(result["sizes"][0]))
    rung["curve"]["loss"][1] = rung["loss"] / 1.05

    (warning,) = scaling.summarise(ladder(inputs), [rung], [], [])["warnings"]

    assert warning.startswith(f"{SIZES[0]} overfits: its loss rose from ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": SIZES[:1]}, "at least 4 sizes with different numbers of parameters. Got 1"),
        ({"sizes": ()}, "Got 0 (none)"),
        ({"sizes": (*SIZES, SIZES[0])}, "sizes holds one twice"),
        ({"sizes": (*SIZES[:3], "20x1x4")}, "Got 3"),
        ({"sizes": (*SIZES, "20x1")}, "written WIDTHxLAYERSxHEADS, such as 384x6x6. Got '20x1'"),
        ({"sizes": (*SIZES, "21x1x2")}, "Size 21x1x2: "),
        ({"held_out": SIZES[1]}, "cannot be one of them"),
        ({"architecture": {"hidden_size": 8}}, "architecture: hidden_size follows from sizes"),
        ({"validation": None}, "name them (validation)"),
        ({"tokenizer": None}, "Name the tokenizer that all sizes share"),
        ({"lora_rank": 2}, "leave out lora_rank"),
        ({"bootstrap": 0}, "bootstrap must be above 0"),
    ],
)
def test_bad_input_is_refused(inputs, changes, message):
    with pytest.raises(ValueError) as error:
        ladder(inputs, **changes)

    assert message in str(error.value)


def test_the_recipe_spans_two_decades_with_seven_sizes():
    config = ScalingConfig.from_recipe(data="d", validation="v", tokenizer="t")

    counts = sorted(
        matrix_parameters(model_config(size, config.architecture)) for size in config.sizes
    )
    assert len(counts) >= 7
    assert counts[-1] / counts[0] >= 99
    assert matrix_parameters(model_config(config.held_out, {})) > counts[-1]
    assert "var-hf scaling --recipe scaling " in read_recipe("scaling")["about"]["command"]


def test_the_papers_sizes_have_its_numbers_of_parameters():
    for depth in (6, 16, 30):
        config = model_config(f"{64 * depth}x{depth}x{depth}", {})
        assert matrix_parameters(config) == 73728 * depth**3
        shared = model_config(f"{64 * depth}x{depth}x{depth}", {"share_modulation": True})
        assert matrix_parameters(shared) == 49152 * depth**3


def test_a_size_is_an_ordinary_training(inputs, tmp_path):
    config = ladder(inputs).of_size(SIZES[2], tmp_path / "a", tmp_path / "b")

    assert type(config) is TransformerTrainingConfig
    assert config.architecture["hidden_size"] == 28
    assert (config.data, config.validation) == (None, None)
    assert replace(config, seed=4).seed == 4
