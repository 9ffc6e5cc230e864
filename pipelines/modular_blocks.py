"""The pipelines as blocks of Modular Diffusers, which can be taken apart and put together anew.

Each block calls the functions of the pipelines. [`VARScalesStep`] drives the package's only loop,
[`~generation.generate`]; further blocks can be inserted into it and then run after every scale.

Modular Diffusers is experimental. diffusers announces that its interface may change;
`MODULAR_DIFFUSERS` names the versions that the tests have run with.
"""

import os
from collections.abc import Collection
from copy import deepcopy
from dataclasses import fields
from typing import Any, TypeVar

import torch
from diffusers.modular_pipelines import (
    AutoPipelineBlocks,
    ComponentsManager,
    ComponentSpec,
    ConditionalPipelineBlocks,
    ConfigSpec,
    InputParam,
    LoopSequentialPipelineBlocks,
    ModularPipeline,
    ModularPipelineBlocks,
    OutputParam,
    PipelineState,
    SequentialPipelineBlocks,
)
from diffusers.modular_pipelines.modular_pipeline import BlockState
from PIL import Image
from torch import Tensor

from var_hf.generation import generate
from var_hf.hub.files import MODULAR_DIFFUSERS
from var_hf.labels import Labels
from var_hf.modeling_var import VARModel
from var_hf.modeling_vqvae import MultiScaleVQVAE
from var_hf.pipelines.base import NextScalePipeline
from var_hf.pipelines.checks import check_generator, check_output_type
from var_hf.pipelines.editing import EditInputs
from var_hf.pipelines.image_processing import ImageInput
from var_hf.pipelines.pipeline_var import VARPipeline
from var_hf.pipelines.pipeline_var_img2img import VARImg2ImgPipeline
from var_hf.pipelines.pipeline_var_inpaint import VARInpaintPipeline
from var_hf.sampling_settings import (
    GuidedScales,
    SamplingSettings,
    Temperature,
    check_num_images,
)
from var_hf.scheduling_next_scale import NextScaleScheduler

#: The repository of the components, in repositories that carry their own code.
REPOSITORY: str | None = None
COMPONENTS = {"transformer": VARModel, "vqvae": MultiScaleVQVAE, "scheduler": NextScaleScheduler}

SCHEDULER_DEFAULT = " By default the scheduler's."
AnyPipeline = TypeVar("AnyPipeline", bound=NextScalePipeline)

