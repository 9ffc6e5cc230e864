import json

import pytest
from conftest import make_vqvae
from image_files import write_image_folder
from training.transformer_runs import CLASSES

from var_hf.training import scaling
from var_hf.training.scaling import Point, Rung, Size, check_sizes, summarize, train_ladder
from var_hf.training.scaling_report import report_text
from var_hf.training.tokenizer import DivergedError
from var_hf.training.transformer_config import TransformerTrainingConfig

SIZES = ("1x8", "1x16", "2x24", "3x32")


def config(folder, **changes):
    return TransformerTrainingConfig(
        **{
            "data": str(folder / "images"),
            "validation": str(folder / "images"),
            "tokenizer": str(folder / "vqvae"),
            "resize_factor": 1.0,
            "random_crop": False,
            "num_train_epochs": 2,
            "global_batch_size": 6,
            "base_learning_rate": 0.1,
            "evaluate_every": 2,
            "log_every": 2,
            "checkpoint_every": 6,
            **changes,
        }
    )


def ladder(exponent=-0.3, offset=1.0, failures=()):
    """Rungs whose losses follow a law exactly."""
    rungs = []
    for number, size in enumerate((*SIZES, "4x48", "5x64")):
        parameters = 10_000 * 3**number
        points = []
        for step in (1, 2, 4):
            loss = (parameters / 1e6) ** exponent + offset + 1 / step
            cost = 6 * parameters * step * 100 / 1e15
            points.append(Point(step * 100, cost, loss, loss + 0.5, loss / 10, loss / 8))
        failed = size in failures
        rungs.append(
            Rung(size, 0, (), f"{size} is left out of the fits, because")
            if failed
            else Rung(size, parameters, tuple(points))
        )
    return rungs


@pytest.mark.parametrize(("text", "heads"), [("4x160", 5), ("2x64", 1), ("8x352", 11), ("1x8", 1)])
def test_a_size_is_depth_and_width(text, heads):
    size = Size.parse(text)

    assert str(size) == text
    assert size.architecture()["num_attention_heads"] == heads
    assert size.width % heads == 0


@pytest.mark.parametrize("text", ["4", "x", "4x", "0x64", "4x0", "-4x64", "4x64x2", "4x100"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="Got '" + text):
        Size.parse(text)


@pytest.mark.parametrize(
    ("sizes", "held_out", "message"),
    [
        (("4x160",), None, r"at least 4 sizes.*Got 1 \(4x160\)"),
        (("1x8", "1x8", "2x24", "3x32"), None, "given twice"),
        (SIZES, "2x24", "held-out size 2x24 is in the ladder"),
    ],
)
def test_a_ladder_that_makes_no_law_is_refused(sizes, held_out, message):
    with pytest.raises(ValueError, match=message):
        check_sizes(sizes, held_out)


def test_the_default_sizes_cover_two_decades():
    sizes = check_sizes(scaling.DEFAULT_SIZES, scaling.DEFAULT_HELD_OUT)

    costs = [size.layers * size.width**2 for size in sizes]
    assert len(sizes) >= 7
    assert costs[-1] / costs[0] > 100


def test_the_laws_and_the_prediction_of_an_exact_ladder():
    *rungs, last = ladder()

    result = summarize([*rungs], last)

    law = result["laws"]["loss"]
    assert law["parameters"]["exponent"] == pytest.approx(-0.3, abs=0.01)
    assert abs(law["held_out"]["relative_error"]) < 1e-3
    assert law["held_out"]["measured"] == last.points[-1].loss
    assert result["tokens"] == 400
    costs = [cost for cost, _ in law["frontier"]]
    assert costs == sorted(costs)
    assert json.loads(json.dumps(result))["laws"].keys() == set(scaling.QUANTITIES)


def test_a_diverged_size_is_left_out_with_a_sentence():
    everything, without = ladder(), ladder(failures=("2x24",))

    result = summarize(without, None)

    assert result["left_out"] == ["2x24 is left out of the fits, because"]
    assert result["laws"]["loss"]["parameters"]["exponent"] == pytest.approx(-0.3, abs=0.01)
    assert len(result["rungs"]) == len(everything)
    text = report_text(result)
    assert "2x24 is left out of the fits, because" in text
    assert "| 2x24 |" not in text


def test_a_diverged_held_out_size_is_reported():
    *rungs, _ = ladder()
    failed = Rung("5x64", 0, (), "5x64 is left out of the fits, because")

    text = report_text(summarize(rungs, failed))

    assert "5x64 is left out of the fits" in text


def test_too_few_sizes_left_is_an_error():
    with pytest.raises(ValueError, match=r"Only 3 sizes can be fitted.*1x8 is left out"):
        summarize(ladder(failures=("1x8", "2x24", "4x48")), None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": {"hidden_size": 8}}, "leave out hidden_size"),
        ({"validation": None}, "measured on unseen images"),
    ],
)
def test_settings_that_make_no_ladder_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train_ladder(config(tmp_path, **changes), SIZES, None, tmp_path / "ladder")


def test_a_ladder_is_trained_and_continued_and_reported(tmp_path, monkeypatch):
    write_image_folder(tmp_path / "images", CLASSES, count=4)
    make_vqvae().save_pretrained(tmp_path / "vqvae")
    output = tmp_path / "ladder"
    trained = []
    real = scaling.train_transformer

    def train(settings, run):
        trained.append(run.name)
        if run.name == "2x24":
            raise DivergedError("the loss became NaN")
        return real(settings, run)

    monkeypatch.setattr(scaling, "train_transformer", train)

    def interrupted(settings, run):
        if run.name == "3x32":
            raise KeyboardInterrupt
        return train(settings, run)

    with monkeypatch.context() as context:
        context.setattr(scaling, "train_transformer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_ladder(config(tmp_path), (*SIZES, "2x16"), "2x8", output)
    assert not (output / "scaling.json").exists()
    before = (output / "runs" / "1x8" / "log.jsonl").read_bytes()

    result = train_ladder(config(tmp_path), (*SIZES, "2x16"), "2x8", output)

    assert (output / "runs" / "1x8" / "log.jsonl").read_bytes() == before
    assert json.loads((output / "scaling.json").read_text()) == json.loads(json.dumps(result))
    assert "2x24 is left out of the fits" in (output / "report.md").read_text()
    for name in ("parameters.png", "compute.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")
    assert trained[-1] == "2x8"
    good = [rung for rung in result["rungs"] if rung["failure"] is None]
    assert [rung["size"] for rung in good] == ["1x8", "1x16", "2x16", "3x32"]
    assert [rung["parameters"] for rung in good] == sorted(rung["parameters"] for rung in good)
    steps, length = 4, sum(side**2 for side in make_vqvae().quantizer.token_map_sizes)
    assert result["tokens"] == steps * 6 * length
