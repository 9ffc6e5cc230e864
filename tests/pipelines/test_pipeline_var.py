"""The behaviour that diffusers' common pipeline tests ask for, and what is VAR's own."""

import inspect
import io
import json
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from conftest import ID2LABEL, make_pipe, make_transformer, make_vqvae, quiet, seeded
from diffusers import PipelineQuantizationConfig
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.hooks import apply_group_offloading
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TorchAoConfig

from var_hf import NextScaleScheduler, VARPipeline
from var_hf.pipelines import hub

CLASSES, SIDE, SCALES = 11, 10, 4
LENGTHS = [1, 4, 9, 25]


def draw(pipe, labels=(3, 5), seed=0, **settings):
    """Images ``(B, 3, P, P)`` in [0, 1]."""
    arguments = {"generator": seeded(seed), "output_type": "pt"} | settings
    return pipe(list(labels), **arguments).images


def transformer_batches(pipe):
    """The batch size of every pass from now on."""
    batches = []
    pipe.transformer.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    return batches


# What comes out


def test_the_call_takes_what_diffusers_pipelines_take():
    parameters = inspect.signature(VARPipeline.__call__).parameters

    assert list(parameters)[1:] == [
        "class_labels",
        "guidance_scale",
        "top_k",
        "top_p",
        "sampling",
        "temperature",
        "guided_scales",
        "guidance_schedule",
        "ssg_scale",
        "num_images_per_prompt",
        "candidates",
        "judge",
        "judged_scales",
        "beams",
        "generator",
        "output_type",
        "return_dict",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
    ]
    assert parameters["num_images_per_prompt"].default == 1
    assert parameters["output_type"].default == "pil"
    assert all(parameters[name].default is None for name in ("guidance_scale", "top_k", "top_p"))


def test_images_come_in_the_form_asked_for(pipe):
    as_tensor = draw(pipe)
    as_array = draw(pipe, output_type="np")
    as_pil = draw(pipe, output_type="pil")
    latents = draw(pipe, output_type="latent")

    assert as_tensor.shape == (2, 3, SIDE, SIDE)
    assert as_array.shape == (2, SIDE, SIDE, 3)
    assert as_array.dtype == np.float32
    assert 0 <= as_array.min() < as_array.max() <= 1
    assert np.array_equal(as_tensor.permute(0, 2, 3, 1).numpy(), as_array)
    assert [type(image) for image in as_pil] == [Image.Image] * 2
    assert [image.size for image in as_pil] == [(SIDE, SIDE)] * 2
    assert np.array_equal(np.stack([np.asarray(i) for i in as_pil]), (as_array * 255).round())
    assert latents.shape == (2, 6, 5, 5)
    with torch.no_grad():
        decoded = pipe.vqvae.decode_latents(latents).sample
    assert torch.equal(decoded / 2 + 0.5, as_tensor)


def test_a_tuple_holds_what_the_output_holds(pipe):
    (images,) = pipe([3, 5], generator=seeded(0), output_type="pt", return_dict=False)

    assert torch.equal(images, draw(pipe))


def test_the_same_seed_draws_the_same_images(pipe):
    assert torch.equal(draw(pipe, seed=1), draw(pipe, seed=1))
    assert not torch.equal(draw(pipe, seed=1), draw(pipe, seed=2))


@pytest.mark.parametrize(
    ("labels", "ids"),
    [
        (7, [7]),
        ("goldfish", [1]),
        ("Tinca Tinca ", [0]),
        ("tench, tinca tinca", [0]),
        (["hen", 7, "HEN"], [3, 7, 3]),
        ((np.int64(2), 0), [2, 0]),
        (torch.tensor([4, 10]), [4, 10]),
        (torch.tensor(4), [4]),
        (np.array([4, 10]), [4, 10]),
        (range(3), [0, 1, 2]),
    ],
    ids=str,
)
def test_labels_are_ids_or_names_one_or_many(pipe, labels, ids):
    drawn = pipe(labels, generator=seeded(0), output_type="pt").images

    assert torch.equal(drawn, draw(pipe, ids))


def test_batches_of_any_size_are_drawn(pipe):
    for size in range(1, 4):
        assert draw(pipe, range(size)).shape[0] == size


