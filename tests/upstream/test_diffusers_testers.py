"""The testers that diffusers runs on its own pipelines and models, unchanged, from a checkout of
its repository.

    VAR_HF_DIFFUSERS_CHECKOUT=path/to/diffusers python -m pytest -m upstream tests/upstream

docs/decisions.md names the tests that do not apply, with their reasons.
"""

import importlib
import importlib.util
import os
import sys
import unittest
from pathlib import Path

import diffusers
import pytest
import torch
from conftest import VQVAE, make_transformer, make_vqvae

from var_hf import (
    MultiScaleVQVAE,
    NextScaleScheduler,
    VARImg2ImgPipeline,
    VARInpaintPipeline,
    VARPipeline,
)
from var_hf.pipelines.modular_blocks import VARBlocks

pytestmark = [pytest.mark.upstream, pytest.mark.filterwarnings("default")]
CHECKOUT = os.environ.get("VAR_HF_DIFFUSERS_CHECKOUT")
if CHECKOUT is None:
    pytest.skip("VAR_HF_DIFFUSERS_CHECKOUT names no checkout of diffusers", allow_module_level=True)


def upstream(module: str):
    """A module of the checkout's tests, under a package name that does not collide with our own."""
    name = "diffusers_tests"
    if name not in sys.modules:
        folder = Path(CHECKOUT) / "tests"
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules[name] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{name}.{module}")


old = upstream("pipelines.test_pipelines_common")
new = upstream("pipelines.testing_utils")
models = upstream("models.testing_utils")
modular = upstream("modular_pipelines.testing_utils")

SIDE = 10
IMAGE = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
MASK = torch.zeros(1, 1, SIDE, SIDE)
MASK[..., : SIDE // 2] = 1


class Generate:
    pipeline_class = VARPipeline
    # Diffusion steps and starting latents do not exist: there is one step per scale.
    optional_input_params = frozenset(
        ["num_images_per_prompt", "generator", "output_type", "return_dict"]
    )
    required_optional_params = frozenset(
        ["num_images_per_prompt", "generator", "output_type", "return_dict"]
    )
    params = required_input_params_in_call_signature = frozenset(["class_labels", "guidance_scale"])
    batch_params = batch_input_params = frozenset(["class_labels"])
    output_shape = (3, SIDE, SIDE)
    callback_cfg_params = frozenset()
    test_attention_slicing = False
    test_xformers_attention = False
    arguments = {"class_labels": 1}

    def get_dummy_components(self):
        return {
            "transformer": make_transformer(),
            "vqvae": make_vqvae(),
            "scheduler": NextScaleScheduler(guidance_scale=3.0, top_k=13, top_p=0.9),
        }

    def get_dummy_inputs(self, device="cpu", seed=0):
        generator = torch.Generator().manual_seed(seed)
        return self.arguments | {"generator": generator, "output_type": self.output_type}


class Inpaint(Generate):
    pipeline_class = VARInpaintPipeline
    params = required_input_params_in_call_signature = frozenset(
        ["image", "mask_image", "class_labels", "guidance_scale"]
    )
    arguments = {"image": IMAGE, "mask_image": MASK, "class_labels": 1}


class Img2Img(Generate):
    pipeline_class = VARImg2ImgPipeline
    params = required_input_params_in_call_signature = frozenset(
        ["image", "class_labels", "guidance_scale"]
    )
    arguments = {"image": IMAGE, "class_labels": 1}


class Old(old.PipelineTesterMixin):
    output_type = "np"

    def test_inference_batch_single_identical(self):
        # By default the tester copies num_inference_steps, which this family does not have.
        self._test_inference_batch_single_identical(additional_params_copy_to_batched_inputs=[])


class New(new.PipelineTesterMixin, new.BasePipelineTesterConfig):
    output_type = "pt"

    def test_inference_batch_single_identical(self):
        # By default the tester copies num_inference_steps, which this family does not have.
        super().test_inference_batch_single_identical(additional_params_copy_to_batched_inputs=[])


class TestGenerateOld(Generate, Old, unittest.TestCase):
    pass


class TestInpaintOld(Inpaint, Old, unittest.TestCase):
    pass


class TestImg2ImgOld(Img2Img, Old, unittest.TestCase):
    pass


class TestGenerate(Generate, New):
    pass


class TestInpaint(Inpaint, New):
    pass


class TestImg2Img(Img2Img, New):
    pass


@pytest.fixture(scope="class")
def modular_folder(request, tmp_path_factory):
    """A saved modular pipeline; its blocks stand where those of the library stand."""
    diffusers.VARBlocks = VARBlocks
    pipe = VARBlocks().init_pipeline()
    pipe.update_components(**Generate().get_dummy_components())
    request.cls.pretrained_model_name_or_path = str(tmp_path_factory.mktemp("modular"))
    pipe.save_pretrained(request.cls.pretrained_model_name_or_path, overwrite_modular_index=True)
    yield
    del diffusers.VARBlocks


@pytest.mark.usefixtures("modular_folder")
class Blocks(
    modular.ModularPipelineTesterMixin,
    modular.ModularLoadingTesterMixin,
    modular.ModularWorkflowTesterMixin,
    modular.ModularMemoryTesterMixin,
    modular.ModularAutoOffloadTesterMixin,
    modular.BaseModularPipelineTesterConfig,
):
    pipeline_blocks_class = VARBlocks
    pretrained_model_name_or_path = ""
    # docs/decisions.md says why.
    test_modular_index_consistency = None
    # Diffusion steps and starting latents do not exist: there is one step per scale.
    optional_params = frozenset(["num_images_per_prompt", "output_type"])
    not_params = frozenset(["num_inference_steps", "latents"])
    expected_workflow_blocks = {
        "class2image": [
            ("class_input", "VARClassInputStep"),
            ("prepare", "VARPrepareStep"),
            ("scales", "VARScalesStep"),
            ("decode", "VARDecodeStep"),
        ],
        "image2image": [
            ("class_input", "VARClassInputStep"),
            ("prepare", "VARImg2ImgPrepareStep"),
            ("scales", "VARScalesStep"),
            ("decode", "VAREditDecodeStep"),
        ],
        "inpainting": [
            ("class_input", "VARClassInputStep"),
            ("prepare", "VARInpaintPrepareStep"),
            ("scales", "VARScalesStep"),
            ("decode", "VAREditDecodeStep"),
        ],
    }

    def get_dummy_inputs(self, seed=0):
        return self.arguments | {"generator": self.get_generator(seed), "output_type": "pt"}


class TestGenerateBlocks(Blocks):
    params = frozenset(["class_labels", "guidance_scale"])
    batch_params = frozenset(["class_labels"])
    arguments = Generate.arguments


class TestInpaintBlocks(Blocks):
    params = frozenset(["image", "mask_image", "class_labels", "guidance_scale"])
    batch_params = frozenset(["image", "mask_image", "class_labels"])
    arguments = Inpaint.arguments


class TestImg2ImgBlocks(Blocks):
    params = frozenset(["image", "strength", "class_labels", "guidance_scale"])
    batch_params = frozenset(["image", "class_labels"])
    arguments = Img2Img.arguments


class TestVQVAE(models.ModelTesterMixin, models.TrainingTesterMixin, models.BaseModelTesterConfig):
    model_class = MultiScaleVQVAE
    output_shape = (3, SIDE, SIDE)
    main_input_name = "sample"

    def get_init_dict(self):
        return dict(VQVAE)

    def get_dummy_inputs(self):
        return {"sample": IMAGE * 2 - 1}
