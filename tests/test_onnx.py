"""The exported graphs and the runner against torch."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import BATCH, TOKEN_MAP_SIZES, make_pipe, make_transformer, make_vqvae
from PIL import Image

pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

from var_hf import NextScaleScheduler, VARCollaborativePipeline, VARImg2ImgPipeline
from var_hf.generation import generate
from var_hf.onnx import OnnxVARImg2ImgPipeline, OnnxVARPipeline, export, export_onnx
from var_hf.onnx.metadata import METADATA_FILE, browser_limit
from var_hf.onnx.random_numbers import uniform
from var_hf.onnx.runner import OnnxGraphs
from var_hf.sampling_settings import temperature_at

NUM_TOKENS = sum(size**2 for size in TOKEN_MAP_SIZES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny pipeline in float32, to read from."""
    target = tmp_path_factory.mktemp("onnx") / "tiny"
    export_onnx(make_pipe(), target, name="tiny", license="mit")
    return target


@pytest.fixture(scope="module")
def runner(folder):
    return OnnxVARPipeline.from_pretrained(folder, num_threads=1)


@pytest.fixture
def copied(folder, tmp_path):
    """A folder to damage."""
    return shutil.copytree(folder, tmp_path / "copied")


def load(pipe, target, **options):
    export_onnx(pipe, target, **options)
    return OnnxVARPipeline.from_pretrained(target, num_threads=1)


class SameDraws:
    """A `TokenChoice` that draws as docs/onnx.md states, from the logits that torch computes."""

    def __init__(self, pipe, settings, seeds):
        self.pipe, self.settings, self.seeds, self.start = pipe, settings, seeds, 0

    def noise(self, shape, generator):
        positions = np.arange(self.start, self.start + shape.shape[1])
        self.start += shape.shape[1]
        return (torch.tensor(np.stack([uniform(*seed, positions) for seed in self.seeds])),)

    def __call__(self, logits, scale, noise):
        progress = scale / (self.pipe.num_timesteps - 1)
        logits = logits / temperature_at(self.settings.temperature, progress)
        logits = self.pipe.scheduler.filter(logits, self.settings.top_k, self.settings.top_p)
        sums = logits.double().softmax(-1).cumsum(-1)
        tokens = (sums <= noise[0][..., None] * sums[..., -1:]).sum(-1)
        return tokens, self.pipe.vqvae.quantizer.codes(tokens)


def torch_outputs(pipe, class_ids, seeds, **options):
    settings = pipe.resolve_settings(**options)
    generation = pipe.start(class_ids, settings, None)
    generation.choice = SameDraws(pipe, settings, seeds)
    return list(generate(generation))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance_scale": 1.0, "top_k": 0, "top_p": 1.0},
        {"guided_scales": 2, "temperature": [1.0, 0.9, 0.8, 1.2]},
        {"guided_scales": (1, 3), "guidance_schedule": "constant", "top_k": 5},
    ],
)
def test_the_same_random_numbers_give_the_same_tokens_as_torch(pipe, runner, options):
    ours = list(runner.stream([3, 8], seed=11, preview="last", output_type="np", **options))
    theirs = torch_outputs(pipe, [3, 8], [(11, 0), (11, 1)], **options)
    for one, other in zip(ours, theirs, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)
        np.testing.assert_allclose(one.latents, other.latents, atol=1e-5)
    pixels = pipe.decode(theirs[-1].latents, "np")
    np.testing.assert_allclose(ours[-1].image, pixels, atol=1e-4)
    assert len({tuple(one.tokens[0]) for one in ours[1:]}) > 1  # something was drawn