def test_images_of_one_label_follow_one_another(pipe):
    images = draw(pipe, [3, 5], num_images_per_prompt=3)

    assert torch.equal(images, draw(pipe, [3, 3, 3, 5, 5, 5]))
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize("sampling", ["multinomial", "gumbel_softmax"])
def test_with_its_own_generator_an_image_alone_is_the_image_in_a_batch_of_eight(pipe, sampling):
    labels = [3, 0, 7, 3, 10, 1, 3, 2]
    together = list(
        pipe.stream(
            labels,
            generator=[seeded(i) for i in range(8)],
            sampling=sampling,
            output_type="pt",
            preview=True,
        )
    )

    for i in (0, 3, 7):
        alone = list(
            pipe.stream(
                labels[i],
                generator=[seeded(i)],
                sampling=sampling,
                output_type="pt",
                preview=True,
            )
        )
        for one, all_of_them in zip(alone, together, strict=True):
            assert torch.equal(one.tokens[0], all_of_them.tokens[i])
        difference = (alone[-1].image[0] - together[-1].image[i]).abs().max()
        assert difference < 1e-4


def test_the_classes_are_conditions_and_not_decoration(pipe):
    tokens = [next(pipe.stream(label, generator=seeded(0))).logits for label in (3, 4)]

    assert (tokens[0] - tokens[1]).abs().max() > 0.01


# Guidance


def test_guidance_1_is_off_and_halves_the_work(pipe):
    batches = transformer_batches(pipe)

    draw(pipe, guidance_scale=1.0)
    assert batches == [2] * SCALES
    batches.clear()
    draw(pipe, guidance_scale=1.5)
    assert batches == [4] * SCALES
    assert torch.equal(draw(pipe, guidance_scale=0.0), draw(pipe, guidance_scale=1.0))


def test_guidance_rises_linearly_to_its_value_at_the_finest_scale(pipe):
    """Whatever guidance draws: the pass before it holds both halves."""
    halves = []
    pipe.transformer.register_forward_hook(lambda m, args, out: halves.append(out.logits.chunk(2)))

    guided = [output.logits for output in pipe.stream(3, guidance_scale=4.0, generator=seeded(0))]

    for scale, (cond, uncond) in enumerate(halves):
        t = 3 * scale / 3
        torch.testing.assert_close(guided[scale], cond + t * (cond - uncond))


def test_what_is_not_given_comes_from_the_stored_scheduler():
    stored = {"guidance_scale": 4.0, "top_k": 5, "top_p": 0.7, "sampling": "gumbel_softmax"}
    with_stored = make_pipe(scheduler=NextScaleScheduler(**stored))

    assert torch.equal(draw(with_stored), draw(make_pipe(), **stored))
    other = {"guidance_scale": 1.0, "top_k": 0, "top_p": 1.0, "sampling": "multinomial"}
    assert torch.equal(draw(with_stored, **other), draw(make_pipe(), **other))
    assert not torch.equal(draw(with_stored), draw(with_stored, **other))


# Scale by scale


