import copy
import json
import math

import pytest
import torch
from conftest import GOLDEN, TRANSFORMER, fill, make_transformer, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModel,
    DynamicCache,
    TorchAoConfig,
    Trainer,
    TrainingArguments,
)

from var_hf import VARConfig, VARModel, modeling_var
from var_hf.modeling_var import VARLinear, drop_path, eager_attention_forward

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
BATCH, CODES, CHANNELS, WIDTH, LAYERS = 2, 29, 6, 112, 3
LENGTHS = (1, 4, 9, 25)
LENGTH = sum(LENGTHS)
LABELS = torch.tensor([3, 11])  # the second is the null class
KINDS = [{}, {"share_modulation": True}, {"qk_norm": False}]


def latent_inputs(batch=BATCH, seed=0):
    return torch.randn(batch, LENGTH - 1, CHANNELS, generator=seeded(seed))


def tokens(batch=BATCH, seed=0):
    return torch.randint(CODES, (batch, LENGTH), generator=seeded(seed))


def scale_by_scale(model, class_labels, inputs):
    """The logits of all scales, each from the cache of the coarser ones."""
    cache = DynamicCache()
    logits = [model(class_labels, past_key_values=cache).logits]
    for scale_inputs in inputs.split(LENGTHS[1:], dim=1):
        logits.append(model(class_labels, scale_inputs, past_key_values=cache).logits)
    assert cache.get_seq_length() == LENGTH
    return torch.cat(logits, dim=1)


def test_a_cache_of_our_own_gives_the_logits_of_any_other_and_never_moves():
    for kind in KINDS:
        model = make_transformer(**kind)
        parts = latent_inputs().split(LENGTHS[1:], dim=1)
        expected = scale_by_scale(model, LABELS, latent_inputs())

        with torch.no_grad():
            cache = model.new_cache()
            for _ in range(2):  # once more, in the same memory
                logits = [model(LABELS, past_key_values=cache).logits]
                places = [layer.keys.data_ptr() for layer in cache.layers]
                for inputs in parts:
                    logits.append(model(LABELS, inputs, past_key_values=cache).logits)
                assert [layer.keys.data_ptr() for layer in cache.layers] == places
                assert cache.get_seq_length() == cache.get_max_length() == LENGTH
                torch.testing.assert_close(torch.cat(logits, dim=1), expected, **CLOSE)
                cache.reset()
        assert cache.get_seq_length() == 0


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_modulations_are_computed_with_the_first_scale_only(kind):
    model = make_transformer(**kind)
    calls = []
    for name, module in model.named_modules():
        if name.endswith("modulation"):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    cache = model.new_cache()
    model(LABELS, past_key_values=cache)
    once = list(calls)

    for inputs in latent_inputs().split(LENGTHS[1:], dim=1):
        model(LABELS, inputs, past_key_values=cache)

    assert len(once) == (2 if "share_modulation" in kind else LAYERS + 1)
    assert calls == once


@torch.no_grad()
def test_a_cache_goes_on_with_its_first_rows():
    model = make_transformer()
    first, second, *_ = latent_inputs().split(LENGTHS[1:], dim=1)
    both, one = model.new_cache(), model.new_cache()
    for cache, rows in ((both, 2), (one, 1)):
        model(LABELS[:rows], past_key_values=cache)
        model(LABELS[:rows], first[:rows], past_key_values=cache)

    both.keep_rows(1)

    torch.testing.assert_close(
        model(LABELS[:1], second[:1], past_key_values=both).logits,
        model(LABELS[:1], second[:1], past_key_values=one).logits,
        **CLOSE,
    )


