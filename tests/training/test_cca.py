"""CCA: the authors' loss and gradients, and runs that can be interrupted and shared."""

import copy
import json
import math
import shutil

import pytest
import torch
from conftest import GOLDEN, make_pipe, make_transformer, make_vqvae, quiet, seeded
from golden.stand_in_weights import stand_in_state_dict
from torch.nn import functional
from training.post_training_runs import (
    NAMES,
    assert_same_lines,
    logged,
    same_weights,
    settings,
    train_on_two_processes,
    weights,
    write_inputs,
)
from training.transformer_runs import write_cache

from var_hf import MultiScaleVQVAE, NextScaleScheduler, VARModel, VARPipeline
from var_hf.provenance import read_provenance, verify
from var_hf.training.cca import CCAConfig, CCATrainer, ContrastiveDataset, cca_loss, train_cca
from var_hf.training.fine_tuning import with_lora
from var_hf.training.reference import log_probability
from var_hf.training.run_folder import RunFolder
from var_hf.training.token_cache import TokenDataset

# PEFT still asks transformers for gradient checkpointing by its old name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    run = tmp_path_factory.mktemp("finished") / "run"
    return run, train_cca(CCAConfig(**settings(inputs)), run)


def make_trainer(folder, model, reference, vqvae, tokens, labels, **changes):
    cache = write_cache(folder / "tokens", tokens, labels, vqvae)
    config = CCAConfig(
        model="given", token_cache=str(folder / "tokens"), batch_size=len(tokens), **changes
    )
    samples = TokenDataset(cache, 1 + 2 * model.config.num_hidden_layers, config.seed)
    return CCATrainer(
        model, vqvae, NextScaleScheduler(), {}, config, RunFolder(folder / "run", {}), samples,
        reference=reference,
    )  # fmt: skip


# ------------------------------------------------------------------ against the authors' code


@pytest.mark.parametrize("number", [0, 1])
def test_loss_and_gradients_are_those_of_the_authors(tmp_path, number):
    """A batch of five: one class is the same twice, and one image gets the null class."""
    golden = json.loads((GOLDEN / "cca.json").read_text())
    case, meta = golden["cases"][number], json.loads((GOLDEN / "adaln-256style.json").read_text())
    sizes = meta["config"]["patch_nums"]
    files = {
        part: stand_in_state_dict(
            {name: shape for name, (_, shape) in meta[f"{part}_tensors"].items()}, sizes
        )
        for part in ("var", "vae")
    }
    vqvae = MultiScaleVQVAE.from_original(files["vae"], token_map_sizes=sizes)
    model = VARModel.from_original(files["var"])
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(0.97)
    tokens, labels, others, noise = (
        torch.tensor(golden[name]) for name in ("tokens", "class_labels", "other_labels", "noise")
    )
    trainer = make_trainer(
        tmp_path, model, reference, vqvae, tokens, labels,
        **{name: case[name] for name in ("beta", "lambda_", "uncond_ratio")},
    )  # fmt: skip

    batch = {
        "class_labels": labels, "other_labels": others, "labels": tokens,
        "dropout_noise": noise[:, None].expand(-1, 5),
    }  # fmt: skip
    loss = trainer.compute_loss(model.train(), batch)
    loss.backward()

    assert loss.item() == pytest.approx(case["loss"], rel=1e-5)
    gradients = VARModel(model.config)
    for ours, parameter in zip(model.parameters(), gradients.parameters(), strict=True):
        parameter.data = ours.grad
    as_released = gradients.to_original()
    norms = {name: as_released[name].norm().item() for name in case["gradient_norms"]}
    assert norms == pytest.approx(case["gradient_norms"], rel=1e-3, abs=1e-6)
    total = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
    assert total == pytest.approx(case["gradient_norm_total"], rel=1e-5)
    of_classes = as_released["class_emb.weight"][:, :4]
    assert torch.allclose(
        of_classes, torch.tensor(case["gradient_of_class_embedding"]), rtol=1e-3, atol=1e-6
    )


def test_log_probabilities_are_summed_over_all_tokens():
    logits, tokens = torch.randn(3, 5, 7, generator=seeded(0)), torch.arange(15).view(3, 5) % 7

    losses = functional.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")

    assert torch.allclose(log_probability(logits, tokens), -losses.sum(dim=1))


def test_a_lambda_below_one_does_not_enlarge_the_loss():
    ratios, others = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])

    loss = cca_loss(ratios, others, torch.tensor([False, False]), 2.0, 0.25)

    sigmoid = torch.sigmoid
    expected = -(sigmoid(2 * ratios).log() + 0.25 * sigmoid(-2 * others).log()).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-6)


# ------------------------------------------------------------------ data and reference


def test_the_other_class_is_that_of_any_image_and_known_from_seed_epoch_and_index(tmp_path):
    labels = torch.tensor([0] * 30 + [2] * 10)
    cache = write_cache(tmp_path / "tokens", torch.zeros(40, 39), labels, make_vqvae())
    samples = ContrastiveDataset(cache, 3, seed=5, class_ids=[7, 0, 9])

    drawn = [int(samples[epoch, 3]["other_labels"]) for epoch in range(400)]

    assert set(drawn) == {7, 9}
    assert 0.65 < drawn.count(7) / 400 < 0.85
    again = ContrastiveDataset(cache, 3, seed=5, class_ids=[7, 0, 9])
    assert [int(again[epoch, 3]["other_labels"]) for epoch in range(400)] == drawn
    plain = TokenDataset(cache, 3, seed=5, class_ids=[7, 0, 9])[1, 3]
    for name, value in plain.items():
        assert torch.equal(samples[1, 3][name], value)


