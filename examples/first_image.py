"""Draw a first image without downloading anything: `make demo`.

A model that ships with the package, by default var-emoji-128, draws one image of each of its
classes.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from var_hf import VARPipeline
from var_hf.assets import DEFAULT_MODEL, shipped_model
from var_hf.files import new_path
from var_hf.pipelines.visualization import image_grid

NUM_COLUMNS = 10
LABEL_HEIGHT = 20


def labelled(image: Image.Image, name: str) -> Image.Image:
    """The image with its class under it."""
    width, height = image.size
    tile = Image.new("RGB", (width, height + LABEL_HEIGHT), "white")
    tile.paste(image)
    ImageDraw.Draw(tile).text(
        (width / 2, height + LABEL_HEIGHT / 2),
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
    parser.add_argument("--model", default=DEFAULT_MODEL.name, help="default: %(default)s")
    arguments = parser.parse_args()

    pipe = VARPipeline.from_pretrained(shipped_model(arguments.model), dtype=torch.float32)
    names = [pipe.id2label[class_id] for class_id in range(len(pipe.id2label))]
    pipe.set_progress_bar_config(disable=True)
    tiles: list[Image.Image] = []
    with tqdm(total=len(names), unit="image") as bar:
        for start in range(0, len(names), NUM_COLUMNS):
            row = names[start : start + NUM_COLUMNS]
            seeds = range(arguments.seed + start, arguments.seed + start + len(row))
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            images = pipe(row, generator=generators).images
            tiles += map(labelled, images, row)
            bar.update(len(row))
    with new_path(arguments.output, replace=True) as temporary:
        image_grid(tiles, NUM_COLUMNS).save(temporary)
    print(f"{len(names)} classes, an image each: {arguments.output.resolve()}")


if __name__ == "__main__":
    main()