@torch.no_grad()
def test_a_cache_is_reordered_with_its_modulations():
    model = make_transformer()
    first, *_ = latent_inputs().split(LENGTHS[1:], dim=1)
    order = torch.tensor([1, 0])
    cache, other = model.new_cache(), model.new_cache()
    model(LABELS, past_key_values=cache)
    model(LABELS, past_key_values=other)
    expected = model(LABELS, first, past_key_values=other).logits

    cache.reorder_cache(order)

    logits = model(LABELS[order], first[order], past_key_values=cache).logits
    torch.testing.assert_close(logits, expected[order], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_computes_the_same_with_and_without_gradients(dtype, gelu, bias):
    layer = VARLinear(12, 20, bias=bias).to(dtype)
    x = torch.randn(3, 12, 7, generator=seeded(0), dtype=torch.float32).to(dtype).transpose(1, 2)

    expected = layer(x, gelu=gelu)

    with torch.no_grad():
        output = layer(x, gelu=gelu)
    assert expected.requires_grad
    assert not output.requires_grad
    rounding = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(output, expected, atol=rounding, rtol=rounding)


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # peft asks for it
def test_an_adapter_on_the_first_layer_of_the_mlp_adds_before_the_gelu():
    from peft import LoraConfig, get_peft_model

    model = make_transformer()
    config = LoraConfig(r=2, target_modules=["fc1"], init_lora_weights=False)
    adapted = get_peft_model(model, config).eval()

    with torch.no_grad():
        logits = adapted(LABELS, latent_inputs()).logits
        merged = adapted.merge_and_unload()(LABELS, latent_inputs()).logits

    torch.testing.assert_close(logits, merged, atol=1e-4, rtol=1e-4)


def assert_same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


# One function, with and without a cache


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_cached_scales_equal_one_pass_over_all_scales(kind, attention):
    model = make_transformer(**kind)
    reference = model(LABELS, latent_inputs()).logits

    model.set_attn_implementation(attention)

    torch.testing.assert_close(model(LABELS, latent_inputs()).logits, reference, **CLOSE)
    cached = scale_by_scale(model, LABELS, latent_inputs())
    torch.testing.assert_close(cached, reference, **CLOSE)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what torch and transformers say while they compile
def test_flex_attention_computes_the_same(fresh_compiler):
    """Compiled on a CPU too: as few scales as there can be keep that short."""
    model = make_transformer(token_map_sizes=(1, 2), num_hidden_layers=1)
    inputs = latent_inputs()[:, :4]
    reference = model(LABELS, inputs).logits

    model.set_attn_implementation("flex_attention")

    torch.testing.assert_close(model(LABELS, inputs).logits, reference, **CLOSE)
    model.set_attn_implementation("sdpa")
    cache = DynamicCache()
    model(LABELS, past_key_values=cache)
    model.set_attn_implementation("flex_attention")
    second = model(LABELS, inputs, past_key_values=cache).logits
    torch.testing.assert_close(second, reference[:, 1:], **CLOSE)


@torch.no_grad()
def test_a_kernel_that_takes_no_mask_computes_the_same_scale_by_scale(monkeypatch, transformer):
    """What happens with flash attention, whose own mask function says that it has none."""
    seen = []

    def maskless_attention(module, query, key, value, attention_mask, scaling, **kwargs):
        assert attention_mask is None
        assert kwargs["is_causal"] is False
        seen.append((query.shape[2], key.shape[2]))
        weights = (query @ key.transpose(2, 3) * scaling).softmax(-1)
        return (weights @ value).transpose(1, 2), None

    masks = AttentionMaskInterface()
    monkeypatch.setitem(AttentionInterface._global_mapping, "maskless", maskless_attention)
    monkeypatch.setitem(
        AttentionMaskInterface._global_mapping, "maskless", masks["flash_attention_2"]
    )
    reference = transformer(LABELS, latent_inputs()).logits
    transformer.set_attn_implementation("maskless")

    logits = transformer(LABELS, latent_inputs()).logits

    torch.testing.assert_close(logits, reference, **CLOSE)
    assert seen == [(1, 1), (4, 5), (9, 14), (25, 39)] * LAYERS
    cached = scale_by_scale(transformer, LABELS, latent_inputs())
    torch.testing.assert_close(cached, reference, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("shared", "expected"),
    [
        (0, [(1, 1), (4, 5), (9, 14), (25, 39)]),
        (13, [(5, 5), (9, 14), (25, 39)]),
        (14, [(14, 14), (25, 39)]),
        (39, [(39, 39)]),
    ],
)
def test_coarse_scales_share_a_masked_call_and_finer_ones_have_their_own(
    monkeypatch, transformer, attention, shared, expected
):
    reference = transformer(LABELS, latent_inputs()).logits  # one call: 39 tokens are few
    transformer.set_attn_implementation(attention)
    attend, seen = AttentionInterface().get_interface(attention, eager_attention_forward), []

    def noted(module, query, key, *rest, **kwargs):
        seen.append((query.shape[2], key.shape[2]))
        return attend(module, query, key, *rest, **kwargs)

    monkeypatch.setattr(modeling_var, "SHARED_CALL_TOKENS", shared)
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", noted)
    monkeypatch.setattr(modeling_var, "eager_attention_forward", noted)

    torch.testing.assert_close(transformer(LABELS, latent_inputs()).logits, reference, **CLOSE)
    assert seen == expected * LAYERS


@torch.no_grad()
def test_a_pass_may_stop_at_any_scale(transformer):
    everything = transformer(LABELS, latent_inputs()).logits

    for stop in (1, 5, 14):
        inputs = latent_inputs()[:, : stop - 1] if stop > 1 else None
        logits = transformer(LABELS, inputs).logits
        torch.testing.assert_close(logits, everything[:, :stop], **CLOSE)


def test_the_mask_shows_every_token_its_own_scale_and_the_coarser_ones():
    model = make_transformer(token_map_sizes=(1, 2))

    mask = model.scale_causal_mask(torch.zeros(BATCH, 5, WIDTH), range(2))

    assert (
        mask.expand(BATCH, 1, 5, 5).int().tolist() == [[[[1, 0, 0, 0, 0], *[[1] * 5] * 4]]] * BATCH
    )


@torch.no_grad()
@settings(max_examples=15)
@given(place=st.integers(0, LENGTH - 2), seed=st.integers(0, 99))
def test_a_finer_scale_never_changes_a_coarser_one(place, seed):
    model, inputs = make_transformer(), latent_inputs(seed=seed)
    before = model(LABELS, inputs).logits

    inputs[:, place] += 1
    after = model(LABELS, inputs).logits

    scale = next(s for s, part in enumerate(model.config.token_slices) if place + 1 < part.stop)
    start = model.config.token_slices[scale].start
    assert torch.equal(before[:, :start], after[:, :start])
    for part in model.config.token_slices[scale:]:
        # Not even one token of its own scale or of a finer one stays as it was.
        assert ((before - after)[:, part].abs().amax(-1) > 0).all()


@torch.no_grad()
@settings(max_examples=10)
@given(st.data())
def test_within_a_scale_tokens_are_told_apart_by_their_place_alone(data):
    """Attention has no order: tokens moved with their position embeddings move their logits."""
    scale = data.draw(st.integers(1, 3))
    model, inputs = make_transformer(), latent_inputs()
    part = model.config.token_slices[scale]
    order = torch.tensor(data.draw(st.permutations(range(LENGTHS[scale]))))
    before = model(LABELS, inputs).logits

    inputs[:, part.start - 1 : part.stop - 1] = inputs[:, part.start - 1 : part.stop - 1][:, order]
    places = model.embeddings.position_embedding
    places[:, part] = places[:, part][:, order]
    after = model(LABELS, inputs).logits

    before[:, part] = before[:, part][:, order]
    torch.testing.assert_close(after, before, **CLOSE)


@torch.no_grad()
@settings(max_examples=10)
@given(order=st.permutations(range(5)))
def test_images_of_a_batch_do_not_touch_one_another(order):
    model, inputs = make_transformer(), latent_inputs(5)
    labels = torch.tensor([0, 5, 11, 5, 2])

    shuffled = model(labels[order], inputs[order]).logits

    torch.testing.assert_close(shuffled, model(labels, inputs).logits[order], **CLOSE)


@torch.no_grad()
def test_the_class_matters(transformer):
    logits = transformer(torch.tensor([3, 4]), latent_inputs(1).expand(2, -1, -1)).logits

    assert ((logits[0] - logits[1]).abs().amax(-1) > 0.01).all()


# What comes out


@torch.no_grad()
def test_shapes_of_everything(transformer):
    output = transformer(LABELS, latent_inputs(), labels=tokens(), output_hidden_states=True)

    assert output.logits.shape == (BATCH, LENGTH, CODES)
    assert output.loss.shape == ()
    assert output.past_key_values is None
    assert [h.shape for h in output.hidden_states] == [(BATCH, LENGTH, WIDTH)] * (LAYERS + 1)
    assert not torch.equal(output.hidden_states[0], output.hidden_states[-1])


@torch.no_grad()
def test_tuples_hold_what_the_outputs_hold(transformer):
    output = transformer(LABELS, latent_inputs(), labels=tokens(), output_hidden_states=True)

    loss, logits, hidden_states = transformer(
        LABELS, latent_inputs(), labels=tokens(), output_hidden_states=True, return_dict=False
    )

    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    assert all(torch.equal(a, b) for a, b in zip(hidden_states, output.hidden_states, strict=True))
    assert len(transformer(LABELS, return_dict=False)) == 1


@torch.no_grad()
def test_eager_attention_gives_its_weights(transformer):
    transformer.set_attn_implementation("eager")

    output = transformer(LABELS, latent_inputs(), output_attentions=True)

    assert [w.shape for w in output.attentions] == [(BATCH, 7, LENGTH, LENGTH)] * LAYERS
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(BATCH, 7, LENGTH))
        assert (weights[:, :, 0, 1:] == 0).all()  # the first scale sees no finer one
    assert transformer(LABELS, latent_inputs()).attentions is None
    transformer.set_attn_implementation("sdpa")
    assert transformer(LABELS, latent_inputs(), output_attentions=True).attentions is None


