"""The numbers that the original code computed, from files in its layout through the public surface.

Tolerances: float32 results move with the number of threads, the Gumbel cases most
(tests/golden/README.md).
"""

import pytest
import torch
from conftest import quiet, seeded
from transformers import DynamicCache

from var_hf import VARPipeline

CLOSE = {"atol": 1e-4, "rtol": 0}
CLOSE_GUMBEL = {"atol": 1e-3, "rtol": 0}


@pytest.fixture(scope="module")
def pipe(golden):
    return quiet(VARPipeline.from_original(golden.var_file, golden.vae_file))


def generation_settings(call):
    """A call of the golden data in our words."""
    return {
        "guidance_scale": 1 + call["guidance"],
        "top_k": call["top_k"],
        "top_p": call["top_p"] or 1.0,
        "sampling": "gumbel_softmax" if call["more_smooth"] else "multinomial",
    }


@torch.no_grad()
def test_an_image_becomes_the_tokens_of_the_release(pipe, golden):
    encoded = pipe.vqvae.encode(golden.data["image"])

    torch.testing.assert_close(encoded.features, golden.data["encoder_features"], **CLOSE)
    tokens = torch.cat(encoded.token_maps, dim=1)
    assert torch.equal(tokens, golden.data["tokens"].long())


@torch.no_grad()
def test_tokens_become_the_latents_and_the_inputs_of_the_release(pipe, golden):
    token_maps = pipe.vqvae.quantizer.split(golden.data["tokens"].long())

    running = torch.stack(list(pipe.vqvae.quantizer.latents_by_scale(token_maps)), dim=1)
    inputs = pipe.vqvae.quantizer.teacher_inputs(token_maps)

    torch.testing.assert_close(running, golden.data["latent_after_each_scale"], **CLOSE)
    torch.testing.assert_close(inputs, golden.data["teacher_forcing_input"], **CLOSE)


@torch.no_grad()
def test_reconstructions_are_those_of_the_release(pipe, golden):
    vqvae, image = pipe.vqvae, golden.data["image"]
    encoded = vqvae.encode(image)

    for sample in (
        vqvae.reconstruct(image),
        vqvae(image).sample,
        vqvae.decode(encoded.token_maps).sample,
        vqvae.decode_latents(encoded.latents).sample,
    ):
        torch.testing.assert_close(sample, golden.data["reconstruction"], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["teacher_forced_logits", "teacher_forced_logits_unconditional"])
def test_teacher_forced_logits_are_those_of_the_release(pipe, golden, name, attention):
    transformer = pipe.transformer
    labels = golden.data["class_labels"].long()
    if name.endswith("unconditional"):
        labels = torch.full_like(labels, transformer.config.num_classes)

    transformer.set_attn_implementation(attention)
    logits = transformer(labels, golden.data["teacher_forcing_input"]).logits
    transformer.set_attn_implementation("sdpa")

    torch.testing.assert_close(logits, golden.data[name], **CLOSE)


@torch.no_grad()
def test_cached_logits_are_those_of_the_release(pipe, golden):
    transformer = pipe.transformer
    labels = golden.data["class_labels"].long()
    lengths = [size**2 for size in transformer.config.token_map_sizes[1:]]

    cache = DynamicCache()
    logits = [transformer(labels, past_key_values=cache).logits]
    for inputs in golden.data["teacher_forcing_input"].split(lengths, dim=1):
        logits.append(transformer(labels, inputs, past_key_values=cache).logits)

    torch.testing.assert_close(
        torch.cat(logits, dim=1), golden.data["teacher_forced_logits"], **CLOSE
    )


def test_loss_and_gradients_are_those_of_the_release(golden):
    """The release has one gradient for q, k and v: ours return through the linear export."""
    pipe = VARPipeline.from_original(golden.var_file, golden.vae_file)
    transformer, step = pipe.transformer, golden.meta["training_step"]
    labels = golden.data["class_labels"].long()
    tokens = golden.data["tokens"].long()

    output = transformer(labels, golden.data["teacher_forcing_input"], labels=tokens)
    output.loss.backward()

    assert output.loss.item() == pytest.approx(step["loss"], rel=1e-4)
    by_token = torch.nn.functional.cross_entropy(
        output.logits.transpose(1, 2), tokens, reduction="none"
    )
    by_scale = [by_token[:, part].mean().item() for part in transformer.config.token_slices]
    assert by_scale == pytest.approx(step["loss_per_scale"], rel=1e-4)

    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.copy_(parameter.grad)
    gradients = transformer.to_original()
    assert step["gradient_norms"].keys() <= gradients.keys()
    for name, norm in step["gradient_norms"].items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-7), name
    prefix = "training_step.gradient."
    stored = {
        name.removeprefix(prefix): gradient
        for name, gradient in golden.data.items()
        if name.startswith(prefix)
    }
    assert stored
    for name, gradient in stored.items():
        difference = (gradients[name] - gradient).norm()
        assert difference <= 1e-4 * gradient.norm(), name


@pytest.mark.parametrize("number", range(4))
def test_generated_tokens_logits_and_images_are_those_of_the_release(pipe, golden, number):
    call = golden.meta["generate"][number]
    stored = {
        name: golden.data[f"generate{number}.{name}"]
        for name in ("tokens", "guided_logits", "image")
    }
    close = CLOSE_GUMBEL if call["more_smooth"] else CLOSE
    labels = golden.data["class_labels"]
    arguments = {"output_type": "pt", **generation_settings(call)}

    streamed = list(pipe.stream(labels, generator=seeded(call["seed"]), **arguments))
    images = pipe(labels, generator=seeded(call["seed"]), **arguments).images

    assert torch.equal(torch.cat([o.tokens for o in streamed], dim=1), stored["tokens"].long())
    logits = torch.cat([output.logits for output in streamed], dim=1)
    torch.testing.assert_close(logits, stored["guided_logits"], **close)
    torch.testing.assert_close(images, stored["image"], **close)


def test_every_generation_of_the_golden_data_is_compared(golden):
    assert len(golden.meta["generate"]) == 4
