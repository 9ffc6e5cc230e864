"""Edits that run at once: on an image that the model draws first, so that they fit any model."""

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
        title: What its button says.
        source: The class that is drawn first.
        target: The class of the edit; -1 is none.
        mode: What is done.
        box: What is painted: left, top, right and bottom, as shares of the image.
        strength: Of variations.
        seed: Of the image that is drawn first.
    """

    title: str
    source: int
    target: int
    mode: str
    box: tuple[float, float, float, float] | None = None
    strength: float = 0.5
    seed: int = 7

    def prepare(self, studio: Studio) -> tuple[dict[str, Any], str, int, list[str], float]:
        """Draw the image and set the controls: editor, mode, class, sides and strength."""
        for drawn in studio.generate(self.source, Settings(seed=self.seed)):
            picture = drawn.images[0]
        return (
            editor_value(picture, self.box),
            self.mode,
            self.target,
            ["Left", "Right"],
            self.strength,
        )


def editor_value(
    picture: Image.Image, box: tuple[float, float, float, float] | None = None
) -> dict[str, Any]:
    """An image for the image editor, and a painted box as shares of it."""
    picture = enlarged(picture)
    layers = []
    if box is not None:
        layer = Image.new("RGBA", picture.size)
        corners = [share * side for share, side in zip(box, picture.size * 2, strict=True)]
        ImageDraw.Draw(layer).rectangle(corners, fill=PAINT_COLOUR)
        layers.append(layer)
    composite = picture.convert("RGBA")
    for layer in layers:
        composite = Image.alpha_composite(composite, layer)
    return {"background": picture, "layers": layers, "composite": composite}


def enlarged(picture: Image.Image) -> Image.Image:
    """A small image at least as large as the editor's canvas; a larger one as it is."""
    factor = EDITOR_SIDE / max(picture.size)
    if factor <= 1:
        return picture
    size = (round(picture.width * factor), round(picture.height * factor))
    return picture.resize(size, Image.Resampling.LANCZOS)


def edit_examples(facts: ModelFacts) -> list[EditExample]:
    """Edits with classes that the model has."""
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
