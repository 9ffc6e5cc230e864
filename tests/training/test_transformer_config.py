import json

import pytest
import torch

from var_hf import VARConfig, VARModel
from var_hf.training.cca import CCAConfig
from var_hf.training.ddo import DDOConfig
from var_hf.training.neon import NeonConfig
from var_hf.training.schedules import peak_learning_rate
from var_hf.training.transformer_config import (
    TransformerTrainingConfig,
    read_recipe,
    recipe_names,
)

MINIMUM = {"data": "images", "tokenizer": "vqvae"}


def test_the_defaults_are_the_recipe_of_d16():
    recipe = TransformerTrainingConfig.from_recipe("d16", **MINIMUM)
    default = TransformerTrainingConfig(**MINIMUM)

    different = {
        name for name, value in recipe.to_dict().items() if value != default.to_dict()[name]
    }
    assert different == {"architecture", "copies", "mixed_precision"}


# Depth, parameters of the published file, and the release's batch, epochs, rates and decay.
@pytest.mark.parametrize(
    ("name", "parameters", "batch", "epochs", "rate", "final_lr", "final_decay"),
    [
        ("d16", 310_283_520, 768, 200, 1e-4, 0.1, 0.05),
        ("d20", 600_923_264, 768, 250, 1e-4, 0.1, 0.05),
        ("d24", 1_033_400_000, 768, 350, 8e-5, 0.01, 0.05),
        ("d30", 2_010_020_000, 1024, 350, 8e-5, 0.01, 0.08),
        ("d36", 2_353_890_000, 768, 350, 8e-5, 0.01, 0.08),
    ],
)
def test_recipes_are_those_of_the_release(
    name, parameters, batch, epochs, rate, final_lr, final_decay
):
    config = TransformerTrainingConfig.from_recipe(name, **MINIMUM)
    sizes = {} if config.token_map_sizes is None else {"token_map_sizes": config.token_map_sizes}
    with torch.device("meta"):
        model = VARModel(VARConfig(**config.architecture, **sizes))

    # The release's files also hold computed buffers. Published counts are in millions, rounded.
    assert model.num_parameters() == pytest.approx(parameters, rel=2e-5)
    assert (config.batch_size, config.num_train_epochs) == (batch, epochs)
    assert (config.base_learning_rate, config.final_lr_factor) == (rate, final_lr)
    assert (config.weight_decay, config.final_weight_decay) == (0.05, final_decay)
    assert (config.betas, config.max_grad_norm) == ((0.9, 0.95), 2.0)
    assert (config.lr_scheduler_type, config.warmup_epochs) == ("lin0", None)
    assert (config.resize_factor, config.random_crop, config.horizontal_flip) == (
        1.125,
        True,
        False,
    )


@pytest.mark.parametrize("name", ["d16", "d20", "d24", "d30", "d36"])
def test_every_recipe_says_how_it_is_run_and_what_was_published(name):
    about = read_recipe(name)["about"]

    assert f"--recipe {name} " in about["command"]
    assert about["hardware"]
    assert 1 < about["published"]["fid"] < 4
    assert "FoundationVision/VAR" in about["published"]["source"]


def test_the_package_has_exactly_these_recipes():
    of_methods = ["cca", "ddo", "neon", "scaling"]
    assert recipe_names() == sorted(
        ["d16", "d20", "d24", "d30", "d36", "fine-tune", "lora", *of_methods]
    )


@pytest.mark.parametrize("config", [CCAConfig, DDOConfig, NeonConfig])
def test_a_method_of_post_training_brings_its_recipe(config):
    chosen = config.from_recipe(None, data="images", model="m")

    assert chosen == config.from_recipe(config.kind, data="images", model="m")
    about = read_recipe(config.kind)["about"]
    assert f"post-train {config.kind} " in about["command"]
    assert about["sources"]
    assert (chosen.weight_decay, chosen.final_weight_decay) == (0, 0)  # beta = 0 trains nothing


def test_the_recipe_of_cca_is_that_of_its_authors_for_d16():
    chosen = CCAConfig.from_recipe(None, data="images", model="m")

    assert (chosen.beta, chosen.lambda_, chosen.uncond_ratio) == (0.02, 50, 0.1)
    assert (chosen.batch_size, chosen.num_train_epochs) == (256, 1)
    rate = peak_learning_rate(chosen.base_learning_rate, chosen.batch_size, 1024, chosen.lr_scaling)
    assert rate == pytest.approx(2e-5)


def test_a_recipe_of_a_method_is_not_one_of_training():
    with pytest.raises(ValueError, match="cca: unknown settings beta, lambda_, uncond_ratio"):
        TransformerTrainingConfig.from_recipe("cca", **MINIMUM)


