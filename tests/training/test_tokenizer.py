import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from image_files import an_image, write_image_folder
from PIL import Image

from var_hf import MultiScaleVQVAE
from var_hf.training import tokenizer as tokenizer_module
from var_hf.training.tokenizer import DivergedError, TokenizerTrainer, train_tokenizer
from var_hf.training.tokenizer_config import TokenizerTrainingConfig

ARCHITECTURE = {
    "base_channels": 8,
    "channel_multipliers": (1, 2, 3),
    "num_res_blocks": 1,
    "latent_channels": 5,
    "codebook_size": 13,
    "token_map_sizes": (1, 2, 3, 6),
    "norm_num_groups": 4,
}  # stride 4, so 24 pixels
ADVERSARY = {
    "adversarial_weight": 0.3,
    "adversarial_start": 5,
    "discriminator_channels": 6,
    "discriminator_layers": 2,
}


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    AcceleratorState._reset_state(reset_partial_state=True)  # of tests of other files
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def config(image_folder):
    return TokenizerTrainingConfig(
        data=str(image_folder),
        architecture=ARCHITECTURE,
        resize_factor=1.125,
        horizontal_flip=True,
        max_steps=8,
        batch_size=4,
        learning_rate=2e-3,
        warmup_steps=2,
        max_grad_norm=1.0,
        ema_decay=0.9,
        autoencoder_steps=3,
        codebook_images=12,
        revive_every=2,
        logging_steps=1,
        eval_steps=4,
        save_steps=4,
    )


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def without_speed(entries):
    return [
        {name: value for name, value in entry.items() if name != "images_per_second"}
        for entry in entries
    ]


def losses_of(run):
    return [entry["training"] for entry in log_of(run) if "training" in entry]


def evaluations_of(run):
    return [entry["evaluation"] for entry in log_of(run) if "evaluation" in entry]


# ---------------------------------------------------------------- what a run leaves behind


def test_a_run_leaves_a_tokenizer_that_loads_and_reconstructs(config, tmp_path):
    result = train_tokenizer(config, tmp_path / "run")

    vqvae = MultiScaleVQVAE.from_pretrained(result["tokenizer"])
    images = torch.rand(2, 3, 24, 24) * 2 - 1
    with torch.no_grad():
        token_maps = vqvae.encode(images).token_maps
        assert vqvae.decode(token_maps).sample.shape == images.shape
    assert [tuple(each.shape) for each in token_maps] == [(2, n) for n in (1, 4, 9, 36)]
    assert Path(result["tokenizer"]) == tmp_path / "run" / "vqvae"
    assert result["steps"] == 8
    assert vqvae.quantizer.codebook_usage.sum() > 0


def test_quality_and_usage_per_scale_are_logged_from_the_first_step(config, tmp_path):
    train_tokenizer(config, tmp_path / "run")

    first, *_, last = evaluations_of(tmp_path / "run")
    for values in (first, last):
        assert values["psnr"] > 0
        assert -1 <= values["ssim"] <= 1
        assert len(values["distinct_codes"]) == 4
        assert values["images"] == 1  # one in twenty of fourteen images is held out, at least one
    assert log_of(tmp_path / "run")[0]["step"] == 0
    assert not first["quantized"]
    assert last["quantized"]
    with Image.open(tmp_path / "run" / "reconstructions" / "step-00000000.png") as grid:
        assert grid.size == (2 + 26, 2 + 2 * 26)


def test_training_lowers_the_error(config, tmp_path):
    longer = replace(
        config, validation=config.data, max_steps=60, autoencoder_steps=20, eval_steps=60,
        save_steps=60,
    )  # fmt: skip

    train_tokenizer(longer, tmp_path / "run")

    first, *_, last = evaluations_of(tmp_path / "run")
    assert last["quantized"]
    assert last["psnr"] > first["psnr"] + 3


def test_switching_quantization_on_costs_little(config, tmp_path):
    """That is what the codebook made from data is for."""
    enough_codes = ARCHITECTURE | {"codebook_size": 40}
    longer = replace(
        config, architecture=enough_codes, max_steps=41, autoencoder_steps=40, codebook_images=60,
        eval_steps=50, save_steps=50,
    )  # fmt: skip

    train_tokenizer(longer, tmp_path / "run")

    at_switch = [entry for entry in log_of(tmp_path / "run") if entry["step"] == 40]
    measured = [entry["evaluation"] for entry in at_switch if "evaluation" in entry]
    before, after = measured[:2]
    assert (before["quantized"], after["quantized"]) == (False, True)
    assert after["psnr"] > before["psnr"] - 1.5


