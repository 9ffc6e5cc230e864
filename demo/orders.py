"""What goes into the studio and what comes out of it."""

from dataclasses import dataclass

from PIL import Image

from var_hf.demo.settings import Settings

Label = int | str | None


@dataclass(frozen=True)
class Drawn:
    """Images after one scale.

    Attributes:
        scale: Number of the scale, 0 is the coarsest.
        num_scales: Number of scales S; after the last one the images are finished.
        images: One per seed.
        settings: How they are drawn, with the seed that was taken.
        class_id: The class; `None` is the null class.
        seconds: Since the model began, waiting not counted.
    """

    scale: int
    num_scales: int
    images: list[Image.Image]
    settings: Settings
    class_id: int | None
    seconds: float

    @property
    def is_finished(self) -> bool:
        """Whether this is the last scale."""
        return self.scale == self.num_scales - 1


@dataclass(frozen=True)
class Edit:
    """What is to happen to an image: paint over a part, draw beyond the edges, or vary the whole.

    Attributes:
        image: The image.
        mask: In its size, white where it is redrawn; `None` with `expand` or `strength`.
        expand: Pixels to draw beyond the left, top, right and bottom.
        strength: Share of the scales to redraw, in [0, 1]; instead of a mask.
        padding_mask_crop: Margin in pixels of the crop around the mask that the model edits; `None`
            is no crop.
    """

    image: Image.Image
    mask: Image.Image | None = None
    expand: tuple[int, int, int, int] = (0, 0, 0, 0)
    strength: float | None = None
    padding_mask_crop: int | None = None

    @property
    def result_size(self) -> tuple[int, int]:
        """Width and height of what comes out, in pixels."""
        left, top, right, bottom = self.expand
        return self.image.width + left + right, self.image.height + top + bottom
