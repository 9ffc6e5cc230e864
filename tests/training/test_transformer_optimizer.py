import re

import pytest
import torch
from conftest import make_transformer, seeded

from var_hf.training.muon import Muon
from var_hf.training.transformer_config import TransformerTrainingConfig
from var_hf.training.transformer_optimizer import (
    decayed_parameters,
    muon_and_adamw,
    split_class_table,
)


# The release's rule (`filter_params` with VAR's list of names), on its own names.
def decays_in_the_release(name, shape):
    listed = ("pos_1LC", "pos_start", "lvl_embed", "ada_gss", "scale_mul", "gamma", "beta")
    return len(shape) > 1 and not name.endswith("bias") and not any(word in name for word in listed)


@pytest.mark.parametrize("share_modulation", [False, True])
def test_weight_decay_acts_where_it_does_in_the_release(share_modulation):
    model = make_transformer(share_modulation=share_modulation)
    ours = set(decayed_parameters(model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(float(name in ours))

    for name, tensor in model.to_original().items():
        if tensor.is_floating_point() and not re.search("attn_bias|zero_k_bias", name):
            expected = decays_in_the_release(name, tensor.shape)
            assert tensor.unique().tolist() == [float(expected)], name


def give_gradients(model):
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = torch.randn(parameter.shape, generator=seeded(i))


def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest():
    """Each parameter moves as with its optimiser alone; what is frozen does not move."""
    model, with_muon, with_adamw = make_transformer(), make_transformer(), make_transformer()
    for each in (model, with_muon, with_adamw):
        each.embeddings.requires_grad_(False)
        give_gradients(each)
    frozen = model.embeddings.class_embedding.weight.clone()
    matrices = [p for p in with_muon.layers.parameters() if p.ndim == 2]
    decayed = set(decayed_parameters(with_adamw))
    named = dict(with_adamw.named_parameters())

    combined = muon_and_adamw(model, lr=1e-2, betas=(0.8, 0.9), weight_decay=0.3)
    muon = Muon(matrices, lr=1e-2, weight_decay=0.3)
    adamw = torch.optim.AdamW(
        [
            {"params": [p for name, p in named.items() if name in decayed]},
            {"params": [p for name, p in named.items() if name not in decayed], "weight_decay": 0},
        ],
        lr=1e-2, betas=(0.8, 0.9), weight_decay=0.3,
    )  # fmt: skip
    for optimizer in (combined, muon, adamw):
        for _ in range(3):
            optimizer.step()

    by_muon, by_adamw = dict(with_muon.named_parameters()), with_adamw.state_dict()
    for name, parameter in model.named_parameters():
        is_matrix = re.search(r"_proj\.weight|fc[12]\.weight", name) and "layers" in name
        if not name.startswith("embeddings"):
            expected = by_muon[name] if is_matrix else by_adamw[name]
            torch.testing.assert_close(parameter, expected, msg=name)
    assert torch.equal(model.embeddings.class_embedding.weight, frozen)


def test_a_loaded_state_goes_on_exactly():
    whole, cut = make_transformer(), make_transformer()
    optimizers = [muon_and_adamw(model, 1e-2, (0.9, 0.95), 0.1) for model in (whole, cut)]
    for model, optimizer in zip((whole, cut), optimizers, strict=True):
        give_gradients(model)
        optimizer.step()

    again = muon_and_adamw(cut, 1e-2, (0.9, 0.95), 0.1)
    again.load_state_dict(optimizers[1].state_dict())
    optimizers[0].step()
    again.step()

    for expected, got in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.equal(expected, got)


def test_muon_without_a_matrix_to_train_is_refused():
    model = make_transformer()
    model.layers.requires_grad_(False)

    with pytest.raises(ValueError, match="Every matrix that Muon could take is frozen"):
        muon_and_adamw(model, 1e-2, (0.9, 0.95), 0.1)
    with pytest.raises(ValueError, match="Muon takes whole matrices, not adapters"):
        TransformerTrainingConfig(data="images", model="m", lora_rank=3, optimizer="muon")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_class_table_moves_at_its_own_rate(optimizer):
    plain, split = make_transformer(), make_transformer()
    made = []
    for model in (plain, split):
        give_gradients(model)
        if optimizer == "muon":
            made.append(muon_and_adamw(model, 1e-3, (0.9, 0.95), 0.0))
        else:
            made.append(torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0))
    split_class_table(made[1], split, 7.0)
    for each in made:
        each.step()

    start = make_transformer().state_dict()
    for name, expected in plain.state_dict().items():
        moved, got = expected - start[name], split.state_dict()[name] - start[name]
        factor = 7.0 if name == "embeddings.class_embedding.weight" else 1.0
        torch.testing.assert_close(got, factor * moved, atol=1e-6, rtol=1e-3, msg=name)
