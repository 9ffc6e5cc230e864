import json
from pathlib import Path

import pytest
from original_release import original_transformer, original_vqvae

from var_hf.conversion.layout import (
    meta_tensors,
    parameter_count,
    transformer_layout,
    vqvae_layout,
)
from var_hf.conversion.published import published_file

GOLDEN = Path(__file__).parents[1] / "golden"


def layout_of(tensors):
    return {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in tensors.items()
    }


def test_formula_gives_every_published_layout(published_layout):
    expected = {
        name: (kind, tuple(shape)) for name, (kind, shape) in published_layout["tensors"].items()
    }

    assert published_file(published_layout["release"]).layout() == expected


def test_parameter_counts_are_those_of_the_published_files(published_layout):
    file = published_file(published_layout["release"])

    assert parameter_count(file.layout()) == published_layout["parameters"] == file.parameters


@pytest.mark.parametrize("case", ["adaln-256style", "shared-adaln-512style"])
def test_formula_and_test_modules_give_the_golden_layouts(case):
    golden = json.loads((GOLDEN / f"{case}.json").read_text())
    config = golden["config"]
    sizes = tuple(config["patch_nums"])
    values = {
        "vocab_size": config["vocab_size"],
        "latent_channels": config["z_channels"],
        "hidden_size": config["embed_dim"],
        "num_hidden_layers": config["depth"],
        "num_attention_heads": config["num_heads"],
        "intermediate_size": round(config["embed_dim"] * config["mlp_ratio"]),
        "token_map_sizes": sizes,
        "num_classes": config["num_classes"],
        "share_modulation": config["shared_aln"],
        "qk_norm": config["attn_l2_norm"],
    }
    modules = original_transformer(
        depth=config["depth"],
        width=config["embed_dim"],
        heads=config["num_heads"],
        inner=values["intermediate_size"],
        vocab=config["vocab_size"],
        channels=config["z_channels"],
        sizes=sizes,
        classes=config["num_classes"],
        shared=config["shared_aln"],
        qk_norm=config["attn_l2_norm"],
    )
    expected = {name: (kind, tuple(shape)) for name, (kind, shape) in golden["var_tensors"].items()}
    assert transformer_layout(values) == layout_of(modules) == expected

    values = {
        "in_channels": 3,
        "base_channels": config["ch"],
        "channel_multipliers": (1, 1, 2, 2, 4),  # the release's, in both golden cases
        "num_res_blocks": 2,
        "latent_channels": config["z_channels"],
        "codebook_size": config["vocab_size"],
        "token_map_sizes": sizes,
        "refiner_sharing": config["share_quant_resi"],
        "refiner_mix": config["quant_resi"],
    }
    modules = original_vqvae(
        vocab=config["vocab_size"],
        channels=config["z_channels"],
        base=config["ch"],
        multipliers=(1, 1, 2, 2, 4),
        blocks=2,
        num_scales=len(sizes),
        share_quant_resi=config["share_quant_resi"],
        quant_resi=config["quant_resi"],
        groups=32,
    )
    expected = {name: (kind, tuple(shape)) for name, (kind, shape) in golden["vae_tensors"].items()}
    assert vqvae_layout(values) == layout_of(modules) == expected


def test_meta_tensors_have_the_layout_and_no_storage(published_layout):
    layout = published_file(published_layout["release"]).layout()

    tensors = meta_tensors(layout)

    assert layout_of(tensors) == layout
    assert all(tensor.is_meta for tensor in tensors.values())
