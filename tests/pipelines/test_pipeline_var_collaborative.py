"""Two transformers in one call: the schedule, loading and saving, edits, and what is refused."""

import copy
import json

import pytest
import torch
from conftest import GOLDEN, make_pipe, make_transformer, make_vqvae, quiet, seeded
from golden.stand_in_weights import stand_in_state_dict
from safetensors.torch import load_file

from var_hf import (
    NextScaleScheduler,
    VARCollaborativeImg2ImgPipeline,
    VARCollaborativeInpaintPipeline,
    VARCollaborativePipeline,
    VARModel,
    VARPipeline,
)

SCALES = 4
PT = {"output_type": "pt", "return_dict": False}


@pytest.fixture(scope="module")
def drafter():
    return make_pipe()


@pytest.fixture(scope="module")
def refiner():
    """Another model for the same tokens: narrower and with fewer layers."""
    return make_transformer(hidden_size=80, num_attention_heads=5, num_hidden_layers=2)


@pytest.fixture
def pipe(drafter, refiner):
    pipe = VARCollaborativePipeline.from_pipe(drafter, refiner=refiner, draft_scales=2)
    return quiet(pipe)


def images(pipe, seed=0, **arguments):
    return pipe([3, 5], generator=seeded(seed), **PT, **arguments)[0]


def image_of(size=10):
    return torch.rand(2, 3, size, size, generator=seeded(3))


@pytest.mark.parametrize("draft_scales", [0, SCALES])
def test_all_scales_of_one_are_that_one_alone(pipe, drafter, refiner, draft_scales):
    alone = drafter if draft_scales else quiet(VARPipeline.from_pipe(drafter, transformer=refiner))
    pipe.draft_scales = draft_scales
    assert torch.equal(images(pipe), images(alone))


@pytest.mark.parametrize("draft_scales", [1, 2, 3])
def test_the_drafter_draws_the_first_scales_and_the_refiner_the_others(
    pipe, drafter, refiner, draft_scales
):
    pipe.draft_scales = draft_scales
    passes = []
    hooks = [
        model.register_forward_pre_hook(lambda *_, name=name: passes.append(name))
        for name, model in pipe.transformers.items()
    ]
    outputs = list(pipe.stream([3, 5], generator=seeded(0)))
    for hook in hooks:
        hook.remove()

    assert passes == ["drafter"] * draft_scales + ["refiner"] * (SCALES - draft_scales)
    drafted = list(drafter.stream([3, 5], generator=seeded(0)))[:draft_scales]
    for ours, theirs in zip(outputs, drafted, strict=False):
        assert torch.equal(ours.tokens, theirs.tokens)
    # The refiner alone draws other tokens for the first scales, and so other ones later.
    pipe.draft_scales = 0
    alone = list(pipe.stream([3, 5], generator=seeded(0)))
    assert not torch.equal(outputs[-1].logits, alone[-1].logits)


def test_the_default_leaves_the_last_two_scales_to_the_refiner(drafter, refiner):
    assert VARCollaborativePipeline.from_pipe(drafter, refiner=refiner).draft_scales == 2


def test_weights_are_shared(pipe, drafter, refiner):
    assert pipe.drafter is drafter.transformer and pipe.refiner is refiner
    assert pipe.vqvae is drafter.vqvae and pipe.id2label == drafter.id2label
    again = VARCollaborativePipeline.from_pipe(pipe, draft_scales=3)
    assert again.drafter is pipe.drafter and again.refiner is pipe.refiner
    assert (again.draft_scales, pipe.draft_scales) == (3, 2)
    assert VARPipeline.from_pipe(pipe, transformer=pipe.refiner).transformer is refiner


def test_one_folder_holds_all(pipe, tmp_path):
    pipe.scheduler = NextScaleScheduler.from_config(
        pipe.scheduler.config, temperature=[1.1, 1.1, 1.0, 1.0]
    )
    pipe.save_pretrained(tmp_path / "pair")

    folders = sorted(each.name for each in (tmp_path / "pair").iterdir() if each.is_dir())
    assert folders == ["drafter", "refiner", "scheduler", "vqvae"]
    index = json.loads((tmp_path / "pair" / "model_index.json").read_text())
    assert index["_class_name"] == "VARCollaborativePipeline"
    assert index["refiner"] == ["var_hf.modeling_var", "VARModel"]
    assert index["draft_scales"] == 2
    loaded = quiet(VARCollaborativePipeline.from_pretrained(tmp_path / "pair"))
    assert loaded.draft_scales == 2 and loaded.id2label == pipe.id2label
    assert torch.equal(images(loaded), images(pipe))
    other = VARCollaborativePipeline.from_pretrained(tmp_path / "pair", draft_scales=3)
    assert other.draft_scales == 3
    replaced = VARCollaborativePipeline.from_pretrained(tmp_path / "pair", refiner=pipe.drafter)
    assert replaced.refiner is pipe.drafter and replaced.draft_scales == 2


