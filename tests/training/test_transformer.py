import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import make_pipe, make_transformer, make_vqvae, quiet, seeded
from image_files import write_image_folder
from PIL import Image
from training.transformer_runs import CLASSES, config, log_lines, settings, write_inputs

from var_hf import VARPipeline, modeling_var
from var_hf.provenance import read_provenance, sha256, verify
from var_hf.training.token_cache import TokenCache
from var_hf.training.tokenizer import DivergedError
from var_hf.training.transformer import train_transformer
from var_hf.training.transformer_config import TransformerTrainingConfig

# PEFT still asks transformers for gradient checkpointing by its old name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

TESTS = Path(__file__).parents[1]
TRAIN = """
import json, sys
sys.path.insert(0, sys.argv[1])
import conftest
from var_hf.training.transformer import train_transformer
from var_hf.training.transformer_config import TransformerTrainingConfig
train_transformer(TransformerTrainingConfig(**json.loads(sys.argv[2])), sys.argv[3])
"""
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """A whole run, uninterrupted, with validation and samples."""
    run = tmp_path_factory.mktemp("finished") / "run"
    changes = {"validation": str(inputs / "images"), "eval_steps": 6, "sample_steps": 6}
    return run, train_transformer(config(inputs, **changes), run)


@pytest.fixture
def pipeline_folder(tmp_path):
    make_pipe().save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


# ------------------------------------------------------------------ a whole run


def test_training_lowers_the_loss(finished):
    losses = [line["loss"] for line in log_lines(finished[0], "training")]

    assert len(losses) == 9
    assert losses[0] == pytest.approx(3.37, abs=0.15)  # ln 29: a fresh model guesses
    assert sum(losses[-3:]) / 3 < losses[0] - 0.1


def test_the_log_holds_loss_and_accuracy_of_every_scale(finished):
    for line in log_lines(finished[0], "training") + log_lines(finished[0], "evaluation"):
        lengths = (1, 4, 9, 25)
        assert len(line["loss_per_scale"]) == len(line["accuracy_per_scale"]) == 4
        weighted = sum(n * loss for n, loss in zip(lengths, line["loss_per_scale"], strict=True))
        assert weighted / 39 == pytest.approx(line["loss"], abs=2e-5)
        assert line["loss_finest_scale"] == line["loss_per_scale"][-1]
        assert 0 <= line["accuracy"] <= 1
    assert [line["step"] for line in log_lines(finished[0], "evaluation")] == [6, 9]
    assert log_lines(finished[0], "training")[-1]["epoch"] == 4.0


def test_a_run_learns_the_coarsest_scales_and_another_completes_it(inputs, tmp_path):
    """Progressive training: both runs read the same token cache."""
    shared = {"validation": str(inputs / "images"), "token_cache": str(tmp_path / "tokens")}
    coarse = config(inputs, trained_scales=2, **shared)
    first = train_transformer(coarse, tmp_path / "coarse")

    for kind in ("training", "evaluation"):
        lines = log_lines(tmp_path / "coarse", kind)
        assert {len(line["loss_per_scale"]) for line in lines} == {2}
    options = read_provenance(Path(first["pipeline"]))["options"]
    assert options["training"]["trained_scales"] == 2

    more = {"model": first["pipeline"], "architecture": {}, "num_train_epochs": 0.5}
    whole = config(inputs, **more, **shared)
    train_transformer(whole, tmp_path / "whole")

    start = log_lines(tmp_path / "whole", "training")[0]["loss_per_scale"]
    end = log_lines(tmp_path / "coarse", "training")[-1]["loss_per_scale"]
    assert len(start) == 4
    assert start[:2] == pytest.approx(end, abs=0.3)


