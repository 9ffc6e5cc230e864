"""Draw a first image without downloading anything: `make demo`.

var-emoji-64, the small model that ships with the package, draws one image of each of its classes.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from var_hf import VARPipeline
from var_hf.assets import VAR_EMOJI_64
from var_hf.files import new_path
from var_hf.pipelines.visualization import image_grid

NUM_COLUMNS = 8
SIDE = 112  # of an enlarged image, in pixels
LABEL_HEIGHT = 20


def labelled(image: Image.Image, name: str) -> Image.Image:
    """The image, enlarged, with its class under it."""
    tile = Image.new("RGB", (SIDE, SIDE + LABEL_HEIGHT), "white")
    tile.paste(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    ImageDraw.Draw(tile).text(
        (SIDE / 2, SIDE + LABEL_HEIGHT / 2),
        name,
        fill="black",
        anchor="mm",
        font=ImageFont.load_default(size=13),
    )
    return tile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/first_image.png"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    pipe = VARPipeline.from_pretrained(VAR_EMOJI_64, dtype=torch.float32)
    names = [pipe.id2label[class_id] for class_id in range(len(pipe.id2label))]
    generators = [torch.Generator().manual_seed(arguments.seed + i) for i in range(len(names))]
    images = pipe(names, generator=generators).images
    tiles = [labelled(image, name) for image, name in zip(images, names, strict=True)]
    with new_path(arguments.output, replace=True) as temporary:
        image_grid(tiles, NUM_COLUMNS).save(temporary)
    print(f"{len(names)} classes, an image each: {arguments.output.resolve()}")


if __name__ == "__main__":
    main()