def test_two_plain_folders_become_one_pipeline(pipe, drafter, refiner, pipe_folder, tmp_path):
    VARPipeline.from_pipe(drafter, transformer=refiner).save_pretrained(tmp_path / "small")
    pair = VARCollaborativePipeline.from_pretrained(
        pipe_folder, refiner=tmp_path / "small", draft_scales=2, dtype=torch.float32
    )
    assert torch.equal(images(quiet(pair)), images(pipe))


def test_two_folders_in_half_precision_without_a_dtype_are_float32(pipe, tmp_path):
    plain = VARPipeline.from_pipe(pipe, transformer=pipe.drafter).to(dtype=torch.bfloat16)
    plain.save_pretrained(tmp_path)
    pair = VARCollaborativePipeline.from_pretrained(tmp_path, refiner=tmp_path, draft_scales=2)
    assert pair.drafter.dtype == pair.refiner.dtype == pair.vqvae.dtype == torch.float32


def test_a_folder_of_the_other_kind_is_refused(pipe, pipe_folder, tmp_path):
    pipe.save_pretrained(tmp_path / "pair")
    with pytest.raises(ValueError, match=r"with VARCollaborativePipeline\.from_pretrained"):
        VARPipeline.from_pretrained(tmp_path / "pair")
    with pytest.raises(ValueError, match=r"Load it with VARPipeline\.from_pretrained"):
        VARCollaborativePipeline.from_pretrained(pipe_folder)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        VARCollaborativePipeline.from_pretrained(pipe_folder, refiner="nowhere")
    with pytest.raises(ValueError, match="Convert drafter and refiner one by one"):
        VARCollaborativePipeline.from_original("drafter.pth", "vqvae.pth")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"token_map_sizes": (1, 2, 4, 5)}, "token_map_sizes"),
        ({"vocab_size": 31}, "vocab_size"),
        ({"latent_channels": 5}, "latent_channels"),
        ({"num_classes": 12}, "num_classes"),
    ],
)
def test_models_that_do_not_belong_together_are_refused(drafter, change, name):
    with pytest.raises(ValueError, match=f"Drafter and refiner do not .* differ in {name}"):
        VARCollaborativePipeline.from_pipe(drafter, refiner=make_transformer(**change))


def test_a_vqvae_of_other_codes_is_refused(pipe):
    with pytest.raises(ValueError, match="Drafter and VQVAE do not belong together"):
        VARCollaborativePipeline.from_pipe(pipe, vqvae=make_vqvae(codebook_size=31))


@pytest.mark.parametrize("draft_scales", [-1, 5, 2.0, True, "2"])
def test_a_number_beyond_the_scales_is_refused(pipe, draft_scales):
    with pytest.raises(ValueError, match=r"draft_scales must be a whole number from 0 .* to 4"):
        pipe.draft_scales = draft_scales
    assert pipe.draft_scales == 2
    with pytest.raises(ValueError, match="draft_scales must be"):
        VARCollaborativePipeline.from_pipe(pipe, draft_scales=draft_scales)


def test_likelihoods_are_refused(pipe):
    for call in (pipe.log_likelihood, pipe.classify, pipe.surprise_maps):
        with pytest.raises(ValueError, match="take one transformer"):
            call(image_of())


def test_a_generator_per_image_makes_images_independent_of_their_batch(pipe):
    both = pipe([3, 5], generator=[seeded(1), seeded(2)], **PT)[0]
    second = pipe([5], generator=[seeded(2)], **PT)[0]
    torch.testing.assert_close(both[1:], second, atol=1e-4, rtol=1e-4)


def test_callbacks_stop_and_change_a_call(pipe):
    seen = []

    def stop(pipe, scale, _, tensors):
        seen.append(scale)
        pipe._interrupt = scale == 2
        return tensors

    images(pipe, callback_on_step_end=stop)
    assert seen == [0, 1, 2]


def test_guidance_that_ends_before_the_refiner_begins_saves_its_second_rows(pipe):
    rows = []
    hook = pipe.refiner.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    images(pipe, guided_scales=2)
    images(pipe)
    hook.remove()
    assert rows == [2, 2, 4, 4]


@pytest.mark.parametrize("strength", [0.25, 0.75, 1.0])
def test_variations_are_drawn_by_both(pipe, strength):
    """Kept scales are read like drawn ones."""
    editor = quiet(VARCollaborativeImg2ImgPipeline.from_pipe(pipe))
    assert editor.draft_scales == 2
    given = image_of()
    arguments = {"strength": strength, "generator": seeded(0)}
    outputs = list(editor.stream(given, [3, 5], **arguments))
    first = editor.first_redrawn_scale(strength)
    kept = pipe.vqvae.encode(given * 2 - 1).token_maps[:first]
    for output, tokens in zip(outputs, kept, strict=False):
        assert torch.equal(output.tokens, tokens)
    inputs = pipe.vqvae.quantizer.teacher_inputs([output.tokens for output in outputs])
    part = pipe.refiner.config.token_slices[3]
    with torch.no_grad():
        logits = pipe.refiner(torch.tensor([3, 5, 11, 11]), inputs.repeat(2, 1, 1)).logits
    conditional, unconditional = logits[:, part].chunk(2)
    guided = pipe.scheduler.guide(conditional, unconditional, 1.0, 3.0)
    torch.testing.assert_close(outputs[3].logits, guided, atol=1e-4, rtol=1e-4)