def with_first_scale_of(size):
    sizes = (size, 3, 5)
    return {
        "transformer": make_transformer(token_map_sizes=sizes),
        "vqvae": make_vqvae(token_map_sizes=sizes, refiner_of_scale=None),
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"transformer": make_transformer(share_modulation=True)},
        {"transformer": make_transformer(qk_norm=False)},
        {"vqvae": make_vqvae(refiner_mix=0.0, refiner_of_scale=None)},
        with_first_scale_of(2),
    ],
    ids=["shared modulation", "no q/k norm", "no refiners", "first scale 2 x 2"],
)
def test_every_variant_of_the_model_is_exported(changes, tmp_path):
    pipe = make_pipe(**changes)
    runner = load(pipe, tmp_path / "variant")
    ours = list(runner.stream([None, 2], seed=3))
    for one, other in zip(ours, torch_outputs(pipe, [11, 2], [(3, 0), (3, 1)]), strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)
        np.testing.assert_allclose(one.latents, other.latents, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_any_dtype_are_exported(folder, tmp_path, dtype):
    runner = load(make_pipe().to(dtype), tmp_path / "other")
    assert runner(4, seed=0, output_type="np").images.shape == (1, 10, 10, 3)


def test_images_become_the_same_tokens(pipe, runner):
    images = torch.rand(BATCH, 3, 10, 10, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ours = runner.graphs.encode(images.numpy())
    theirs = pipe.vqvae.encode(images).token_maps
    assert [one.tolist() for one in ours] == [one.tolist() for one in theirs]


@pytest.mark.parametrize(("strength", "kept"), [(0.0, 4), (0.5, 2), (1.0, 0)])
def test_a_variation_keeps_the_coarse_scales(pipe, runner, strength, kept):
    image = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    variation = OnnxVARImg2ImgPipeline.from_pipe(runner)
    outputs = list(variation.stream([image], [1, 2], strength=strength, seed=[5, 6]))
    theirs = VARImg2ImgPipeline(**pipe.components, id2label=pipe.id2label)
    torch_maps = [
        one.tokens for one in theirs.stream(image, [1, 2], strength=strength, output_type="latent")
    ]
    same = [
        one.tokens.tolist() == tokens.tolist()
        for one, tokens in zip(outputs, torch_maps, strict=True)
    ]
    assert same[:kept] == [True] * kept
    assert not all(same) or kept == 4
    assert outputs[-1].tokens.shape == (2, 25)
    drawn = variation(image, [1, 2], strength=strength, seed=[5, 6], output_type="latent").images
    assert drawn.tolist() == outputs[-1].latents.tolist()


def test_a_seed_per_image_makes_images_independent_of_their_batch(runner):
    together = runner([3, 8, 3], seed=[1, 2, 1], output_type="np").images
    alone = runner(8, seed=2, output_type="np").images
    np.testing.assert_allclose(together[1], alone[0], atol=1e-5)
    assert together[0].tolist() == together[2].tolist()
    assert not np.allclose(*runner(3, num_images_per_prompt=2, seed=1, output_type="np").images)


def test_images_come_in_every_form(runner):
    ((of_pil,),) = runner("hen", seed=4, return_dict=False)
    of_np = runner("hen", seed=4, output_type="np").images[0]
    assert of_pil.size == (10, 10)
    assert np.asarray(of_pil).tolist() == (of_np * 255).round().astype(np.uint8).tolist()
    assert runner("hen", seed=4, output_type="latent").images.shape == (1, 6, 5, 5)


def test_a_stream_shows_the_image_after_every_scale(runner):
    outputs = list(runner.stream([2, 3], seed=0, preview=True))
    assert [(one.scale, one.num_scales, len(one.image)) for one in outputs] == [
        (scale, 4, 2) for scale in range(4)
    ]


def test_a_callback_changes_latents_and_stops(runner):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, timestep))
        pipe.interrupt = step == 2
        return {"latents": np.zeros_like(tensors["latents"])}

    images = runner(2, seed=0, output_type="latent", callback_on_step_end=callback).images
    assert seen == [(0, 0), (1, 1), (2, 2)]
    assert not images.any()


# Smaller weights


