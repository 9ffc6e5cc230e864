import json
import shutil

import pytest
import torch
from conftest import make_pipe, make_transformer, make_vqvae, seeded
from training import post_training_runs, transformer_runs
from training.sharded_runs import start
from training.transformer_runs import ARCHITECTURE, log_lines, write_cache

from var_hf import VARPipeline
from var_hf.training.cca import CCAConfig, train_cca
from var_hf.training.sharding import empty_copy, engine_of, load_shards
from var_hf.training.transformer import train_transformer
from var_hf.training.transformer_config import TransformerTrainingConfig
from var_hf.training.transformer_trainer import training_arguments

# PEFT still asks transformers for gradient checkpointing by its old name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

# What one process computes, and two the same with shard. The last three start from a pipeline; CCA
# has a frozen reference, which is cut up too.
VARIANTS = {
    "all weights": {"architecture": {**ARCHITECTURE, "share_modulation": True}},
    "lora": {"lora_rank": 3, "new_classes": True, "gradient_checkpointing": True},
    "muon": {"optimizer": "muon", "gradient_accumulation_steps": 2, "freeze": ["layers.0.*"]},
    "cca": {"mixed_precision": "bf16"},
}
#: Muon and bf16 round to 8 bits within a step.
TOLERANCES = {"muon": 2e-3, "cca": 2e-3}
KEPT = ("loss", "grad_norm", "learning_rate", "loss_per_scale", "accuracy")


def of_variant(inputs, name):
    changes = {"num_train_epochs": 1, "save_steps": 2, "save_total_limit": 9, **VARIANTS[name]}
    kind = transformer_runs if name == "all weights" else post_training_runs
    return kind.settings(inputs, **changes)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = transformer_runs.write_inputs(tmp_path_factory.mktemp("inputs"))
    names = dict(enumerate(transformer_runs.CLASSES))
    transformer = make_transformer(num_classes=3, drop_path_rate=0.3)
    make_pipe(transformer=transformer, id2label=names).save_pretrained(folder / "base")
    return folder


@pytest.fixture(scope="module")
def runs(inputs, tmp_path_factory):
    """The folder of all runs: ``one-NAME`` on one process, ``two-NAME`` with shard on two."""
    folder = tmp_path_factory.mktemp("runs")
    sharded = []
    for name in VARIANTS:
        settings = of_variant(inputs, name)
        if name == "cca":
            train_cca(CCAConfig(**settings), folder / f"one-{name}")
        else:
            train_transformer(TransformerTrainingConfig(**settings), folder / f"one-{name}")
        sharded.append(
            {
                "train": "cca" if name == "cca" else "transformer",
                "settings": settings | {"shard": True},
                "output": str(folder / f"two-{name}"),
            }
        )
    sharded[0]["settings"]["sample_steps"] = 3
    folders = [folder / "rank-0", folder / "rank-1"]
    for rank, place in enumerate(folders):
        tokens = torch.randint(29, (6, 39), generator=seeded(rank))
        write_cache(place / "tokens", tokens, torch.arange(6) % 3, make_vqvae())
    sharded.append(
        {
            "train": "transformer",
            "settings": of_variant(inputs, "all weights") | {"data": None, "token_cache": "tokens"},
            "output": str(folder / "other-data"),
            "folders": [str(place) for place in folders],
        }
    )
    sharded.append(
        {
            "train": "transformer",
            "settings": of_variant(inputs, "all weights")
            | {"token_cache": str(folder / "two-all weights" / "tokens"), "shard": True},
            "output": "apart",  # in the folder of each process
            "folders": [str(place) for place in folders],
        }
    )
    start(2, sharded)
    return folder


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_with_shard_give_the_losses_of_one(runs, name):
    one, two = (
        log_lines(runs / f"one-{name}", "training"),
        log_lines(runs / f"two-{name}", "training"),
    )

    tolerance = TOLERANCES.get(name, 1e-5)
    assert len(one) == len(two) > 2
    for expected, got in zip(one, two, strict=True):
        for value in KEPT:
            assert got[value] == pytest.approx(expected[value], rel=tolerance, abs=tolerance), value


@pytest.mark.parametrize("name", VARIANTS)
def test_the_pipeline_of_a_sharded_run_is_whole(runs, name):
    one, two = (
        VARPipeline.from_pretrained(runs / f"{kind}-{name}" / "pipeline").transformer.state_dict()
        for kind in ("one", "two")
    )

    assert one.keys() == two.keys()
    tolerance = 10 * TOLERANCES.get(name, 1e-5)
    for weight in one:
        torch.testing.assert_close(two[weight], one[weight], rtol=0, atol=tolerance)