def test_a_region_is_redrawn_by_both(pipe):
    editor = quiet(VARCollaborativeInpaintPipeline.from_pipe(pipe))
    mask = torch.zeros(1, 10, 10)
    mask[..., :6] = 1
    given = image_of()
    edited = editor(given, mask, [3, 5], generator=seeded(0), **PT)[0]
    assert torch.equal(edited[..., 8:], given[..., 8:])
    assert not torch.equal(edited[..., :4], given[..., :4])


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_pipeline_draws_the_same(pipe):
    # A decoder of its own: compiling changes the module.
    pipe = quiet(VARCollaborativePipeline.from_pipe(pipe, vqvae=make_vqvae()))
    settings = {"temperature": [1.1, 1.1, 1.0, 0.9]}
    eager = images(pipe, **settings)
    pipe.compile(backend="eager")
    for _ in range(2):
        torch.testing.assert_close(images(pipe, **settings), eager, atol=1e-5, rtol=1e-5)


def test_memory_is_that_of_both_caches(pipe, drafter, monkeypatch):
    from var_hf import memory

    def needed(pipe, batch):
        with pytest.raises(ValueError, match="takes about") as error:
            pipe([0] * batch, **PT)
        return float(str(error.value).split("takes about ")[1].split(" GB")[0])

    monkeypatch.setattr(memory, "available_bytes", lambda device: 0.0)
    pipe.draft_scales = SCALES
    alone = needed(pipe, 1000)
    assert alone == needed(drafter, 1000)
    pipe.draft_scales = 3
    both = needed(pipe, 1000)
    pipe.draft_scales = 0
    assert both > needed(pipe, 1000)


def test_each_cache_holds_the_tokens_that_its_model_reads(pipe):
    from var_hf.generation import generate

    settings = pipe.resolve_settings()
    generation = pipe.start([3, 5], settings, seeded(0))
    list(generate(generation))
    lengths = [
        {layer.keys.shape[2] for layer in reader.cache.layers}
        for reader in generation.readers.values()
    ]
    assert lengths == [{1 + 4}, {39}]


def test_an_adapter_of_either_model_cannot_be_saved(pipe, tmp_path):
    peft = pytest.importorskip("peft")
    with_adapter = copy.deepcopy(pipe.refiner)
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["q_proj"]), with_adapter)
    changed = VARCollaborativePipeline.from_pipe(pipe, refiner=with_adapter)
    with pytest.raises(ValueError, match="The refiner carries an adapter"):
        changed.save_pretrained(tmp_path / "pair")


# The authors' own code

META = json.loads((GOLDEN / "collaborative.json").read_text())
TOKENS = load_file(GOLDEN / "collaborative.safetensors")


class FiltersFirst(NextScaleScheduler):
    """The order of the authors' code: top-k and top-p, then the temperature."""

    def step(self, logits, progress, *, top_k, top_p, temperature, **options):
        logits = self.filter(logits, top_k, top_p) / temperature[round(9 * progress)]
        return super().step(logits, progress, top_k=0, top_p=1.0, temperature=1.0, **options)


@pytest.fixture(scope="module")
def original():
    """The pair of the golden data."""
    sizes = META["config"]["patch_nums"]
    weights = {name: stand_in_state_dict(s, sizes) for name, s in META["shapes"].items()}
    plain = VARPipeline.from_original(weights["drafter"], weights["vae"])
    refiner = VARModel.from_original(weights["refiner"])
    return quiet(VARCollaborativePipeline.from_pipe(plain, refiner=refiner))


@pytest.mark.parametrize("number", range(len(META["generate"])))
def test_tokens_are_those_of_the_authors(original, number):
    """One stream of random numbers gives their tokens: their refiner begins the stream anew and
    throws away as many numbers as the drafter used.
    """
    call = META["generate"][number]
    settings = {
        "guidance_scale": 1 + call["guidance"],
        "top_k": call["top_k"],
        "top_p": call["top_p"] or 1.0,
        "temperature": call["temperature"],
    }
    original.draft_scales = call["draft_scales"]
    tempered = settings["top_p"] < 1 and set(call["temperature"]) != {1.0}
    original.scheduler = (FiltersFirst if tempered else NextScaleScheduler)(**settings)

    outputs = original.stream(
        TOKENS["class_labels"], generator=seeded(call["seed"]), output_type="latent"
    )

    tokens = torch.cat([output.tokens for output in outputs], dim=1)
    assert torch.equal(tokens, TOKENS[f"tokens_{number}"].long())
