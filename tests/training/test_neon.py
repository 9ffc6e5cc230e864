"""Neon: samples, a short training on them, a scan of steps, and the best one as the result."""

import json
import shutil

import pytest
import torch
from conftest import make_transformer, make_vqvae
from training.post_training_runs import (
    assert_same_lines,
    same_weights,
    settings,
    train_on_two_processes,
    weights,
    write_inputs,
)

from var_hf import VARPipeline
from var_hf.evaluation.classifier import SmallClassifier, save_classifier
from var_hf.provenance import read_provenance, verify
from var_hf.training.neon import NeonConfig, train_neon
from var_hf.training.token_cache import TokenCache


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Images, a pipeline, and features of images of ten pixels."""
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    torch.manual_seed(0)
    classifier = SmallClassifier(3, (8, 16))
    save_classifier(classifier.eval(), ["apple", "fox", "rocket"], folder / "features.safetensors")
    return folder


def options(inputs, **changes):
    own = {
        "samples_per_class": 4,
        "scan_per_class": 3,
        "weights": (0.0, 1.5),
        "guidance_scales": (1.0, 2.0),
        "features": str(inputs / "features.safetensors"),
        "metric": "sfid",
    }
    return settings(inputs, batch_size=6, **own) | changes


def config(inputs, **changes):
    return NeonConfig(**options(inputs, **changes))


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    output = tmp_path_factory.mktemp("finished") / "run"
    return output, train_neon(config(inputs), output)


def test_the_model_is_trained_on_its_own_samples(finished, inputs):
    output, _ = finished

    samples = TokenCache(output / "samples")
    assert samples.class_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert samples.config["settings"]["guidance_scale"] == 3.0  # as stored with the model
    tuned = read_provenance(output / "self-trained" / "pipeline")["options"]
    assert tuned["steps"] == 2
    assert not same_weights(weights(output / "self-trained" / "pipeline"), weights(inputs / "base"))


def test_the_result_is_the_best_step_of_the_scan(finished, inputs):
    output, result = finished

    points = json.loads((output / "scan.json").read_text())["points"]
    assert [(p["weight"], p["guidance_scale"]) for p in points] == [
        (0.0, 1.0), (0.0, 2.0), (1.5, 1.0), (1.5, 2.0),
    ]  # fmt: skip
    best = min(points, key=lambda point: point["sfid"])
    assert (result["weight"], result["guidance_scale"]) == (best["weight"], best["guidance_scale"])
    pipe = VARPipeline.from_pretrained(result["pipeline"])
    assert pipe.scheduler.config.guidance_scale == best["guidance_scale"]
    base, tuned = weights(inputs / "base"), weights(output / "self-trained" / "pipeline")
    for name, tensor in weights(result["pipeline"]).items():
        assert torch.equal(tensor, base[name] + best["weight"] * (base[name] - tuned[name]))


def test_the_result_names_method_base_and_scan(finished):
    output, result = finished

    assert verify(output / "pipeline").ok
    options = read_provenance(output / "pipeline")["options"]
    assert options["merge"]["weight"] == result["weight"]
    about = options["post_training"]
    assert (about["method"], about["metric"]) == ("neon", "sfid")
    assert about["base_sha256"] == options["merge"]["base_sha256"]
    assert len(about["scan"]) == 4
    card = (output / "pipeline" / "README.md").read_text()
    assert "negative extrapolation from self-training (Neon, arXiv 2510.03597)" in card


def test_a_run_that_was_cut_off_ends_like_a_whole_one(finished, inputs, tmp_path):
    """Killed after the first step of the scan, with the last checkpoint of the training lost."""
    output = tmp_path / "run"
    train_neon(config(inputs), output)
    (output / "scan.json").unlink()
    shutil.rmtree(output / "pipeline")
    shutil.rmtree(output / "scan" / "weight-1.5-guidance-1")
    shutil.rmtree(max((output / "self-trained" / "checkpoints").iterdir()))

    result = train_neon(config(inputs), output)

    assert result["scan"] == finished[1]["scan"]
    assert same_weights(weights(result["pipeline"]), weights(finished[1]["pipeline"]))


@pytest.mark.slow
def test_two_processes_give_the_scan_of_one(finished, inputs, tmp_path):
    output = tmp_path / "run"

    train_on_two_processes("neon", options(inputs), output)

    assert_same_lines(finished[0] / "self-trained", output / "self-trained", ("loss", "accuracy"))
    points = json.loads((output / "scan.json").read_text())["points"]
    assert [point["weight"] for point in points] == [0.0, 0.0, 1.5, 1.5]
    for expected, got in zip(finished[1]["scan"][:2], points[:2], strict=True):  # of the base
        assert got["sfid"] == pytest.approx(expected["sfid"], rel=1e-3)
    assert verify(output / "pipeline").ok


def test_a_weight_of_zero_is_bit_for_bit_the_base(inputs, tmp_path):
    result = train_neon(config(inputs, weights=(0.0,), guidance_scales=()), tmp_path / "run")

    assert same_weights(weights(result["pipeline"]), weights(inputs / "base"))
    assert result["guidance_scale"] == 3.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": (float("nan"),)}, r"weights must be .* finite number.* Got \(?\[?nan"),
        ({"weights": ()}, "weights must name at least one step to try. Got none"),
        ({"metric": "is"}, "metric must be one of fid, sfid, inception_score, .* Got 'is'"),
        ({"data": None}, "measures against real ones: name these"),
        ({"token_cache": "tokens"}, "leave out token_cache"),
        ({"new_classes": True}, "leave out new_classes"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        NeonConfig(**{"model": "m", "data": "d"} | changes)


def test_a_transformer_alone_is_refused(inputs, tmp_path):
    make_transformer(num_classes=3).save_pretrained(tmp_path / "transformer")
    make_vqvae().save_pretrained(tmp_path / "vqvae")

    with pytest.raises(ValueError, match="Post-training starts from a pipeline"):
        train_neon(config(inputs, model=str(tmp_path / "transformer")), tmp_path / "run")