@torch.no_grad()
def test_the_config_may_ask_for_hidden_states_and_tuples():
    model = make_transformer(output_hidden_states=True, return_dict=False)

    logits, hidden_states = model(LABELS)

    assert logits.shape == (BATCH, 1, CODES)
    assert len(hidden_states) == LAYERS + 1


@torch.no_grad()
def test_the_loss_is_the_mean_over_all_tokens_that_are_not_ignored(transformer):
    labels = tokens()
    labels[0, 3:20] = -100

    output = transformer(LABELS, latent_inputs(), labels=labels)

    by_token = functional.cross_entropy(output.logits.transpose(1, 2), labels, reduction="none")
    torch.testing.assert_close(output.loss, by_token[labels != -100].mean())


@pytest.mark.parametrize("length", [1, 3, 5, 14, 100])
def test_latent_inputs_that_are_no_whole_scales_are_refused(transformer, length):
    with pytest.raises(ValueError, match=r"tokens of whole scales: after 0 cached tokens") as error:
        transformer(LABELS, torch.zeros(BATCH, length, CHANNELS))
    assert f"Got {length + 1}" in str(error.value)


@torch.no_grad()
def test_a_cache_takes_the_next_scale_and_no_other(transformer):
    cache = DynamicCache()
    transformer(LABELS, past_key_values=cache)

    with pytest.raises(ValueError, match=r"after 1 cached tokens one of \[4, 13, 38\]"):
        transformer(LABELS, latent_inputs()[:, :9], past_key_values=cache)
    with pytest.raises(ValueError, match="one scale is predicted per pass"):
        transformer(LABELS, latent_inputs()[:, :13], past_key_values=cache)
    with pytest.raises(ValueError, match="whole scales"):
        transformer(LABELS, past_key_values=cache)


