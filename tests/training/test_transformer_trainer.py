import math

import pytest
import torch
from conftest import make_transformer, make_vqvae, seeded
from torch.nn import functional
from torch.utils.data import Subset
from training.transformer_runs import write_cache

from var_hf import MultiScaleVQVAE, NextScaleScheduler, VARModel
from var_hf.training.run_folder import RunFolder
from var_hf.training.token_cache import TokenDataset
from var_hf.training.tokenizer import DivergedError
from var_hf.training.transformer_config import TransformerTrainingConfig
from var_hf.training.transformer_trainer import (
    ScaleMeter,
    VARTrainer,
    sample_labels,
    training_arguments,
)


def make_trainer(folder, model, vqvae, tokens, class_labels, **changes):
    cache = write_cache(folder / "tokens", tokens, class_labels, vqvae)
    settings = {
        "token_cache": str(folder / "tokens"),
        "tokenizer": "given",
        "num_train_epochs": 1,
        "batch_size": len(tokens),
        "sample_steps": 0,
        **changes,
    }
    config = TransformerTrainingConfig(**settings)
    run = RunFolder(folder / "run", config.to_dict())
    samples = TokenDataset(cache, 1 + 2 * model.config.num_hidden_layers, config.seed)
    return VARTrainer(model, vqvae, NextScaleScheduler(top_k=7), {}, config, run, samples)


@pytest.fixture
def trainer(tmp_path, request):
    model = make_transformer(drop_path_rate=0.0, class_dropout_prob=0.0)
    tokens = torch.randint(29, (6, 39), generator=seeded(8))
    changes = getattr(request, "param", {})
    return make_trainer(tmp_path, model, make_vqvae(), tokens, torch.arange(6) % 3, **changes)


# ------------------------------------------------------------------ against the original code


def test_a_training_step_is_that_of_the_release(golden, tmp_path):
    """Loss, loss per scale and every gradient's norm, through the path that training takes."""
    expected = golden.meta["training_step"]
    vqvae = MultiScaleVQVAE.from_original(
        golden.vae_file, token_map_sizes=golden.meta["config"]["patch_nums"]
    )
    model = VARModel.from_original(golden.var_file, class_dropout_prob=0.0, drop_path_rate=0.0)
    trainer = make_trainer(
        tmp_path, model, vqvae, golden.data["tokens"], golden.data["class_labels"]
    )

    model.train()
    (batch,) = trainer.get_train_dataloader()
    order = [golden.data["class_labels"].tolist().index(i) for i in batch["class_labels"].tolist()]
    assert torch.equal(batch["labels"], golden.data["tokens"][order].long())
    loss = trainer.compute_loss(model, batch)
    loss.backward()

    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    measured = trainer.meters["train"].read(lambda tensor: tensor)
    losses = [measured[f"loss_scale_{i}"] for i in range(vqvae.quantizer.num_scales)]
    assert losses == pytest.approx(expected["loss_per_scale"], rel=1e-5)

    gradients = VARModel(model.config)
    for ours, parameter in zip(model.parameters(), gradients.parameters(), strict=True):
        parameter.data = ours.grad
    in_release = gradients.to_original()
    norms = {name: in_release[name].norm().item() for name in expected["gradient_norms"]}
    assert norms == pytest.approx(expected["gradient_norms"], rel=1e-4, abs=1e-6)
    total = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
    assert total == pytest.approx(expected["gradient_norm_total"], rel=1e-5)


