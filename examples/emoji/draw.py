"""Draw the emoji data sets: one emoji per image on soft grounds, as a drawing file describes them.

    python examples/emoji/draw.py data/emoji --train 600 --validation 20 --test 50

writes ``data/emoji/train/fox/00000.png`` and so on: folders named after classes, as every
image-folder reader knows them, and ``data/emoji/drawing.json``, a record of the description. The
same command continues an interrupted data set and leaves a finished one unchanged. It refuses a
folder that was drawn from another description.

An image depends only on drawing, seed, split, class and index, so any number of processes on any
machine draws the same images.

``drawing.json`` beside this file describes the images of var-emoji-64, ``128/drawing.json`` those
of var-emoji-128 (``--drawing``). Their glyphs come from a font (``apt-get install
fonts-noto-color-emoji``) or from the npm packages of Iconify (``npm install
@iconify-json/noto``), see the README of each model for the
licences.
"""

import argparse
import colorsys
import functools
import hashlib
import io
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from tqdm import tqdm

from var_hf.files import write_json
from var_hf.image_files import open_image

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
STRIKE = 109  # the one size for which the font holds bitmaps; FreeType refuses all others
ICON_PIXELS = 256  # side at which vector glyphs are rendered, once
NODE_MODULES = Path("node_modules")  # where `npm install` puts icon sets
DRAWING_64 = Path(__file__).parent / "drawing.json"
DRAWING_128 = Path(__file__).parent / "128" / "drawing.json"
RECORD = "drawing.json"  # in a drawn folder: what it holds
#: Goes up when this file draws other pixels from the same description.
VERSION = 1

Random = np.random.Generator
Pixels = NDArray[np.float64]


@dataclass(frozen=True)
class Drawing:
    """What the images of a data set hold.

    Attributes:
        size: Pixels, both sides.
        supersampling: The glyph is placed on a canvas this much larger, then averaged down.
        styles: Glyph sets that take turns by the index of the image: the font's file name, or npm
            packages of Iconify.
        classes: Name of each class, and its glyph: a character of the font, or the name of an icon.
        glyph_pixels: Least and greatest longer side of the glyph.
        tilt: Greatest rotation either way, in degrees.
        grounds: Kinds of ground, keys of `GROUNDS`, equally likely.
        shadows: Share of the glyphs that cast a shadow.
    """

    size: int
    supersampling: int
    styles: tuple[str, ...]
    classes: dict[str, str]
    glyph_pixels: tuple[float, float]
    tilt: float
    grounds: tuple[str, ...]
    shadows: float

    def __hash__(self) -> int:
        return hash(json.dumps(asdict(self)))


@functools.cache
def read_drawing(file: Path = DRAWING_64) -> Drawing:
    """The description in a JSON file."""
    values = json.loads(file.read_text("utf-8"))
    for name in ("styles", "glyph_pixels", "grounds"):
        values[name] = tuple(values[name])
    return Drawing(**values)


# ---------------------------------------------------------------------- glyphs


def glyph_file(style: str) -> Path:
    """The file that holds the glyphs of a style.

    Raises:
        FileNotFoundError: It is not installed; the message names the command that installs it.
    """
    if style == FONT.name:
        file, command = FONT, "apt-get install fonts-noto-color-emoji"
    else:
        file, command = NODE_MODULES / style / "icons.json", f"npm install {style}"
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing; install it: {command}")
    return file


@functools.cache
def sprite(glyph: str, style: str) -> Image.Image:
    """One glyph, RGBA, cropped to what is visible."""
    file = glyph_file(style)
    image = draw_character(glyph, file) if style == FONT.name else render_icon(glyph, file)
    box = image.getbbox()
    if box is None:
        raise ValueError(f"{file} has no glyph for {glyph!r}; use a newer version of it")
    return image.crop(box)


def draw_character(character: str, font: Path) -> Image.Image:
    """A character of the colour font on a transparent canvas."""
    image = Image.new("RGBA", (160, 160))
    glyphs = ImageFont.truetype(str(font), STRIKE)
    ImageDraw.Draw(image).text((8, 8), character, font=glyphs, embedded_color=True)
    return image


def render_icon(name: str, file: Path) -> Image.Image:
    """An icon of an Iconify set, its longer side `ICON_PIXELS`.

    Raises:
        ImportError: The renderer is not installed.
        ValueError: The set has no such icon.
    """
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ImportError("Vector glyphs need resvg: pip install resvg-py") from error
    icons = read_icons(file)
    alias = icons.get("aliases", {}).get(name, {})
    icon = icons["icons"].get(alias.get("parent", name))
    if icon is None:
        raise ValueError(f"{file} has no icon {name!r}; use a newer version of the package")
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    scale = ICON_PIXELS / max(width, height)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )
    png = svg_to_bytes(svg_string=svg, width=round(width * scale), height=round(height * scale))
    return open_image(io.BytesIO(bytes(png))).convert("RGBA")


@functools.cache
def read_icons(file: Path) -> dict:
    """An Iconify set: ``icons`` with their SVG bodies, ``aliases``, and the default size."""
    icons: dict = json.loads(file.read_text("utf-8"))
    return icons


