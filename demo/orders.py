"""What goes into the studio and what comes out of it."""

from dataclasses import dataclass

from PIL import Image

from var_hf.demo.settings import Settings

Label = int | str | None


@dataclass(frozen=True)
class Drawn:
    """Pictures after one scale.

    Attributes:
        scale: Number of the scale, 0 is the coarsest.
        num_scales: Number of scales S; after the last one the pictures are finished.
        pictures: One per seed.
        settings: How they are drawn, with the seed that was taken.
        class_id: The class; `None` is the null class.
        seconds: Since the model began, waiting not counted.
    """

    scale: int
    num_scales: int
    pictures: list[Image.Image]
    settings: Settings
    class_id: int | None
    seconds: float

    @property
    def is_finished(self) -> bool:
        """Whether this is the last scale."""
        return self.scale == self.num_scales - 1


@dataclass(frozen=True)
class Edit:
    """What is to happen to a picture: paint over a part, draw beyond the edges, or vary the whole.

    Attributes:
        picture: The picture.
        mask: In its size, white where it is redrawn; `None` with `expand` or `strength`.
        expand: Pixels to draw beyond the left, top, right and bottom.
        strength: Share of the scales to redraw, in [0, 1]; instead of a mask.
        close_up: Look at a window around the mask instead of the whole picture.
    """

    picture: Image.Image
    mask: Image.Image | None = None
    expand: tuple[int, int, int, int] = (0, 0, 0, 0)
    strength: float | None = None
    close_up: bool = False

    @property
    def result_size(self) -> tuple[int, int]:
        """Width and height of what comes out, in pixels."""
        left, top, right, bottom = self.expand
        return self.picture.width + left + right, self.picture.height + top + bottom

    @property
    def margin(self) -> int | None:
        """What the window shows around the mask, in pixels; `None` where there is no window."""
        return max(self.picture.size) // 8 if self.close_up else None