def test_a_model_to_start_from_brings_the_recipe_of_fine_tuning():
    start = {"data": "images", "model": "m"}

    tuned = TransformerTrainingConfig.from_recipe(None, **start)
    adapted = TransformerTrainingConfig.from_recipe(None, **start, lora_rank=5)

    assert tuned == TransformerTrainingConfig.from_recipe("fine-tune", **start)
    assert adapted == TransformerTrainingConfig.from_recipe("lora", **start, lora_rank=5)
    assert (tuned.lora_rank, adapted.lora_rank) == (0, 5)
    assert tuned.batch_size < 64 < TransformerTrainingConfig(**start).batch_size
    assert 0 < tuned.sample_steps < 1
    # A recipe that is named wins, and so does a setting.
    released = TransformerTrainingConfig.from_recipe("d16", **start | {"architecture": {}})
    assert (released.batch_size, released.lr_scaling) == (768, "batch")
    assert TransformerTrainingConfig.from_recipe(None, **start, sample_steps=0).sample_steps == 0


def test_names_of_before_are_read():
    old = {"global_batch_size": 5, "log_every": 7, "keep_checkpoints": 3, "num_workers": 2}

    config = TransformerTrainingConfig.from_recipe(None, **MINIMUM, **old)

    assert (config.batch_size, config.logging_steps) == (5, 7)
    assert (config.save_total_limit, config.dataloader_num_workers) == (3, 2)
    stored = {"kind": "transformer", **MINIMUM, **old}
    assert TransformerTrainingConfig.complete(stored) == {"kind": "transformer", **config.to_dict()}


def test_a_file_is_a_recipe_and_given_settings_win(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(
        json.dumps({"about": {"title": "mine"}, "betas": [0.8, 0.9], "seed": 4, **MINIMUM})
    )

    config = TransformerTrainingConfig.from_recipe(file, seed=7)

    assert (config.betas, config.seed, config.data) == ((0.8, 0.9), 7, "images")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", r"must hold one JSON object, names with values\. Got \[1\]"),
        ("{", "not JSON"),
        ('{"batchsize": 3}', "unknown settings batchsize"),
        ('{"betas": 3}', "mine.json: betas must be a list of 2"),
        ('{"freeze": [3]}', "mine.json: freeze must be a list of .*, each a text"),
    ],
)
def test_a_broken_recipe_is_refused(tmp_path, text, message):
    file = tmp_path / "mine.json"
    file.write_text(text)

    with pytest.raises(ValueError, match=message):
        TransformerTrainingConfig.from_recipe(file)


def test_an_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no recipe 'd17': neither a file nor one of cca, d16"):
        TransformerTrainingConfig.from_recipe("d17")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": None}, r"Name the images \(data\), or a folder with their tokens"),
        ({"tokenizer": None}, "Name the tokenizer, or a pipeline to start from"),
        ({"batch_size": 0}, "batch_size must be above 0. Got 0"),
        ({"weight_decay": -1}, "weight_decay must not be negative. Got -1"),
        ({"resize_factor": 0.5}, "resize_factor must be at least 1"),
        ({"mixed_precision": "bf17"}, "mixed_precision must be one of no, bf16, fp16. Got 'bf17'"),
        (
            {"lr_scheduler_type": "lin1"},
            "lr_scheduler_type must be one of lin0, cosine. Got 'lin1'",
        ),
        ({"model": "m", "architecture": {"hidden_size": 8}}, "either model .* or architecture"),
        ({"lora_rank": 4, "freeze": ("*",)}, "lora_rank and freeze change a trained model"),
        ({"model": "m", "lora_rank": 4, "freeze": ("*",)}, "lora_rank freezes all other weights"),
        ({"weight_decay": 0.0}, "weight_decay is 0: it cannot grow to final_weight_decay"),
        ({"learning_rate": 0}, "learning_rate must be above 0. Got 0"),
        ({"sample_steps": 2.5}, "sample_steps must be a whole number of steps, or a share"),
        ({"batch_size": 8.5}, "batch_size must be a whole number .* Got 8.5"),
        ({"batch_size": True}, "batch_size must be a whole number .* Got True"),
        ({"seed": None}, "seed must be a whole number .* Got None"),
        ({"betas": (0.9,)}, "betas must be a list of 2 values, each a finite number"),
        ({"weight_decay": float("nan")}, "weight_decay must be a finite number.* Got nan"),
        ({"image_size": "64"}, "image_size must be a whole number .*, or null. Got '64'"),
        ({"sampling": [1]}, "sampling must be a dictionary"),
        ({"new_classes": "yes"}, "new_classes must be true or false"),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TransformerTrainingConfig(**MINIMUM | settings)