@pytest.mark.parametrize("output_type", ["pt", "np", "pil", "latent"])
def test_the_stream_ends_where_the_call_ends(pipe, output_type):
    streamed = list(pipe.stream([3, 5], generator=seeded(0), output_type=output_type, preview=True))

    images = draw(pipe, output_type=output_type)
    assert [output.scale for output in streamed] == [0, 1, 2, 3]
    assert {output.num_scales for output in streamed} == {SCALES}
    assert [output.tokens.shape for output in streamed] == [(2, n) for n in LENGTHS]
    assert [output.logits.shape for output in streamed] == [(2, n, 29) for n in LENGTHS]
    assert [output.latents.shape for output in streamed] == [(2, 6, 5, 5)] * SCALES
    for image, expected in zip(streamed[-1].image, images, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_latents_of_a_stream_are_the_decoded_tokens_so_far(pipe):
    streamed = list(pipe.stream([3, 5], generator=seeded(0)))

    running = pipe.vqvae.quantizer.latents_by_scale([output.tokens for output in streamed])
    for output, latents in zip(streamed, running, strict=True):
        assert torch.equal(output.latents, latents)
        assert output.image is None


def test_the_transformer_reads_what_training_reads(pipe):
    """Teacher forcing on the tokens drawn gives the logits they were drawn from."""
    streamed = list(pipe.stream([3, 5], generator=seeded(0), guidance_scale=1.0))

    inputs = pipe.vqvae.quantizer.teacher_inputs([output.tokens for output in streamed])
    with torch.no_grad():
        logits = pipe.transformer(torch.tensor([3, 5]), inputs).logits
    streamed_logits = torch.cat([output.logits for output in streamed], dim=1)
    torch.testing.assert_close(streamed_logits, logits, atol=1e-5, rtol=1e-5)


def test_a_stream_may_be_left_early(pipe):
    batches = transformer_batches(pipe)
    stream = pipe.stream([3, 5], generator=seeded(0))

    next(stream)
    next(stream)
    stream.close()

    assert len(batches) == 2
    with pytest.raises(StopIteration):
        next(stream)
    assert draw(pipe).shape == (2, 3, SIDE, SIDE)


def test_gradients_are_off_inside_the_stream_and_as_before_outside(pipe):
    for output in pipe.stream(3, generator=seeded(0)):
        assert torch.is_grad_enabled()
        assert not output.logits.requires_grad


def test_wrong_arguments_are_refused_before_the_first_scale(pipe):
    with pytest.raises(ValueError, match="top_p"):
        pipe.stream(3, top_p=2.0)


def test_a_progress_bar_counts_the_scales():
    pipe, screen = make_pipe(), io.StringIO()
    pipe.set_progress_bar_config(disable=False, file=screen)

    draw(pipe)

    assert f"{SCALES}/{SCALES}" in screen.getvalue()


# Callbacks


def test_a_callback_is_called_after_every_scale_with_the_tensors_it_asked_for(pipe):
    seen = []

    def callback(pipeline, scale, timestep, tensors):
        seen.append((scale, timestep, sorted(tensors)))
        assert pipeline is pipe
        return tensors

    images = draw(pipe, callback_on_step_end=callback)
    draw(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=[])

    assert seen == [(i, i, ["latents"]) for i in range(4)] + [(i, i, []) for i in range(4)]
    assert torch.equal(images, draw(pipe))


def test_latents_that_a_callback_returns_replace_the_current_ones(pipe):
    def zero_at_the_end(pipeline, scale, timestep, tensors):
        if scale == pipeline.num_timesteps - 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    def zero_at_the_start(pipeline, scale, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if scale == 0 else {}

    ended = draw(pipe, callback_on_step_end=zero_at_the_end, output_type="latent")
    started = list(pipe.stream(3, generator=seeded(0), callback_on_step_end=zero_at_the_start))

    assert ended.abs().sum() == 0
    first = pipe.vqvae.quantizer.codes(started[1].tokens)
    assert torch.equal(started[1].latents, pipe.vqvae.quantizer.expand(first, 1))


def test_guidance_that_a_callback_changes_stays_changed(pipe):
    def raise_guidance(pipeline, scale, timestep, tensors):
        pipeline._guidance_scale += 1.0
        return tensors

    images = draw(pipe, guidance_scale=3.0, callback_on_step_end=raise_guidance)

    assert pipe.guidance_scale == 3.0 + SCALES
    assert not torch.equal(images, draw(pipe, guidance_scale=3.0))


class Doubles(PipelineCallback):
    tensor_inputs = ["latents"]

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        callback_kwargs["latents"] = 2 * callback_kwargs["latents"]
        return callback_kwargs


def test_diffusers_callback_objects_are_taken(pipe):
    def doubles(pipeline, scale, timestep, tensors):
        return {"latents": 2 * tensors["latents"]}

    expected = draw(pipe, callback_on_step_end=doubles)
    alone = draw(pipe, callback_on_step_end=Doubles(cutoff_step_ratio=1.0))
    several = MultiPipelineCallbacks([Doubles(cutoff_step_ratio=1.0)])

    assert torch.equal(alone, expected)
    assert torch.equal(draw(pipe, callback_on_step_end=several), expected)
    assert not torch.equal(expected, draw(pipe))


def test_a_callback_can_interrupt(pipe):
    batches = transformer_batches(pipe)

    def stop(pipeline, scale, timestep, tensors):
        pipeline._interrupt = scale == 1
        return tensors

    images = draw(pipe, callback_on_step_end=stop)
    expected = list(pipe.stream([3, 5], generator=seeded(0), preview=True, output_type="pt"))

    assert batches[:2] == [4, 4]
    assert len(batches) == 2 + SCALES
    assert torch.equal(images, expected[1].image)
    assert pipe.interrupt is False  # the next call starts afresh


# Saving and loading


def test_a_saved_pipeline_comes_back_bit_for_bit(pipe, pipe_folder):
    loaded = quiet(VARPipeline.from_pretrained(pipe_folder))

    assert torch.equal(draw(loaded), draw(pipe))
    assert loaded.id2label == ID2LABEL
    assert loaded.scheduler.config.top_k == 13
    assert not loaded.transformer.training


def test_a_pipeline_folder_holds_configs_and_safetensors_alone(pipe_folder):
    files = sorted(
        path.relative_to(pipe_folder).as_posix()
        for path in pipe_folder.rglob("*")
        if path.is_file()
    )

    assert files == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/model.safetensors",
        "vqvae/config.json",
        "vqvae/diffusion_pytorch_model.safetensors",
    ]
    index = json.loads((pipe_folder / "model_index.json").read_text())
    assert index["_class_name"] == "VARPipeline"
    assert index["transformer"] == ["var_hf.modeling_var", "VARModel"]
    assert index["vqvae"] == ["var_hf.modeling_vqvae", "MultiScaleVQVAE"]
    assert index["scheduler"] == ["var_hf.scheduling_next_scale", "NextScaleScheduler"]
    assert index["id2label"]["1"] == "goldfish"


FRESH_PROCESS = """
import json, sys
import torch
from safetensors.torch import save_file
from var_hf import VARPipeline

torch.set_num_threads(int(sys.argv[3]))  # float32 sums depend on it
images = {}
for name, (folder, arguments) in json.loads(sys.argv[1]).items():
    if "dtype" in arguments:
        arguments["dtype"] = getattr(torch, arguments["dtype"])
    pipe = VARPipeline.from_pretrained(folder, **arguments)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images[name] = pipe([3, 5], generator=generator, output_type="pt").images
save_file(images, sys.argv[2])
"""


@pytest.mark.slow
def test_a_fresh_process_draws_the_same_images(tmp_path):
    """float32, bfloat16, a variant and shards, loaded in a process of its own."""
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path / "plain")
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    half = VARPipeline.from_pretrained(tmp_path / "plain", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "plain", variant="bf16")
    assert len(list((tmp_path / "shards" / "transformer").glob("*.safetensors"))) > 2
    expected = {"float32": draw(pipe), "shards": draw(pipe), "cast": draw(quiet(half))}
    expected["variant"] = expected["cast"]
    jobs = {
        # Named, since the transformer's configuration is now that of the variant.
        "float32": (tmp_path / "plain", {"dtype": "float32"}),
        "shards": (tmp_path / "shards", {}),
        "cast": (tmp_path / "plain", {"dtype": "bfloat16"}),
        "variant": (tmp_path / "plain", {"variant": "bf16", "dtype": "bfloat16"}),
    }

    command = [sys.executable, "-c", textwrap.dedent(FRESH_PROCESS)]
    threads = str(torch.get_num_threads())
    arguments = [json.dumps(jobs, default=str), str(tmp_path / "images.safetensors"), threads]
    subprocess.run(command + arguments, check=True, capture_output=True, timeout=500)

    images = load_file(tmp_path / "images.safetensors")
    assert images.keys() == expected.keys()
    for name, image in images.items():
        assert torch.equal(image, expected[name]), name


