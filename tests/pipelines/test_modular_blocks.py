"""Blocks of Modular Diffusers: the tokens and images of the pipelines, block by block."""

import json
from importlib.metadata import version

import pytest
import torch
from conftest import ID2LABEL, make_pipe, quiet, seeded
from diffusers import ComponentsManager
from diffusers.modular_pipelines import ModularPipelineBlocks, OutputParam
from diffusers.modular_pipelines.mellon_node_utils import MellonPipelineConfig
from packaging.specifiers import SpecifierSet

from var_hf import VARImg2ImgPipeline, VARInpaintPipeline
from var_hf.hub.files import MODULAR_CLASS, MODULAR_DIFFUSERS, MODULAR_MODULE
from var_hf.pipelines.modular_blocks import VARBlock, VARBlocks, VARScalesStep

IMAGE = torch.rand(1, 3, 10, 10, generator=seeded(1))
MASK = torch.zeros(1, 1, 10, 10)
MASK[..., :6] = 1
EDITS = {
    VARInpaintPipeline: {"image": IMAGE, "mask_image": MASK, "class_labels": [1, None]},
    VARImg2ImgPipeline: {"image": IMAGE, "class_labels": "goldfish", "strength": 0.5},
}


@pytest.fixture(scope="module")
def standard():
    return make_pipe()


@pytest.fixture(scope="module")
def modular(standard):
    """A modular pipeline on the components of `standard`."""
    return modular_of(standard)


def modular_of(pipe, blocks=None):
    modular = (blocks or VARBlocks()).init_pipeline()
    modular.update_components(**pipe.components, id2label=pipe.id2label)
    modular.set_progress_bar_config(disable=True)
    return modular


def draw(pipe, **arguments):
    """Tokens of each scale and images of a pipeline of the package."""
    outputs = list(pipe.stream(**arguments, preview="last"))
    return [output.tokens for output in outputs], outputs[-1].image


def same(state, tokens, images):
    assert all(torch.equal(*pair) for pair in zip(state.token_maps, tokens, strict=True))
    assert torch.equal(state.images, images)


def test_the_version_of_diffusers_is_one_that_was_tried():
    assert version("diffusers") in SpecifierSet(MODULAR_DIFFUSERS), (
        "Modular Diffusers is experimental. Run this file and tests/upstream with this version, "
        "then widen MODULAR_DIFFUSERS in var_hf/hub/files.py."
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance_scale": 1.0, "top_k": 0, "top_p": 1.0},
        {"guidance_scale": 5.0, "top_k": 7, "temperature": [1.0, 0.9, 0.8, 0.7]},
        {"sampling": "gumbel_softmax", "guided_scales": (1, 3), "guidance_schedule": "constant"},
    ],
)
def test_images_of_classes_equal_those_of_the_pipeline(standard, modular, settings):
    arguments = {"class_labels": [3, "tench"], "output_type": "pt", "num_images_per_prompt": 2}
    arguments |= settings

    state = modular(**arguments, generator=seeded(4))

    same(state, *draw(standard, **arguments, generator=seeded(4)))


def test_a_generator_per_image(standard, modular):
    generators = [[seeded(5), seeded(6)] for _ in range(2)]
    arguments = {"class_labels": [3, None], "output_type": "pt"}

    state = modular(**arguments, generator=generators[0])

    same(state, *draw(standard, **arguments, generator=generators[1]))


@pytest.mark.parametrize("kind", EDITS)
def test_edits_equal_those_of_the_pipelines(standard, modular, kind):
    arguments = EDITS[kind] | {"output_type": "pt", "num_images_per_prompt": 2}
    if kind is VARImg2ImgPipeline:
        arguments["image"] = IMAGE[..., :7]  # comes back in its own size

    state = modular(**arguments, generator=seeded(4))

    same(state, *draw(quiet(kind.from_pipe(standard)), **arguments, generator=seeded(4)))


def test_outpainting_needs_no_mask(standard, modular):
    arguments = {"image": IMAGE, "expand": (0, 0, 4, 2), "output_type": "pt"}

    state = modular(**arguments, generator=seeded(4))

    pipe = quiet(VARInpaintPipeline.from_pipe(standard))
    same(state, *draw(pipe, **arguments, generator=seeded(4)))
    assert state.images.shape == (1, 3, 12, 14)


def test_forms_of_images(modular):
    pil = modular(class_labels=3, output="images")
    latents = modular(class_labels=3, output_type="latent", output="images")

    assert [image.size for image in pil] == [(10, 10)]
    assert latents.shape == (1, 6, 5, 5)