def test_another_attention_kernel_learns_the_same(inputs, finished, tmp_path, monkeypatch):
    calls = []
    eager = modeling_var.eager_attention_forward

    def counted(*arguments, **options):
        calls.append(len(arguments))
        return eager(*arguments, **options)

    monkeypatch.setattr(modeling_var, "eager_attention_forward", counted)
    result = train_transformer(config(inputs, attn_implementation="eager"), tmp_path / "run")

    assert calls
    for own, other in zip(
        log_lines(tmp_path / "run", "training"), log_lines(finished[0], "training"), strict=True
    ):
        assert own["loss"] == pytest.approx(other["loss"], abs=1e-4)
    text = (Path(result["pipeline"]) / "transformer" / "config.json").read_text()
    assert "attn_implementation" not in text


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own
def test_a_compiled_model_learns_the_same(inputs, tmp_path):
    architecture = {**settings(inputs)["architecture"], "num_hidden_layers": 1}
    small = {"architecture": architecture, "trained_scales": 2, "num_train_epochs": 1}
    results = [
        train_transformer(config(inputs, **small, torch_compile=compiles), tmp_path / name)
        for name, compiles in (("plain", False), ("compiled", True))
    ]

    plain, compiled = (
        [line["loss"] for line in log_lines(tmp_path / name, "training")]
        for name in ("plain", "compiled")
    )
    assert compiled == pytest.approx(plain, abs=1e-4)
    weights = [
        VARPipeline.from_pretrained(result["pipeline"]).transformer.state_dict()
        for result in results
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=0, atol=1e-3, msg=name)


@torch.no_grad()
def test_the_evaluation_drops_nothing_and_sees_every_image_once(finished):
    run, result = finished
    pipe, cache = (
        VARPipeline.from_pretrained(result["pipeline"]),
        TokenCache(run / "tokens-validation"),
    )
    tokens = torch.stack([cache.tokens(index) for index in range(len(cache))])

    latent_inputs = pipe.vqvae.quantizer.teacher_inputs(pipe.vqvae.quantizer.split(tokens))
    loss = pipe.transformer(cache.class_labels, latent_inputs, labels=tokens).loss.item()

    assert log_lines(run, "evaluation")[-1]["loss"] == pytest.approx(loss, rel=1e-5)
    assert cache.config["transform"]["random_crop"] is False
    assert cache.config["copies"] == 1


def test_the_result_is_a_pipeline_that_knows_its_classes(finished):
    run, result = finished

    pipe = quiet(VARPipeline.from_pretrained(result["pipeline"]))

    assert pipe.id2label == dict(enumerate(CLASSES))
    assert pipe.scheduler.config.top_k == 7
    assert result["classes"] == pipe.transformer.config.num_classes == 3
    images = pipe(["fox", 2], generator=seeded(0)).images
    assert [image.size for image in images] == [(10, 10)] * 2
    newest = run / "checkpoints" / "step-00000009" / "model.safetensors"
    assert (
        Path(result["pipeline"]) / "transformer" / "model.safetensors"
    ).read_bytes() == newest.read_bytes()


def assert_no_path_in(folder, path):
    texts = {file: file.read_text() for file in [*folder.rglob("*.json"), folder / "README.md"]}
    assert [file for file, text in texts.items() if str(path) in text] == []


def test_the_pipeline_says_what_it_was_trained_on_and_nothing_of_the_machine(finished, inputs):
    folder = Path(finished[1]["pipeline"])

    assert verify(folder).ok
    provenance = read_provenance(folder)
    assert provenance["options"]["steps"] == 9
    assert provenance["options"]["training"]["base_learning_rate"] == 0.1
    assert "18 images in 3 classes" in (folder / "README.md").read_text()
    assert_no_path_in(folder, inputs)


def test_samples_are_drawn_as_a_grid_from_the_weights_of_their_step(finished):
    run, _ = finished

    files = sorted((run / "samples").iterdir())
    assert [file.name for file in files] == ["step-00000006.png", "step-00000009.png"]
    for file in files:
        with Image.open(file) as grid:  # a row for each class, and a line between two images
            assert grid.size == (8 * 11 - 1, 3 * 11 - 1)


def test_checkpoints_are_kept_up_to_the_limit_and_hold_no_pickled_settings(finished):
    checkpoints = sorted((finished[0] / "checkpoints").iterdir())

    assert [folder.name for folder in checkpoints] == ["step-00000008", "step-00000009"]
    assert not list(finished[0].rglob("training_args.bin"))


def test_a_finished_run_started_again_only_repeats_its_result(finished, inputs):
    run, result = finished
    before = (run / "log.jsonl").read_text()

    changes = {"validation": str(inputs / "images"), "eval_steps": 6, "sample_steps": 6}
    assert train_transformer(config(inputs, **changes), run) == result
    assert (run / "log.jsonl").read_text() == before


