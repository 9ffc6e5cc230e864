"""The formulas match torch's counts on models without memory, and the published numbers."""

import pytest
import torch
from conftest import TRANSFORMER, VQVAE
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from var_hf import MultiScaleVQVAE, VARConfig, VARModel
from var_hf.conversion import PUBLISHED_TRANSFORMERS, PUBLISHED_VQVAE
from var_hf.costs import (
    DEVICES,
    Device,
    decoder_costs,
    generation_cost,
    matrix_parameters,
    training_flops,
    training_memory,
    transformer_parameters,
)

KINDS = [{}, {"share_modulation": True}, {"qk_norm": False}, {"token_map_sizes": (2, 3, 4)}]
BATCH = 3


def config(**changes):
    return VARConfig(**TRANSFORMER | changes)


def vqvae_config(**changes):
    return VQVAE | {"in_channels": 3} | changes


@pytest.mark.parametrize("size", PUBLISHED_TRANSFORMERS)
def test_the_weights_of_the_published_models(size):
    published = PUBLISHED_TRANSFORMERS[size]

    assert transformer_parameters(VARConfig(**published.values)) == published.parameters


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_weights_of_any_model(kind):
    with torch.device("meta"):
        model = VARModel(config(**kind))

    assert transformer_parameters(model.config) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", [{}, {"channel_multipliers": (1, 3, 2), "num_res_blocks": 2}])
def test_weights_and_operations_of_the_decoder(kind):
    with torch.device("meta"):
        vqvae = MultiScaleVQVAE(**VQVAE | kind)
        latents = torch.empty(1, VQVAE["latent_channels"], 5, 5)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        vqvae.decode_latents(latents)

    flops, weights, _ = decoder_costs(vqvae.config, 5)

    parts = (vqvae.decoder, vqvae.post_quant_conv)
    assert weights == sum(p.numel() for part in parts for p in part.parameters())
    assert flops == counted.get_total_flops()


@torch.no_grad()
@pytest.mark.parametrize("guided_scales", [0, 2, 4])
@pytest.mark.parametrize("kind", KINDS[:3], ids=str)
def test_operations_of_the_transformer(kind, guided_scales):
    """Counted scale by scale; the operations on class and latents are negligible."""
    with torch.device("meta"):
        model = VARModel(config(**kind)).eval()
    model.set_attn_implementation("eager")
    cost = generation_cost(
        model.config, vqvae_config(), batch_size=BATCH, guided_scales=guided_scales
    )
    cache, counted = model.new_cache(), []
    for scale, size in enumerate(model.config.token_map_sizes):
        rows = BATCH * (2 if scale < guided_scales else 1)
        if scale == guided_scales and scale > 0:
            cache.keep_rows(BATCH)
        labels = torch.zeros(rows, dtype=torch.long, device="meta")
        inputs = torch.empty(rows, size * size, model.config.latent_channels, device="meta")
        with FlopCounterMode(display=False) as flops:
            model(labels, inputs if scale else None, past_key_values=cache)
        of_inputs = 2 * inputs.numel() * model.config.hidden_size if scale else 0
        counted.append(flops.get_total_flops() - of_inputs)

    assert counted[0] == cost.scales[0].flops + cost.modulation.flops
    assert counted[1:] == [scale.flops for scale in cost.scales[1:]]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_memory_of_the_cache(kind):
    """All modulations are kept; of a shared layer's also what all blocks have in common."""
    with torch.device("meta"):
        model = VARModel(config(**kind)).eval()
    cache = model.new_cache()
    model(torch.zeros(2 * BATCH, dtype=torch.long, device="meta"), past_key_values=cache)
    kept = sum(t.numel() for layer in cache.layers for t in (layer.keys, layer.values))
    shared = cache.modulations.pop("shared", torch.empty(0))
    modulations = sum(t.numel() for t in cache.modulations.values())
    assert shared.numel() <= modulations

    cost = generation_cost(
        model.config, vqvae_config(), batch_size=BATCH, bytes_per_number=model.dtype.itemsize
    )

    assert cost.cache_bytes == 4 * (kept + modulations)


def test_the_published_model_at_the_published_roofline():
    """From peers: 394 GFLOP per decoded image, and at most 807 images/s for d16 on an H100."""
    d16 = VARConfig(**PUBLISHED_TRANSFORMERS["d16"].values)

    cost = generation_cost(d16, PUBLISHED_VQVAE.values, batch_size=64, device_type="cuda")

    assert cost.decoder_flops / 64e9 == pytest.approx(394, rel=1e-2)
    assert 64 / cost.least_seconds(DEVICES["h100"])["total"] == pytest.approx(807, rel=1e-2)