SETTINGS = tuple(one.name for one in fields(SamplingSettings))
#: Everything that blocks take or give: type, default, description.
PARAMETERS: dict[str, tuple[Any, Any, str]] = {
    "class_labels": (
        Labels,
        None,
        "Class ids or names, one or many. None is the null class.",
    ),
    "num_images_per_prompt": (int, 1, "Images per label or image."),
    "generator": (
        torch.Generator | list[torch.Generator],
        None,
        "One for the batch, or one per image.",
    ),
    "output_type": (
        str,
        "pil",
        "'pil'; 'np', (B, H, W, 3) in [0, 1]; 'pt', (B, 3, H, W) in [0, 1]; or 'latent'.",
    ),
    # Sampling settings
    "guidance_scale": (float, None, "Classifier-free guidance at the finest scale; 1.0 is off."),
    "top_k": (int, None, "Draw each token from its k likeliest codes; 0 is off."),
    "top_p": (float, None, "Draw each token from the codes up to this probability; 1.0 is off."),
    "sampling": (str, None, "'multinomial' or 'gumbel_softmax'."),
    "temperature": (Temperature, None, "Divides the guided logits: one number, or one per scale."),
    "guided_scales": (GuidedScales, None, "The guided scales: the first n, or (start, stop)."),
    "guidance_schedule": (str, None, "'ramp' or 'constant'."),
    "ssg_scale": (float, None, "Strength of scaled spatial guidance; 0.0 is off."),
    # Edits
    "image": (
        ImageInput,
        None,
        "The image to edit, or several, of any size: PIL images, arrays or tensors.",
    ),
    "strength": (
        float,
        0.5,
        "Share of the scales that are redrawn, the finest first, in [0, 1].",
    ),
    "mask_image": (
        ImageInput,
        None,
        "Masks in the size of the images, white where they are redrawn.",
    ),
    "expand": (
        tuple[int, int, int, int],
        None,
        "Pixels to add and draw at the left, top, right and bottom.",
    ),
    "keep_coarsest": (bool, True, "Keep the 1 x 1 token map, the overall tone, in the mask too."),
    "paste_back": (bool, True, "Put the original pixels back where the mask is black."),
    "padding_mask_crop": (int, None, "Margin in pixels of a window around the mask to redraw."),
    # Between blocks
    "class_ids": (list[int], None, "Class ids, one per label."),
    "batch_class_ids": (list[int], None, "Class ids, one per image of the batch."),
    "settings": (SamplingSettings, None, "All sampling settings."),
    "kept_tokens": (tuple, None, "Token maps of the images, and masks of the tokens to keep."),
    "edits": (list, None, "The images under edit, one per result."),
    "token_maps": (list[Tensor], None, "Tokens of each scale, (B, T)."),
    "latents": (Tensor, None, "Sum of the scales so far, (B, Z, F, F)."),
    "images": (list[Image.Image], None, "The generated images."),
}
#: How node editors show them. The others come from other nodes: an empty field for a number is 0,
#: which would take the place of the scheduler's default.
NODE_FIELDS = {
    "class_labels": "textbox",
    "num_images_per_prompt": "number",
    "image": "image",
    "strength": "slider",
    "mask_image": "image",
    "keep_coarsest": "checkbox",
    "paste_back": "checkbox",
    "images": "image",
}


def takes(*names: str, required: Collection[str] = ()) -> list[InputParam]:
    """Inputs of a block. diffusers changes them, so each block gets its own."""
    return [
        InputParam(
            name,
            type_hint=PARAMETERS[name][0],
            default=PARAMETERS[name][1],
            description=PARAMETERS[name][2] + SCHEDULER_DEFAULT * (name in SETTINGS),
            required=name in required,
            metadata={"mellon": NODE_FIELDS.get(name)},
        )
        for name in names
    ]


def gives(*names: str) -> list[OutputParam]:
    """Outputs of a block."""
    return [
        OutputParam(
            name,
            type_hint=PARAMETERS[name][0],
            description=PARAMETERS[name][2],
            metadata={"mellon": NODE_FIELDS.get(name)},
        )
        for name in names
    ]


class VARBlock(ModularPipelineBlocks):
    """Base class of the blocks: their components, and the pipelines whose functions they call."""

    model_name = "var"

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """Transformer, VQVAE and scheduler."""
        return component_specs()

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        """The class names."""
        return config_specs()


def component_specs() -> list[ComponentSpec]:
    """The components of all blocks."""
    return [
        ComponentSpec(name, kind, pretrained_model_name_or_path=REPOSITORY, subfolder=name)
        for name, kind in COMPONENTS.items()
    ]


def config_specs() -> list[ConfigSpec]:
    """The configuration of all blocks."""
    return [ConfigSpec("id2label", {}, description="Class names by id.")]


def pipeline_of(components: ModularPipeline, kind: type[AnyPipeline]) -> AnyPipeline:
    """A pipeline of the package with the components of a modular one.

    Raises:
        ValueError: A component is not loaded, or transformer and VQVAE do not belong together.
    """
    parts = {name: getattr(components, name) for name in COMPONENTS}
    if missing := [name for name, part in parts.items() if part is None]:
        raise ValueError(
            f"Not loaded: {', '.join(missing)}. Call pipe.load_components() first, or "
            "pipe.update_components(...) with components of your own."
        )
    return kind(**parts, id2label=components.config.id2label)


