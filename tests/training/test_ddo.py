"""DDO: the paper's loss in float64, and rounds that can be interrupted."""

import math
import shutil

import pytest
import torch
from conftest import make_pipe, make_vqvae, seeded
from training.post_training_runs import (
    assert_same_lines,
    logged,
    same_weights,
    settings,
    train_on_two_processes,
    weights,
    write_inputs,
)
from training.transformer_runs import write_cache

from var_hf import VARPipeline
from var_hf.evaluation.sample_plan import image_seed
from var_hf.provenance import read_provenance, verify
from var_hf.training.ddo import DDOConfig, RealFakeDataset, ddo_loss, train_ddo
from var_hf.training.own_samples import draw_samples
from var_hf.training.token_cache import TokenCache, TokenDataset


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def config(inputs, **changes):
    return DDOConfig(**settings(inputs, samples_per_class=2) | changes)


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """Two rounds."""
    output = tmp_path_factory.mktemp("finished") / "run"
    return output, train_ddo(config(inputs, rounds=2), output)


# ------------------------------------------------------------------ against the paper's formula


@pytest.mark.parametrize(("beta", "alpha"), [(1.0, 1.0), (0.02, 3.0), (0.7, 0.0), (0.0, 2.0)])
def test_loss_and_gradients_are_those_of_the_papers_formula(beta, alpha):
    """``-E log D(x) - alpha E log(1 - D(x_fake))`` with ``D = sigmoid(beta log(p / p_ref))``."""
    real, fake = (3 * torch.randn(5, generator=seeded(n)) for n in (1, 2))
    ours = [tensor.clone().requires_grad_() for tensor in (real, fake)]
    direct = [tensor.double().requires_grad_() for tensor in (real, fake)]

    def discriminator(log_ratio):
        ratio = log_ratio.exp() ** beta  # of the probabilities
        return ratio / (1 + ratio)

    expected = -discriminator(direct[0]).log().mean()
    expected = expected - alpha * (1 - discriminator(direct[1])).log().mean()
    loss = ddo_loss(*ours, beta, alpha)
    loss.backward()
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for one, other in zip(ours, direct, strict=True):
        assert torch.allclose(one.grad.double(), other.grad, rtol=1e-5, atol=1e-8)


# ------------------------------------------------------------------ drawn images


def test_the_drawn_tokens_are_those_that_the_pipeline_decodes(tmp_path):
    pipe = make_pipe()
    settings = {"guidance_scale": 1.0, "top_k": 0, "top_p": 1.0}

    cache = draw_samples(pipe, tmp_path / "fakes", [4, 2], 3, settings=settings, seed=5)

    assert cache.class_labels.tolist() == [4, 4, 4, 2, 2, 2]
    tokens = torch.stack([cache.tokens(number) for number in range(6)])
    assert len({tuple(row) for row in tokens.tolist()}) == 6
    assert tokens.shape == (6, 39)
    images = pipe(
        [4, 4, 4, 2, 2, 2],
        generator=[seeded(image_seed(5, label, i)) for label in (4, 2) for i in range(3)],
        output_type="pt",
        **settings,
    ).images
    latents = pipe.vqvae.quantizer.decode(pipe.vqvae.quantizer.split(tokens))
    assert torch.allclose(images, pipe.decode(latents, "pt"), atol=1e-5)


def test_drawing_goes_on_with_the_missing_shards_and_belongs_to_its_settings(tmp_path, monkeypatch):
    monkeypatch.setattr("var_hf.training.own_samples.SHARD_SIZE", 3)
    folder = tmp_path / "fakes"
    whole = draw_samples(make_pipe(), folder, [1, 3], 4, settings={}, batch_size=2)
    shards = sorted(folder.glob("shard-*"))
    before = [file.read_bytes() for file in shards]
    shards[1].unlink()

    again = draw_samples(make_pipe(), folder, [1, 3], 4, settings={}, batch_size=2)

    assert [file.read_bytes() for file in shards] == before
    assert torch.equal(again.class_labels, whole.class_labels)
    with pytest.raises(ValueError, match=r"made with other settings.*seed was 0, is 1"):
        draw_samples(make_pipe(), folder, [1, 3], 4, settings={}, batch_size=2, seed=1)
    with pytest.raises(ValueError, match=r"unknown sampling setting.*topk"):
        draw_samples(make_pipe(), folder, [1], 4, settings={"topk": 3})