@given(st.integers(1, 40), st.integers(0, 4), st.sampled_from([2, 4]))
def test_more_work_costs_more(batch_size, guided_scales, bytes_per_number):
    arguments = {"bytes_per_number": bytes_per_number}
    device = Device("any", 1e12, 1e10)
    cost, guided, larger = (
        generation_cost(config(), vqvae_config(), batch_size=n, guided_scales=g, **arguments)
        for n, g in (
            (batch_size, guided_scales),
            (batch_size, min(guided_scales + 1, 4)),
            (batch_size + 1, guided_scales),
        )
    )

    assert cost.flops <= guided.flops
    assert cost.flops < larger.flops
    assert cost.call_bytes < larger.call_bytes
    seconds = cost.least_seconds(device)
    assert seconds["total"] == seconds["transformer"] + seconds["decoder"]
    assert seconds["total"] < larger.least_seconds(device)["total"]
    assert seconds["total"] >= cost.flops / device.flops * (1 - 1e-9)


@torch.no_grad()
@pytest.mark.parametrize("guided_scales", [0, 1, 4])
def test_operations_of_a_transformer_that_takes_over(guided_scales):
    """Its first pass reads all scales up to its own."""
    with torch.device("meta"):
        model = VARModel(config()).eval()
    model.set_attn_implementation("eager")
    cost = generation_cost(
        model.config, vqvae_config(), batch_size=BATCH, guided_scales=guided_scales, scales=(2, 3)
    )
    rows, tokens = BATCH * (2 if guided_scales > 2 else 1), 1 + 4 + 9
    labels = torch.zeros(rows, dtype=torch.long, device="meta")
    inputs = torch.empty(rows, tokens - 1, model.config.latent_channels, device="meta")
    with FlopCounterMode(display=False) as flops:
        model(labels, inputs, past_key_values=model.new_cache())
    of_inputs = 2 * inputs.numel() * model.config.hidden_size

    assert len(cost.scales) == 2
    assert cost.scales[0].flops + cost.modulation.flops == flops.get_total_flops() - of_inputs


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_parameters_of_scaling_laws_are_the_matrices_of_the_layers(kind):
    with torch.device("meta"):
        model = VARModel(config(**kind))

    matrices = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if name.startswith("layers.") and name.endswith("weight") and parameter.ndim == 2
    )

    assert matrix_parameters(model.config) == matrices


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_training_costs_three_times_a_pass_over_all_tokens(kind):
    with torch.device("meta"):
        model = VARModel(config(**kind)).eval()
    model.set_attn_implementation("eager")
    tokens = model.config.num_tokens - model.config.token_map_sizes[0] ** 2
    labels = torch.zeros(1, dtype=torch.long, device="meta")
    inputs = torch.empty(1, tokens, model.config.latent_channels, device="meta")
    with FlopCounterMode(display=False) as flops:
        model(labels, inputs)
    of_inputs = 2 * inputs.numel() * model.config.hidden_size

    assert training_flops(model.config) == 3 * (flops.get_total_flops() - of_inputs)


# ------------------------------------------------------------------ training


def kept_bytes(settings, images, gradient_checkpointing=False):
    """What autograd keeps of a forward pass besides the weights."""
    model = VARModel(settings).train()
    if gradient_checkpointing:
        model.activation_checkpointing_enable()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # kept alive, so that no address comes twice
        return tensor

    tokens = torch.zeros(images, settings.num_tokens, dtype=torch.long)
    latents = torch.zeros(images, settings.num_tokens - 1, settings.latent_channels)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(tokens[:, 0], latents, labels=tokens)
    assert output.loss.isfinite()
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_the_activations_are_what_autograd_keeps(gradient_checkpointing):
    """Of two depths the difference is that of the layers alone."""
    sizes = {"token_map_sizes": (1, 2, 3, 4, 5, 6, 8), "hidden_size": 112, "vocab_size": 61}
    changes = {**sizes, "intermediate_size": 300, "drop_path_rate": 0.0}
    shallow, deep = (config(**changes, num_hidden_layers=depth) for depth in (2, 5))

    measured = kept_bytes(deep, 3, gradient_checkpointing) - kept_bytes(
        shallow, 3, gradient_checkpointing
    )

    computed = [
        training_memory(each, images=3, gradient_checkpointing=gradient_checkpointing).activations
        for each in (deep, shallow)
    ]
    assert computed[0] - computed[1] == pytest.approx(measured, rel=0.1)


def test_the_state_of_a_training_is_an_nth_for_each_of_n_processes():
    settings = config()
    weights = transformer_parameters(settings)
    one, ddp, sharded = (
        training_memory(settings, images=2, processes=processes, shard=shard)
        for processes, shard in ((1, False), (4, False), (4, True))
    )

    states = [cost.parameters + cost.gradients + cost.optimizer for cost in (one, ddp, sharded)]
    assert states[:2] == [16 * weights, 20 * weights]
    assert states[2] == pytest.approx(4 * weights, rel=1e-4)
    assert sharded.activations == one.activations
    assert one.gathered == ddp.gathered == 0 < sharded.gathered