def test_half_precision_is_half_as_large_and_rounds_only_the_weights(runner, folder, tmp_path):
    smaller = load(make_pipe(), tmp_path / "float16", dtype="float16")
    assert smaller.metadata.dtype == "float16"
    size = {
        each: (tmp_path / "float16" / each).stat().st_size / (folder / each).stat().st_size
        for each in ("transformer.onnx", "condition.onnx")
    }
    assert max(size.values()) < 0.65  # nodes and biases stay
    one, other = (next(each.stream([3], seed=0)).logits for each in (smaller, runner))
    error = np.abs(one - other).max()
    assert 0 < error < 0.02 * np.std(other)


def test_eight_bits_stay_near_the_logits(runner, folder, tmp_path):
    smaller = load(make_pipe(), tmp_path / "int8", dtype="int8")
    ratio = (tmp_path / "int8" / "condition.onnx").stat().st_size / (
        folder / "condition.onnx"
    ).stat().st_size
    assert ratio < 0.4
    one, other = (next(each.stream([3], seed=0)).logits for each in (smaller, runner))
    error = np.sqrt(np.square(one - other).mean()) / np.std(other)
    assert 0 < error < 0.05


def test_a_weight_beyond_half_precision_is_refused(tmp_path):
    pipe = make_pipe()
    pipe.transformer.lm_head.weight.data[3, 5] = 1e5
    with pytest.raises(ValueError, match=r"lm_head.weight reaches 1e\+05.*float32"):
        export_onnx(pipe, tmp_path / "x", dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_large_weights_go_to_a_second_file(runner, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_MOST_BYTES_OF_WEIGHTS", 100_000)
    other = load(make_pipe(), tmp_path / "large")
    assert "transformer.onnx.data" in other.metadata.files
    assert "latents.onnx.data" not in other.metadata.files
    ours, theirs = (each(3, seed=0, output_type="latent").images for each in (other, runner))
    assert ours.tolist() == theirs.tolist()
    (tmp_path / "large" / "transformer.onnx.data").unlink()
    with pytest.raises(OSError, match=r"transformer.onnx.data is missing"):
        OnnxGraphs(tmp_path / "large")


# The folder


def test_the_metadata_hold_what_a_runner_needs(folder, runner):
    content = json.loads((folder / METADATA_FILE).read_text())
    assert content["format"], content["format_version"] == ("var-hf-onnx", 1)
    assert content["opset"] == 18
    assert content["license"] == "mit"
    assert content["sampling"]["guidance_scale"] == 3.0
    assert content["sampling"]["top_k"] == 13
    assert content["model"]["num_tokens"] == NUM_TOKENS
    assert sorted(content["files"]) == sorted(path.name for path in folder.glob("*.onnx"))
    assert runner.id2label == make_pipe().id2label
    assert content["provenance"]["tools"]["var-hf"]


def test_the_same_pipeline_gives_the_same_bytes(folder, tmp_path):
    export_onnx(make_pipe(), tmp_path / "again", name="tiny", license="mit")
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


BLOCKED = ("torch", "transformers", "diffusers", "safetensors", "huggingface_hub", "onnx")


def test_the_runner_needs_no_torch(folder):
    script = f"""
import sys
for name in {BLOCKED}:
    sys.modules[name] = None
from var_hf.onnx import OnnxVARImg2ImgPipeline, OnnxVARPipeline
pipe = OnnxVARPipeline.from_pretrained({str(folder)!r})
image = pipe("hen", seed=4).images[0]
variation = OnnxVARImg2ImgPipeline.from_pipe(pipe)(image, 3, seed=4).images[0]
print(image.size, variation.size)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("(10, 10) (10, 10)\n", "")


# Bad input


def edit(folder, **changes):
    path = folder / METADATA_FILE
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def test_a_truncated_graph_is_named(copied):
    path = copied / "decoder.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match=r"decoder.onnx has \d+ bytes and should have \d+"):
        OnnxVARPipeline.from_pretrained(copied)


def test_a_changed_graph_is_named(copied):
    content = bytearray((copied / "encoder.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copied / "encoder.onnx").write_bytes(content)
    with pytest.raises(OSError, match=r"encoder.onnx differs from its SHA-256"):
        OnnxVARPipeline.from_pretrained(copied)


def test_a_missing_graph_is_named(copied):
    (copied / "latents.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"latents.onnx is missing"):
        OnnxVARPipeline.from_pretrained(copied)


def test_files_outside_the_folder_are_not_read(copied):
    metadata = json.loads((copied / METADATA_FILE).read_text())
    files = metadata["files"] | {"../secret": {"size": 0, "sha256": ""}}
    (copied.parent / "secret").write_text("")
    edit(copied, files=files)
    with pytest.raises(FileNotFoundError, match=r"secret is missing"):
        OnnxVARPipeline.from_pretrained(copied)


def test_every_graph_is_described(copied):
    metadata = json.loads((copied / METADATA_FILE).read_text())
    edit(copied, graphs=metadata["graphs"] | {"decoder": "other.onnx"})
    with pytest.raises(OSError, match=r"does not describe other.onnx"):
        OnnxVARPipeline.from_pretrained(copied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, r"format version 2.*reads 1. Export the model again"),
        ({"format": "other"}, r"metadata.json: format must be one of"),
        ({"opset": None}, r"metadata.json: opset must be a whole number"),
        ({"sampling": {"top_k": 3}}, r"sampling lacks guidance_scale"),
        ({"model": {}}, r"model lacks num_classes"),
        ({"graphs": {}}, r"graphs lacks condition"),
    ],
)
def test_other_metadata_are_refused(copied, changes, message):
    edit(copied, **changes)
    with pytest.raises(ValueError, match=message):
        OnnxVARPipeline.from_pretrained(copied)


def test_the_number_of_tokens_follows_from_the_schedule(copied):
    model = json.loads((copied / METADATA_FILE).read_text())["model"]
    edit(copied, model=model | {"num_tokens": 40})
    with pytest.raises(ValueError, match=r"num_tokens must be.*39. Got 40"):
        OnnxVARPipeline.from_pretrained(copied)


def test_a_folder_without_metadata_is_no_export(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no exported folder.*var-hf export-onnx"):
        OnnxVARPipeline.from_pretrained(tmp_path)


def test_a_graph_that_onnxruntime_cannot_load_is_one_error(copied):
    import hashlib

    content = b"no graph"
    (copied / "condition.onnx").write_bytes(content)
    files = json.loads((copied / METADATA_FILE).read_text())["files"]
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit(copied, files=files | {"condition.onnx": entry})
    with pytest.raises(OSError, match=r"cannot load .*condition.onnx \(opset 18\)"):
        OnnxVARPipeline.from_pretrained(copied)(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": "goldfisch"}, r"Did you mean 'goldfish'"),
        ({"class_labels": 11}, r"Class ids lie in \[0, 10\]"),
        ({"class_labels": 1, "top_p": 0.0}, r"top_p must be"),
        ({"class_labels": 1, "temperature": [1.0, 2.0]}, r"one for each of the 4 scales"),
        ({"class_labels": 1, "sampling": "gumbel_softmax"}, r"use VARPipeline for others"),
        ({"class_labels": 1, "output_type": "pt"}, r"output_type must be"),
        ({"class_labels": 1, "num_images_per_prompt": 0}, r"must be at least 1"),
        ({"class_labels": 1, "seed": -1}, r"seed must be"),
        (
            {"class_labels": 1, "callback_on_step_end_tensor_inputs": ["logits"]},
            r"may hold \['latents'\]",
        ),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_drawn(runner, arguments, message):
    with pytest.raises(ValueError, match=message):
        runner.stream(**arguments)


def test_images_and_labels_match(runner):
    variation = OnnxVARImg2ImgPipeline.from_pipe(runner)
    images = np.zeros((2, 10, 10, 3))
    with pytest.raises(ValueError, match="Cannot match 3 class_labels, 2 images"):
        variation.stream(images, [1, 2, 3])
    with pytest.raises(ValueError, match=r"strength must lie in \[0, 1\]"):
        variation.stream(images, strength=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 17}, r"opset must lie between 18 and \d+"),
        ({"opset": 1000}, r"opset must lie between 18 and \d+"),
        ({"dtype": "int4"}, r"dtype must be one of float32, float16, int8"),
    ],
)
def test_other_formats_are_refused(pipe, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(pipe, tmp_path / "x", **options)
    assert list(tmp_path.iterdir()) == []


def test_an_opset_that_onnxruntime_lacks_is_refused(pipe, tmp_path, monkeypatch):
    import onnxruntime

    def fail(*arguments):
        raise RuntimeError("opset 25 is under development")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(ValueError, match=r"does not read opset 25. Pass a smaller one, such as 18"):
        export_onnx(pipe, tmp_path / "x", opset=25)


def test_newer_opsets_give_the_same_image(runner, tmp_path):
    newer = load(make_pipe(), tmp_path / "newer", opset=21)
    ours, theirs = (each(3, seed=0, output_type="latent").images for each in (newer, runner))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_defaults_that_the_runner_lacks_are_refused(tmp_path):
    pipe = make_pipe(scheduler=NextScaleScheduler(sampling="gumbel_softmax"))
    with pytest.raises(ValueError, match=r"register_to_config\(sampling='multinomial'"):
        export_onnx(pipe, tmp_path / "x")


def test_two_transformers_are_refused(pipe, tmp_path):
    both = VARCollaborativePipeline(
        drafter=pipe.transformer,
        refiner=make_transformer(),
        vqvae=pipe.vqvae,
        scheduler=pipe.scheduler,
    )
    with pytest.raises(ValueError, match="several transformers"):
        export_onnx(both, tmp_path / "x")


def test_adapters_are_refused(pipe, tmp_path):
    peft = pytest.importorskip("peft", reason="adapters need peft")
    pipe.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"adapters. Merge them"):
        export_onnx(pipe, tmp_path / "x")


def test_a_browser_has_limits():
    assert browser_limit({"a.onnx": 10_000_000}, 2_500_000, "float32") is None
    assert "a.onnx takes 3.0 GB" in browser_limit({"a.onnx": 3 * 10**9}, 750_000_000, "float32")
    in_two = {"a.onnx": 15 * 10**8, "b.onnx": 10**9}
    assert "of memory" in browser_limit(in_two, 125 * 10**7, "float16")
    assert browser_limit(in_two, 25 * 10**8, "int8") is None


def test_the_estimate_is_near_the_files(pipe, runner):
    estimated = export.estimated_sizes(pipe, "float32")
    for name, entry in runner.metadata.files.items():
        assert abs(entry["size"] - estimated[name]) < 0.5 * entry["size"] + 20_000


# The command


def test_the_command_writes_a_folder_that_draws(var_hf, pipe_folder, tmp_path):
    code, out, err = var_hf("export-onnx", pipe_folder, "-o", "out", "--dtype", "int8")
    assert (code, out) == (0, "out\n"), err
    pipe = OnnxVARPipeline.from_pretrained(tmp_path / "out")
    assert pipe.metadata.name == "pipe"
    assert pipe("hen", seed=1).images[0].size == (10, 10)


def test_the_command_says_first_that_no_browser_runs_it(var_hf, pipe_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "browser_problem", lambda pipe, dtype: "it is too large")
    code, out, err = var_hf("export-onnx", pipe_folder, "-o", "out", "--json")
    assert code == 0
    assert json.loads(out)["format"] == "var-hf-onnx"
    assert "No browser will run this export: it is too large." in err


def test_the_command_refuses_a_folder_that_exists(fails, pipe_folder, tmp_path):
    (tmp_path / "out").mkdir()
    assert "out exists already" in fails("export-onnx", pipe_folder, "-o", "out")