def test_a_variant_that_is_not_there_is_refused(pipe_folder):
    with pytest.raises(ValueError, match="fp8"):
        VARPipeline.from_pretrained(pipe_folder, variant="fp8")


def test_pickles_are_never_written(pipe, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(hub.logger, "warning", lambda text, *_: warnings.append(text))
    for name in ("one", "two"):
        pipe.save_pretrained(tmp_path / name, safe_serialization=False)
        weights = [path.suffix for path in (tmp_path / name).rglob("*model.*")]
        assert weights == [".safetensors"] * 2
    assert len(warnings) == 1 and "does not load pickles" in warnings[0]


def test_a_transformer_with_an_adapter_is_not_saved_as_half_a_pipeline(pipe, tmp_path):
    """transformers would write the adapter alone, and the folder could not be loaded."""
    from peft import LoraConfig

    pipe.transformer.add_adapter(LoraConfig(r=5, target_modules=["q_proj"]))

    with pytest.raises(ValueError, match="carries an adapter"):
        pipe.save_pretrained(tmp_path / "out")
    pipe.transformer.delete_adapter("default")
    with pytest.raises(ValueError, match="carries an adapter"):
        pipe.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("default")  # PEFT calls transformers by names that go
def test_a_merged_adapter_is_saved_with_its_pipeline(pipe, tmp_path):
    """The way that the error names."""
    from peft import LoraConfig, PeftModel

    pipe.transformer.add_adapter(LoraConfig(r=5, target_modules=["v_proj"]))
    for name, parameter in pipe.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=seeded(len(name)))
    adapted = next(pipe.stream(3, generator=seeded(0))).logits
    pipe.transformer.save_pretrained(tmp_path / "adapter")

    merged = PeftModel.from_pretrained(make_transformer(), tmp_path / "adapter").merge_and_unload()
    make_pipe(transformer=merged).save_pretrained(tmp_path / "out")

    loaded = quiet(VARPipeline.from_pretrained(tmp_path / "out"))
    logits = next(loaded.stream(3, generator=seeded(0))).logits
    torch.testing.assert_close(logits, adapted, atol=1e-5, rtol=1e-5)
    assert (logits - next(make_pipe().stream(3, generator=seeded(0))).logits).abs().max() > 0.01


