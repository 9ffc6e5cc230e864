"""VAR, visual autoregressive image generation, in the form of the Hugging Face libraries.

The public names below are loaded on first use (PEP 562), so that ``import var_hf`` and
``var-hf --help`` load neither torch nor transformers nor diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from var_hf.configuration_var import VARConfig
    from var_hf.modeling_var import VARModel
    from var_hf.modeling_vqvae import MultiScaleVQVAE
    from var_hf.pipelines.pipeline_var import VARPipeline
    from var_hf.pipelines.pipeline_var_collaborative import (
        VARCollaborativeImg2ImgPipeline,
        VARCollaborativeInpaintPipeline,
        VARCollaborativePipeline,
    )
    from var_hf.pipelines.pipeline_var_img2img import VARImg2ImgPipeline
    from var_hf.pipelines.pipeline_var_inpaint import VARInpaintPipeline
    from var_hf.quantization import MultiScaleQuantizer
    from var_hf.scheduling_next_scale import NextScaleScheduler

__version__ = "0.1.0.dev0"

__all__ = [
    "MultiScaleQuantizer",
    "MultiScaleVQVAE",
    "NextScaleScheduler",
    "VARCollaborativeImg2ImgPipeline",
    "VARCollaborativeInpaintPipeline",
    "VARCollaborativePipeline",
    "VARConfig",
    "VARImg2ImgPipeline",
    "VARInpaintPipeline",
    "VARModel",
    "VARPipeline",
    "__version__",
]

_MODULE_OF_NAME = {
    "MultiScaleQuantizer": "var_hf.quantization",
    "MultiScaleVQVAE": "var_hf.modeling_vqvae",
    "NextScaleScheduler": "var_hf.scheduling_next_scale",
    **dict.fromkeys(
        (
            "VARCollaborativeImg2ImgPipeline",
            "VARCollaborativeInpaintPipeline",
            "VARCollaborativePipeline",
        ),
        "var_hf.pipelines.pipeline_var_collaborative",
    ),
    "VARConfig": "var_hf.configuration_var",
    "VARImg2ImgPipeline": "var_hf.pipelines.pipeline_var_img2img",
    "VARInpaintPipeline": "var_hf.pipelines.pipeline_var_inpaint",
    "VARModel": "var_hf.modeling_var",
    "VARPipeline": "var_hf.pipelines.pipeline_var",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF_NAME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
