import pytest
import torch
from conftest import make_transformer, seeded
from torch.nn import functional

from var_hf.training.fine_tuning import (
    class_ids_of,
    freeze,
    merged,
    resize_positions,
    with_lora,
    with_new_classes,
    with_schedule,
)

# PEFT still asks transformers for gradient checkpointing by its old name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

LORA_LAYER = [f"self_attn.{name}_proj" for name in "qkvo"] + ["mlp.fc1", "mlp.fc2", "modulation"]
NAMES = {0: "tench, Tinca tinca", 1: "goldfish", 2: "Crane"}


def teacher_forcing(batch_size=3, length=38, channels=6):
    return torch.randn(batch_size, length, channels, generator=seeded(5))


# ------------------------------------------------------------------ classes


def test_classes_are_found_by_name_whatever_their_order():
    model = make_transformer(num_classes=3)

    assert class_ids_of(["crane", "tinca tinca"], 2, model, NAMES) == [2, 0]


def test_foreign_names_of_as_many_classes_keep_their_order_with_a_warning(caplog):
    model = make_transformer(num_classes=3)

    assert class_ids_of(["n01", "n02", "n03"], 3, model, NAMES) == [0, 1, 2]
    assert "taken to be in the same order" in caplog.text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "c", "d"], "The data has 4 classes, more than the 3 of the checkpoint"),
        (["crane", "hen"], r"does not know 1 of the data's 2 classes \('hen' for one\)"),
        (
            ["crane", "goldfish", "hen"],
            r"does not know 1 of the data's 3 classes \('hen' for one\)",
        ),
        (["x", "y"], r"does not know 2 of the data's 2 classes \('x' for one\)"),
    ],
)
def test_classes_that_the_checkpoint_does_not_know_are_refused(names, message):
    model = make_transformer(num_classes=3)

    with pytest.raises(ValueError, match=message) as error:
        class_ids_of(names, len(names), model, NAMES)
    assert "new_classes" in str(error.value)


@torch.no_grad()
def test_new_classes_keep_the_null_row_and_nothing_of_the_old_ones():
    model, before = make_transformer(), make_transformer()
    inputs = teacher_forcing()

    with_new_classes(model, 4)

    old, new = before.embeddings.class_embedding.weight, model.embeddings.class_embedding.weight
    assert new.shape == (5, 112)
    assert torch.equal(new[-1], old[-1])
    assert model.config.num_classes == 4
    unconditional = model(torch.full((3,), 4), inputs).logits
    assert torch.equal(unconditional, before(torch.full((3,), 11), inputs).logits)
    # The new rows stand around the null row, each at another place.
    distances = (new[:-1] - new[-1]).norm(dim=1)
    assert (distances > 0).all()
    assert distances.max() < 3 * model.config.initializer_range * 112**0.5
    assert len(torch.unique(new, dim=0)) == 5


# ------------------------------------------------------------------ schedule


def test_positions_of_a_map_are_resized_as_an_image():
    positions = torch.randn(1, 9, 4, generator=seeded(1))

    resized = resize_positions(positions, 5)

    image = positions.view(3, 3, 4).permute(2, 0, 1)[None]
    expected = functional.interpolate(image, size=(5, 5), mode="bicubic")[0].permute(1, 2, 0)
    torch.testing.assert_close(resized, expected.reshape(1, 25, 4))
    assert resize_positions(positions, 3) is positions


@torch.no_grad()
def test_another_schedule_takes_each_scale_from_the_old_one_nearest_in_progress(caplog):
    model = make_transformer()

    changed = with_schedule(model, (1, 2, 3, 4, 7))

    assert "positions are interpolated" in caplog.text
    assert changed.config.token_map_sizes == (1, 2, 3, 4, 7)
    assert changed.config.drop_path_rate == model.config.drop_path_rate
    old, new = model.embeddings, changed.embeddings
    source = [0, 1, 2, 2, 3]  # of 4 scales for 5: 0, 0.75, 1.5, 2.25, 3, halves upwards
    assert torch.equal(new.scale_embedding.weight, old.scale_embedding.weight[source])
    for scale, tokens in enumerate(changed.config.token_slices):
        before = old.position_embedding[:, model.config.token_slices[source[scale]]]
        expected = resize_positions(before, changed.config.token_map_sizes[scale])
        torch.testing.assert_close(new.position_embedding[:, tokens], expected)
    assert torch.equal(new.start_embedding, old.start_embedding)
    assert torch.equal(changed.lm_head.weight, model.lm_head.weight)
    assert changed.lm_head.weight is not model.lm_head.weight
    assert changed(torch.tensor([2]), teacher_forcing(1, 78)).logits.shape == (1, 79, 29)
    assert all(parameter.requires_grad for parameter in changed.parameters())


@torch.no_grad()
def test_the_same_schedule_changes_nothing():
    model = make_transformer(share_modulation=True)

    same = with_schedule(model, model.config.token_map_sizes)

    labels, inputs = torch.tensor([2, 5, 1]), teacher_forcing()
    assert torch.equal(same(labels, inputs).logits, model(labels, inputs).logits)


# ------------------------------------------------------------------ freezing


def test_patterns_freeze_what_they_name():
    model = make_transformer()

    freeze(model, ["layers.[01].*", "embeddings.*"])

    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"layers", "final_norm", "lm_head"}
    assert {name.split(".")[1] for name in trained if name.startswith("layers")} == {"2"}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["blocks.*"], r"No parameter matches 'blocks\.\*'; names are like 'embeddings"),
        (["*"], "'\\*' freeze everything: nothing is left to train"),
    ],
)
def test_patterns_that_make_no_sense_are_refused(patterns, message):
    with pytest.raises(ValueError, match=message):
        freeze(make_transformer(), patterns)


# ------------------------------------------------------------------ LoRA


def test_adapters_are_all_that_is_trained_and_start_as_nothing():
    model, inputs = make_transformer(), teacher_forcing()
    labels = torch.tensor([2, 5, 1])
    with torch.no_grad():
        before = model(labels, inputs).logits

    adapted = with_lora(model, 5)

    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    adapted_names = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in trained}
    layers = {f"layers.{i}.{name}" for i in range(3) for name in LORA_LAYER}
    assert adapted_names == layers | {"final_norm.modulation"}
    assert len(trained) == 2 * len(adapted_names)
    assert all("lora_" in name for name in trained)
    with torch.no_grad():
        torch.testing.assert_close(adapted.eval()(labels, inputs).logits, before)


@torch.no_grad()
def test_merging_keeps_what_the_adapters_do_and_leaves_them_in_place():
    adapted = with_lora(with_new_classes(make_transformer(), 4), 5, ["class_embedding"]).eval()
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.1, generator=seeded(len(name)))
    labels, inputs = torch.tensor([2, 0, 4]), teacher_forcing()
    expected = adapted(labels, inputs).logits

    plain = merged(adapted)

    assert type(plain).__name__ == "VARModel"
    assert plain.state_dict().keys() == make_transformer().state_dict().keys()
    torch.testing.assert_close(plain(labels, inputs).logits, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(adapted(labels, inputs).logits, expected)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert sum("class_embedding" in name for name in trained) == 1