@pytest.mark.parametrize("fault", ["absent", "of an earlier checkpoint", "damaged"])
def test_a_finished_run_gets_the_pipeline_of_its_last_checkpoint(finished, inputs, tmp_path, fault):
    """A run that was killed between the two ends like one that was not."""
    whole = tmp_path / "run"
    shutil.copytree(finished[0], whole)
    pipeline, (earlier, _) = whole / "pipeline", sorted((whole / "checkpoints").iterdir())
    expected = {file: file.read_bytes() for file in pipeline.rglob("*") if file.is_file()}
    weights = pipeline / "transformer" / "model.safetensors"
    if fault == "absent":
        shutil.rmtree(pipeline)
    elif fault == "damaged":
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    else:
        shutil.copy(earlier / "model.safetensors", weights)
        provenance = json.loads((pipeline / "provenance.json").read_text())
        provenance["options"] |= {"steps": 8, "checkpoint": "0" * 64}
        provenance["files"]["transformer/model.safetensors"]["sha256"] = sha256(weights)
        (pipeline / "provenance.json").write_text(json.dumps(provenance))

    changes = {"validation": str(inputs / "images"), "eval_steps": 6, "sample_steps": 6}
    train_transformer(config(inputs, **changes), whole)

    assert {file: file.read_bytes() for file in pipeline.rglob("*") if file.is_file()} == expected