def test_parts_may_be_given_when_a_pipeline_is_loaded(pipe, pipe_folder):
    vqvae = make_vqvae()

    loaded = quiet(VARPipeline.from_pretrained(pipe_folder, vqvae=vqvae))

    assert loaded.vqvae is vqvae
    assert torch.equal(draw(loaded), draw(pipe))


def test_the_components_make_a_pipeline(pipe):
    again = quiet(VARPipeline(**pipe.components, id2label=pipe.id2label))

    assert sorted(pipe.components) == ["scheduler", "transformer", "vqvae"]
    assert again.transformer is pipe.transformer
    assert torch.equal(draw(again), draw(pipe))


def test_a_pipeline_made_from_a_pipeline_shares_its_weights(pipe):
    again = quiet(VARPipeline.from_pipe(pipe, id2label={0: "another name"}))

    assert again.transformer is pipe.transformer
    assert again.id2label == {0: "another name"}
    assert torch.equal(draw(again), draw(pipe))


# Types and devices


def test_the_dtype_reaches_every_part(pipe_folder):
    half = quiet(VARPipeline.from_pretrained(pipe_folder, dtype=torch.bfloat16))

    assert half.transformer.dtype == half.vqvae.dtype == torch.bfloat16
    assert half.transformer.layers[0].self_attn.logit_scale.dtype == torch.float32
    assert half.vqvae.quantizer.codebook.weight.dtype == torch.float32
    assert half.dtype == torch.bfloat16
    for sampling in ("multinomial", "gumbel_softmax"):
        images = draw(half, sampling=sampling)
        assert images.dtype == torch.float32
        assert images.isfinite().all()


def test_each_part_may_have_its_own_dtype(pipe_folder):
    mixed = quiet(
        VARPipeline.from_pretrained(
            pipe_folder, dtype={"transformer": torch.float16, "default": torch.float32}
        )
    )

    assert mixed.transformer.dtype == torch.float16
    assert mixed.vqvae.dtype == torch.float32
    assert draw(mixed).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_pipeline_moved_to_half_precision_draws_nearly_the_same(dtype):
    """Logits of the first scale, before a draw can go another way."""
    first = next(make_pipe().stream([3, 5], generator=seeded(0))).logits

    pipe = make_pipe().to(dtype=dtype)

    assert pipe.transformer.dtype == pipe.vqvae.dtype == dtype
    output = next(pipe.stream([3, 5], generator=seeded(0)))
    assert output.logits.dtype == output.latents.dtype == torch.float32
    torch.testing.assert_close(output.logits, first, atol=0.1, rtol=0)
    assert draw(pipe).isfinite().all()


@pytest.mark.parametrize("arguments", [{}, {"dtype": None}])
def test_a_half_precision_folder_loaded_without_a_dtype_is_float32(
    pipe_folder, tmp_path, arguments
):
    """As diffusers loads its own parts; left alone, transformers would keep the stored type."""
    half = quiet(VARPipeline.from_pretrained(pipe_folder, dtype=torch.float16))
    half.save_pretrained(tmp_path / "half")

    loaded = quiet(VARPipeline.from_pretrained(tmp_path / "half", **arguments))

    assert (loaded.transformer.dtype, loaded.vqvae.dtype) == (torch.float32, torch.float32)
    assert torch.equal(draw(loaded), draw(half.to(dtype=torch.float32)))


def test_the_old_name_of_dtype_is_heard(pipe_folder):
    with pytest.warns(FutureWarning, match="use `dtype` instead"):
        loaded = VARPipeline.from_pretrained(pipe_folder, torch_dtype=torch.bfloat16)

    assert (loaded.transformer.dtype, loaded.vqvae.dtype) == (torch.bfloat16, torch.bfloat16)