@pytest.mark.parametrize("trainer", [{"trained_scales": 2}], indirect=True)
def test_the_coarsest_scales_are_learned_alone(trainer):
    """Loss and logits are those of a pass over all scales, cut after the second."""
    model = trainer.model.train()
    (batch,) = trainer.get_train_dataloader()

    loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)

    whole = model(**batch, latent_inputs=trainer.teacher_inputs(batch["labels"])).logits
    torch.testing.assert_close(outputs["logits"], whole[:, :5], rtol=1e-4, atol=1e-5)
    labels = batch["labels"][:, :5].flatten()
    expected = functional.cross_entropy(whole[:, :5].flatten(0, 1), labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    measured = trainer.meters["train"].read(lambda tensor: tensor)
    assert measured["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert "loss_scale_1" in measured and "loss_scale_2" not in measured


# ------------------------------------------------------------------ measuring


def test_the_meter_measures_each_scale_over_all_batches():
    slices = (slice(0, 1), slice(1, 5), slice(5, 14))
    logits = torch.randn(5, 14, 7, generator=seeded(1))
    labels = torch.randint(7, (5, 14), generator=seeded(2))
    meter = ScaleMeter(slices)
    meter.update(logits[:2], labels[:2])
    meter.update(logits[2:], labels[2:])

    values = meter.read(lambda tensor: tensor, prefix="eval_")

    log_probabilities = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    hits = (logits.argmax(-1) == labels).float()
    for scale, tokens in enumerate(slices):
        expected = -log_probabilities[:, tokens].mean().item()
        assert values[f"eval_loss_scale_{scale}"] == pytest.approx(expected, rel=1e-5)
        expected = hits[:, tokens].mean().item()
        assert values[f"eval_accuracy_scale_{scale}"] == pytest.approx(expected, abs=1e-6)
    assert values["eval_accuracy"] == pytest.approx(hits.mean().item(), abs=1e-6)
    assert values["eval_loss_finest_scale"] == values["eval_loss_scale_2"]
    assert meter.read(lambda tensor: tensor) == {}


def test_the_meter_sums_over_processes():
    """Two processes with other batches: what `reduce` adds, the means contain."""
    slices = (slice(0, 1), slice(1, 5))
    logits, labels = torch.randn(6, 5, 3, generator=seeded(1)), torch.arange(30).view(6, 5) % 3
    whole, first, second = ScaleMeter(slices), ScaleMeter(slices), ScaleMeter(slices)
    whole.update(logits, labels)
    first.update(logits[:2], labels[:2])
    second.update(logits[2:], labels[2:])
    seen = []
    second.read(lambda tensor: seen.append(tensor) or tensor)

    together = first.read(lambda tensor: tensor + seen[0])

    assert together == pytest.approx(whole.read(lambda tensor: tensor), rel=1e-6)


# ------------------------------------------------------------------ the trainer


def test_learning_rate_and_weight_decay_follow_their_schedules(tmp_path):
    model = make_transformer()
    tokens = torch.randint(29, (6, 39), generator=seeded(8))
    trainer = make_trainer(
        tmp_path,
        model,
        make_vqvae(),
        tokens,
        torch.arange(6) % 3,
        num_train_epochs=5,
        warmup_epochs=2,
        base_learning_rate=0.256,
        final_weight_decay=0.09,
        logging_steps=1,
        save_steps=100,
    )
    decays = []
    step = trainer.training_step

    def watched(*arguments, **keywords):
        decays.append([group["weight_decay"] for group in trainer.optimizer.param_groups])
        return step(*arguments, **keywords)

    trainer.training_step = watched
    trainer.train()

    rates = [line["learning_rate"] for line in trainer.state.log_history if "loss" in line]
    peak = 0.256 * 6 / 256
    assert rates == pytest.approx(
        [0.005 * peak, 0.5025 * peak, peak, 0.1 * peak + 0.9 * peak * 0.5 / 0.95, 0.1 * peak]
    )
    assert [pair[0] for pair in decays] == pytest.approx(
        [0.05 + 0.04 * (0.5 - 0.5 * math.cos(math.pi * i / 4)) for i in range(5)]
    )
    assert {pair[1] for pair in decays} == {0.0}


def test_a_loss_that_is_no_number_stops_with_the_last_good_checkpoint(trainer):
    trainer.run.save_checkpoint(3, lambda folder: (folder / "weights").touch())
    with torch.no_grad():
        trainer.model.lm_head.weight[0, 0] = math.nan

    with pytest.raises(
        DivergedError, match=r"Step 1: loss and grad_norm became NaN .*step-00000003"
    ):
        trainer.train()
    assert [path.name for path in trainer.run.checkpoints()] == ["step-00000003"]


def test_the_given_data_is_measured(trainer):
    parts = [Subset(trainer.train_dataset, numbers) for numbers in ([0], [1, 2], [3, 4, 5])]

    losses = [trainer.evaluate(part)["eval_loss"] for part in parts]
    by_name = trainer.evaluate({"one": parts[0], "two": parts[1]})
    whole = trainer.evaluate(trainer.train_dataset, metric_key_prefix="test")

    assert len(set(losses)) == 3
    mean = (losses[0] + 2 * losses[1] + 3 * losses[2]) / 6
    assert whole["test_loss"] == pytest.approx(mean, rel=1e-5)
    assert [by_name["eval_one_loss"], by_name["eval_two_loss"]] == pytest.approx(losses[:2])
    assert all("evaluation" in entry for entry in trainer.run.read_log())
    with pytest.raises(ValueError, match="no data to measure on"):
        trainer.evaluate()


@pytest.mark.parametrize("trainer", [{}, {"shard": True}], indirect=True, ids=str)
def test_a_full_disk_is_one_error_and_keeps_the_last_checkpoint(trainer):
    resource = pytest.importorskip("resource", reason="file size limits are a matter of Unix")
    import signal

    trainer.run.save_checkpoint(3, lambda folder: (folder / "weights").touch())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(
            OSError,
            match=r"checkpoint of step 1 could not be written: .*step-00000003; the same command",
        ):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in trainer.run.checkpoints()] == ["step-00000003"]
    assert not (trainer.run.path / "pipeline").exists()
    assert list((trainer.run.path / "trainer").iterdir()) == []


def test_the_pipeline_in_the_making_shares_the_weights_and_leaves_training_mode_alone(trainer):
    trainer.model.train()

    pipeline = trainer.make_pipeline()

    assert not pipeline.transformer.training
    assert trainer.model.training
    assert pipeline.transformer.lm_head.weight.data_ptr() == trainer.model.lm_head.weight.data_ptr()


def test_a_batch_that_cannot_be_cut_evenly_is_refused(tmp_path, monkeypatch):
    config = TransformerTrainingConfig(
        data="images", tokenizer="vqvae", batch_size=10, gradient_accumulation_steps=2
    )
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(
        ValueError,
        match=r"of 10 images cannot be cut into 4 equal parts .*Start 1 or 5 processes, or .*of 4",
    ):
        training_arguments(config, 112, tmp_path, 3, None)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"learning_rate": 1.0}, "learning_rate cannot be set under trainer"),
        ({"fsdp": "full_shard"}, "trainer: accelerate's own FSDP is not used"),
        ({"learning_speed": 1.0}, "trainer: .*unexpected keyword argument 'learning_speed'"),
    ],
)
def test_unfit_arguments_for_transformers_are_refused(tmp_path, extra, message):
    config = TransformerTrainingConfig(data="images", tokenizer="vqvae", trainer=extra)

    with pytest.raises(ValueError, match=message):
        training_arguments(config, 112, tmp_path, 3, None)


