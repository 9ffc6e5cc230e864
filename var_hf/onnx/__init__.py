"""Export to ONNX, and a runner for the exported folder that needs neither torch nor diffusers.

The runner imports numpy, onnxruntime and, for images, Pillow. `docs/onnx.md` states the format of
the folder, the random numbers and the drawing of tokens, so that other runners can draw the same
images.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from var_hf.onnx.export import export_onnx
    from var_hf.onnx.pipelines import OnnxVARImg2ImgPipeline, OnnxVARPipeline

__all__ = ["OnnxVARImg2ImgPipeline", "OnnxVARPipeline", "export_onnx"]

_MODULE_OF_NAME = {
    "OnnxVARImg2ImgPipeline": "var_hf.onnx.pipelines",
    "OnnxVARPipeline": "var_hf.onnx.pipelines",
    "export_onnx": "var_hf.onnx.export",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF_NAME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