# ---------------------------------------------------------------------- grounds


def soft_colour(random: Random, hue: float) -> Pixels:
    """A pastel of a hue, ``(3,)`` in [0, 1]."""
    return np.array(
        colorsys.hsv_to_rgb(hue % 1.0, random.uniform(0.12, 0.55), random.uniform(0.65, 1.0))
    )


def two_colours(random: Random) -> tuple[Pixels, Pixels]:
    """Two neighbouring pastels."""
    hue, drift = random.uniform(), random.normal(0.0, 0.08)
    return soft_colour(random, hue), soft_colour(random, hue + drift)


def mix(first: Pixels, second: Pixels, share: Pixels) -> Pixels:
    """Pixels ``(P, P, 3)`` between two colours, by the share ``(P, P)`` of the second."""
    share = share[..., None]
    return (1.0 - share) * first + share * second


def linear(random: Random, size: int) -> Pixels:
    """A linear gradient in any direction."""
    first, second = two_colours(random)
    angle = random.uniform(0.0, 2.0 * math.pi)
    steps = np.linspace(-0.5, 0.5, size)
    along = steps[None, :] * math.cos(angle) + steps[:, None] * math.sin(
        angle
    )  # within +-sqrt(1/2)
    return mix(first, second, along / math.sqrt(2.0) + 0.5)


def radial(random: Random, size: int) -> Pixels:
    """A glow around some place."""
    first, second = two_colours(random)
    steps = np.linspace(0.0, 1.0, size)
    x, y = random.uniform(0.2, 0.8, size=2)
    distance = np.hypot(steps[None, :] - x, steps[:, None] - y)
    return mix(first, second, np.clip(distance / random.uniform(0.5, 1.0), 0.0, 1.0) ** 2)


def hills(random: Random, size: int) -> Pixels:
    """A sky, brighter towards the horizon, above one rounded hill."""
    first, second = two_colours(random)
    steps = np.linspace(0.0, 1.0, size)
    sky = mix(first, second, np.repeat(steps[:, None], size, axis=1))
    hill = soft_colour(random, random.uniform()) * random.uniform(0.75, 1.0)
    horizon, slope, bulge = random.uniform((0.5, -0.15, 0.0), (0.8, 0.15, 0.4))
    line = horizon + slope * (steps - 0.5) + bulge * (steps - 0.5) ** 2
    below = np.clip((steps[:, None] - line[None, :]) * size + 0.5, 0.0, 1.0)  # one pixel soft
    return (1.0 - below[..., None]) * sky + below[..., None] * hill


GROUNDS: dict[str, Callable[[Random, int], Pixels]] = {
    "linear": linear,
    "radial": radial,
    "hills": hills,
}


def ground(random: Random, drawing: Drawing) -> Image.Image:
    """What lies behind the glyph, RGBA, opaque."""
    kinds = drawing.grounds
    kind = kinds[int(random.integers(len(kinds)))] if len(kinds) > 1 else kinds[0]
    pixels = GROUNDS[kind](random, drawing.size)
    opaque = np.ones((drawing.size, drawing.size, 1))
    return Image.fromarray(np.rint(np.concatenate([pixels, opaque], axis=2) * 255).astype(np.uint8))


# ---------------------------------------------------------------------- images


def place(glyph: Image.Image, random: Random, drawing: Drawing) -> Image.Image:
    """The glyph at some size, place and tilt, perhaps mirrored, on a transparent image."""
    size, supersampling = drawing.size, drawing.supersampling
    side = random.uniform(*drawing.glyph_pixels)
    room = (size - side) / 2.0  # keeps the upright glyph inside
    centre = size / 2.0 + random.uniform(-room, room, size=2)
    tilt = math.radians(random.uniform(-drawing.tilt, drawing.tilt))
    mirror = -1.0 if random.uniform() < 0.5 else 1.0

    # PIL wants the map from canvas pixels back to glyph pixels.
    shrink = max(glyph.size) / (side * supersampling)
    cos, sin = shrink * math.cos(tilt), shrink * math.sin(tilt)
    x, y = centre * supersampling
    rows = [
        (mirror * cos, mirror * sin, glyph.width / 2.0 - mirror * (cos * x + sin * y)),
        (-sin, cos, glyph.height / 2.0 + sin * x - cos * y),
    ]
    canvas = (size * supersampling, size * supersampling)
    placed = glyph.transform(
        canvas, Image.Transform.AFFINE, rows[0] + rows[1], Image.Resampling.BICUBIC
    )
    return placed.resize((size, size), Image.Resampling.HAMMING)


def shadow(placed: Image.Image, random: Random) -> Image.Image:
    """The soft shadow of a placed glyph, mostly below it, RGBA."""
    size = placed.width
    shares = random.uniform((0.01, -0.04, 0.01), (0.04, 0.04, 0.06))
    blur, right, down = (size * shares).tolist()
    strength = random.uniform(0.15, 0.4)
    shift = (1, 0, -right, 0, 1, -down)
    alpha = placed.getchannel("A").transform(
        placed.size, Image.Transform.AFFINE, shift, Image.Resampling.BILINEAR
    )
    alpha = alpha.filter(ImageFilter.GaussianBlur(blur)).point(lambda value: value * strength)
    dark = Image.new("RGBA", placed.size)
    dark.putalpha(alpha)
    return dark


