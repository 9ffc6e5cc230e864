"""First the oracle against the original code's numbers, then the package against the oracle."""

import pytest
import torch
from conftest import quiet, seeded
from golden.stand_in_weights import stand_in_state_dict
from oracle import Tokenizer, Transformer, generate
from original_release import original_transformer, original_vqvae
from test_golden import CLOSE, CLOSE_GUMBEL

from var_hf import VARPipeline
from var_hf.configuration_var import TOKEN_MAP_SIZES_256, TOKEN_MAP_SIZES_512

TEN_SCALES = tuple(range(1, 11))
PLAIN = {"cfg": 1.5, "seed": 0}
FILTERED = {"cfg": 4.0, "top_k": 7, "top_p": 0.9, "seed": 1}
SMOOTH = {"cfg": 3.0, "top_k": 17, "top_p": 0.95, "more_smooth": True, "seed": 2}


@pytest.fixture(scope="module")
def oracle(golden):
    sizes, heads = golden.meta["config"]["patch_nums"], golden.meta["config"]["num_heads"]
    return Transformer(golden.var_weights, sizes, heads), Tokenizer(golden.vae_weights, sizes, 32)


@torch.no_grad()
def test_the_oracle_encodes_and_decodes_as_the_release(oracle, golden):
    _, tokenizer = oracle

    features = tokenizer.features(golden.data["image"])
    tokens, running = tokenizer.encode(features)

    torch.testing.assert_close(features, golden.data["encoder_features"], **CLOSE)
    assert torch.equal(torch.cat(tokens, dim=1), golden.data["tokens"].long())
    torch.testing.assert_close(
        torch.stack(running, dim=1), golden.data["latent_after_each_scale"], **CLOSE
    )
    torch.testing.assert_close(
        tokenizer.images(running[-1]), golden.data["reconstruction"], **CLOSE
    )


@torch.no_grad()
def test_the_oracle_predicts_as_the_release(oracle, golden):
    transformer, _ = oracle
    labels = golden.data["class_labels"].long()

    logits = transformer.logits(labels, golden.data["teacher_forcing_input"])

    torch.testing.assert_close(logits, golden.data["teacher_forced_logits"], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("number", range(4))
def test_the_oracle_draws_as_the_release(oracle, golden, number):
    call = golden.meta["generate"][number]

    drawn = generate(
        *oracle,
        golden.data["class_labels"].long(),
        cfg=call["guidance"],
        top_k=call["top_k"],
        top_p=call["top_p"] or 1.0,
        more_smooth=call["more_smooth"],
        seed=call["seed"],
    )

    close = CLOSE_GUMBEL if call["more_smooth"] else CLOSE
    stored = f"generate{number}"
    assert torch.equal(drawn.tokens, golden.data[f"{stored}.tokens"].long())
    torch.testing.assert_close(drawn.logits, golden.data[f"{stored}.guided_logits"], **close)
    torch.testing.assert_close(drawn.images, golden.data[f"{stored}.image"], **close)


def models_of(
    sizes, *, qk_norm=True, shared=False, share_quant_resi=4, quant_resi=0.5, channels=6, heads=3
):
    """The oracle and the package with the same weights: stand-ins in the layout of the release."""
    transformer_sizes = {
        "depth": 2,
        "width": heads * 8,
        "heads": heads,
        "inner": 52,
        "vocab": 37,
        "channels": channels,
        "sizes": sizes,
        "classes": 11,
        "shared": shared,
        "qk_norm": qk_norm,
    }
    vqvae_sizes = {
        "vocab": 37,
        "channels": channels,
        "base": 4,
        "multipliers": (1, 3),
        "num_scales": len(sizes),
        "share_quant_resi": share_quant_resi,
        "quant_resi": quant_resi,
    }
    state_dicts = [
        stand_in_state_dict({name: tensor.shape for name, tensor in layout.items()}, sizes)
        for layout in (original_transformer(**transformer_sizes), original_vqvae(**vqvae_sizes))
    ]
    pipe = VARPipeline.from_original(
        *state_dicts, num_attention_heads=heads, norm_num_groups=2, refiner_mix=quant_resi
    )
    oracle = (
        Transformer(state_dicts[0], sizes, heads),
        Tokenizer(state_dicts[1], sizes, groups=2, mix=quant_resi),
    )
    return quiet(pipe), oracle


@torch.no_grad()
@pytest.mark.parametrize(
    ("sizes", "call", "model"),
    [
        (TOKEN_MAP_SIZES_256, FILTERED, {}),
        (TEN_SCALES, PLAIN, {"share_quant_resi": 0, "qk_norm": False, "shared": True}),
        (TEN_SCALES, SMOOTH, {"share_quant_resi": 1}),
        (TEN_SCALES, FILTERED, {"share_quant_resi": 7, "qk_norm": False}),
        (TEN_SCALES, FILTERED, {"quant_resi": 0}),
        ((2, 3, 7), SMOOTH, {"share_quant_resi": 2, "quant_resi": 0.3, "shared": True}),
        ((1, 4), PLAIN, {"share_quant_resi": 3}),
    ],
    ids=str,
)
def test_the_package_computes_what_the_oracle_computes(sizes, call, model):
    pipe, (transformer, tokenizer) = models_of(sizes, **model)
    side = pipe.vqvae.image_size
    image = torch.rand(2, 3, side, side, generator=seeded(5)) * 2 - 1
    labels = torch.tensor([3, 10])

    encoded = pipe.vqvae.encode(image)
    tokens, running = tokenizer.encode(tokenizer.features(image))
    assert [t.tolist() for t in encoded.token_maps] == [t.tolist() for t in tokens]
    torch.testing.assert_close(encoded.latents, running[-1], **CLOSE)
    reconstructed = pipe.vqvae.reconstruct(image)
    torch.testing.assert_close(reconstructed, tokenizer.images(running[-1]), **CLOSE)

    inputs = [tokenizer.shrink(latents, i + 1) for i, latents in enumerate(running[:-1])]
    torch.testing.assert_close(
        pipe.transformer(labels, pipe.vqvae.quantizer.teacher_inputs(encoded.token_maps)).logits,
        transformer.logits(labels, torch.cat(inputs, dim=1)),
        **CLOSE,
    )

    drawn = generate(transformer, tokenizer, labels, **call)
    settings = {
        "guidance_scale": 1 + call["cfg"],
        "top_k": call.get("top_k", 0),
        "top_p": call.get("top_p", 1.0),
        "sampling": "gumbel_softmax" if call.get("more_smooth") else "multinomial",
        "output_type": "pt",
        "preview": True,
    }
    ours = list(pipe.stream(labels, generator=seeded(call["seed"]), **settings))
    close = CLOSE_GUMBEL if call.get("more_smooth") else CLOSE
    assert torch.equal(torch.cat([output.tokens for output in ours], dim=1), drawn.tokens)
    logits = torch.cat([output.logits for output in ours], dim=1)
    torch.testing.assert_close(logits, drawn.logits, **close)
    torch.testing.assert_close(ours[-1].image, drawn.images, **close)


@pytest.mark.parametrize("sizes", [TOKEN_MAP_SIZES_256, TOKEN_MAP_SIZES_512])
def test_the_two_ties_among_the_refiners_fall_as_in_the_release(sizes):
    """Scales 3 and 8 of ten lie between two ticks: only numpy's rounding matches the weights."""
    pipe, (_, tokenizer) = models_of(sizes)

    table = [int(tokenizer.refiner(scale).split(".")[-1]) for scale in range(10)]

    assert list(pipe.vqvae.config.refiner_of_scale) == table == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
