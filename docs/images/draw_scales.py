"""Draw docs/images/scales.png: the ten token maps of one picture, and what they say together.

The picture is computed here. Its token maps come from the package's own quantiser, with the schedule of the 256 px
release; where the release has a learned codebook of 4,096 vectors of 32 channels, this one has 4,096 colours (or
changes of colour), so that tokens can be shown as what they are. Upper row: the codes of each map, grey for "no
change". Lower row: the sum of all maps so far, on the grid of the finest.

    python docs/images/draw_scales.py
"""

from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from var_hf import MultiScaleQuantizer
from var_hf.configuration_var import TOKEN_MAP_SIZES_256

OUTPUT = Path(__file__).with_name("scales.png")
PANEL, GAP, TEXT = 144, 8, 26  # pixels
FACTOR = 32  # the picture is drawn finer than the grid, so that the grid can average it


def landscape(side: int) -> np.ndarray:
    """A sun over hills and water, ``(3, side, side)`` in [-1, 1]."""
    y, x = np.mgrid[0:side, 0:side] / side
    mix = np.clip(y / 0.62, 0, 1)[..., None]
    image = (1 - mix) * [0.16, 0.22, 0.52] + mix * [1.0, 0.62, 0.42]  # evening sky
    sun = (x - 0.66) ** 2 + (y - 0.40) ** 2 < 0.13**2
    image[sun] = [1.0, 0.93, 0.60]
    for height, colour in (
        (0.52 - 0.16 * np.exp(-(((x - 0.25) / 0.16) ** 2)), [0.42, 0.30, 0.52]),
        (0.60 - 0.10 * np.exp(-(((x - 0.80) / 0.20) ** 2)), [0.27, 0.23, 0.43]),
    ):
        image[y > height] = colour
    water = y > 0.66
    image[water] = [0.20, 0.34, 0.56]
    image[water & (abs(x - 0.66) < 0.05 + 0.25 * (y - 0.66))] = [0.96, 0.72, 0.48]
    image[y > 0.84 + 0.10 * x] = [0.10, 0.20, 0.20]
    return image.transpose(2, 0, 1) * 2 - 1


def colour_quantizer() -> MultiScaleQuantizer:
    """The quantiser of the 256 px release on three channels, with colours as codes and no refiners."""
    quantizer = MultiScaleQuantizer(16**3, 3, TOKEN_MAP_SIZES_256, refiner_of_scale=())
    steps = torch.linspace(-1, 1, 16)
    steps = steps.sign() * steps.abs() ** 1.5  # denser at zero: fine maps hold small corrections
    quantizer.codebook.weight.data = torch.tensor(list(product(steps.tolist(), repeat=3)))
    return quantizer


def to_panel(values: torch.Tensor) -> Image.Image:
    """Colours ``(3, h, w)`` in [-1, 1] as a panel of flat squares."""
    pixels = ((values.clamp(-1, 1) + 1) / 2 * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels).resize((PANEL, PANEL), Image.Resampling.NEAREST)


@torch.no_grad()
def main(output: Path = OUTPUT) -> None:
    """Draw the sheet and write it."""
    quantizer = colour_quantizer()
    fine = torch.from_numpy(landscape(TOKEN_MAP_SIZES_256[-1] * FACTOR)).float()[None]
    features = torch.nn.functional.avg_pool2d(fine, FACTOR)
    token_maps, _ = quantizer.encode(features)

    num_scales = len(token_maps)
    size = (num_scales * (PANEL + GAP) - GAP, 2 * PANEL + GAP + TEXT)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=17)
    for scale, latents in enumerate(quantizer.latents_by_scale(token_maps)):
        side, left = TOKEN_MAP_SIZES_256[scale], scale * (PANEL + GAP)
        codes = quantizer.codes(token_maps[scale])[0].T.unflatten(1, (side, side))
        sheet.paste(to_panel(codes), (left, TEXT))
        sheet.paste(to_panel(latents[0]), (left, TEXT + PANEL + GAP))
        label = f"{side} x {side}"
        draw.text((left + PANEL / 2, TEXT / 2 - 2), label, "#404040", font, anchor="mm")
    sheet.save(output, optimize=True)


if __name__ == "__main__":
    main()