def test_a_device_map_loads_the_pipeline(pipe, pipe_folder):
    loaded = quiet(VARPipeline.from_pretrained(pipe_folder, device_map="cpu"))

    assert torch.equal(draw(loaded), draw(pipe))


def test_model_offload_moves_the_transformer_once_per_scale_and_the_vqvae_never(pipe):
    """Rehearsed with the CPU as the fast device: the hooks are the same."""
    expected = draw(pipe)

    pipe.enable_model_cpu_offload(device="cpu")

    assert hasattr(pipe.transformer, "_hf_hook")
    assert not hasattr(pipe.vqvae, "_hf_hook")
    assert torch.equal(draw(pipe), expected)
    assert torch.equal(draw(pipe), expected)  # offloaded again and loaded again
    next(pipe.stream(3, generator=seeded(0)))
    assert torch.equal(draw(pipe), expected)


@pytest.mark.parametrize(
    "kind",
    [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}],
)
def test_group_offload_of_the_transformer_draws_the_same(pipe, kind):
    expected = draw(pipe)
    cpu = torch.device("cpu")

    apply_group_offloading(pipe.transformer, onload_device=cpu, offload_device=cpu, **kind)

    assert torch.equal(draw(pipe), expected)


@pytest.mark.filterwarnings("default")  # what torchao says about its own libraries
def test_int8_weights_draw_images(pipe_folder):
    from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig

    config = PipelineQuantizationConfig(
        quant_mapping={"transformer": TorchAoConfig(Int8WeightOnlyConfig())}
    )

    pipe = quiet(VARPipeline.from_pretrained(pipe_folder, quantization_config=config))

    assert isinstance(pipe.transformer.layers[0].mlp.fc1.weight, Int8Tensor)
    assert draw(pipe).isfinite().all()


@pytest.mark.slow
def test_a_compiled_transformer_draws_the_same(fresh_compiler):
    """One graph for each of ten scales, without a break, and none is made twice.

    torch gives up at eight graphs of one function unless it is told that there will be more.
    """
    sizes, graphs = tuple(range(1, 11)), []
    pipe = make_pipe(
        transformer=make_transformer(token_map_sizes=sizes, num_hidden_layers=1),
        vqvae=make_vqvae(token_map_sizes=sizes),
    )
    expected = draw(pipe)

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    limit = len(sizes)
    pipe.transformer.compile(fullgraph=True, dynamic=False, backend=backend, recompile_limit=limit)

    assert torch.equal(draw(pipe), expected)
    assert len(graphs) == limit
    assert torch.equal(draw(pipe), expected)
    assert len(graphs) == limit


def test_guiding_all_scales_is_the_default_and_none_is_no_guidance(pipe):
    batches = transformer_batches(pipe)

    everywhere = draw(pipe, guided_scales=SCALES)
    nowhere = draw(pipe, guided_scales=0)

    assert batches == [4] * SCALES + [2] * SCALES
    assert torch.equal(everywhere, draw(pipe))
    assert torch.equal(nowhere, draw(pipe, guidance_scale=1.0))


def test_scales_beyond_the_guided_ones_are_drawn_without_guidance_at_half_the_work(pipe):
    labels, guided_scales = [3, 5], 2
    batches = transformer_batches(pipe)

    outputs = list(
        pipe.stream(labels, generator=seeded(0), guidance_scale=4.0, guided_scales=guided_scales)
    )

    assert batches == [4, 4, 2, 2]
    token_maps = [output.tokens for output in outputs]
    inputs = pipe.vqvae.quantizer.teacher_inputs(token_maps)
    with torch.no_grad():
        alone = pipe.transformer(torch.tensor(labels), inputs).logits.split(LENGTHS, dim=1)
    for output, conditional in zip(outputs, alone, strict=True):
        same = torch.allclose(output.logits, conditional, atol=1e-4)
        assert same == (output.scale == 0 or output.scale >= guided_scales)
    everywhere = list(pipe.stream(labels, generator=seeded(0), guidance_scale=4.0))
    for scale in range(guided_scales):
        assert torch.equal(outputs[scale].logits, everywhere[scale].logits)


@pytest.mark.parametrize("guided_scales", [-1, SCALES + 1])
def test_guided_scales_that_are_not_there_are_refused(pipe, guided_scales):
    with pytest.raises(
        ValueError, match=f"from 0 to ({SCALES} for this model|64).* Got {guided_scales}"
    ):
        pipe.stream(3, guided_scales=guided_scales)