# Training


def test_class_labels_are_dropped_in_training_alone():
    model = make_transformer(class_dropout_prob=0.999999, drop_path_rate=0.0)
    labels, no_class = torch.tensor([3, 4]), torch.tensor([11, 11])
    with torch.no_grad():
        conditional = model(labels, latent_inputs()).logits
        unconditional = model(no_class, latent_inputs()).logits

        assert torch.equal(model(labels, latent_inputs(), labels=tokens()).logits, conditional)
        model.train()
        assert torch.equal(model(labels, latent_inputs()).logits, conditional)
        assert torch.equal(model(labels, latent_inputs(), labels=tokens()).logits, unconditional)
    assert torch.equal(labels, torch.tensor([3, 4]))  # the caller's labels stay


def test_class_labels_are_dropped_as_often_as_the_config_says():
    model = make_transformer(
        class_dropout_prob=0.3, drop_path_rate=0.0, num_hidden_layers=1
    ).train()
    labels = torch.full((4000,), 3)

    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        output = model(labels, labels=tokens(4000)[:, :1])
        conditional = model(labels[:1]).logits

    kept = torch.isclose(output.logits, conditional, atol=1e-4).all(-1).float().mean().item()
    assert kept == pytest.approx(0.7, abs=0.03)  # four standard deviations


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    x = torch.ones(10_000, 2, 3)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        dropped = drop_path(x, 0.25, training=True)

    assert drop_path(x, 0.25, training=False) is x
    assert drop_path(x, 0.0, training=True) is x
    assert (dropped == dropped[:, :1, :1]).all()
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.03)
    assert dropped[:, 0, 0].unique().tolist() == [0.0, pytest.approx(4 / 3)]


