from var_hf.conversion import PUBLISHED_TRANSFORMERS, PUBLISHED_VQVAE, published_file


def test_the_table_has_the_six_published_files(published_layout):
    file = published_file(published_layout["release"])

    assert file.name == published_layout["release"]
    assert len(PUBLISHED_TRANSFORMERS) + 1 == 6


def test_any_other_name_is_not_published():
    assert published_file("var_d12.pth") is None


def test_the_converted_vqvae_has_our_names():
    shapes = PUBLISHED_VQVAE.converted_shapes()

    assert shapes["quantizer.codebook.weight"] == (4096, 32)
    assert shapes["quantizer.refiners.3.weight"] == (32, 32, 3, 3)


def test_the_converted_transformer_has_split_projections_and_no_buffers():
    shapes = PUBLISHED_TRANSFORMERS["d36"].converted_shapes()

    assert shapes["layers.35.self_attn.k_proj.weight"] == (2304, 2304)
    assert shapes["layers.0.modulation_table"] == (1, 1, 6, 2304)
    assert not any("mask" in name or "lvl" in name for name in shapes)
