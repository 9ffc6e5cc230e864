"""Draw the emoji data set: one emoji per class on soft gradient grounds, 64 x 64 pixels.

Every picture follows from ``(seed, split, class, index)`` alone, so any part of the set can be drawn again, on any
machine, by any number of processes, and comes out the same.

    python examples/emoji/draw.py data/emoji --train 600 --validation 20 --test 50

writes ``data/emoji/train/fox/00000.png`` and so on: folders named after classes, as every image-folder reader knows them.
The glyphs come from Noto Color Emoji (SIL Open Font License 1.1, see OFL.txt beside this file); on Debian and Ubuntu:
``apt-get install fonts-noto-color-emoji``.
"""

import argparse
import colorsys
import functools
import math
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from var_hf.files import new_path

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
STRIKE = 109  # the one size for which the font holds bitmaps; FreeType refuses all others
SIZE = 64  # pixels, both sides
SUPERSAMPLING = 3  # the sprite is placed on a canvas this much larger, then averaged down

CLASSES = {
    "automobile": "\N{AUTOMOBILE}",
    "avocado": "\N{AVOCADO}",
    "balloon": "\N{BALLOON}",
    "banana": "\N{BANANA}",
    "butterfly": "\N{BUTTERFLY}",
    "carrot": "\N{CARROT}",
    "cat face": "\N{CAT FACE}",
    "cherries": "\N{CHERRIES}",
    "cookie": "\N{COOKIE}",
    "cupcake": "\N{CUPCAKE}",
    "dog face": "\N{DOG FACE}",
    "doughnut": "\N{DOUGHNUT}",
    "fox": "\N{FOX FACE}",
    "frog": "\N{FROG FACE}",
    "hamburger": "\N{HAMBURGER}",
    "heart": "\N{HEAVY BLACK HEART}",
    "jack-o-lantern": "\N{JACK-O-LANTERN}",
    "lady beetle": "\N{LADY BEETLE}",
    "lion": "\N{LION FACE}",
    "mushroom": "\N{MUSHROOM}",
    "octopus": "\N{OCTOPUS}",
    "owl": "\N{OWL}",
    "panda": "\N{PANDA FACE}",
    "penguin": "\N{PENGUIN}",
    "pig face": "\N{PIG FACE}",
    "pineapple": "\N{PINEAPPLE}",
    "pizza": "\N{SLICE OF PIZZA}",
    "red apple": "\N{RED APPLE}",
    "robot": "\N{ROBOT FACE}",
    "rocket": "\N{ROCKET}",
    "sailboat": "\N{SAILBOAT}",
    "snowman": "\N{SNOWMAN WITHOUT SNOW}",
    "soccer ball": "\N{SOCCER BALL}",
    "star": "\N{WHITE MEDIUM STAR}",
    "strawberry": "\N{STRAWBERRY}",
    "sun": "\N{SUN WITH FACE}",
    "sunflower": "\N{SUNFLOWER}",
    "tiger face": "\N{TIGER FACE}",
    "tropical fish": "\N{TROPICAL FISH}",
    "watermelon": "\N{WATERMELON}",
}


@functools.cache
def sprite(name: str, font: Path = FONT) -> Image.Image:
    """The glyph of a class, RGBA, cropped to what is visible."""
    if not font.exists():
        raise FileNotFoundError(
            f"{font} is missing; install it: apt-get install fonts-noto-color-emoji"
        )
    glyphs = ImageFont.truetype(str(font), STRIKE)
    image = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(image).text((8, 8), CLASSES[name], font=glyphs, embedded_color=True)
    box = image.getbbox()
    if box is None:
        raise ValueError(
            f"{font} has no glyph for {name!r} ({CLASSES[name]!r}); use a newer version of the font"
        )
    return image.crop(box)