def test_stochastic_depth_grows_from_layer_to_layer():
    model = make_transformer(drop_path_rate=0.3)

    assert [layer.drop_path_rate for layer in model.layers] == pytest.approx([0.0, 0.15, 0.3])


def test_dropout_noise_decides_what_a_training_step_drops():
    model = make_transformer(class_dropout_prob=0.5, drop_path_rate=0.5).train()
    labels = torch.tensor([3, 4])
    nothing = torch.full((BATCH, 1 + 2 * LAYERS), 0.999)
    first_class = nothing.clone()
    first_class[0, 0] = 0.1
    last_branch = nothing.clone()
    last_branch[1, -1] = 0.1

    def logits(noise):
        with torch.no_grad():
            return model(labels, latent_inputs(), labels=tokens(), dropout_noise=noise).logits

    everything = logits(nothing)
    assert torch.equal(logits(nothing), everything)
    assert torch.equal(logits(first_class)[1], everything[1])
    assert not torch.equal(logits(first_class)[0], everything[0])
    assert torch.equal(logits(last_branch)[0], everything[0])
    assert not torch.equal(logits(last_branch)[1], everything[1])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_weight_gets_a_gradient(kind):
    model = make_transformer(**kind)

    model(torch.arange(12) % 12, latent_inputs(12), labels=tokens(12)).loss.backward()

    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", KINDS[:2], ids=str)
def test_gradient_checkpointing_gives_the_same_gradients(kind):
    """In training mode, with layers that drop at random."""

    def gradients(checkpointing):
        model = make_transformer(drop_path_rate=0.4, **kind).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        calls = []
        model.layers[0].mlp.register_forward_hook(lambda *args: calls.append(1))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model(LABELS, latent_inputs(), labels=tokens()).loss.backward()
        return {name: p.grad for name, p in model.named_parameters()}, len(calls)

    plain, calls = gradients(checkpointing=False)
    checkpointed, calls_checkpointed = gradients(checkpointing=True)

    assert (calls, calls_checkpointed) == (1, 2)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=lambda m, n=name: f"{n}: {m}")