def layers(
    name: str, index: int, split: str = "train", seed: int = 0, drawing: Drawing | None = None
) -> tuple[Image.Image, Image.Image]:
    """What `draw` draws, as two RGBA images: the ground with the glyph's shadow, and the glyph."""
    drawing = drawing or read_drawing()
    random = np.random.default_rng(
        [seed, index, zlib.crc32(name.encode()), zlib.crc32(split.encode())]
    )
    style = drawing.styles[index % len(drawing.styles)]
    behind = ground(random, drawing)
    placed = place(sprite(drawing.classes[name], style), random, drawing)
    if drawing.shadows and random.uniform() < drawing.shadows:
        behind.alpha_composite(shadow(placed, random))
    return behind, placed


def draw(
    name: str, index: int, split: str = "train", seed: int = 0, drawing: Drawing | None = None
) -> Image.Image:
    """One image, RGB.

    Args:
        name: A class of the drawing.
        index: Which image of the class, from 0.
        split: ``"train"``, ``"validation"``, ``"test"`` or any other word; each word gives other
            images.
        seed: Another seed gives another data set.
        drawing: ``None`` draws for var-emoji-64.
    """
    behind, placed = layers(name, index, split, seed, drawing)
    return Image.alpha_composite(behind, placed).convert("RGB")


# ---------------------------------------------------------------------- data sets


def write_class(
    folder: Path, name: str, split: str, count: int, seed: int, drawing: Drawing
) -> int:
    """Write the images of one class and split, unless they are there; returns how many."""
    target = folder / split / name
    if not target.exists():
        partial = target.with_name(f".{name}")
        partial.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image = draw(name, index, split, seed, drawing)
            image.save(partial / f"{index:05d}.png", compress_level=1)
        partial.rename(target)
    return count


def record_of(drawing: Drawing, counts: dict[str, int], seed: int) -> dict:
    """What a data set holds, as JSON values: a folder with another record holds other images."""
    digests = {}
    for style in drawing.styles:
        with glyph_file(style).open("rb") as file:
            digests[style] = hashlib.file_digest(file, "sha256").hexdigest()
    record = {"version": VERSION, "counts": counts, "seed": seed, "glyphs": digests}
    described: dict = json.loads(json.dumps(record | asdict(drawing)))
    return described


def check_record(folder: Path, record: dict) -> None:
    """Refuse a folder whose images were drawn from something else.

    Raises:
        FileExistsError: The message names what differs.
    """
    file = folder / RECORD
    stored = json.loads(file.read_text("utf-8")) if file.exists() else {}
    other = sorted(name for name in stored | record if stored.get(name) != record.get(name))
    if other:
        raise FileExistsError(
            f"{folder} exists already, with images of another drawing ({', '.join(other)} differ). "
            "Choose another folder, or remove this one and all that was trained on it."
        )


def write_dataset(
    output: Path,
    counts: dict[str, int],
    seed: int = 0,
    workers: int | None = None,
    drawing: Drawing | None = None,
) -> None:
    """Write an image folder; it appears complete or not at all. Continues an interrupted one.

    Args:
        output: Folder to write.
        counts: Images per class for every split.
        seed: See `draw`.
        workers: Processes; ``None`` takes one per core.
        drawing: ``None`` draws for var-emoji-64.

    Raises:
        FileExistsError: The folder holds something else.
    """
    drawing = drawing or read_drawing()
    record = record_of(drawing, counts, seed)
    if output.exists():
        check_record(output, record)
        return
    partial = output.with_name(f".{output.name}-partial")
    if partial.exists():
        try:
            check_record(partial, record)
        except FileExistsError:
            shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    write_json(partial / RECORD, record)
    with (
        ProcessPoolExecutor(workers) as pool,
        tqdm(total=len(drawing.classes) * sum(counts.values())) as bar,
    ):
        jobs = [
            pool.submit(write_class, partial, name, split, count, seed, drawing)
            for split, count in counts.items()
            for name in drawing.classes
        ]
        for job in jobs:
            bar.update(job.result())
    os.replace(partial, output)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument(
        "--drawing",
        type=Path,
        default=DRAWING_64,
        help="description of the images (default: that of var-emoji-64)",
    )
    for split, count in (("train", 600), ("validation", 20), ("test", 50)):
        parser.add_argument(
            f"--{split}", type=int, default=count, help="images per class (default: %(default)s)"
        )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="another seed gives other images (default: %(default)s)",
    )
    arguments = parser.parse_args()
    counts = {"train": arguments.train, "validation": arguments.validation, "test": arguments.test}
    write_dataset(arguments.output, counts, arguments.seed, drawing=read_drawing(arguments.drawing))


if __name__ == "__main__":
    main()
