"""Edit emoji with var-emoji-128 and arrange original, mask and three results in each row.

    python examples/emoji/edit_images.py docs/images/editing.png

The images are of the test split, which the model has not seen: half of a fox is redrawn, the
ground around a heart is, and a pizza becomes a doughnut in its place.
"""

import argparse
from pathlib import Path

import torch
from draw import layers, read_drawing
from PIL import Image, ImageFilter, ImageOps

from var_hf import VARInpaintPipeline
from var_hf.assets import VAR_EMOJI_128
from var_hf.files import new_path
from var_hf.pipelines.visualization import image_grid

DRAWING = Path(__file__).with_name("128") / "drawing.json"
SEEDS = (0, 1, 2)
MARGIN = 9  # of a filter, in pixels: the mask goes four beyond the glyph


def subject(glyph: Image.Image) -> Image.Image:
    """White where the glyph is, with a margin."""
    return (
        glyph.getchannel("A").point(lambda a: 255 * (a > 0)).filter(ImageFilter.MaxFilter(MARGIN))
    )


def right_half(glyph: Image.Image) -> Image.Image:
    """White on the right half."""
    width, height = glyph.size
    mask = Image.new("L", glyph.size)
    mask.paste(255, (width // 2, 0, width, height))
    return mask


def ground(glyph: Image.Image) -> Image.Image:
    """White where the glyph is not."""
    return ImageOps.invert(subject(glyph))


def box(glyph: Image.Image) -> Image.Image:
    """White on the box around the glyph."""
    mask = Image.new("L", glyph.size)
    mask.paste(255, subject(glyph).getbbox())
    return mask


# Class drawn, which of its images, mask, class asked for, and whether the 1 x 1 map, which holds
# the ground's colour, stays.
EDITS = (
    ("fox", 0, right_half, "fox", True),
    ("heart", 0, ground, None, False),
    ("pizza", 0, box, "doughnut", True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("output", type=Path, help="PNG file to write")
    parser.add_argument(
        "--model", default=VAR_EMOJI_128, help="pipeline folder (default: %(default)s)"
    )
    arguments = parser.parse_args()

    pipe = VARInpaintPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    panels = []
    for name, index, make_mask, label, keep_coarsest in EDITS:
        behind, glyph = layers(name, index, "test", drawing=read_drawing(DRAWING))
        image, mask = Image.alpha_composite(behind, glyph).convert("RGB"), make_mask(glyph)
        edited = pipe(
            image,
            mask,
            label,
            keep_coarsest=keep_coarsest,
            num_images_per_prompt=len(SEEDS),
            generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        ).images
        panels += [image, mask.convert("RGB"), *edited]
    with new_path(arguments.output, replace=True) as temporary:
        image_grid(panels, num_columns=2 + len(SEEDS)).save(temporary)
    print(arguments.output)


if __name__ == "__main__":
    main()