def ground(random: np.random.Generator) -> Image.Image:
    """A soft linear gradient between two neighbouring hues, RGBA, opaque."""
    hue, drift = random.uniform(), random.normal(0.0, 0.08)
    colours = [
        colorsys.hsv_to_rgb(
            (hue + shift) % 1.0, random.uniform(0.12, 0.55), random.uniform(0.65, 1.0)
        )
        for shift in (0.0, drift)
    ]
    angle = random.uniform(0.0, 2.0 * math.pi)
    steps = np.linspace(-0.5, 0.5, SIZE)
    along = steps[None, :] * math.cos(angle) + steps[:, None] * math.sin(
        angle
    )  # within +-sqrt(1/2)
    share = (along / math.sqrt(2.0) + 0.5)[..., None]  # (P, P, 1) in [0, 1]
    pixels = (1.0 - share) * np.array(colours[0]) + share * np.array(colours[1])
    opaque = np.ones((SIZE, SIZE, 1))
    return Image.fromarray(np.rint(np.concatenate([pixels, opaque], axis=2) * 255).astype(np.uint8))


def draw(name: str, index: int, split: str = "train", seed: int = 0) -> Image.Image:
    """One picture, RGB, 64 x 64.

    Args:
        name: A key of `CLASSES`.
        index: Which picture of the class, from 0.
        split: ``"train"``, ``"validation"``, ``"test"`` or any other word; another word gives other pictures.
        seed: Another seed gives another data set.
    """
    random = np.random.default_rng(
        [seed, index, zlib.crc32(name.encode()), zlib.crc32(split.encode())]
    )
    backdrop = ground(random)
    glyph = sprite(name)
    side = random.uniform(34.0, 54.0)  # longer side of the glyph in pixels of the picture
    room = (SIZE - side) / 2.0  # keeps the upright glyph inside
    centre = SIZE / 2.0 + random.uniform(-room, room, size=2)
    tilt = math.radians(random.uniform(-20.0, 20.0))
    mirror = -1.0 if random.uniform() < 0.5 else 1.0

    # PIL wants the map from canvas pixels back to glyph pixels.
    shrink = max(glyph.size) / (side * SUPERSAMPLING)
    cos, sin = shrink * math.cos(tilt), shrink * math.sin(tilt)
    x, y = centre * SUPERSAMPLING
    rows = [
        (mirror * cos, mirror * sin, glyph.width / 2.0 - mirror * (cos * x + sin * y)),
        (-sin, cos, glyph.height / 2.0 + sin * x - cos * y),
    ]
    canvas = (SIZE * SUPERSAMPLING, SIZE * SUPERSAMPLING)
    placed = glyph.transform(
        canvas, Image.Transform.AFFINE, rows[0] + rows[1], Image.Resampling.BICUBIC
    )
    backdrop.alpha_composite(placed.resize((SIZE, SIZE), Image.Resampling.HAMMING))
    return backdrop.convert("RGB")


def write_class(folder: Path, name: str, split: str, count: int, seed: int) -> int:
    """Write the pictures of one class and split; returns how many."""
    target = folder / split / name
    target.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        draw(name, index, split, seed).save(target / f"{index:05d}.png", compress_level=1)
    return count


def write_dataset(
    output: Path, counts: dict[str, int], seed: int = 0, workers: int | None = None
) -> None:
    """Write an image folder; it appears complete or not at all.

    Args:
        output: Folder to write; must not exist yet.
        counts: Pictures per class for every split.
        seed: See `draw`.
        workers: Processes; ``None`` takes one per core.
    """
    with (
        new_path(output, durable=False) as temporary,
        ProcessPoolExecutor(workers) as pool,
        tqdm(total=len(CLASSES) * sum(counts.values())) as bar,
    ):
        jobs = [
            pool.submit(write_class, temporary, name, split, count, seed)
            for split, count in counts.items()
            for name in CLASSES
        ]
        for job in jobs:
            bar.update(job.result())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder to write; must not exist yet")
    parser.add_argument(
        "--train", type=int, default=600, help="pictures per class (default: %(default)s)"
    )
    parser.add_argument(
        "--validation", type=int, default=20, help="pictures per class (default: %(default)s)"
    )
    parser.add_argument(
        "--test", type=int, default=50, help="pictures per class (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="another seed gives other pictures (default: %(default)s)",
    )
    arguments = parser.parse_args()
    counts = {"train": arguments.train, "validation": arguments.validation, "test": arguments.test}
    write_dataset(arguments.output, counts, arguments.seed)


if __name__ == "__main__":
    main()
