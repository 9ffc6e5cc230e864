import json

import pytest
import torch
from conftest import BATCH, GOLDEN, VQVAE, fill, make_vqvae, seeded

from var_hf import MultiScaleVQVAE, modeling_vqvae
from var_hf.modeling_vqvae import decoded_at_a_time

SIDE = 10  # 5 tokens at 2 pixels each


def images(batch=BATCH, seed=0):
    return torch.rand(batch, 3, SIDE, SIDE, generator=seeded(seed)) * 2 - 1


def assert_same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


@torch.no_grad()
def test_shapes_of_everything(vqvae):
    encoded = vqvae.encode(images())

    assert [tuple(tokens.shape) for tokens in encoded.token_maps] == [
        (BATCH, n) for n in (1, 4, 9, 25)
    ]
    assert encoded.features.shape == encoded.latents.shape == (BATCH, 6, 5, 5)
    for sample in (
        vqvae.decode(encoded.token_maps).sample,
        vqvae.decode_latents(encoded.latents).sample,
        vqvae(images()).sample,
        vqvae.reconstruct(images()),
    ):
        assert sample.shape == (BATCH, 3, SIDE, SIDE)
        assert sample.abs().max() <= 1
    assert (vqvae.stride, vqvae.image_size) == (2, SIDE)


@torch.no_grad()
def test_images_outside_the_range_are_clamped(vqvae):
    assert (
        vqvae.decode_latents(1e4 * torch.randn(1, 6, 5, 5, generator=seeded(0))).sample.abs().max()
        == 1
    )


@torch.no_grad()
def test_tuples_hold_what_the_outputs_hold(vqvae):
    encoded = vqvae.encode(images())

    token_maps, latents, features = vqvae.encode(images(), return_dict=False)

    assert all(torch.equal(a, b) for a, b in zip(token_maps, encoded.token_maps, strict=True))
    assert torch.equal(latents, encoded.latents)
    assert torch.equal(features, encoded.features)
    sample = vqvae.decode_latents(latents).sample
    assert torch.equal(vqvae.decode_latents(latents, return_dict=False)[0], sample)
    assert torch.equal(vqvae.decode(token_maps, return_dict=False)[0], sample)
    assert torch.equal(vqvae(images(), return_dict=False)[0], sample)


@torch.no_grad()
def test_slicing_computes_the_same_one_image_at_a_time(vqvae):
    batches = []
    vqvae.decoder.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    vqvae.encoder.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    encoded = vqvae.encode(images(5))
    whole = vqvae.decode_latents(encoded.latents).sample

    vqvae.enable_slicing()
    sliced = vqvae.encode(images(5))
    sample = vqvae.decode_latents(encoded.latents).sample

    # A CPU decodes one by one in any case.
    assert batches == [5] + [1] * 15
    assert all(
        torch.equal(a, b) for a, b in zip(encoded.token_maps, sliced.token_maps, strict=True)
    )
    torch.testing.assert_close(sample, whole)
    vqvae.disable_slicing()
    vqvae.encode(images(5))
    assert batches[-1] == 5


@torch.no_grad()
def test_a_cpu_encodes_few_images_at_a_time(vqvae, monkeypatch):
    whole = vqvae.encode(images(5))
    batches = []
    vqvae.encoder.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    first_activation = VQVAE["base_channels"] * SIDE**2
    for numbers, expected in ((2 * first_activation, [2, 2, 1]), (1, [1] * 5)):
        monkeypatch.setattr(modeling_vqvae, "ENCODED_AT_A_TIME", numbers)

        parts = vqvae.encode(images(5))

        assert batches == expected
        torch.testing.assert_close(parts.features, whole.features)
        assert torch.equal(torch.cat(parts.token_maps, 1), torch.cat(whole.token_maps, 1))
        batches.clear()


def test_tiling_is_refused(vqvae):
    with pytest.raises(NotImplementedError):
        vqvae.enable_tiling()


@pytest.mark.parametrize("shape", [(2, 3, 10, 12), (2, 1, 10, 10), (3, 10, 10), (2, 3, 20, 20)])
def test_images_of_another_shape_are_refused(vqvae, shape):
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, 10, 10\)") as error:
        vqvae.encode(torch.zeros(shape))
    assert str(shape) in str(error.value)


def test_token_maps_of_another_schedule_are_refused(vqvae):
    with pytest.raises(ValueError, match="per scale"):
        vqvae.decode([torch.zeros(1, n, dtype=torch.long) for n in (1, 4, 9, 16)])


