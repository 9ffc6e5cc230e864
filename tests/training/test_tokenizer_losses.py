import copy

import pytest
import torch
from torch.testing import assert_close

from var_hf import MultiScaleVQVAE
from var_hf.training.adversary import Discriminator, adaptive_weight, discriminator_hinge_loss
from var_hf.training.tokenizer_losses import TokenizerPass, quantize_with_gradients
from var_hf.training.tokenizer_setup import initialize_convolutions


@pytest.fixture
def vqvae():
    torch.manual_seed(0)
    model = MultiScaleVQVAE(
        base_channels=8,
        channel_multipliers=(1, 2, 3),
        num_res_blocks=1,
        latent_channels=5,
        codebook_size=13,
        token_map_sizes=(1, 2, 3, 6),
        norm_num_groups=4,
    )
    initialize_convolutions(model)
    # Refiners that are not the identity, so that a pass which forgot them would differ.
    with torch.no_grad():
        for parameter in model.quantizer.refiners.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def images():
    return torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_training_quantizes_as_encoding_does(vqvae, images):
    features = vqvae.quant_conv(vqvae.encoder(images))
    expected_maps, expected = vqvae.quantizer.encode(features)

    latents, _, _, token_maps, targets = quantize_with_gradients(vqvae, features)

    assert all(torch.equal(a, b) for a, b in zip(token_maps, expected_maps, strict=True))
    assert torch.equal(latents, expected)
    assert [tuple(each.shape) for each in targets] == [(2, n, 5) for n in (1, 4, 9, 36)]


@torch.no_grad()
def test_the_trained_image_is_the_shipped_image(vqvae, images):
    reconstruction = TokenizerPass(vqvae)(images, True)[0]

    assert_close(reconstruction.clamp(-1, 1), vqvae.reconstruct(images))


@torch.no_grad()
def test_losses_are_the_mean_error_of_the_running_sums(vqvae, images):
    features = vqvae.quant_conv(vqvae.encoder(images))

    _, codebook_loss, commitment_loss, token_maps, _ = quantize_with_gradients(vqvae, features)

    sums = vqvae.quantizer.latents_by_scale(token_maps)
    expected = torch.stack([(latents - features).square().mean() for latents in sums]).mean()
    assert_close(codebook_loss, expected)
    assert_close(commitment_loss, expected)


def test_the_gradient_passes_straight_through_to_the_encoder(vqvae, images):
    """What the decoder wants of its input reaches the features as if nothing had been quantised."""
    seen = {}

    def keep(name):
        def hook(module, inputs, output):
            seen[name] = inputs[0] if name == "decoded" else output
            seen[name].retain_grad()

        return hook

    vqvae.quant_conv.register_forward_hook(keep("features"))
    vqvae.post_quant_conv.register_forward_hook(keep("decoded"))

    TokenizerPass(vqvae)(images, True)[0].square().mean().backward()

    assert seen["features"].grad.abs().sum() > 0
    assert torch.equal(seen["features"].grad, seen["decoded"].grad)


def test_each_loss_teaches_its_own_side(vqvae, images):
    _, codebook_loss, commitment_loss, *_ = TokenizerPass(vqvae)(images, True)
    encoder = vqvae.encoder.conv_in.weight
    taught = [vqvae.quantizer.codebook.weight, *vqvae.quantizer.refiners.parameters()]

    by_codebook = torch.autograd.grad(
        codebook_loss, [*taught, encoder], allow_unused=True, retain_graph=True
    )
    by_commitment = torch.autograd.grad(commitment_loss, [*taught, encoder], allow_unused=True)

    assert all(gradient.abs().sum() > 0 for gradient in by_codebook[:-1])
    assert by_codebook[-1] is None
    assert all(gradient is None for gradient in by_commitment[:-1])
    assert by_commitment[-1].abs().sum() > 0


def test_the_plain_autoencoder_leaves_quantizer_alone_but_touches_every_parameter(vqvae, images):
    """DistributedDataParallel waits for a gradient of every parameter."""
    reconstruction, codebook_loss, commitment_loss, *_ = TokenizerPass(vqvae)(images, False)

    (reconstruction.square().mean() + codebook_loss + commitment_loss).backward()

    assert codebook_loss == 0
    features = vqvae.quant_conv(vqvae.encoder(images))
    assert_close(reconstruction, vqvae.decoder(vqvae.post_quant_conv(features)))
    assert all(parameter.grad is not None for parameter in vqvae.parameters())
    assert all((p.grad == 0).all() for p in vqvae.quantizer.parameters())


def test_autocast_leaves_the_quantizer_in_full_precision(vqvae, images):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        *_, targets = TokenizerPass(vqvae)(images, True)

    assert {each.dtype for each in targets} == {torch.float32}


# ---------------------------------------------------------------- the adversary


def test_the_hinge_loss_is_zero_beyond_the_margin_and_one_at_chance():
    assert discriminator_hinge_loss(torch.tensor([1.0, 4.0]), torch.tensor([-1.0, -2.0])) == 0
    assert discriminator_hinge_loss(torch.zeros(3), torch.zeros(3)) == 1
    assert discriminator_hinge_loss(torch.tensor([-1.0]), torch.tensor([2.0])) == 2.5


def test_the_adaptive_weight_evens_out_the_gradients():
    reconstruction, adversarial = torch.full((4,), 3.0), torch.full((4,), 0.5)

    assert adaptive_weight(reconstruction, adversarial).item() == pytest.approx(6.0, rel=1e-4)
    assert adaptive_weight(reconstruction, torch.zeros(4)).item() == 1e4


def test_the_discriminator_judges_each_image_by_itself(images):
    torch.manual_seed(0)
    judge = Discriminator(base_channels=6, num_layers=2).eval()

    together = judge(images)

    assert together.shape == (2, 1, 6, 6)
    assert_close(together[1:], judge(images[1:]))


def test_the_discriminator_can_learn_to_tell_noise_from_flat_images():
    torch.manual_seed(0)
    judge = Discriminator(base_channels=6, num_layers=2)
    optimizer = torch.optim.Adam(judge.parameters(), lr=0.01)
    flat, noise = torch.zeros(5, 3, 16, 16) + 0.3, torch.randn(5, 3, 16, 16)
    losses = []
    for _ in range(40):
        loss = discriminator_hinge_loss(judge(flat), judge(noise))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    assert losses[-1] < 0.5 * losses[0]


# ---------------------------------------------------------------- start


def test_fresh_convolutions_keep_the_variance(vqvae):
    fresh = copy.deepcopy(vqvae)
    torch.manual_seed(0)
    initialize_convolutions(fresh)
    with torch.no_grad():
        features = fresh.quant_conv(fresh.encoder(torch.randn(9, 3, 24, 24)))

    assert 0.3 < features.std() < 3.0
    assert fresh.encoder.conv_in.weight.std().item() == pytest.approx((3 * 9) ** -0.5, rel=0.2)


@torch.no_grad()
def test_fresh_refiners_are_the_identity(vqvae):
    initialize_convolutions(vqvae)
    codes = torch.randn(2, 36, 5)

    added = vqvae.quantizer.expand(codes, 3)

    assert_close(added, codes.transpose(1, 2).unflatten(2, (6, 6)))
