"""Example edits. The model first generates the image to edit, so they work with any model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from var_hf.demo.facts import ModelFacts
from var_hf.demo.handlers import EXPAND, NO_CLASS, PAINT, VARY
from var_hf.demo.settings import Settings

if TYPE_CHECKING:
    from var_hf.demo.studio import Studio

PAINT_COLOUR = (237, 105, 37, 255)
EDITOR_SIDE = 512  # small images are enlarged to it, so that a brush has room


@dataclass(frozen=True)
class EditExample:
    """One edit.

    Attributes:
        title: Label of its button.
        source: Class of the image to edit, which is generated first.
        target: Class of the edit; -1 is no class.
        mode: Kind of the edit.
        box: Painted box: left, top, right and bottom, as shares of the image.
        strength: Strength of a variation.
        seed: Seed of the image to edit.
    """

    title: str
    source: int
    target: int
    mode: str
    box: tuple[float, float, float, float] | None = None
    strength: float = 0.5
    seed: int = 7

    def prepare(self, studio: Studio) -> tuple[dict[str, Any], str, int, list[str], float]:
        """Generate the image; return the values of editor, mode, class, sides and strength."""
        for drawn in studio.generate(self.source, Settings(seed=self.seed)):
            image = drawn.images[0]
        return (
            editor_value(image, self.box),
            self.mode,
            self.target,
            ["Left", "Right"],
            self.strength,
        )


def editor_value(
    image: Image.Image, box: tuple[float, float, float, float] | None = None
) -> dict[str, Any]:
    """Return the image editor's value for an image with a painted box, in shares of the image."""
    image = enlarged(image)
    layers = []
    if box is not None:
        layer = Image.new("RGBA", image.size)
        corners = [share * side for share, side in zip(box, image.size * 2, strict=True)]
        ImageDraw.Draw(layer).rectangle(corners, fill=PAINT_COLOUR)
        layers.append(layer)
    composite = image.convert("RGBA")
    for layer in layers:
        composite = Image.alpha_composite(composite, layer)
    return {"background": image, "layers": layers, "composite": composite}


def enlarged(image: Image.Image) -> Image.Image:
    """Enlarge a small image to the editor's canvas. A larger image is returned unchanged."""
    factor = EDITOR_SIDE / max(image.size)
    if factor <= 1:
        return image
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS)


def edit_examples(facts: ModelFacts) -> list[EditExample]:
    """Return example edits with classes of the model."""
    pizza, cookie = facts.find_class("pizza", 0.2), facts.find_class("cookie", 0.6)
    panda, penguin = facts.find_class("panda", 0.4), facts.find_class("penguin", 0.8)
    right_half = (0.5, 0.0, 1.0, 1.0)
    pizza_name, cookie_name, panda_name, penguin_name = (
        facts.class_name(one).partition(",")[0].capitalize()
        for one in (pizza, cookie, panda, penguin)
    )
    return [
        EditExample(f"{pizza_name}, half {cookie_name.lower()}", pizza, cookie, PAINT, right_half),
        EditExample(f"{panda_name}, beyond its edges", panda, NO_CLASS, EXPAND),
        EditExample(f"{penguin_name}, varied", penguin, penguin, VARY),
    ]