def test_what_is_missing_from_a_checkpoint_is_not_left_out_in_silence(finished, inputs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    (run / "checkpoints" / "step-00000009" / "optimizer.pt").unlink()
    changes = {"validation": str(inputs / "images"), "eval_steps": 6, "sample_steps": 6}

    with pytest.raises(ValueError, match=r"step-00000009: optimizer\.pt is missing"):
        train_transformer(config(inputs, **changes), run)
    shutil.rmtree(run / "checkpoints" / "step-00000009")
    (run / "checkpoints" / "step-99999999").mkdir()

    assert train_transformer(config(inputs, **changes), run)["steps"] == 9
    newest = run / "checkpoints" / "step-00000009" / "model.safetensors"
    assert (
        newest.read_bytes()
        == (finished[0] / "pipeline" / "transformer" / "model.safetensors").read_bytes()
    )


def test_a_run_folder_belongs_to_one_configuration(finished, inputs):
    changes = {"validation": str(inputs / "images"), "seed": 3, "base_learning_rate": 1.0}

    with pytest.raises(ValueError, match=r"base_learning_rate was 0\.1, is 1\.0; seed was 0, is 3"):
        train_transformer(config(inputs, **changes), finished[0])


# ------------------------------------------------------------------ interruption and processes


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(inputs, tmp_path):
    """Killed twice, each time between two checkpoints."""
    changes = {"num_train_epochs": 6, "save_steps": 3, "gradient_accumulation_steps": 2}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train_transformer(config(inputs, **changes), whole)
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        TRAIN,
        str(TESTS),
        json.dumps(settings(inputs, **changes)),
        str(killed),
    ]
    for seen in (4, 8):
        process = subprocess.Popen(
            command, env=ONE_THREAD, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        while process.poll() is None and (
            not (killed / "log.jsonl").exists() or len(log_lines_so_far(killed)) < seen
        ):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL

    train_transformer(config(inputs, **changes), killed)

    expected, got = log_lines(whole, "training"), log_lines(killed, "training")
    assert [line["step"] for line in got] == list(range(1, 15))
    for one, other in zip(expected, got, strict=True):
        for name in ("loss", "grad_norm", "learning_rate", "loss_per_scale", "accuracy", "epoch"):
            assert other[name] == pytest.approx(one[name], rel=1e-6), (one["step"], name)


def log_lines_so_far(run):
    """Like `log_lines`, of a file that is being written."""
    return [line for line in (run / "log.jsonl").read_text().splitlines() if line.endswith("}")]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(inputs, finished, tmp_path):
    """Same global batch; class dropout 0.1, drop path 0.3 and crops are at work."""
    script, run = tmp_path / "train.py", tmp_path / "run"
    rank = (
        "import os; open(sys.argv[3] + '.rank' + os.environ['RANK'], 'w')"
        ".write(os.environ['WORLD_SIZE'])"
    )
    script.write_text(TRAIN + rank)
    changes = {"validation": str(inputs / "images"), "eval_steps": 6, "sample_steps": 6}
    # On a CPU it is --multi_gpu that starts several processes; with --cpu there is one.
    subprocess.run(
        [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            "2",
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "--main_process_port",
            "0",
            str(script),
            str(TESTS),
            json.dumps(settings(inputs, **changes)),
            str(run),
        ],
        env=ONE_THREAD | {"ACCELERATE_USE_CPU": "true"},
        check=True,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )

    assert [file.read_text() for file in tmp_path.glob("run.rank[01]")] == ["2", "2"]
    for kind in ("training", "evaluation"):
        one, two = log_lines(finished[0], kind), log_lines(run, kind)
        assert len(one) == len(two) > 0
        for expected, got in zip(one, two, strict=True):
            for name in {"loss", "grad_norm", "loss_per_scale", "accuracy"} & expected.keys():
                assert got[name] == pytest.approx(expected[name], rel=1e-5), (name, got["step"])
    assert VARPipeline.from_pretrained(run / "pipeline").id2label == dict(enumerate(CLASSES))


def test_accumulated_parts_give_the_losses_of_whole_batches(inputs, finished, tmp_path):
    train_transformer(config(inputs, gradient_accumulation_steps=4), tmp_path / "run")

    losses = [line["loss"] for line in log_lines(tmp_path / "run", "training")]
    expected = [line["loss"] for line in log_lines(finished[0], "training")]
    assert losses == pytest.approx(expected, rel=1e-5)


def test_checkpointed_layers_give_the_same_losses(inputs, finished, tmp_path):
    train_transformer(config(inputs, gradient_checkpointing=True), tmp_path / "run")

    losses = [line["loss"] for line in log_lines(tmp_path / "run", "training")]
    expected = [line["loss"] for line in log_lines(finished[0], "training")]
    assert losses == pytest.approx(expected, rel=1e-5)


def test_bf16_gives_nearly_the_same_losses(inputs, finished, tmp_path):
    train_transformer(config(inputs, mixed_precision="bf16"), tmp_path / "run")

    losses = [line["loss"] for line in log_lines(tmp_path / "run", "training")]
    expected = [line["loss"] for line in log_lines(finished[0], "training")]
    assert losses != expected
    assert losses == pytest.approx(expected, abs=0.05)


# ------------------------------------------------------------------ fine-tuning


def test_a_pipeline_is_trained_further_on_its_own_classes(pipeline_folder, tmp_path):
    write_image_folder(tmp_path / "images", ("hen", "goldfish"), count=4)

    result = train_transformer(
        TransformerTrainingConfig(
            data=str(tmp_path / "images"),
            model=str(pipeline_folder),
            num_train_epochs=1,
            batch_size=4,
            sample_steps=0,
            logging_steps=1,
            freeze=("embeddings.*",),
        ),
        tmp_path / "run",
    )

    before, after = (VARPipeline.from_pretrained(f) for f in (pipeline_folder, result["pipeline"]))
    assert after.id2label == before.id2label
    assert after.scheduler.config.top_k == before.scheduler.config.top_k == 13
    old, new = before.transformer.state_dict(), after.transformer.state_dict()
    changed = {name for name, tensor in new.items() if not torch.equal(tensor, old[name])}
    assert changed == {name for name in new if not name.startswith("embeddings.")}


@pytest.mark.parametrize("lora_rank", [0, 3])
def test_a_pipeline_learns_new_classes(pipeline_folder, inputs, tmp_path, lora_rank):
    result = train_transformer(
        TransformerTrainingConfig(
            data=str(inputs / "images"),
            model=str(pipeline_folder),
            new_classes=True,
            lora_rank=lora_rank,
            num_train_epochs=1,
            batch_size=6,
            sample_steps=2,
            logging_steps=1,
            base_learning_rate=1e-1,
        ),
        tmp_path / "run",
    )

    before, after = (VARPipeline.from_pretrained(f) for f in (pipeline_folder, result["pipeline"]))
    assert after.id2label == dict(enumerate(CLASSES))
    assert after.transformer.embeddings.class_embedding.weight.shape == (4, 112)
    old, new = before.transformer.state_dict(), after.transformer.state_dict()
    assert new.keys() == old.keys()
    changed = {name for name, tensor in new.items() if not torch.equal(tensor, old[name])}
    if lora_rank:
        adapted = (
            "proj.weight",
            "fc1.weight",
            "fc2.weight",
            "modulation.weight",
            "class_embedding.weight",
        )
        adapted_names = {name for name in new if name.endswith(adapted)}
        assert changed == adapted_names - {"embeddings.latent_projection.weight"}
        update = new["layers.1.mlp.fc1.weight"] - old["layers.1.mlp.fc1.weight"]
        assert torch.linalg.matrix_rank(update.double(), atol=1e-6) == lora_rank
    assert quiet(after)("fox", generator=seeded(0)).images[0].size == (10, 10)
    assert_no_path_in(Path(result["pipeline"]), tmp_path)
    assert (tmp_path / "run" / "samples" / "step-00000002.png").exists()


@pytest.mark.parametrize("changes", [{"lora_rank": 3}, {"optimizer": "muon"}])
def test_a_run_goes_on_alike_from_an_earlier_checkpoint(pipeline_folder, inputs, tmp_path, changes):
    config = TransformerTrainingConfig(
        data=str(inputs / "images"),
        model=str(pipeline_folder),
        new_classes=True,
        batch_size=9,
        num_train_epochs=2,
        save_steps=2,
        logging_steps=1,
        sample_steps=0,
        base_learning_rate=1e-2,
        **changes,
    )
    train_transformer(config, tmp_path / "run")
    expected = log_lines(tmp_path / "run", "training")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")

    train_transformer(config, tmp_path / "run")

    got = log_lines(tmp_path / "run", "training")
    assert [line["step"] for line in got] == [1, 2, 3, 4]
    for one, other in zip(expected, got, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)


def test_another_resolution_is_learnt_from_interpolated_positions(
    pipeline_folder, inputs, tmp_path, caplog
):
    result = train_transformer(
        TransformerTrainingConfig(
            data=str(inputs / "images"),
            model=str(pipeline_folder),
            new_classes=True,
            image_size=14,
            token_map_sizes=(1, 2, 4, 5, 7),
            num_train_epochs=1,
            batch_size=9,
            sample_steps=0,
            logging_steps=1,
        ),
        tmp_path / "run",
    )

    assert "positions are interpolated" in caplog.text
    assert "the tokenizer was trained for token maps (1, 2, 3, 5)" in caplog.text
    pipe = quiet(VARPipeline.from_pretrained(result["pipeline"]))
    assert pipe(0, generator=seeded(0)).images[0].size == (14, 14)


def test_training_goes_on_from_a_transformer_alone_and_from_a_finished_cache(
    finished, inputs, tmp_path
):
    result = train_transformer(
        TransformerTrainingConfig(
            token_cache=str(finished[0] / "tokens"),
            tokenizer=str(finished[0] / "pipeline"),
            model=str(finished[0] / "pipeline" / "transformer"),
            num_train_epochs=1,
            batch_size=18,
            logging_steps=1,
            sample_steps=0,
        ),
        tmp_path / "run",
    )

    assert result["training"]["loss"] < 3.3


# ------------------------------------------------------------------ what does not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_size": 11},
            "multiple of the tokenizer's stride, 2 pixels. Got 11; 10 or 12 would",
        ),
        (
            {"image_size": 12},
            r"Images of 12 pixels need a schedule that ends with 6. Got .*\(1, 2, 3, 5\)",
        ),
        (
            {"architecture": {"vocab_size": 31}},
            "vocab_size is 31, but tokenizer and data make it 29",
        ),
        ({"gradient_accumulation_steps": 3}, "batch of 8 images cannot be cut into 3 equal parts"),
        ({"token_map_sizes": (3, 2)}, "at least two increasing positive sides"),
        ({"trained_scales": 5}, "trained_scales must be at most 4, .* of the tokenizer. Got 5"),
        ({"trained_scales": 0}, "trained_scales must be"),
        ({"trainer": {"torch_compile": True}}, "torch_compile is a setting of its own"),
        ({"trainer": {"torch_compile_mode": "default"}}, "torch_compile is a setting of its own"),
        ({"torch_compile": True, "shard": True}, "shard trains without torch_compile"),
        ({"attn_implementation": "flash"}, "attn_implementation must be one of eager, sdpa, "),
    ],
)
def test_settings_that_do_not_fit_the_tokenizer_are_refused(inputs, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train_transformer(config(inputs, **changes), tmp_path / "run")
    assert not (
        tmp_path / "run"
    ).exists()  # else the folder would belong to settings that cannot be


def test_one_class_is_refused_unless_it_is_meant_to_be_unguided(inputs, tmp_path):
    write_image_folder(tmp_path / "images", ("fox",), count=4)
    changes = {"data": str(tmp_path / "images"), "num_train_epochs": 2}

    with pytest.raises(ValueError, match=r"one class only \('fox'\): .*\"class_dropout_prob\": 0"):
        train_transformer(config(inputs, **changes), tmp_path / "refused")

    changes["architecture"] = {**settings(inputs)["architecture"], "class_dropout_prob": 0}
    assert train_transformer(config(inputs, **changes), tmp_path / "run")["classes"] == 1


def test_more_classes_than_the_checkpoint_are_refused(pipeline_folder, tmp_path):
    names = tuple(f"class {i:02d}" for i in range(12))
    write_image_folder(tmp_path / "images", names, count=1)

    with pytest.raises(ValueError, match=r"12 classes, more than the 11 .*\(new_classes\)"):
        train_transformer(
            TransformerTrainingConfig(data=str(tmp_path / "images"), model=str(pipeline_folder)),
            tmp_path / "run",
        )


def test_a_tokenizer_that_the_model_was_not_trained_with_is_refused(
    pipeline_folder, inputs, tmp_path
):
    make_vqvae(codebook_size=31).save_pretrained(tmp_path / "other")

    with pytest.raises(
        ValueError, match="vocab_size 29, the tokenizer 31: they were not trained together"
    ):
        train_transformer(
            TransformerTrainingConfig(
                data=str(inputs / "images"),
                model=str(pipeline_folder),
                tokenizer=str(tmp_path / "other"),
                new_classes=True,
            ),
            tmp_path / "run",
        )


def test_validation_tokens_are_shared_between_runs_without_their_images(finished, inputs, tmp_path):
    run, expected = finished
    caches = {
        "token_cache": str(run / "tokens"),
        "validation_cache": str(run / "tokens-validation"),
    }

    result = train_transformer(config(inputs, data=None, eval_steps=6, **caches), tmp_path / "run")

    assert result["evaluation"] == expected["evaluation"]
    assert not (tmp_path / "run" / "tokens-validation").exists()


def test_a_token_cache_of_another_tokenizer_is_refused(finished, inputs, tmp_path):
    other = make_vqvae()
    with torch.no_grad():
        other.quantizer.codebook.weight[0, 0] += 1
    other.save_pretrained(tmp_path / "other")
    changes = {"tokenizer": str(tmp_path / "other"), "token_cache": str(finished[0] / "tokens")}

    with pytest.raises(ValueError, match="made with other settings: tokenizer was"):
        train_transformer(config(inputs, **changes), tmp_path / "run")
    with pytest.raises(ValueError, match="made with other settings: tokenizer was"):
        train_transformer(config(inputs, **changes | {"data": None}), tmp_path / "another")


def test_a_transformer_alone_needs_a_tokenizer(inputs, tmp_path):
    make_transformer().save_pretrained(tmp_path / "transformer")

    with pytest.raises(ValueError, match=r"a transformer without a tokenizer: name one"):
        train_transformer(
            TransformerTrainingConfig(
                data=str(inputs / "images"), model=str(tmp_path / "transformer")
            ),
            tmp_path / "run",
        )


def test_validation_images_of_other_classes_are_refused(inputs, tmp_path):
    write_image_folder(tmp_path / "images", ("apple", "pear", "rocket"), count=1)

    with pytest.raises(ValueError, match="other classes than the training data: 3 against 3"):
        train_transformer(config(inputs, validation=str(tmp_path / "images")), tmp_path / "run")


def test_a_diverging_run_stops_with_its_last_good_checkpoint(inputs, tmp_path):
    """Gradients of a rate this high soon overflow float32."""
    changes = {
        "base_learning_rate": 1e30,
        "final_lr_factor": 1.0,
        "max_grad_norm": 0.0,
        "save_steps": 1,
    }

    with pytest.raises(
        DivergedError, match=r"became NaN or infinite\. The last good checkpoint is"
    ):
        train_transformer(config(inputs, **changes), tmp_path / "run")

    last_line = log_lines(tmp_path / "run", "training")[-1]
    checkpoint = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    assert checkpoint.name == f"step-{last_line['step']:08d}"
    pipe = VARPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert all(parameter.isfinite().all() for parameter in pipe.transformer.parameters())