def test_training_lowers_the_loss():
    model = make_transformer(drop_path_rate=0.0, class_dropout_prob=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = model(LABELS, latent_inputs(), labels=tokens()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < losses[0] / 2


@pytest.mark.filterwarnings("default")  # what the Trainer says about a machine without a GPU
def test_the_trainer_scales_the_loss_by_its_accumulation_steps(tmp_path):
    """Four batches of one equal one batch of four; else gradients would be four times too large."""
    data = [
        {
            "class_labels": torch.tensor(i % 11),
            "latent_inputs": latent_inputs(1, i)[0],
            "labels": tokens(1, i)[0],
        }
        for i in range(12)
    ]

    def train(batch_size, steps):
        model = make_transformer(drop_path_rate=0.0, class_dropout_prob=0.0)
        arguments = TrainingArguments(
            output_dir=str(tmp_path / str(batch_size)),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            max_steps=3,
            learning_rate=0.05,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=0.0,
            label_names=["labels"],
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            seed=0,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=data)
        trainer.train()
        return model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    at_once, losses_at_once = train(4, 1)
    accumulated, losses = train(1, 4)

    assert losses == pytest.approx(losses_at_once, abs=1e-3)
    start = make_transformer()
    for (name, one), other in zip(
        at_once.named_parameters(), accumulated.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, msg=lambda m, n=name: f"{n}: {m}", **CLOSE)
    assert not torch.equal(start.lm_head.weight, at_once.lm_head.weight)


# Weights: fresh, saved, loaded


def expected_std(name, config):
    """The release's `init_weights` (models/var.py) for trunc_normal_ and zeros."""
    std, branch = config.initializer_range, 1 / math.sqrt(2 * config.num_hidden_layers)
    if name.endswith("bias"):
        return 0.0
    if name.endswith(("o_proj.weight", "fc2.weight")):
        return std * branch
    if name == "lm_head.weight":
        return std * config.head_init_scale
    if name == "final_norm.modulation.weight":
        return std * config.modulation_init_scale
    return std


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_fresh_weights_are_spread_as_in_the_release(kind):
    config = VARConfig(
        **TRANSFORMER | {"hidden_size": 224, "num_hidden_layers": 4, "num_classes": 99},
        **kind,
        gate_init_scale=1e-4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VARModel(config)
    assert config.initializer_range == pytest.approx(math.sqrt(1 / 224 / 3))

    for name, tensor in model.named_parameters():
        if name.endswith("logit_scale"):
            torch.testing.assert_close(tensor, torch.full_like(tensor, math.log(4)))
            continue
        std = expected_std(name, config)
        if "layers" in name and name.endswith(("modulation.weight", "modulation_table")):
            gates, others = (
                tensor.view(6, -1).split([2, 4]) if tensor.ndim == 2 else tensor[0, 0].split([2, 4])
            )
            base = 1 / math.sqrt(224) if config.share_modulation else std
            assert gates.std().item() == pytest.approx(base * 1e-4, rel=0.15), name
            assert others.std().item() == pytest.approx(base * 0.5, rel=0.15), name
        elif std == 0:
            assert (tensor == 0).all(), name
        else:
            assert tensor.std().item() == pytest.approx(std, rel=0.15), name


def test_weights_that_do_not_fit_are_fresh_and_not_memory(tmp_path):
    """from_pretrained builds models without memory; what no file fills has to be initialised."""
    model = make_transformer(share_modulation=True)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    unfit = {
        "embeddings.start_embedding",
        "embeddings.position_embedding",
        "layers.1.self_attn.logit_scale",
        "layers.2.modulation_table",
        "layers.0.self_attn.o_proj.weight",
        "final_norm.modulation.weight",
        "lm_head.weight",
    }
    save_file(weights | {name: torch.zeros(17) for name in unfit}, file, {"format": "pt"})

    loaded, info = VARModel.from_pretrained(
        tmp_path, ignore_mismatched_sizes=True, output_loading_info=True
    )

    assert {name for name, *_ in info["mismatched_keys"]} == unfit
    fresh = loaded.state_dict()
    assert (fresh["layers.1.self_attn.logit_scale"] == math.log(4)).all()
    for name in unfit - {"layers.1.self_attn.logit_scale", "layers.2.modulation_table"}:
        std = expected_std(name, model.config)
        assert fresh[name].std().item() == pytest.approx(std, rel=0.3), name
    assert 0 < fresh["layers.2.modulation_table"][0, 0, 0].std() < 1e-3


def test_nothing_is_kept_but_weights(transformer):
    assert not list(transformer.buffers())
    assert all("." in name for name, _ in transformer.named_parameters())  # quantisers need it


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_saved_model_comes_back_bit_for_bit_through_automodel(tmp_path, kind):
    model = make_transformer(**kind)
    model.save_pretrained(tmp_path)

    loaded = AutoModel.from_pretrained(tmp_path)

    assert type(loaded) is VARModel
    assert not loaded.training
    assert_same_weights(model, loaded)
    logits = loaded(LABELS, latent_inputs()).logits
    assert torch.equal(logits, model(LABELS, latent_inputs()).logits)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_automodel_builds_one_from_a_config():
    model = AutoModel.from_config(VARConfig(**TRANSFORMER))

    assert type(model) is VARModel


def test_shards_and_variants_come_back_bit_for_bit(tmp_path):
    model = make_transformer()
    model.save_pretrained(tmp_path / "shards", max_shard_size="300KB")
    model.save_pretrained(tmp_path / "variant", variant="fp32")

    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert_same_weights(model, VARModel.from_pretrained(tmp_path / "shards"))
    assert (tmp_path / "variant" / "model.fp32.safetensors").exists()
    assert_same_weights(model, VARModel.from_pretrained(tmp_path / "variant", variant="fp32"))
    with pytest.raises(OSError, match=r"model\.safetensors"):
        VARModel.from_pretrained(tmp_path / "variant")


@torch.no_grad()
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.15)], ids=str
)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_half_precision_keeps_what_needs_float32(tmp_path, kind, dtype, tolerance):
    model = make_transformer(**kind)
    model.save_pretrained(tmp_path)

    half = VARModel.from_pretrained(tmp_path, dtype=dtype)

    assert half.dtype == dtype
    for name, parameter in half.named_parameters():
        assert parameter.dtype == (torch.float32 if name.endswith("logit_scale") else dtype), name
    output = half(LABELS, latent_inputs(), output_hidden_states=True)
    assert output.logits.dtype == torch.float32
    assert {h.dtype for h in output.hidden_states} == {torch.float32}
    reference = model(LABELS, latent_inputs()).logits
    torch.testing.assert_close(output.logits, reference, atol=tolerance, rtol=0)
    cached = scale_by_scale(half, LABELS, latent_inputs())
    torch.testing.assert_close(cached, reference, atol=tolerance, rtol=0)


