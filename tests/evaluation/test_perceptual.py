import sys

import pytest
import torch
from torch.nn import functional

from var_hf.evaluation.classifier import SmallClassifier, save_classifier
from var_hf.evaluation.perceptual import ClassifierDistance, load_perceptual


@pytest.fixture
def distance():
    torch.manual_seed(0)
    return ClassifierDistance(SmallClassifier(3, channels=(8, 16)))


def edges(count=5, side=24):
    """Images of black and white stripes ``(B, 3, P, P)``, in [-1, 1]."""
    stripes = (torch.arange(side) // 3 % 2 * 2.0 - 1).expand(count, 3, side, side)
    return stripes * torch.linspace(0.5, 1, count)[:, None, None, None]


def test_an_image_has_no_distance_to_itself(distance):
    images = edges()

    assert torch.equal(distance(images, images), torch.zeros(5))


def test_the_distance_is_symmetric_and_bounded_and_of_each_image_alone(distance):
    one, other = edges(), torch.rand(5, 3, 24, 24) * 2 - 1

    found = distance(one, other)

    assert found.shape == (5,)
    assert ((found > 0) & (found <= 4)).all()
    torch.testing.assert_close(distance(other, one), found)
    torch.testing.assert_close(distance(one[2:3], other[2:3]), found[2:3])


def test_a_lost_edge_costs_more_than_a_shift_of_all_pixels_with_the_same_error(distance):
    images = edges() * 0.8
    blurred = functional.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)
    error = (blurred - images).square().mean(dim=(1, 2, 3), keepdim=True).sqrt()

    assert (distance(blurred, images) > 2 * distance(images + error, images)).all()


def test_it_teaches_the_images_and_not_the_classifier(distance):
    reconstruction = (edges() * 0.5).requires_grad_()

    distance(reconstruction, edges()).mean().backward()

    assert torch.isfinite(reconstruction.grad).all()
    assert reconstruction.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_the_file_of_a_classifier_is_a_perceptual_network(distance, tmp_path):
    file = tmp_path / "eyes.safetensors"
    save_classifier(distance.classifier, ["a", "b", "c"], file)

    loaded = load_perceptual(str(file))

    one, other = edges(), torch.rand(5, 3, 24, 24)
    assert torch.equal(loaded(one, other), distance(one, other))


def test_an_unknown_perceptual_network_is_refused():
    with pytest.raises(ValueError, match="no perceptual network 'vgg99': give 'lpips' or the"):
        load_perceptual("vgg99")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)

    with pytest.raises(ImportError, match=r"needs the lpips library.*pip install lpips"):
        load_perceptual("lpips")