@pytest.mark.parametrize(
    ("settings", "peak"),
    [
        ({"batch_size": 64, "base_learning_rate": 1e-2}, 1e-2 * 64 / 256),
        (
            {"batch_size": 64, "base_learning_rate": 1e-2, "lr_scaling": "width"},
            1e-2 * 1024 / 112,
        ),
        ({"batch_size": 64, "base_learning_rate": 1e-2, "learning_rate": 3e-4}, 3e-4),
    ],
)
def test_a_given_learning_rate_is_the_peak_and_else_it_is_scaled(tmp_path, settings, peak):
    config = TransformerTrainingConfig(data="images", tokenizer="vqvae", **settings)

    arguments = training_arguments(config, 112, tmp_path, 3, None)

    assert arguments.learning_rate == pytest.approx(peak)


@pytest.mark.parametrize(
    ("classes", "labels", "columns"),
    [
        ([4], [4] * 8, 8),
        ([5, 2, 9], [5] * 8 + [2] * 8 + [9] * 8, 8),
        ([0, 1, 2, 3, 4], [i for i in range(5) for _ in range(4)], 4),
        (list(range(9)), list(range(9)), 8),
        (list(range(96)), list(range(0, 96, 4)), 8),
    ],
)
def test_few_classes_have_a_row_of_samples_each_and_many_one_sample(classes, labels, columns):
    assert sample_labels(classes) == (labels, columns)