class VARClassInputStep(VARBlock):
    """Class labels to class ids."""

    @property
    def description(self) -> str:
        """For the documentation of the blocks."""
        return "Looks up the class ids of class labels."

    @property
    def inputs(self) -> list[InputParam]:
        """The labels."""
        return takes("class_labels")

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The class ids."""
        return gives("class_ids")

    @torch.no_grad()
    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[Any, Any]:
        block = self.get_block_state(state)
        block.class_ids = pipeline_of(components, VARPipeline).resolve_labels(block.class_labels)
        self.set_block_state(state, block)
        return components, state


class VARPrepareStep(VARBlock):
    """Class ids and sampling settings for the loop."""

    @property
    def description(self) -> str:
        """For the documentation of the blocks."""
        return "Fills in the sampling settings and repeats the class ids to the batch."

    @property
    def inputs(self) -> list[InputParam]:
        """Class ids and settings."""
        names = ("class_ids", "num_images_per_prompt", *SETTINGS, "output_type")
        return takes(*names, required=("class_ids",))

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The batch."""
        return gives("batch_class_ids", "settings")

    @torch.no_grad()
    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[Any, Any]:
        block = self.get_block_state(state)
        check_output_type(block.output_type)
        block.settings = resolve_settings(pipeline_of(components, VARPipeline), block)
        check_num_images(block.num_images_per_prompt)
        block.batch_class_ids = [
            class_id for class_id in block.class_ids for _ in range(block.num_images_per_prompt)
        ]
        self.set_block_state(state, block)
        return components, state


class VAREditPrepareStep(VARBlock):
    """Images, class ids and sampling settings for the loop; base class of the two edits."""

    edit_inputs: tuple[str, ...] = ()

    @property
    def inputs(self) -> list[InputParam]:
        """Class ids, images and settings."""
        names = ("num_images_per_prompt", *SETTINGS, "output_type")
        return takes(
            "class_ids", "image", *self.edit_inputs, *names, required=("class_ids", "image")
        )

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The batch, with the tokens to keep."""
        return gives("batch_class_ids", "settings", "kept_tokens", "edits")

    def read(self, components: ModularPipeline, block: BlockState) -> EditInputs:
        """The images as the loop needs them."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[Any, Any]:
        block = self.get_block_state(state)
        check_output_type(block.output_type)
        pipe = pipeline_of(components, VARInpaintPipeline)
        block.settings = resolve_settings(pipe, block)
        inputs = self.read(components, block)
        block.batch_class_ids, block.edits = pipe.match(
            inputs, block.class_ids, block.num_images_per_prompt, block.output_type
        )
        block.kept_tokens = pipe.kept_tokens(inputs, len(block.edits))
        self.set_block_state(state, block)
        return components, state


class VARInpaintPrepareStep(VAREditPrepareStep):
    """Images and masks for the loop: what [`VARInpaintPipeline`] keeps."""

    edit_inputs = (
        "mask_image",
        "expand",
        "keep_coarsest",
        "paste_back",
        "padding_mask_crop",
    )

    @property
    def description(self) -> str:
        """For the documentation of the blocks."""
        return "Encodes images and keeps the tokens outside of their masks."

    def read(self, components: ModularPipeline, block: BlockState) -> EditInputs:
        """The images as the loop needs them."""
        return pipeline_of(components, VARInpaintPipeline).prepare(
            block.image,
            block.mask_image,
            (0, 0, 0, 0) if block.expand is None else block.expand,
            block.keep_coarsest,
            block.paste_back,
            block.padding_mask_crop,
        )


class VARImg2ImgPrepareStep(VAREditPrepareStep):
    """Images for the loop: what [`VARImg2ImgPipeline`] keeps."""

    edit_inputs = ("strength",)

    @property
    def description(self) -> str:
        """For the documentation of the blocks."""
        return "Encodes images and keeps the tokens of their coarse scales."

    def read(self, components: ModularPipeline, block: BlockState) -> EditInputs:
        """The images as the loop needs them."""
        return pipeline_of(components, VARImg2ImgPipeline).prepare(block.image, block.strength)


