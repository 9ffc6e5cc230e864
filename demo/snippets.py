"""Python code that generates an image of the page again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from var_hf.assets import SHIPPED_MODELS
from var_hf.demo.orders import Drawn, Edit
from var_hf.demo.settings import Settings

if TYPE_CHECKING:
    from var_hf.demo.studio import Studio


def generate_code(studio: Studio, drawn: Drawn) -> str:
    """Return code that generates the images again, in the variable `images`."""
    assert drawn.class_id is not None
    label = repr(_label(studio, drawn.class_id))
    count = drawn.settings.num_images
    what = f"[{label}] * {count}" if count > 1 else label
    return _code(
        imports=["import torch"],
        loading=_loading(studio, "VARPipeline"),
        call=f"images = pipe({_arguments([what], drawn.settings)}).images",
        generators=_generators(drawn.settings),
    )


def edit_code(studio: Studio, edit: Edit, drawn: Drawn) -> str:
    """Return code that repeats an edit of the file `image.png` with the mask `mask.png`, if any."""
    class_name = "VARInpaintPipeline" if edit.strength is None else "VARImg2ImgPipeline"
    first = ['Image.open("image.png")']
    if edit.mask is not None:
        first.append('Image.open("mask.png")')  # white pixels are redrawn
    if drawn.class_id is not None:
        first.append(f"class_labels={_label(studio, drawn.class_id)!r}")
    if edit.strength is not None:
        first.append(f"strength={edit.strength:g}")
    if any(edit.expand):
        first.append(f"expand={edit.expand}")
    if edit.padding_mask_crop is not None:
        first.append(f"padding_mask_crop={edit.padding_mask_crop}")
    if drawn.settings.num_images > 1:
        first.append(f"num_images_per_prompt={drawn.settings.num_images}")
    return _code(
        imports=["import torch", "from PIL import Image"],
        loading=_loading(studio, class_name),
        call=f"images = pipe({_arguments(first, drawn.settings)}).images",
        generators=_generators(drawn.settings),
    )


def _code(imports: list[str], loading: list[str], call: str, generators: str) -> str:
    ours = [line for line in loading if line.startswith("from var_hf")]
    rest = [line for line in loading if line not in ours]
    return "\n".join([*imports, *ours, "", *rest, generators, call]) + "\n"


def _loading(studio: Studio, class_name: str) -> list[str]:
    lines = [f"from var_hf import {class_name}"]
    where: Any = repr(studio.facts.name)
    if Path(studio.facts.source) in SHIPPED_MODELS:
        where = studio.facts.name.upper().replace("-", "_")
        lines.append(f"from var_hf.assets import {where}")
    # Always explicit, because the stored dtype differs between models.
    dtype = studio.pipe.transformer.dtype
    device = "" if studio.pipe.device.type == "cpu" else f'.to("{studio.pipe.device.type}")'
    lines.append(f"pipe = {class_name}.from_pretrained({where}, dtype={dtype}){device}")
    return [*lines, "pipe.enable_int8()"] if studio.pipe.precision == "int8" else lines


def _generators(settings: Settings) -> str:
    seeds = f"[{settings.seed}]"
    if settings.num_images > 1:
        seeds = f"range({settings.seeds.start}, {settings.seeds.stop})"  # type: ignore[attr-defined]
    return f"generators = [torch.Generator().manual_seed(seed) for seed in {seeds}]"


def _arguments(first: list[str], settings: Settings) -> str:
    given = [f"{name}={value!r}" for name, value in settings.arguments().items()]
    return ", ".join([*first, *given, "generator=generators"])


def _label(studio: Studio, class_id: int) -> int | str:
    """Return the usual name of a class if it is unique, else the id."""
    name = studio.facts.id2label.get(class_id, "").partition(",")[0]
    try:
        return name if name and studio.class_id(name) == class_id else class_id
    except ValueError:  # several classes have this name
        return class_id