def test_dead_codes_are_revived_and_counted(config, tmp_path):
    train_tokenizer(replace(config, architecture=ARCHITECTURE | {"codebook_size": 300},
                            codebook_images=100), tmp_path / "run")  # fmt: skip

    revivals = [entry for entry in log_of(tmp_path / "run") if "revived" in entry]
    assert [entry["step"] for entry in revivals] == [4, 6, 8]
    assert all(entry["revived"] > 0 for entry in revivals)
    assert len(revivals[0]["usage"]["distinct"]) == 4


def test_collapse_is_said(config, tmp_path, caplog):
    """A tokenizer whose codes are all alike uses one of them."""
    vqvae = MultiScaleVQVAE(**ARCHITECTURE | {"codebook_size": 50})
    with torch.no_grad():
        vqvae.quantizer.codebook.weight.fill_(0.1)
    vqvae.save_pretrained(tmp_path / "collapsed")
    many = write_image_folder(tmp_path / "many", count=30)
    settings = replace(
        config, model=str(tmp_path / "collapsed"), architecture={}, max_steps=1, revive_every=0,
        validation=str(many),
    )  # fmt: skip

    train_tokenizer(settings, tmp_path / "run")

    warnings = [entry["warning"] for entry in log_of(tmp_path / "run") if "warning" in entry]
    assert "collapsed at 4 of 4 scales: scale 0 (1x1) uses 1 of 50 codes" in warnings[0]
    assert warnings[0] in caplog.text


# ---------------------------------------------------------------- optional terms


class Blur(torch.nn.Module):
    """A perceptual distance as users write them: two image batches in, one number per image out."""

    def forward(self, reconstruction, images):
        difference = torch.nn.functional.avg_pool2d(reconstruction - images, 6)
        return difference.square().mean(dim=(1, 2, 3))


def test_any_module_serves_as_perceptual_distance(config, tmp_path):
    train_tokenizer(config, tmp_path / "run", perceptual=Blur())

    for values in losses_of(tmp_path / "run")[:3]:
        expected = 0.2 * values["l1"] + 1.0 * values["l2"] + 0.5 * values["perceptual"]
        assert values["loss"] == pytest.approx(expected, abs=1e-5)


def test_the_adversary_comes_in_late(config, tmp_path):
    train_tokenizer(replace(config, **ADVERSARY), tmp_path / "run")

    values = losses_of(tmp_path / "run")
    assert ["adversarial" in each for each in values] == [False] * 5 + [True] * 3
    assert all(each["adaptive_weight"] > 0 and "discriminator" in each for each in values[5:])


def test_muon_trains_too(config, tmp_path):
    settings = replace(config, optimizer="muon", max_steps=40, eval_steps=40, save_steps=40)

    train_tokenizer(settings, tmp_path / "run")

    first, *_, last = evaluations_of(tmp_path / "run")
    assert last["psnr"] > first["psnr"] + 2


def test_parts_of_a_step_add_up_to_the_step(config, tmp_path):
    train_tokenizer(replace(config, **ADVERSARY), tmp_path / "whole")
    parts = replace(config, **ADVERSARY, gradient_accumulation_steps=2)

    train_tokenizer(parts, tmp_path / "parts")

    pairs = zip(losses_of(tmp_path / "whole"), losses_of(tmp_path / "parts"), strict=True)
    # The adversary's adaptive weight is a ratio of norms and belongs to each part.
    for whole, part in list(pairs)[:5]:
        assert part["loss"] == pytest.approx(whole["loss"], rel=1e-4)


# ---------------------------------------------------------------- fine-tuning