def test_a_block_in_the_loop_reads_and_changes_every_scale(standard):
    class Halve(VARBlock):
        @property
        def intermediate_outputs(self):
            return [OutputParam("seen")]

        def __call__(self, components, block, scale):
            block.seen = [*(block.seen if scale else []), block.logits.shape[1]]
            block.latents = block.latents / 2
            block.generation.controls.interrupt = scale == 2
            return components, block

    def halve(pipe, scale, timestep, tensors):
        pipe._interrupt = scale == 2
        return {"latents": tensors["latents"] / 2}

    blocks = VARBlocks()
    blocks.sub_blocks["scales"].sub_blocks.insert("halve", Halve(), 1)

    state = modular_of(standard, blocks)(class_labels=3, output_type="pt", generator=seeded(1))

    images = standard(3, output_type="pt", generator=seeded(1), callback_on_step_end=halve).images
    assert state.seen == [1, 4, 9]
    assert torch.equal(state.images, images)


def test_the_scales_alone_are_a_pipeline(standard, modular):
    whole = modular(class_labels=3, output_type="latent", generator=seeded(1))
    scales = modular_of(standard, VARScalesStep())

    latents = scales(
        batch_class_ids=[3], settings=whole.settings, generator=seeded(1), output="latents"
    )

    assert torch.equal(latents, whole.images)


def test_a_saved_pipeline_becomes_modular_and_comes_back(standard, pipe_folder, tmp_path):
    manager = ComponentsManager()
    pipe = VARBlocks().init_pipeline(pipe_folder, components_manager=manager)
    pipe.load_components()
    folder = str(tmp_path / "modular")
    pipe.save_pretrained(folder, overwrite_modular_index=True)

    back = VARBlocks().init_pipeline(folder)
    back.load_components()

    assert len(manager.components) == 3
    index = json.loads((tmp_path / "modular" / "modular_model_index.json").read_text())
    assert index["id2label"] == {str(key): name for key, name in ID2LABEL.items()}
    for one in (pipe, back):
        one.set_progress_bar_config(disable=True)
        images = one(class_labels="hen", output_type="pt", generator=seeded(2), output="images")
        expected = standard("hen", output_type="pt", generator=seeded(2)).images
        assert torch.allclose(images, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": 11}, r"Class ids lie in \[0, 10\]"),
        ({"class_labels": "walrus"}, "There is no class 'walrus'"),
        ({"class_labels": 3, "top_p": 2.0}, "top_p"),
        ({"class_labels": 3, "output_type": "jpeg"}, "output_type must be"),
        ({"class_labels": 3, "num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"class_labels": 3, "generator": [seeded(1)] * 2}, "generator is a list of 2"),
        ({"mask_image": MASK}, "Required input 'image' is missing"),
        ({"image": IMAGE, "strength": 2.0}, r"strength must lie in \[0, 1\]"),
        ({"image": IMAGE, "mask_image": MASK[..., :5]}, "size"),
    ],
)
def test_bad_input_gets_the_errors_of_the_pipelines(modular, arguments, message):
    with pytest.raises(ValueError, match=message):
        modular(**arguments)


def test_components_that_are_not_loaded_are_named():
    with pytest.raises(ValueError, match=r"Not loaded: transformer, vqvae, scheduler\. Call"):
        VARBlocks().init_pipeline()(class_labels=3)


def test_the_documentation_names_what_a_user_passes_and_nothing_else():
    blocks = VARBlocks()

    assert {
        param.name for param in blocks.inputs if "ids" in param.name or "kept" in param.name
    } == (set())
    assert [param.name for param in blocks.outputs] == ["images"]
    for name, required in (
        ("class2image", []),
        ("image2image", ["image"]),
        ("inpainting", ["image"]),
    ):
        inputs = blocks.get_workflow(name).inputs
        assert [param.name for param in inputs if param.required] == required
        assert all(param.description for param in inputs)
    for part in ("inpainting", "guidance_scale", "By default the scheduler's", "VARModel"):
        assert part in blocks.doc


def test_asking_for_the_inputs_changes_no_block():
    blocks = VARBlocks()
    before = [param.required for param in blocks.get_workflow("inpainting").inputs]

    _ = blocks.inputs, blocks.doc

    assert [param.required for param in blocks.get_workflow("inpainting").inputs] == before


def test_node_editors_get_fields():
    config = MellonPipelineConfig.from_custom_block(VARBlocks())

    node = config.node_params["custom"]
    shown = {name: field.get("type") for name, field in node["params"].items()}
    assert shown["image"] == shown["images"] == "image"
    assert shown["guidance_scale"] == "custom"
    assert node["model_input_names"] == ["transformer", "vqvae", "scheduler"]


def test_the_names_that_pushing_writes_are_those_of_the_blocks(tmp_path):
    VARBlocks().save_pretrained(tmp_path)

    config = json.loads((tmp_path / "modular_config.json").read_text())
    assert (VARBlocks.__module__, VARBlocks.__name__) == (MODULAR_MODULE, MODULAR_CLASS)
    assert config["auto_map"] == {"ModularPipelineBlocks": f"modular_blocks.{MODULAR_CLASS}"}
    assert config["requirements"] == {"diffusers": MODULAR_DIFFUSERS}
    assert issubclass(VARBlocks, ModularPipelineBlocks)
