"""What is dropped in training is a matter of each sample, not of its batch mates."""

import torch
from conftest import make_transformer, seeded


def inputs(batch_size):
    return {
        "class_labels": torch.arange(batch_size),
        "latent_inputs": torch.randn(batch_size, 38, 6, generator=seeded(1)),
        "labels": torch.randint(29, (batch_size, 39), generator=seeded(2)),
        "dropout_noise": torch.rand(batch_size, 1 + 2 * 3, generator=seeded(3)),
    }


def test_the_same_noise_drops_the_same_whatever_the_global_generator_does():
    model = make_transformer(drop_path_rate=0.5, class_dropout_prob=0.4).train()
    batch = inputs(4)

    torch.manual_seed(0)
    first = model(**batch).logits
    torch.manual_seed(1)
    second = model(**batch).logits

    assert torch.equal(first, second)
    assert not torch.allclose(first, model(**batch | {"dropout_noise": None}).logits)


def test_a_sample_alone_drops_what_it_drops_in_a_batch():
    model = make_transformer(drop_path_rate=0.5, class_dropout_prob=0.4).train()
    batch = inputs(5)

    together = model(**batch).logits
    alone = [model(**{name: value[i : i + 1] for name, value in batch.items()}) for i in range(5)]

    torch.testing.assert_close(torch.cat([one.logits for one in alone]), together)


def test_the_first_column_decides_on_the_class_and_the_rest_on_the_branches():
    """Noise below the rate drops: all classes and branches, or none of them."""
    model = make_transformer(drop_path_rate=0.5, class_dropout_prob=0.4).train()
    batch = inputs(3)
    keep_all, drop_class, drop_paths = torch.ones(3, 3, 7) * 0.99
    drop_class[:, 0] = 0.0
    drop_paths[:, 1:] = 0.0

    scaled = model(**batch | {"dropout_noise": drop_class}).logits
    null_class = model(
        **batch | {"class_labels": torch.full((3,), 11), "dropout_noise": keep_all}
    ).logits
    torch.testing.assert_close(scaled, null_class)

    # With every branch dropped, only the first layer (rate 0) still changes the residual stream.
    kept = model(**batch | {"dropout_noise": drop_paths}, output_hidden_states=True).hidden_states
    torch.testing.assert_close(kept[1], kept[2])
    torch.testing.assert_close(kept[2], kept[3])
    assert not torch.allclose(kept[0], kept[1])


def test_evaluation_drops_nothing():
    model = make_transformer(drop_path_rate=0.5, class_dropout_prob=0.4).eval()
    batch = inputs(3)

    torch.testing.assert_close(
        model(**batch | {"dropout_noise": torch.zeros(3, 7)}).logits,
        model(**batch | {"dropout_noise": None}).logits,
    )


def test_gradient_checkpointing_drops_the_same_again():
    batch = inputs(4)
    gradients = []
    for checkpointing in (False, True):
        model = make_transformer(drop_path_rate=0.5, class_dropout_prob=0.4).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**batch).loss.backward()
        gradients.append(model.layers[0].mlp.fc1.weight.grad)

    torch.testing.assert_close(*gradients)