@torch.no_grad()
def test_half_precision_in_half_precision_out(tmp_path):
    """Saved weights are loaded in the type they were saved in."""
    make_transformer().to(torch.bfloat16).save_pretrained(tmp_path)

    assert VARModel.from_pretrained(tmp_path).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "file", sorted((GOLDEN / "layouts").glob("var_*.json")), ids=lambda f: f.stem
)
def test_the_published_models_have_as_many_weights(file):
    layout = json.loads(file.read_text())
    published = layout["config"]
    config = VARConfig(
        hidden_size=published["embed_dim"],
        num_hidden_layers=published["depth"],
        num_attention_heads=published["num_heads"],
        token_map_sizes=published["patch_nums"],
        share_modulation=published["shared_aln"],
    )

    with torch.device("meta"):
        model = VARModel(config)

    assert model.num_parameters() == layout["parameters"]


# What the ecosystem does with models


def test_attention_implementations_are_set_by_name(transformer):
    for name in ("eager", "sdpa", "flex_attention"):
        transformer.set_attn_implementation(name)
        assert transformer.config._attn_implementation == name
    assert make_transformer()(LABELS).logits.isfinite().all()
    with pytest.raises(ValueError, match="flash_attention_9"):
        transformer.set_attn_implementation("flash_attention_9")
    assert transformer.config._attn_implementation == "flex_attention"


@pytest.mark.skipif(torch.cuda.is_available(), reason="flash attention may be at hand here")
def test_flash_attention_says_what_it_lacks(transformer, tmp_path):
    transformer.save_pretrained(tmp_path)

    with pytest.raises(ImportError, match="FlashAttention2"):
        VARModel.from_pretrained(tmp_path, attn_implementation="flash_attention_2")


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_chosen_when_a_model_is_loaded(transformer, tmp_path, attention):
    transformer.save_pretrained(tmp_path)

    loaded = VARModel.from_pretrained(tmp_path, attn_implementation=attention)

    assert loaded.config._attn_implementation == attention
    reference = transformer(LABELS, latent_inputs()).logits
    torch.testing.assert_close(loaded(LABELS, latent_inputs()).logits, reference, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS[:2], ids=str)
def test_device_maps_put_any_part_of_the_model_anywhere(tmp_path, kind):
    model = make_transformer(**kind)
    model.save_pretrained(tmp_path)
    reference = model(LABELS, latent_inputs()).logits
    parts = [name for name, _ in model.named_children()]
    on_disk = [{name: "disk" if name == part else "cpu" for name in parts} for part in parts]

    for device_map in ["cpu", "auto", *on_disk]:
        offload = {} if isinstance(device_map, str) else {"offload_folder": tmp_path / "offload"}
        loaded = VARModel.from_pretrained(tmp_path, device_map=device_map, **offload)
        assert torch.equal(loaded(LABELS, latent_inputs()).logits, reference)