@pytest.mark.parametrize("lora_rank", [0, 3])
def test_the_reference_is_the_base_and_stays_it(inputs, tmp_path, lora_rank):
    """Log-ratios begin at 0 and move; with LoRA there is no second copy."""
    config = CCAConfig(**settings(inputs, lora_rank=lora_rank, num_train_epochs=1))

    result = train_cca(config, tmp_path / "run")

    first, *_, last = logged(tmp_path / "run")
    assert first["log_ratio"] == pytest.approx(0, abs=1e-3)
    assert abs(last["log_ratio"]) > 0.01
    assert not same_weights(weights(result["pipeline"]), weights(inputs / "base"))


def test_adapters_that_are_switched_off_give_the_logits_of_a_copy(tmp_path):
    tokens = torch.randint(29, (4, 39), generator=seeded(1))
    ratios = []
    for reference in (None, make_transformer()):
        torch.manual_seed(3)
        model = with_lora(make_transformer(), 3)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1, generator=seeded(2))
        folder = tmp_path / str(reference is None)
        trainer = make_trainer(folder, model, reference, make_vqvae(), tokens, torch.arange(4))
        copied = reference is not None
        assert (trainer._reference[0] is not None) == copied
        ratios.append(trainer.log_ratios(trainer.model, torch.arange(4), tokens)[0])
        assert all(p.requires_grad == ("lora_" in n) for n, p in trainer.model.named_parameters())
    assert torch.allclose(*ratios, atol=1e-3)
    assert ratios[0].abs().min() > 0.01


# ------------------------------------------------------------------ whole runs


def test_the_result_is_a_pipeline_without_guidance_that_names_method_and_base(finished, inputs):
    run, result = finished

    pipe = quiet(VARPipeline.from_pretrained(result["pipeline"]))

    assert pipe.id2label == dict(enumerate(NAMES))
    assert pipe.scheduler.config.guidance_scale == 1.0
    assert (pipe.scheduler.config.top_k, pipe.scheduler.config.top_p) == (13, 0.9)
    assert pipe("fox", generator=seeded(0)).images[0].size == (10, 10)
    assert verify(run / "pipeline").ok
    options = read_provenance(run / "pipeline")["options"]
    assert options["post_training"]["method"] == "cca"
    assert len(options["post_training"]["base_sha256"]) == 64
    assert options["training"]["lambda_"] == 50
    card = (run / "pipeline" / "README.md").read_text()
    assert "condition contrastive alignment (CCA, arXiv 2410.09347)" in card
    texts = [file.read_text() for file in (run / "pipeline").rglob("*.json")]
    assert not [text for text in [*texts, card] if str(inputs) in text]


def test_a_beta_of_zero_is_bit_for_bit_no_training(inputs, tmp_path):
    result = train_cca(CCAConfig(**settings(inputs, beta=0.0, weight_decay=0.0,
                                            final_weight_decay=0.0)), tmp_path / "run")  # fmt: skip

    assert same_weights(weights(result["pipeline"]), weights(inputs / "base"))


@pytest.mark.parametrize("lora_rank", [0, 3])
def test_a_run_goes_on_alike_from_an_earlier_checkpoint(inputs, tmp_path, lora_rank):
    config = CCAConfig(**settings(inputs, lora_rank=lora_rank))
    train_cca(config, tmp_path / "run")
    expected, before = weights(tmp_path / "run" / "pipeline"), logged(tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    shutil.rmtree(newest)

    train_cca(config, tmp_path / "run")

    assert same_weights(weights(tmp_path / "run" / "pipeline"), expected)
    after = logged(tmp_path / "run")
    for line in (*before, *after):
        line.pop("images_per_second", None)
    assert after == before


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(inputs, finished, tmp_path):
    train_on_two_processes("cca", settings(inputs), tmp_path / "run")

    names = ("loss", "grad_norm", "log_ratio", "told_apart", "accuracy")
    assert_same_lines(finished[0], tmp_path / "run", names)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": -0.1}, r"beta must be at least 0\. Got -0\.1"),
        ({"beta": float("nan")}, r"beta must be a finite number.* Got nan"),
        ({"lambda_": -1.0}, r"lambda_ must be at least 0\. Got -1\.0"),
        ({"uncond_ratio": 1.5}, r"uncond_ratio must be between 0 and 1\. Got 1\.5"),
        ({"new_classes": True}, "keeps the classes and the tokenizer .* leave out new_classes"),
        ({"model": None, "tokenizer": "t"}, r"Name the pipeline to post-train \(model\)"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CCAConfig(**{"model": "m", "data": "d"} | changes)


def changed_codebook():
    vqvae = make_vqvae()
    with torch.no_grad():
        vqvae.quantizer.codebook.weight[3, 1] += 1
    return vqvae


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"transformer": lambda: make_transformer(num_classes=4)}, "do not have the same shape"),
        ({"vqvae": changed_codebook}, "different codebooks"),
        ({"id2label": lambda: dict(enumerate(("fox", "apple", "rocket")))}, "class names"),
    ],
    ids=["shape", "tokenizer", "classes"],
)
def test_a_reference_that_differs_from_the_model_is_refused(inputs, tmp_path, parts, message):
    whole = {
        "transformer": lambda: make_transformer(num_classes=3),
        "id2label": lambda: dict(enumerate(NAMES)),
    } | parts
    make_pipe(**{name: make() for name, make in whole.items()}).save_pretrained(tmp_path / "other")
    config = CCAConfig(**settings(inputs, reference=str(tmp_path / "other")))

    with pytest.raises(ValueError, match=f"(?s){message}.*cannot be the reference"):
        train_cca(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