def test_a_real_image_meets_a_drawn_one_of_its_class(tmp_path):
    fakes = write_cache(
        tmp_path / "fakes",
        torch.arange(6)[:, None].expand(6, 39),
        torch.tensor([7, 7, 9, 9, 9, 7]),
        make_vqvae(),
    )
    real = write_cache(tmp_path / "real", torch.zeros(2, 39), torch.tensor([0, 1]), make_vqvae())
    samples = RealFakeDataset(TokenDataset(real, 3, seed=4, class_ids=[9, 7]), fakes)

    drawn = [{int(samples[e, i]["fakes"][0]) for e in range(60)} for i in range(2)]

    assert drawn == [{2, 3, 4}, {0, 1, 5}]
    assert torch.equal(samples[8, 1]["fakes"], samples[8, 1]["fakes"])
    with pytest.raises(ValueError, match="No image of class 8 was drawn"):
        RealFakeDataset(TokenDataset(real, 3, seed=4, class_ids=[9, 8]), fakes)


# ------------------------------------------------------------------ rounds


def test_each_round_starts_from_the_last_one_which_is_its_reference(finished, inputs):
    output, result = finished

    for number in (1, 2):
        run = output / f"round-{number}"
        first = logged(run)[0]
        assert first["log_ratio"] == pytest.approx(0, abs=1e-3)
        assert first["loss"] == pytest.approx(2 * math.log(2), abs=1e-3)
    assert same_weights(weights(result["pipeline"]), weights(output / "round-2" / "pipeline"))
    assert not same_weights(
        weights(output / "round-1" / "pipeline"), weights(output / "round-2" / "pipeline")
    )
    fakes = [TokenCache(output / f"round-{number}" / "fakes") for number in (1, 2)]
    assert fakes[0].config["images"] != fakes[1].config["images"]
    assert fakes[0].config["settings"]["guidance_scale"] == 1.0


def test_the_result_names_method_rounds_and_the_first_base(finished, inputs):
    output, result = finished

    assert (result["pipeline"], result["rounds"]) == (str(output / "pipeline"), 2)
    pipe = VARPipeline.from_pretrained(result["pipeline"])
    assert pipe.scheduler.config.guidance_scale == 1.0
    assert verify(output / "pipeline").ok
    about = read_provenance(output / "pipeline")["options"]["post_training"]
    first = read_provenance(output / "round-1" / "pipeline")["options"]["post_training"]
    assert (about["method"], about["round"]) == ("ddo", 2)
    assert about["base_sha256"] == first["base_sha256"]
    card = (output / "pipeline" / "README.md").read_text()
    assert "direct discriminative optimisation (DDO, arXiv 2503.01103)" in card
    assert "round-2" not in card


def test_a_run_that_was_cut_off_and_given_another_round_ends_like_a_whole_one(
    finished, inputs, tmp_path
):
    output = tmp_path / "run"
    train_ddo(config(inputs), output)
    shutil.rmtree(max((output / "round-1" / "checkpoints").iterdir()))
    (output / "round-1" / "fakes" / "shard-00000.safetensors").unlink()

    train_ddo(config(inputs, rounds=2), output)

    for folder in ("round-1/pipeline", "pipeline"):
        assert same_weights(weights(output / folder), weights(finished[0] / folder))


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(finished, inputs, tmp_path):
    """Both draw their share of the images."""
    options = settings(inputs, samples_per_class=2, rounds=2)

    train_on_two_processes("ddo", options, tmp_path / "run")

    names = ("loss", "grad_norm", "log_ratio", "log_ratio_fakes", "accuracy")
    for part in ("round-1", "round-2"):
        assert_same_lines(finished[0] / part, tmp_path / "run" / part, names)


def test_a_beta_of_zero_is_bit_for_bit_no_training(inputs, tmp_path):
    changes = {"beta": 0.0, "weight_decay": 0.0, "final_weight_decay": 0.0}

    result = train_ddo(config(inputs, **changes), tmp_path / "run")

    assert same_weights(weights(result["pipeline"]), weights(inputs / "base"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": -1.0}, r"alpha must be at least 0\. Got -1\.0"),
        ({"beta": -1.0}, r"beta must be at least 0\. Got -1\.0"),
        ({"rounds": 0}, r"rounds must be above 0\. Got 0"),
        ({"samples_per_class": 0}, r"samples_per_class must be above 0\. Got 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DDOConfig(**{"model": "m", "data": "d"} | changes)