def test_a_refiner_table_of_another_length_is_refused():
    with pytest.raises(
        ValueError, match="refiner_of_scale names 2 scales but token_map_sizes has 4"
    ):
        make_vqvae(refiner_of_scale=(0, 1))


def test_a_schedule_that_does_not_grow_is_refused():
    with pytest.raises(ValueError, match="increasing"):
        make_vqvae(token_map_sizes=(1, 3, 2))


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"refiner_sharing": 0}, {"refiner_mix": 0.0}])
def test_a_saved_vqvae_comes_back_bit_for_bit(tmp_path, changes):
    vqvae = make_vqvae(**changes)
    vqvae.save_pretrained(tmp_path)

    loaded = MultiScaleVQVAE.from_pretrained(tmp_path)

    assert not loaded.training
    assert_same_weights(vqvae, loaded)
    assert torch.equal(loaded.reconstruct(images()), vqvae.reconstruct(images()))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["refiner_of_scale"] == list(vqvae.config.refiner_of_scale)


def test_the_stored_refiner_table_counts_when_a_vqvae_is_loaded():
    """Whatever rule a later version computes a table by, old checkpoints keep theirs."""
    vqvae = make_vqvae(refiner_of_scale=(1, 0, 1, 1))

    assert vqvae.quantizer.refiner_of_scale == (1, 0, 1, 1)
    assert len(vqvae.quantizer.refiners) == 2


def test_variants_lie_side_by_side(tmp_path):
    vqvae = make_vqvae()
    vqvae.save_pretrained(tmp_path)
    vqvae.to(torch.float16).save_pretrained(tmp_path, variant="fp16")

    half = MultiScaleVQVAE.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16)

    assert half.encoder.conv_in.weight.dtype == torch.float16
    assert (tmp_path / "diffusion_pytorch_model.fp16.safetensors").exists()
    assert MultiScaleVQVAE.from_pretrained(tmp_path).dtype == torch.float32
    with pytest.raises(OSError, match="bf16"):
        MultiScaleVQVAE.from_pretrained(tmp_path, variant="bf16")


def test_sharded_files_come_back_bit_for_bit(tmp_path):
    vqvae = make_vqvae()
    vqvae.save_pretrained(tmp_path, max_shard_size="20KB")

    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_weights(vqvae, MultiScaleVQVAE.from_pretrained(tmp_path))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_quantizer_and_last_layers_stay_float32_in_half_precision(tmp_path, dtype):
    vqvae = make_vqvae()
    vqvae.save_pretrained(tmp_path)

    loaded = MultiScaleVQVAE.from_pretrained(tmp_path, torch_dtype=dtype)

    assert loaded.decoder.conv_in.weight.dtype == dtype
    exact = (loaded.quantizer, loaded.decoder.norm_out, loaded.decoder.conv_out)
    assert {p.dtype for module in exact for p in module.parameters()} == {torch.float32}
    encoded = loaded.encode(images())
    assert encoded.latents.dtype == encoded.features.dtype == torch.float32
    sample = loaded.decode_latents(encoded.latents).sample
    assert sample.dtype == torch.float32
    assert sample.isfinite().all()
    torch.testing.assert_close(
        sample.float(), vqvae.decode_latents(encoded.latents).sample, atol=0.1, rtol=0
    )


def test_the_defaults_are_the_published_vqvae():
    layout = json.loads((GOLDEN / "layouts" / "vae_ch160v4096z32.json").read_text())

    with torch.device("meta"):
        vqvae = MultiScaleVQVAE()

    assert sum(p.numel() for p in vqvae.parameters()) == layout["parameters"]
    assert (vqvae.stride, vqvae.image_size) == (16, 256)


def test_codebook_usage_travels_with_the_weights(tmp_path):
    vqvae = fill(MultiScaleVQVAE(**VQVAE))
    vqvae.quantizer.codebook_usage.uniform_(generator=seeded(1))
    vqvae.save_pretrained(tmp_path)

    usage = MultiScaleVQVAE.from_pretrained(tmp_path).quantizer.codebook_usage

    assert torch.equal(usage, vqvae.quantizer.codebook_usage)


def test_a_cpu_decodes_one_by_one_and_others_less_of_large_images():
    assert decoded_at_a_time("cpu", 256) == 1
    assert decoded_at_a_time("cuda", 256) == 4 * decoded_at_a_time("cuda", 512)
    assert decoded_at_a_time("cuda", 10_000) == 1
