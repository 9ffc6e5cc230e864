"""Draw a first picture without downloading anything: `make demo`.

No trained weights ship with the package yet. This script therefore makes a small VAR with random weights, writes it
as the two files of the original release, converts them as published files would be converted, loads the result and
draws with it. Every step is the real one; the picture is noise, as of any untrained model.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image

from var_hf import MultiScaleVQVAE, VARConfig, VARModel, VARPipeline
from var_hf.conversion import new_path, write_original
from var_hf.pipelines.original import convert_checkpoint

CLASSES = ["goldfish", "golden retriever", "pizza"]
NUM_CLASSES = 1000  # then conversion adds the names of ImageNet's classes


def write_untrained_checkpoint(transformer_file: Path, vqvae_file: Path) -> None:
    """Write a small VAR, 256 x 256 pixels in ten scales like the release, with random weights."""
    torch.manual_seed(0)
    transformer = VARModel(
        VARConfig(
            vocab_size=512,
            latent_channels=16,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_classes=NUM_CLASSES,
        )
    )
    vqvae = MultiScaleVQVAE(
        base_channels=32,
        channel_multipliers=(1, 1, 2, 2, 2),
        num_res_blocks=1,
        latent_channels=16,
        codebook_size=512,
    )
    # Training spreads the codes out; fresh ones lie so close to zero that all pictures would be one grey.
    torch.nn.init.normal_(vqvae.quantizer.codebook.weight)
    write_original(transformer.to_original(), transformer_file)
    write_original(vqvae.to_original(), vqvae_file)


def draw_scales(pipe: VARPipeline, class_names: list[str], seed: int) -> Image.Image:
    """A row per class: the picture after the first, the fourth, the seventh and the last scale."""
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(class_names))]
    columns = []
    for output in pipe.stream(class_names, generator=generators):
        if output.scale % 3 == 0:
            sample = pipe.vqvae.decode_latents(output.latents).sample.detach()
            columns.append(pipe.image_processor.postprocess(sample))
    side = columns[0][0].width
    grid = Image.new("RGB", (side * len(columns), side * len(class_names)))
    for x, images in enumerate(columns):
        for y, image in enumerate(images):
            grid.paste(image, (x * side, y * side))
    return grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/first_picture.png"))
    output = parser.parse_args().output

    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "var_d2.pth"), Path(folder, "vae_ch32v512z16.pth")
        write_untrained_checkpoint(*files)
        print("1. wrote a small checkpoint in the original layout; its weights are UNTRAINED")
        model = convert_checkpoint(*files, Path(folder, "untrained-var"))
        print("2. converted it into a pipeline folder, as var-hf convert does")
        pipe = VARPipeline.from_pretrained(model)
        picture = draw_scales(pipe, CLASSES, seed=0)
        print(f"3. drew {', '.join(CLASSES)}: one row each, coarse to fine from left to right")

    with new_path(output, replace=True) as temporary:
        picture.save(temporary)
    print(f"The weights are untrained, so the picture is noise: {output.resolve()}")


if __name__ == "__main__":
    main()