class Dtypes(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.seen.add(tensor.dtype)
        return result


@pytest.mark.parametrize("sampling", ["multinomial", "gumbel_softmax"])
def test_no_double_precision_anywhere(pipe, sampling):
    """MPS has none."""
    with Dtypes() as dtypes:
        images = draw(pipe, sampling=sampling)
        pipe.vqvae.reconstruct(images * 2 - 1)

    assert torch.float32 in dtypes.seen
    assert torch.float64 not in dtypes.seen


# Bad input, each with one clear error


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (CLASSES, r"Class ids lie in \[0, 10\] for this model. Got 11"),
        (-1, r"Class ids lie in \[0, 10\] for this model. Got -1"),
        ([3, 999], r"Class ids lie in \[0, 10\] for this model. Got 999"),
        (True, r"Class ids lie in \[0, 10\] for this model. Got True"),
        (1.0, r"A class label is an id or a name. Got 1.0 \(float\)"),
        (torch.tensor([1.0]), r"A class label is an id or a name. Got 1.0 \(float\)"),
        (torch.tensor([True]), r"Class ids lie in \[0, 10\] for this model. Got True"),
        ([[3]], r"A class label is an id or a name. Got \[3\]"),
        ([], "class_labels is empty"),
        (
            "golfish",
            r"There is no class 'golfish' among the 6 known names. Did you mean 'goldfish'\?",
        ),
        ("", "There is no class ''"),
        ("zebra crossing", "See pipe.id2label for all names"),
        ("crane", r"'crane' is the name of classes \[2, 5\]. Pass the number of the one you mean"),
        (["hen", "crane"], "'crane' is the name of classes"),
    ],
    ids=str,
)
def test_labels_that_are_no_class_are_refused(pipe, labels, message):
    with pytest.raises(ValueError, match=message):
        pipe(labels)


def test_names_without_a_table_are_refused():
    pipe = make_pipe(id2label=None)

    with pytest.raises(ValueError, match=r"no class names, so 'hen' is unknown.* from 0 to 10"):
        pipe("hen")
    assert draw(pipe).shape[0] == 2