def test_fine_tuning_starts_from_the_given_tokenizer(config, tmp_path):
    first = train_tokenizer(config, tmp_path / "first")
    settings = replace(
        config, model=first["tokenizer"], architecture={}, max_steps=2, revive_every=0
    )

    train_tokenizer(settings, tmp_path / "second")

    AcceleratorState._reset_state(reset_partial_state=True)
    folder = str(tmp_path / "first")  # holds vqvae/, as a pipeline's folder does
    train_tokenizer(replace(settings, model=folder), tmp_path / "third")

    assert evaluations_of(tmp_path / "third") == evaluations_of(tmp_path / "second")
    start = evaluations_of(tmp_path / "second")[0]
    end = evaluations_of(tmp_path / "first")[-1]
    assert start == end
    assert all(values["quantized"] for values in losses_of(tmp_path / "second"))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_decoder_can_learn_alone_and_tokens_stay(config, tmp_path, optimizer):
    first = train_tokenizer(config, tmp_path / "first")
    settings = replace(
        config, model=first["tokenizer"], architecture={}, decoder_only=True, max_steps=16,
        optimizer=optimizer, learning_rate=1e-3, muon_learning_rate=1e-3, revive_below=9.0,
    )  # fmt: skip

    AcceleratorState._reset_state(reset_partial_state=True)
    second = train_tokenizer(settings, tmp_path / "second")

    before, after = (
        MultiScaleVQVAE.from_pretrained(result["tokenizer"]).state_dict()
        for result in (first, second)
    )
    stay = ("encoder.", "quant_conv.", "quantizer.codebook.", "quantizer.refiners.")
    for name, tensor in after.items():
        if name.startswith(stay):
            assert torch.equal(tensor, before[name]), name
    learns = [name for name in after if name.startswith(("decoder.", "post_quant_conv."))]
    assert all(not torch.equal(after[name], before[name]) for name in learns)
    start, *_, end = evaluations_of(tmp_path / "second")
    assert end["distinct_codes"] == start["distinct_codes"]
    assert end["l1"] < start["l1"]


def test_a_decoder_alone_needs_a_tokenizer_whose_tokens_stay(config):
    with pytest.raises(ValueError, match="decoder_only needs a model"):
        replace(config, decoder_only=True)
    with pytest.raises(ValueError, match="leave refit_codebook out"):
        replace(config, model="x", architecture={}, decoder_only=True, refit_codebook=True)


def test_a_codebook_can_be_made_anew_for_other_images(config, tmp_path):
    vqvae = MultiScaleVQVAE(**ARCHITECTURE)
    with torch.no_grad():
        vqvae.quantizer.codebook.weight.fill_(0.1)
    vqvae.save_pretrained(tmp_path / "collapsed")
    settings = replace(
        config, model=str(tmp_path / "collapsed"), architecture={}, autoencoder_steps=0, max_steps=1
    )

    train_tokenizer(settings, tmp_path / "kept")
    AcceleratorState._reset_state(reset_partial_state=True)
    train_tokenizer(replace(settings, refit_codebook=True), tmp_path / "refit")

    kept, refit = (evaluations_of(tmp_path / name)[0] for name in ("kept", "refit"))
    assert kept["distinct_codes"] == [1, 1, 1, 1]
    assert refit["distinct_codes"][-1] > 3
    assert refit["quantized"]


