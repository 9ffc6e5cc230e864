"""Input and output of the studio."""

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
        settings: Their settings, with the seed that was used.
        class_id: The class; `None` is the null class.
        seconds: Seconds since the model started, without waiting.
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
    """An edit of an image: redraw a part, extend it beyond its edges, or vary the whole.

    Attributes:
        image: The image.
        mask: Mask in the image's size; white pixels are redrawn. `None` with `expand` or
            `strength`.
        expand: Pixels to add at the left, top, right and bottom.
        strength: Share of the scales to redraw, in [0, 1]. Excludes a mask.
        padding_mask_crop: Margin in pixels of the crop around the mask, which the model edits
            alone; `None` is no crop.
    """

    image: Image.Image
    mask: Image.Image | None = None
    expand: tuple[int, int, int, int] = (0, 0, 0, 0)
    strength: float | None = None
    padding_mask_crop: int | None = None

    @property
    def result_size(self) -> tuple[int, int]:
        """Width and height of the result in pixels."""
        left, top, right, bottom = self.expand
        return self.image.width + left + right, self.image.height + top + bottom