def resolve_settings(pipe: NextScalePipeline, block: BlockState) -> SamplingSettings:
    """The sampling settings of a block's state, with the scheduler's in the place of `None`."""
    return pipe.resolve_settings(**{name: block[name] for name in SETTINGS})


class VARAutoPrepareStep(ConditionalPipelineBlocks):
    """Chooses the preparation by the inputs."""

    block_classes = [VARInpaintPrepareStep, VARImg2ImgPrepareStep, VARPrepareStep]
    block_names = ["inpaint", "img2img", "class2image"]
    block_trigger_inputs = ["image", "mask_image", "expand"]
    default_block_name = "class2image"

    @property
    def description(self) -> str:
        """For the documentation of the blocks."""
        return (
            "Prepares the loop: inpainting if there is a mask_image or expand, variations if there "
            "is an image alone, and images of a class otherwise."
        )

    def select_block(
        self, image: Any = None, mask_image: Any = None, expand: Any = None
    ) -> str | None:
        """The name of the block; `None` is the default."""
        if mask_image is not None or expand is not None:
            return "inpaint"
        return None if image is None else "img2img"


class VARScaleStep(VARBlock):
    """One turn of the loop: one transformer pass, and the tokens of one scale."""

    @property
    def description(self) -> str:
        """For the documentation of the blocks."""
        return "Draws the tokens of one scale."

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """Tokens and latents."""
        return gives("token_maps", "latents")

    @torch.no_grad()
    def __call__(
        self, components: ModularPipeline, block: BlockState, scale: int
    ) -> tuple[Any, Any]:
        output = next(block.scales)
        block.token_maps.append(output.tokens)
        block.latents, block.logits = output.latents, output.logits
        return components, block


class VARScalesStep(LoopSequentialPipelineBlocks):
    """The loop over the scales.

    Blocks that are inserted after `scale` run after every scale, as `block(components, block_state,
    scale=...)`. They find `latents` ``(B, Z, F, F)``, `token_maps`, `logits` ``(B, T, V)`` (guided,
    unfiltered) and `generation`; they may set `latents`, `generation.controls.guidance_scale` and
    `generation.controls.interrupt`.
    """

    model_name = "var"
    block_classes = [VARScaleStep]
    block_names = ["scale"]

    @property
    def description(self) -> str:
        """For the documentation of the blocks."""
        return "Draws the token maps, coarse to fine, in one transformer pass per scale."

    @property
    def loop_expected_components(self) -> list[ComponentSpec]:
        """Those of all blocks."""
        return component_specs()

    @property
    def loop_inputs(self) -> list[InputParam]:
        """The batch."""
        names = ("batch_class_ids", "settings")
        return takes(*names, "kept_tokens", "generator", required=names)

    @torch.no_grad()
    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[Any, Any]:
        block = self.get_block_state(state)
        pipe = pipeline_of(components, VARPipeline)
        class_ids, device = block.batch_class_ids, components._execution_device
        check_generator(block.generator, len(class_ids), device)
        generation = pipe.start(class_ids, block.settings, block.generator, block.kept_tokens)
        block.generation, block.scales, block.token_maps = generation, generate(generation), []
        with self.progress_bar(total=pipe.num_timesteps) as progress_bar:
            for scale in range(pipe.num_timesteps):
                components, block = self.loop_step(components, block, scale=scale)
                generation.latents = block.latents
                progress_bar.update()
                if generation.controls.interrupt:
                    break
        self.set_block_state(state, block)
        return components, state


