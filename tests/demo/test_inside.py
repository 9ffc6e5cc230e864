import numpy as np
import pytest
import torch
from PIL import Image

from var_hf.demo import inside
from var_hf.demo.settings import Settings


@pytest.fixture(scope="module")
def drawn(studio):
    *_, finished = studio.generate("pizza", Settings(seed=6))
    return finished.images[0]


def as_tensor(image):
    return torch.from_numpy(np.array(image)).movedim(-1, 0)[None].float() / 255


def test_the_last_scale_is_the_reconstruction(studio, drawn):
    seen = inside.look_inside(studio, drawn)

    with torch.no_grad():
        expected = studio.pipe.vqvae.reconstruct(as_tensor(drawn) * 2 - 1) / 2 + 0.5
    assert len(seen.by_scale) == len(seen.added) == len(seen.nats_per_token) == 4
    assert (as_tensor(seen.by_scale[-1]) - expected).abs().max() < 1 / 255
    assert np.array_equal(np.asarray(seen.seen), np.asarray(drawn))


def test_what_a_scale_adds_is_the_change_of_the_image(studio, drawn):
    seen = inside.look_inside(studio, drawn)

    assert np.array_equal(np.asarray(seen.added[0]), np.asarray(seen.by_scale[0]))
    for index in (1, 2, 3):
        change = as_tensor(seen.by_scale[index]) - as_tensor(seen.by_scale[index - 1])
        expected = (0.5 + change).clamp(0, 1)
        assert (as_tensor(seen.added[index]) - expected).abs().max() < 2 / 255


def test_no_change_is_grey():
    same = torch.full((3, 3, 2, 2), 0.25)

    assert inside.added_by_scale(same)[1:].eq(0.5).all()


@pytest.mark.parametrize("label", [None, "pizza"])
def test_surprise_is_the_pipelines(studio, drawn, label):
    seen = inside.look_inside(studio, drawn, label)

    likelihood = studio.pipe.log_likelihood(drawn, label)
    tokens = torch.tensor([1, 4, 9, 25])
    assert seen.log_likelihood == pytest.approx(likelihood.total.item())
    assert (torch.tensor(seen.nats_per_token) * tokens).sum() == pytest.approx(
        -likelihood.total.item(), rel=1e-5
    )
    (expected,) = studio.pipe.surprise_maps(drawn, label)
    assert np.array_equal(np.asarray(seen.surprise), np.asarray(expected))


def test_classes_are_those_of_classify_and_come_a_few_at_a_time(studio, drawn):
    steps = list(inside.name_classes(studio, drawn))
    top = inside.top_classes(studio, steps[-1][1], top=4)

    expected = studio.pipe.classify(drawn, top=4)[0]
    assert [done for done, _ in steps] == [8, 11]
    assert [one["class_id"] for one in top] == [one["class_id"] for one in expected]
    assert [one["label"] for one in top] == [one["label"] for one in expected]
    for ours, theirs in zip(top, expected, strict=True):
        assert ours["log_likelihood"] == pytest.approx(theirs["log_likelihood"], abs=1e-3)
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-3)


def test_a_model_that_is_too_large_for_a_cpu_is_refused(studio, drawn, monkeypatch):
    assert inside.can_name_classes(studio)
    monkeypatch.setattr(inside, "MOST_WORK_ON_A_CPU", inside.work_of_naming(studio) - 1)

    with pytest.raises(ValueError, match="tries each of 11 classes, which takes"):
        next(inside.name_classes(studio, drawn))


def test_images_of_any_shape_are_cut_to_the_central_square(studio):
    wide = Image.new("RGBA", (31, 17), (200, 10, 10, 128))

    assert inside.look_inside(studio, wide).seen.size == (10, 10)