class CudaGenerator(torch.Generator):
    """A torch without CUDA refuses to make a real one; the pipeline looks at nothing but the
    device.
    """

    device = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance_scale": -0.5}, "guidance_scale must be a finite number of at least 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be a finite number"),
        ({"top_p": 0.0}, r"top_p must be a finite number in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p must be a finite number in \(0, 1\]"),
        ({"top_k": -1}, "top_k must be a whole number of at least 0"),
        (
            {"sampling": "greedy"},
            'sampling must be one of "multinomial", "gumbel_softmax". Got \'greedy\'',
        ),
        ({"output_type": "jpeg"}, "output_type must be 'pil', 'np', 'pt' or 'latent'. Got 'jpeg'"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be at least 1. Got 0"),
        ({"generator": [seeded(0)]}, "generator is a list of 1 for 2 images"),
        ({"generator": []}, "generator is a list of 0 for 2 images"),
        ({"generator": [seeded(0)] * 2, "num_images_per_prompt": 2}, "a list of 2 for 4 images"),
        ({"generator": 42}, "generator must be a torch.Generator or a list of them. Got int"),
        ({"generator": [seeded(0), None]}, "Got NoneType"),
        (
            {"generator": CudaGenerator()},
            r"lives on cuda:0 but the model on cpu. Use torch.Generator\(\)",
        ),
        (
            {"callback_on_step_end_tensor_inputs": ["logits"]},
            r"callback_on_step_end_tensor_inputs may hold \['latents'\]. Got \['logits'\]",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else next(iter(value)),
)
def test_arguments_out_of_range_are_refused_before_any_work(pipe, arguments, message):
    batches = transformer_batches(pipe)

    with pytest.raises(ValueError, match=message):
        pipe([3, 5], **arguments)
    assert batches == []


def test_an_unknown_argument_is_refused(pipe):
    with pytest.raises(TypeError, match="num_inference_steps"):
        pipe(3, num_inference_steps=10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"codebook_size": 31},
            r"vocab_size, codebook_size\), the transformer has 29 and the VQVAE 31",
        ),
        ({"latent_channels": 7}, r"latent_channels\), the transformer has 6 and the VQVAE 7"),
        (
            {"token_map_sizes": (1, 2, 3, 4)},
            r"the transformer has \(1, 2, 3, 5\) and the VQVAE \(1, 2, 3, 4\)",
        ),
    ],
    ids=str,
)
def test_a_vqvae_of_another_transformer_is_refused(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        make_pipe(vqvae=make_vqvae(**changes))
    assert "do not belong together" in str(error.value)


def test_a_folder_whose_parts_do_not_belong_together_is_refused(tmp_path):
    make_pipe().save_pretrained(tmp_path)
    make_transformer(vocab_size=31).save_pretrained(tmp_path / "transformer")

    with pytest.raises(ValueError, match="do not belong together"):
        VARPipeline.from_pretrained(tmp_path)


# With a GPU


@pytest.mark.gpu
def test_a_cpu_generator_draws_the_same_tokens_on_a_gpu(pipe):
    on_cpu = [output.tokens for output in pipe.stream([3, 5], generator=seeded(0))]

    on_gpu = [output.tokens.cpu() for output in pipe.to("cuda").stream([3, 5], generator=seeded(0))]

    assert all(torch.equal(a, b) for a, b in zip(on_cpu, on_gpu, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_from_a_gpu_draws_the_same_images(how):
    expected = draw(make_pipe().to("cuda"))
    pipe = make_pipe()

    getattr(pipe, how)()

    torch.testing.assert_close(draw(pipe), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("part", "name"),
    [("transformer", "layers.1.mlp.fc1.weight"), ("vqvae", "quantizer.codebook.weight")],
)
def test_weights_that_lack_a_tensor_are_refused(pipe_folder, tmp_path, part, name):
    folder = shutil.copytree(pipe_folder, tmp_path / "pipe")
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    del weights[name]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"{part}.* lacks 1 tensor: {name}"):
        VARPipeline.from_pretrained(folder)


def test_without_a_class_the_null_class_is_drawn_unguided(pipe):
    expected = pipe([None, 3], generator=[seeded(0), seeded(1)], output_type="pt").images[0]

    alone = pipe(None, generator=[seeded(0)], output_type="pt").images

    assert alone.shape == (1, 3, 10, 10)
    torch.testing.assert_close(alone[0], expected, atol=1e-5, rtol=0)
    rows = []
    pipe.transformer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    pipe([None, None])
    assert set(rows) == {2}  # guidance has no effect, so it costs nothing


def test_two_streams_at_once_keep_their_guidance_and_interrupt_to_themselves(pipe):
    def halve(pipe, scale, _, tensors):
        pipe._guidance_scale = pipe.guidance_scale / 2
        return {}

    def stop(pipe, scale, _, tensors):
        pipe._interrupt = scale == 1
        return {}

    def draw(callback, seed):
        return pipe.stream(3, generator=seeded(seed), callback_on_step_end=callback)

    alone = [[o.tokens for o in draw(c, seed)] for seed, c in enumerate([halve, stop])]
    streams = [draw(halve, 0), draw(stop, 1)]
    together = [[], []]
    for _ in range(pipe.num_timesteps):
        for stream, drawn in zip(streams, together, strict=True):
            drawn += [output.tokens for output in [next(stream, None)] if output]

    assert [len(one) for one in alone] == [4, 2]
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("preview, images", [(False, 0), ("last", 1), (True, 4)])
def test_a_preview_is_drawn_after_each_scale_or_after_the_last(pipe, preview, images):
    outputs = list(pipe.stream(3, preview=preview, output_type="pt"))
    assert sum(output.image is not None for output in outputs) == images
    if images:
        assert torch.equal(outputs[-1].image, pipe.decode(outputs[-1].latents, "pt"))


def test_an_interrupted_call_returns_the_image_so_far(pipe):
    def stop(pipe, scale, _, tensors):
        pipe._interrupt = scale == 1
        return {}

    image = pipe(3, generator=seeded(0), output_type="pt", callback_on_step_end=stop).images
    second = [o.latents for o in pipe.stream(3, generator=seeded(0))][1]
    assert torch.equal(image, pipe.decode(second, "pt"))


def test_temperature_divides_the_logits(pipe):
    cold = pipe([3, 5], generator=seeded(0), temperature=1e-4, output_type="pt").images
    likeliest = pipe([3, 5], generator=seeded(0), top_k=1, output_type="pt").images
    assert torch.equal(cold, likeliest)
    plain = pipe([3, 5], generator=seeded(0), output_type="pt").images
    assert torch.equal(
        plain, pipe([3, 5], generator=seeded(0), temperature=1.0, output_type="pt").images
    )
    with pytest.raises(ValueError, match=r"temperature must be .* above 0. Got 0"):
        pipe(3, temperature=0)
