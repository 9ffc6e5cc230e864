"""Generate the images of docs/var-in-ten-minutes.md and of the README with var-emoji-128.

    python docs/images/draw_ten_minutes.py

Every number in them is the model's. Colours of tokens are the three principal directions of the
codebook.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from var_hf import VARPipeline
from var_hf.assets import DEFAULT_MODEL
from var_hf.files import new_path

OUTPUT = Path(__file__).with_name("ten-minutes")
CLASS, SEED = "fox", 0
README_CLASSES = ["fox", "pizza", "rocket"]
GUIDANCE_SCALES = (1.0, 2.0, 5.0)
NUM_SEEDS = 4
PANEL, GAP, TEXT = 128, 8, 24  # pixels


def panel(values: Tensor, resample: Image.Resampling = Image.Resampling.NEAREST) -> Image.Image:
    """Render colours ``(3, h, w)`` in [0, 1] as a square panel."""
    pixels = (values.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels).resize((PANEL, PANEL), resample)


def sheet(rows: list[list[Image.Image]], titles: list[str]) -> Image.Image:
    """Arrange rows of panels with a title above each column."""
    width = len(titles) * (PANEL + GAP) - GAP
    image = Image.new("RGB", (width, TEXT + len(rows) * (PANEL + GAP) - GAP), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=16)
    for column, title in enumerate(titles):
        left = column * (PANEL + GAP)
        draw.text((left + PANEL / 2, TEXT / 2 - 2), title, "#404040", font, anchor="mm")
        for number, row in enumerate(rows):
            image.paste(row[column], (left, TEXT + number * (PANEL + GAP)))
    return image


def code_colours(codebook: Tensor) -> Tensor:
    """Map each code ``(V, Z)`` to a colour in [0, 1] by its first three principal components."""
    centred = codebook - codebook.mean(dim=0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:3]  # (3, Z)
    largest = directions.abs().argmax(dim=1, keepdim=True)
    directions = (
        directions * directions.gather(1, largest).sign()
    )  # a sign that is the same anywhere
    places = centred @ directions.T  # (V, 3)
    return (places / (3 * places.std(dim=0)) + 1) / 2


def token_maps(pipe: VARPipeline, maps: list[Tensor]) -> Image.Image:
    """Render each token map as a panel."""
    colours = code_colours(pipe.vqvae.quantizer.codebook.weight.float())
    sizes = pipe.vqvae.quantizer.token_map_sizes
    panels = [
        panel(colours[tokens[0]].T.unflatten(1, (size, size)))
        for tokens, size in zip(maps, sizes, strict=True)
    ]
    return sheet([panels], [f"{size} x {size}" for size in sizes])


def running_sum(pipe: VARPipeline, maps: list[Tensor]) -> Image.Image:
    """Render the image after each scale and the change of its pixels by this scale."""
    quantizer = pipe.vqvae.quantizer
    before = pipe.vqvae.decode_latents(quantizer.empty_latents(1, pipe.vqvae.device)).sample
    panels, changes = [], []
    for latents in quantizer.latents_by_scale(maps):
        after = pipe.vqvae.decode_latents(latents).sample
        panels.append(panel((after[0] + 1) / 2, Image.Resampling.BICUBIC))
        change = (after - before)[0].abs().mean(dim=0, keepdim=True).expand(3, -1, -1)
        changes.append(panel(change * 2, Image.Resampling.BICUBIC))
        before = after
    return sheet([panels, changes], [f"scale {scale}" for scale in range(len(panels))])


def scale_by_scale(pipe: VARPipeline) -> Image.Image:
    """Render the image after each scale, with one row per class."""
    generators = [torch.Generator().manual_seed(SEED) for _ in README_CLASSES]
    outputs = pipe.stream(README_CLASSES, generator=generators, output_type="pt", preview=True)
    columns = [output.image for output in outputs]
    rows = [
        [panel(column[number], Image.Resampling.BICUBIC) for column in columns]
        for number in range(len(README_CLASSES))
    ]
    sizes = pipe.vqvae.quantizer.token_map_sizes
    return sheet(rows, [f"{size} x {size}" for size in sizes])


def mask(pipe: VARPipeline) -> Image.Image:
    """Render the model's mask for teacher forcing."""
    config = pipe.transformer.config
    hidden_states = torch.zeros(1, config.num_tokens, config.hidden_size)
    allowed = pipe.transformer.scale_causal_mask(hidden_states, range(config.num_scales))
    assert allowed is not None  # sdpa takes one
    visible = allowed[0, 0] if allowed.dtype == torch.bool else allowed[0, 0] == 0
    return Image.fromarray(np.where(visible.numpy(), 215, 50).astype(np.uint8))


def guidance(pipe: VARPipeline) -> Figure:
    """Render the ramps, and images generated with them from the same seeds."""
    num_scales = pipe.vqvae.quantizer.num_scales
    figure = Figure(figsize=(8, 3.2), dpi=110, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.15))
    axes = left.subplots()
    grid = right.subplots(len(GUIDANCE_SCALES), NUM_SEEDS)
    for row, guidance_scale in zip(grid, GUIDANCE_SCALES, strict=True):
        ramp = [1 + (guidance_scale - 1) * scale / (num_scales - 1) for scale in range(num_scales)]
        axes.plot(range(num_scales), ramp, "o-", label=f"guidance_scale={guidance_scale:g}")
        generators = [torch.Generator().manual_seed(SEED + number) for number in range(NUM_SEEDS)]
        images = pipe([CLASS] * NUM_SEEDS, guidance_scale=guidance_scale, generator=generators)
        for place, image in zip(row, images.images, strict=True):
            place.imshow(image, interpolation="bicubic")
            place.set_xticks([])
            place.set_yticks([])
        row[0].set_ylabel(f"{guidance_scale:g}")
    axes.set_xlabel("scale")
    axes.set_ylabel("guidance of this scale")
    axes.legend(frameon=False)
    return figure


@torch.no_grad()
def main(output: Path = OUTPUT) -> None:
    """Write all images to a folder."""
    pipe = VARPipeline.from_pretrained(DEFAULT_MODEL, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(SEED)
    drawn = pipe(CLASS, generator=generator, output_type="pt").images
    maps = pipe.vqvae.encode(drawn * 2 - 1).token_maps
    output.mkdir(exist_ok=True)
    for name, image in {
        "token-maps": token_maps(pipe, maps),
        "running-sum": running_sum(pipe, maps),
        "mask": mask(pipe),
        "readme": scale_by_scale(pipe),
    }.items():
        with new_path(output / f"{name}.png", replace=True) as temporary:
            image.save(temporary, "PNG", optimize=True)
    with new_path(output / "guidance.png", replace=True) as temporary:
        guidance(pipe).savefig(temporary, format="png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    main(parser.parse_args().output)
