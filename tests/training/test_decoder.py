from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_pipe, make_transformer, make_vqvae
from image_files import write_image_folder
from training.transformer_runs import CLASSES

from var_hf import MultiScaleVQVAE, VARPipeline
from var_hf.images import ImageTransform, TrainingSamples, collate, normalize, open_images
from var_hf.provenance import read_provenance
from var_hf.training import decoder as decoder_module
from var_hf.training import tokenizer as tokenizer_module
from var_hf.training.decoder import decoder_config, num_decoder_steps
from var_hf.training.transformer import train_transformer
from var_hf.training.transformer_config import TransformerTrainingConfig

SIZES = (1, 2, 4, 7)  # images of 14 pixels: SSIM needs 11


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_image_folder(folder / "images", CLASSES, count=7)
    transformer, vqvae = (make(token_map_sizes=SIZES) for make in (make_transformer, make_vqvae))
    make_pipe(transformer=transformer, vqvae=vqvae).save_pretrained(folder / "pipe")
    return folder


@pytest.fixture(scope="module")
def config(inputs):
    return TransformerTrainingConfig.from_recipe(
        "fine-tune", data=str(inputs / "images"), model=str(inputs / "pipe"), new_classes=True,
        decoder_steps=6, decoder_learning_rate=3e-3, batch_size=5, num_train_epochs=1,
        sample_steps=0, copies=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The folder and the result of an uninterrupted run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    return run, train_transformer(config, run)


def weights(folder):
    return MultiScaleVQVAE.from_pretrained(folder).state_dict()


def test_the_saved_pipeline_has_the_tuned_decoder_and_says_so(whole, inputs):
    run, result = whole

    before, after = weights(inputs / "pipe" / "vqvae"), weights(f"{result['pipeline']}/vqvae")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    learn = ("decoder.", "post_quant_conv.")
    assert {name for name in before if name.startswith(learn)} == {
        name for name in changed if name != "quantizer.codebook_usage"
    }
    facts = read_provenance(result["pipeline"])["options"]["decoder"]
    assert facts["steps"] == 6
    assert facts["psnr_after"] > facts["psnr_before"]
    pipe = VARPipeline.from_pretrained(result["pipeline"])
    card = (run / "pipeline" / "README.md").read_text()
    assert "6 steps trained the tokenizer's decoder" in card
    assert f"{facts['psnr_after']} dB, and {facts['psnr_before']} dB before" in card
    images = open_images(inputs / "images")
    samples = TrainingSamples(images, ImageTransform(14))
    pixels = normalize(collate([samples[0, index] for index in range(9)])[0])
    old = VARPipeline.from_pretrained(inputs / "pipe").vqvae
    with torch.no_grad():
        for one, other in zip(
            old.encode(pixels).token_maps, pipe.vqvae.encode(pixels).token_maps, strict=True
        ):
            assert one.equal(other)
        errors = [(vqvae.reconstruct(pixels) - pixels).abs().mean() for vqvae in (old, pipe.vqvae)]
    assert errors[1] < errors[0]


def test_an_interrupted_decoder_goes_on_to_the_same_pipeline(config, whole, tmp_path, monkeypatch):
    save_file, saved = tokenizer_module.save_file, []

    def full_at_the_second_checkpoint(tensors, file):
        saved.append(file)
        if len(saved) > 2:  # each checkpoint writes two files
            raise OSError(28, "No space left on device")
        save_file(tensors, file)

    with monkeypatch.context() as patch:
        patch.setattr(tokenizer_module, "save_file", full_at_the_second_checkpoint)
        with pytest.raises(OSError, match="step 6 could not be written"):
            train_transformer(config, tmp_path / "cut")
    assert not (tmp_path / "cut" / "pipeline").exists()

    result = train_transformer(config, tmp_path / "cut")

    for part in ("vqvae/diffusion_pytorch_model", "transformer/model"):
        files = [Path(run["pipeline"]) / f"{part}.safetensors" for run in (whole[1], result)]
        assert files[0].read_bytes() == files[1].read_bytes(), part
    facts = [read_provenance(run["pipeline"])["options"]["decoder"] for run in (whole[1], result)]
    assert facts[0] == facts[1]


def test_a_finished_decoder_is_not_trained_again(config, whole, monkeypatch):
    run, first = whole
    log = (run / "decoder" / "log.jsonl").read_text()

    monkeypatch.setattr(tokenizer_module.TokenizerTrainer, "_train_step", None)

    assert train_transformer(config, run) == first
    assert (run / "decoder" / "log.jsonl").read_text() == log


def test_small_tokenizers_are_tuned_to_new_classes_by_default(config, monkeypatch):
    vqvae = make_vqvae()
    automatic = replace(config, decoder_steps=None)

    assert num_decoder_steps(config, vqvae) == 6
    assert num_decoder_steps(replace(config, decoder_steps=0), vqvae) == 0
    assert num_decoder_steps(automatic, vqvae) == 120
    assert num_decoder_steps(replace(automatic, new_classes=False), vqvae) == 0
    tokens_only = replace(automatic, data=None, token_cache="tokens")
    assert num_decoder_steps(tokens_only, vqvae) == 0
    monkeypatch.setattr(decoder_module, "SMALL_TOKENIZER", vqvae.num_parameters())
    assert num_decoder_steps(automatic, vqvae) == 0


def test_the_decoders_rate_falls_with_its_width(config):
    rate_of = [
        decoder_config(replace(config, decoder_learning_rate=given), make_vqvae(**width), 9)
        for given, width in (
            (None, {}),
            (None, {"base_channels": 2 * make_vqvae().config.base_channels}),
            (2e-4, {}),
        )
    ]

    rates = [settings.learning_rate for settings in rate_of]
    assert rates[0] == pytest.approx(0.016 / make_vqvae().config.base_channels)
    assert rates[1] == pytest.approx(rates[0] / 2)
    assert rates[2] == 2e-4


def test_a_decoder_cannot_learn_from_tokens(config):
    with pytest.raises(ValueError, match="decoder_steps train on images, not on tokens"):
        replace(config, data=None, token_cache="tokens")