@torch.no_grad()
@pytest.mark.filterwarnings("default")
def test_lora_adapters_are_saved_and_loaded(tmp_path):
    from peft import LoraConfig

    model = make_transformer()
    plain = model(LABELS, latent_inputs()).logits
    model.save_pretrained(tmp_path / "base")
    model.add_adapter(LoraConfig(r=5, target_modules=["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora" in name:
            parameter.normal_(generator=seeded(len(name)), std=0.3)
    adapted = model(LABELS, latent_inputs()).logits
    model.save_pretrained(tmp_path / "adapter")

    assert (adapted - plain).abs().max() > 0.01
    assert sorted(p.name for p in (tmp_path / "adapter").glob("*.safetensors")) == [
        "adapter_model.safetensors"
    ]
    loaded = VARModel.from_pretrained(tmp_path / "base")
    loaded.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(loaded(LABELS, latent_inputs()).logits, adapted)
    loaded.disable_adapters()
    assert torch.equal(loaded(LABELS, latent_inputs()).logits, plain)


@pytest.mark.filterwarnings("default")
def test_lora_on_all_linear_layers_trains_them_and_leaves_the_head():
    from peft import LoraConfig

    model = make_transformer()
    model.add_adapter(LoraConfig(r=5, target_modules="all-linear"))
    adapted = {
        name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name
    }
    model(LABELS, latent_inputs(), labels=tokens()).loss.backward()

    linear = {
        name
        for name, module in make_transformer().named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert adapted == linear - {"lm_head"}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == ("lora" in name), name


@torch.no_grad()
@pytest.mark.filterwarnings("default")
def test_int8_weights_are_saved_and_loaded(tmp_path):
    from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig

    model = make_transformer()
    model.save_pretrained(tmp_path / "float")
    config = TorchAoConfig(Int8WeightOnlyConfig())

    quantized = VARModel.from_pretrained(tmp_path / "float", quantization_config=config)
    quantized.save_pretrained(tmp_path / "int8")
    again = VARModel.from_pretrained(tmp_path / "int8")

    logits = quantized(LABELS, latent_inputs()).logits
    assert torch.equal(again(LABELS, latent_inputs()).logits, logits)
    reference = model(LABELS, latent_inputs()).logits
    assert 0 < (logits - reference).abs().max() < 0.1
    assert isinstance(again.layers[0].self_attn.q_proj.weight, Int8Tensor)
    assert not isinstance(again.lm_head.weight, Int8Tensor)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS[1:], ids=str)
def test_one_graph_covers_teacher_forcing_and_one_every_cached_scale(kind, fresh_compiler):
    """fullgraph raises at the first break; the eager backend skips the compilation of graphs."""
    model = make_transformer(num_hidden_layers=1, **kind)
    reference = model(LABELS, latent_inputs()).logits
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")

    logits = compiled(LABELS, latent_inputs()).logits
    cached = scale_by_scale(compiled, LABELS, latent_inputs())

    torch.testing.assert_close(logits, reference, **CLOSE)
    torch.testing.assert_close(cached, reference, **CLOSE)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_compiler_computes_the_same(fresh_compiler):
    model = make_transformer(num_hidden_layers=1, token_map_sizes=(1, 2))
    inputs = latent_inputs()[:, :4]
    reference = model(LABELS, inputs).logits

    logits = torch.compile(model, fullgraph=True)(LABELS, inputs).logits

    torch.testing.assert_close(logits, reference, **CLOSE)


class Dtypes(TorchDispatchMode):
    """Notes the type of every tensor that an operation gives."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.seen.add(tensor.dtype)
        return result


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_no_double_precision_anywhere(kind):
    """MPS has none."""
    model = make_transformer(**kind).train()

    with Dtypes() as dtypes:
        model(LABELS, latent_inputs(), labels=tokens()).loss.backward()
        with torch.no_grad():
            scale_by_scale(model, LABELS, latent_inputs())

    assert torch.float32 in dtypes.seen
    assert torch.float64 not in dtypes.seen


def test_a_copy_is_a_model_of_its_own(transformer):
    """Weight averages in training start from one."""
    other = copy.deepcopy(transformer)

    fill(other.embeddings)
    with torch.no_grad():
        other.lm_head.weight.zero_()

    assert transformer.lm_head.weight.abs().sum() > 0
    assert other.config.to_dict() == transformer.config.to_dict()