def test_the_engine_that_trains_is_recorded(runs):
    engines = {
        kind: log_lines(runs / f"{kind}-all weights", "engine")[0]["name"]
        for kind in ("one", "two")
    }

    assert engines == {"one": "one process", "two": "FSDP2"}
    assert (runs / "two-all weights" / "samples" / "step-00000003.png").exists()


def test_a_sharded_checkpoint_is_written_by_all_and_read_by_one(runs, inputs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs / "two-all weights", run)
    parts = sorted((run / "checkpoints" / "step-00000002" / "shards").iterdir())
    assert [part.name[:11] for part in parts] == ["shard-00001", "shard-00002"]
    shutil.rmtree(run / "checkpoints" / "step-00000003")
    shutil.rmtree(run / "pipeline")
    settings = of_variant(inputs, "all weights") | {"shard": True, "sample_steps": 3}

    result = train_transformer(TransformerTrainingConfig(**settings), run)

    assert result["engine"]["name"] == "one process"
    expected, got = (log_lines(folder, "training") for folder in (runs / "two-all weights", run))
    assert [line["step"] for line in got] == [line["step"] for line in expected]
    for one, other in zip(expected, got, strict=True):
        for value in KEPT:
            assert other[value] == pytest.approx(one[value], rel=1e-5, abs=1e-6), value


def test_a_checkpoint_of_another_model_is_refused(runs):
    model = make_transformer(num_classes=3)
    optimizer = torch.optim.AdamW(model.parameters())

    with pytest.raises(
        ValueError, match=r"checkpoint of another model: model\.\S+ is .* in this run"
    ):
        load_shards(
            runs / "two-all weights" / "checkpoints" / "step-00000002" / "shards", model, optimizer
        )


def test_a_process_with_other_data_is_named(runs):
    messages = [(runs / f"other-data.error-{rank}").read_text() for rank in (0, 1)]

    assert messages[0] == messages[1]
    assert messages[0].startswith("Process 1 (on ")
    assert "has other training data than process 0" in messages[0]


def test_a_run_folder_that_is_not_shared_is_refused(runs):
    messages = [(runs / f"rank-{rank}" / f"apart.error-{rank}").read_text() for rank in (0, 1)]

    assert messages[0] == messages[1]
    assert "has other files in the run folder than process 0" in messages[0]


def test_an_empty_copy_has_no_memory_and_the_same_parts():
    model = make_transformer()
    model.lm_head.requires_grad_(False)

    empty = empty_copy(model)

    assert all(parameter.is_meta for parameter in empty.parameters())
    described = [
        [(name, p.shape, p.requires_grad) for name, p in each.named_parameters()]
        for each in (model, empty)
    ]
    assert described[0] == described[1]


def test_another_engine_than_the_settings_say_is_refused(monkeypatch):
    config = TransformerTrainingConfig(data="images", tokenizer="vqvae", shard=True)
    model = make_transformer()
    assert engine_of(model, config)["name"] == "one process"

    class TwoProcesses:
        num_processes = 2

    monkeypatch.setattr("var_hf.training.sharding.process_state", TwoProcesses)
    with pytest.raises(RuntimeError, match="2 processes with shard True would train with one pro"):
        engine_of(model, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixed_precision": "fp16"}, "shard trains in bf16 or float32"),
        ({"trainer": {"deepspeed": "zero.json"}}, "shard does not go with deepspeed"),
    ],
)
def test_what_does_not_go_with_shard_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TransformerTrainingConfig(data="images", tokenizer="vqvae", shard=True, **changes)


def test_fsdp_of_the_launcher_is_refused(tmp_path, monkeypatch):
    config = TransformerTrainingConfig(data="images", tokenizer="vqvae")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")

    with pytest.raises(
        ValueError, match=r"accelerate's own FSDP is not used.*set shard \(--shard\)"
    ):
        training_arguments(config, 112, tmp_path, 3, None)


def test_an_old_run_goes_on_without_shard():
    stored = json.loads(json.dumps(TransformerTrainingConfig(data="a", tokenizer="b").to_dict()))
    del stored["shard"]

    assert TransformerTrainingConfig.complete(stored)["shard"] is False
