"""Edit emoji with var-emoji-64 and arrange original, mask and three results in each row.

    python examples/emoji/edit_images.py docs/images/editing.png

The images are of the test split, which the model has not seen: half of a fox is redrawn, the
ground around a heart is, and a pizza becomes a doughnut in its place.
"""

import argparse
from pathlib import Path

import torch
from draw import draw
from PIL import Image, ImageFilter

from var_hf import VARInpaintPipeline
from var_hf.assets import VAR_EMOJI_64
from var_hf.files import new_path
from var_hf.pipelines.visualization import image_grid

SEEDS = (0, 1, 2)
ENLARGED = 2  # times, so that the images can be seen on a page
GREATEST_GROUND_SATURATION = 0.55  # of draw.py's grounds


def subject(image: Image.Image) -> Image.Image:
    """Mask the colours stronger than any background, with closed holes and a 2-pixel margin."""
    saturation = image.convert("HSV").getchannel("S")
    limit = 255 * (GREATEST_GROUND_SATURATION + 0.1)
    strong = saturation.point(lambda s: 255 * (s > limit))
    return strong.filter(ImageFilter.MaxFilter(9)).filter(ImageFilter.MinFilter(5))


def right_half(image: Image.Image) -> Image.Image:
    """White on the right half."""
    width, height = image.size
    mask = Image.new("L", image.size)
    mask.paste(255, (width // 2, 0, width, height))
    return mask


def ground(image: Image.Image) -> Image.Image:
    """White where the subject is not."""
    return subject(image).point(lambda value: 255 - value)


def box(image: Image.Image) -> Image.Image:
    """White on the box around the subject."""
    mask = Image.new("L", image.size)
    mask.paste(255, subject(image).getbbox())
    return mask


# Class drawn, which of its images, mask, class asked for, and whether the 1 x 1 map, which holds
# the ground's colour, stays.
EDITS = (
    ("fox", 0, right_half, "fox", True),
    ("heart", 0, ground, "heart", False),
    ("pizza", 0, box, "doughnut", True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("output", type=Path, help="PNG file to write")
    parser.add_argument(
        "--model", default=VAR_EMOJI_64, help="pipeline folder (default: %(default)s)"
    )
    arguments = parser.parse_args()

    pipe = VARInpaintPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    panels = []
    for name, index, make_mask, label, keep_coarsest in EDITS:
        image = draw(name, index, split="test")
        mask = make_mask(image)
        edited = pipe(
            image,
            mask,
            label,
            keep_coarsest=keep_coarsest,
            num_images_per_prompt=len(SEEDS),
            generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        ).images
        panels += [image, mask.convert("RGB"), *edited]
    panels = [
        panel.resize((panel.width * ENLARGED, panel.height * ENLARGED), Image.Resampling.NEAREST)
        for panel in panels
    ]
    with new_path(arguments.output, replace=True) as temporary:
        image_grid(panels, num_columns=2 + len(SEEDS)).save(temporary)
    print(arguments.output)


if __name__ == "__main__":
    main()