class VARDecodeStep(VARBlock):
    """Latents to images."""

    @property
    def description(self) -> str:
        """For the documentation of the blocks."""
        return "Decodes the latents."

    @property
    def inputs(self) -> list[InputParam]:
        """The latents."""
        return takes("latents", "output_type", required=("latents",))

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The images."""
        return gives("images")

    @torch.no_grad()
    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[Any, Any]:
        block = self.get_block_state(state)
        block.images = self.decode(components, block)
        self.set_block_state(state, block)
        return components, state

    def decode(self, components: ModularPipeline, block: BlockState) -> Any:
        """The images, in the form of `output_type`."""
        return pipeline_of(components, VARPipeline).decode(block.latents, block.output_type)


class VAREditDecodeStep(VARDecodeStep):
    """Latents to images in the size of those that were edited."""

    @property
    def description(self) -> str:
        """For the documentation of the blocks."""
        return "Decodes the latents and pastes the results into the images."

    @property
    def inputs(self) -> list[InputParam]:
        """The latents and the images under edit."""
        return [*super().inputs, *takes("edits", required=("edits",))]

    def decode(self, components: ModularPipeline, block: BlockState) -> Any:
        """The images, in the form of `output_type`."""
        pipe = pipeline_of(components, VARInpaintPipeline)
        return pipe.finish(block.latents, block.edits, block.output_type)


class VARAutoDecodeStep(AutoPipelineBlocks):
    """Chooses the decoding by the inputs."""

    block_classes = [VAREditDecodeStep, VARDecodeStep]
    block_names = ["edit", "class2image"]
    block_trigger_inputs = ["edits", None]

    @property
    def description(self) -> str:
        """For the documentation of the blocks."""
        return "Decodes the latents, and pastes them into the images if these are edited."


class VARBlocks(SequentialPipelineBlocks):
    """The blocks of drawing, inpainting and variations, equal to [`VARPipeline`],
    [`VARInpaintPipeline`] and [`VARImg2ImgPipeline`] token for token.

    Examples:
        ```py
        >>> from var_hf.pipelines.modular_blocks import VARBlocks

        >>> pipe = VARBlocks().init_pipeline("var-d16-256")
        >>> pipe.load_components()
        >>> image = pipe(class_labels="golden retriever", output="images")[0]
        ```
    """

    #: Where the components are loaded from.
    repository: str | None = REPOSITORY
    model_name = "var"
    block_classes = [VARClassInputStep, VARAutoPrepareStep, VARScalesStep, VARAutoDecodeStep]
    block_names = ["class_input", "prepare", "scales", "decode"]
    _requirements = {"diffusers": MODULAR_DIFFUSERS}
    _workflow_map = {
        "class2image": {"class_labels": True},
        "image2image": {"image": True},
        "inpainting": {"image": True, "mask_image": True},
    }

    @property
    def description(self) -> str:
        """For the documentation of the blocks."""
        return (
            "Visual autoregressive modeling (VAR): draws images of a class coarse to fine, "
            "redraws masked regions of images, and draws variations of images."
        )

    @property
    def outputs(self) -> list[OutputParam]:
        """The images."""
        return gives("images")

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """Transformer, VQVAE and scheduler."""
        specs: list[ComponentSpec] = super().expected_components
        for spec in specs:
            spec.pretrained_model_name_or_path = self.repository
        return specs

    def init_pipeline(
        self,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        components_manager: ComponentsManager | None = None,
        collection: str | None = None,
    ) -> ModularPipeline:
        """A pipeline of these blocks; `load_components` loads its parts.

        Args:
            pretrained_model_name_or_path: A pipeline folder, or a repository on the Hub.
            components_manager: Offloads components.
            collection: Name of the components in the manager.
        """
        place, blocks = pretrained_model_name_or_path, deepcopy(self)
        if place is not None:
            place = os.fspath(place)
            # A repository with code lists no components: its own blocks know their classes.
            blocks.repository = place
        return super(VARBlocks, blocks).init_pipeline(place, components_manager, collection)