def test_the_codebook_has_a_learning_rate_of_its_own(config, tmp_path):
    settings = replace(config, optimizer="muon", codebook_learning_rate=0.5, muon_learning_rate=0.1)

    trainer = TokenizerTrainer(settings, tmp_path / "run")

    peaks = {
        parameter: group["peak"]
        for optimizer in trainer.optimizers.values()
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert peaks.keys() == set(trainer.vqvae.parameters())
    assert peaks[trainer.vqvae.quantizer.codebook.weight] == 0.5
    assert peaks[trainer.vqvae.encoder.mid.block_1.conv1.weight] == 0.1
    assert peaks[trainer.vqvae.decoder.conv_out.weight] == config.learning_rate


def test_a_tokenizer_in_half_precision_is_trained_in_full(config, tmp_path):
    MultiScaleVQVAE(**ARCHITECTURE).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    settings = replace(config, model=str(tmp_path / "half"), architecture={}, max_steps=1)

    result = train_tokenizer(settings, tmp_path / "run")

    assert MultiScaleVQVAE.from_pretrained(result["tokenizer"]).dtype == torch.float32
    assert losses_of(tmp_path / "run")[0]["loss"] > 0


def test_training_leaves_the_global_random_state_alone(config, tmp_path):
    state = torch.get_rng_state()

    TokenizerTrainer(replace(config, **ADVERSARY), tmp_path / "run")

    assert torch.equal(torch.get_rng_state(), state)


def test_model_and_architecture_together_are_refused(config):
    with pytest.raises(ValueError, match=r"either model .* or architecture .* not both"):
        replace(config, model="somewhere")


# ---------------------------------------------------------------- continuing


class StopAt(torch.nn.Module):
    """Ends the run in the middle of a step, as an interrupt would."""

    def __init__(self, step):
        super().__init__()
        self.steps_left = step
        self.blur = Blur()

    def forward(self, reconstruction, images):
        if self.steps_left == 0:
            raise KeyboardInterrupt
        self.steps_left -= 1
        return self.blur(reconstruction, images)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_continued_run_equals_an_uninterrupted_one(config, tmp_path, optimizer):
    settings = replace(config, **ADVERSARY, max_steps=11, save_steps=3, optimizer=optimizer)
    train_tokenizer(settings, tmp_path / "whole", perceptual=Blur())

    for _ in range(2):  # stopped before the switch to quantisation and after it
        with pytest.raises(KeyboardInterrupt):
            train_tokenizer(settings, tmp_path / "cut", perceptual=StopAt(5))
    train_tokenizer(settings, tmp_path / "cut", perceptual=Blur())

    assert without_speed(log_of(tmp_path / "cut")) == without_speed(log_of(tmp_path / "whole"))
    weights = [
        MultiScaleVQVAE.from_pretrained(tmp_path / name / "vqvae").state_dict()
        for name in ("whole", "cut")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_starting_a_finished_run_again_changes_nothing(config, tmp_path):
    first = train_tokenizer(config, tmp_path / "run")
    before = (tmp_path / "run" / "log.jsonl").read_text()

    assert train_tokenizer(config, tmp_path / "run") == first
    assert (tmp_path / "run" / "log.jsonl").read_text() == before


def test_another_configuration_in_the_same_folder_is_refused(config, tmp_path):
    TokenizerTrainer(config, tmp_path / "run")

    with pytest.raises(
        ValueError, match=r"made with other settings: learning_rate was 0\.002, is 0\.1"
    ):
        TokenizerTrainer(replace(config, learning_rate=0.1), tmp_path / "run")


SCRIPT = """
import os, pathlib, sys
from var_hf.training.tokenizer import train_tokenizer
from var_hf.training.tokenizer_config import TokenizerTrainingConfig

train_tokenizer(TokenizerTrainingConfig.from_recipe(sys.argv[1]), sys.argv[2])
pathlib.Path(sys.argv[2], "rank-" + os.environ.get("RANK", "0")).touch()
"""


def write_script(config, tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    return [str(tmp_path / "train.py"), str(tmp_path / "config.json")]


def environment():
    """One thread per process, because rounding depends on the number of threads."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def one_thread():
    """Rounding follows the number of threads, and the processes below have one each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_continues_exactly(config, tmp_path):
    settings = replace(config, max_steps=30, save_steps=3, eval_steps=10)
    command = [sys.executable, *write_script(settings, tmp_path)]
    train_tokenizer(settings, tmp_path / "whole")

    process = subprocess.Popen([*command, str(tmp_path / "cut")], env=environment())
    checkpoints = tmp_path / "cut" / "checkpoints"
    while not (checkpoints / "step-00000006").exists() and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    train_tokenizer(settings, tmp_path / "cut")

    assert without_speed(log_of(tmp_path / "cut")) == without_speed(log_of(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes_equal_one(config, tmp_path):
    """After the codebook's initialisation and with the adversary too.

    Adam makes a full step even if a gradient is only a rounding error. A small learning rate limits
    the effect.
    """
    settings = replace(config, **ADVERSARY, max_steps=10, learning_rate=1e-4)
    train_tokenizer(settings, tmp_path / "one")

    # On a machine without GPUs this is what starts several processes; --cpu starts a single one.
    launch = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_ip", "127.0.0.1", "--main_process_port", "0",
    ]  # fmt: skip
    command = [*launch, *write_script(settings, tmp_path), str(tmp_path / "two")]
    subprocess.run(command, check=True, env=environment() | {"ACCELERATE_USE_CPU": "true"})

    assert sorted(file.name for file in (tmp_path / "two").glob("rank-*")) == ["rank-0", "rank-1"]
    one, two = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    assert len(one) == len(two) == 10
    for alone, shared in zip(one, two, strict=True):
        for name in ("loss", "l1", "l2"):
            assert shared[name] == pytest.approx(alone[name], rel=1e-5, abs=2e-6), name
        assert shared["usage"] == alone["usage"]


# ---------------------------------------------------------------- bad input


def test_nan_stops_with_the_last_good_checkpoint_kept(config, tmp_path):
    class NanAt(StopAt):
        def forward(self, reconstruction, images):
            self.steps_left -= 1
            distance = self.blur(reconstruction, images)
            return distance * float("nan") if self.steps_left < 0 else distance

    settings = replace(config, save_steps=2)

    with pytest.raises(DivergedError, match=r"Step 6: loss, .*step-00000004.*Lower the learning"):
        train_tokenizer(settings, tmp_path / "run", perceptual=NanAt(5))

    folder = tmp_path / "run" / "checkpoints" / "step-00000004" / "vqvae"
    vqvae = MultiScaleVQVAE.from_pretrained(folder)
    assert all(parameter.isfinite().all() for parameter in vqvae.parameters())
    assert losses_of(tmp_path / "run")[-1]["loss"] > 0


def test_a_corrupt_image_is_skipped_and_counted(config, image_folder, tmp_path, caplog):
    broken = image_folder / "dot" / "003.png"
    broken.write_bytes(b"nothing")
    settings = replace(config, validation=str(write_image_folder(tmp_path / "held", count=2)))

    result = train_tokenizer(settings, tmp_path / "run")

    assert result["skipped_images"] == 1
    assert str(broken) in caplog.text
    assert "1 unreadable images skipped so far" in caplog.text


def test_strict_stops_at_a_corrupt_image(config, image_folder, tmp_path):
    broken = image_folder / "dot" / "003.png"
    broken.write_bytes(b"nothing")
    settings = replace(config, strict=True, validation=str(image_folder / "circle"))

    with pytest.raises(OSError, match=str(broken)):
        train_tokenizer(settings, tmp_path / "run")


def test_images_of_any_size_and_kind_train(config, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    an_image(1, side=61).resize((61, 37)).save(folder / "wide.png")
    an_image(2, side=15).convert("L").save(folder / "small-grey.png")
    an_image(3, side=30).convert("RGBA").save(folder / "alpha.png")
    an_image(4, side=25).convert("CMYK").save(folder / "print.jpg")
    an_image(5, side=24).convert("P").save(folder / "palette.gif")

    train_tokenizer(replace(config, data=str(folder)), tmp_path / "run")

    assert len(losses_of(tmp_path / "run")) == 8


def test_a_single_image_is_refused(config, tmp_path):
    folder = tmp_path / "single"
    folder.mkdir()
    an_image(1).save(folder / "only.png")

    with pytest.raises(ValueError, match=r"only\.png is the only image"):
        train_tokenizer(replace(config, data=str(folder)), tmp_path / "run")


def test_a_full_disk_says_which_checkpoint_is_good(config, tmp_path, monkeypatch):
    save_file, calls = tokenizer_module.save_file, []

    def full_after_two(tensors, file):
        calls.append(file)
        if len(calls) > 2:  # each checkpoint writes two files
            raise OSError(28, "No space left on device")
        save_file(tensors, file)

    monkeypatch.setattr(tokenizer_module, "save_file", full_after_two)

    with pytest.raises(OSError, match=r"step 8 could not be written.*No space left.*step-00000004"):
        train_tokenizer(config, tmp_path / "run")
    assert [each.name for each in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_steps": 0}, "max_steps must be above 0"),
        ({"revive_every": -1}, "revive_every must not be negative"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\)"),
        ({"resize_factor": 0.9}, "resize_factor must be at least 1"),
        ({"l1_weight": 0.0, "l2_weight": 0.0}, "nothing would teach the decoder"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, muon. Got 'sgd'"),
        ({"data": ""}, "Name the images to learn from"),
        ({"data": None}, "data must be a text .* Got None"),
        ({"l1_weight": "0.2"}, "l1_weight must be a finite number.* Got '0.2'"),
    ],
)
def test_settings_that_cannot_train_are_refused(config, setting, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **setting)


def test_a_recipe_file_is_checked(tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text('{"max_steps": 7, "max_stepps": 8}')
    with pytest.raises(ValueError, match="unknown settings max_stepps"):
        TokenizerTrainingConfig.from_recipe(recipe, data="x")
    recipe.write_text('{"max_steps": 7')
    with pytest.raises(ValueError, match="not JSON"):
        TokenizerTrainingConfig.from_recipe(recipe, data="x")
    recipe.write_text('{"max_steps": 7, "betas": [0.5, 0.8]}')

    config = TokenizerTrainingConfig.from_recipe(recipe, data="x", max_steps=9)

    assert (config.max_steps, config.betas) == (9, (0.5, 0.8))
