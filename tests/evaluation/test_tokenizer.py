import pytest
import torch
from conftest import make_vqvae
from image_files import write_image_folder
from torch import Tensor, nn

from var_hf.evaluation.classifier import SmallClassifier, save_classifier
from var_hf.evaluation.features import load_features
from var_hf.evaluation.image_quality import psnr
from var_hf.evaluation.metrics import frechet_distance, moments
from var_hf.evaluation.tokenizer import (
    PerceptualDistance,
    ReconstructionDistance,
    evaluate_tokenizer,
    measure_tokenizer,
)
from var_hf.images import ImageTransform, normalize, open_images


@pytest.fixture
def extractor(tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "classifier.safetensors"
    save_classifier(SmallClassifier(3, channels=(8, 16)).eval(), ["a", "b", "c"], file)
    return load_features(str(file))


@pytest.fixture
def larger_vqvae():
    return make_vqvae(token_map_sizes=(1, 2, 4, 7))  # 14 pixels; SSIM needs 11


@pytest.fixture
def images(tmp_path):
    return open_images(write_image_folder(tmp_path / "images", count=9, side=14))


def pixels(images):
    transform = ImageTransform(14)
    return torch.stack([transform(images.read(n), 0, n) for n in range(len(images))])


def test_everything_that_is_known_how_to_measure_is_measured(larger_vqvae, images, extractor):
    result, grid = measure_tokenizer(larger_vqvae, images, extractor)

    originals = pixels(images)
    with torch.no_grad():
        token_maps = larger_vqvae.encode(normalize(originals)).token_maps
        copies = larger_vqvae.decode(token_maps).sample
    stored = (((copies + 1) / 2).clamp(0, 1) * 255).round().byte()
    expected = frechet_distance(
        moments(extractor(stored).pooled), moments(extractor(originals).pooled)
    )
    assert result["rfid"] == pytest.approx(expected, rel=1e-4)
    assert result["rsfid"] > 0
    decibels = psnr((copies + 1) / 2, originals / 255).mean().item()
    assert result["psnr"] == pytest.approx(decibels, abs=2e-3)
    assert result["images"] == 18
    assert result["token_map_sizes"] == [1, 2, 4, 7]
    assert len(result["perplexity"]) == len(result["distinct_codes"]) == 4
    assert result["features"] == extractor.describe()
    assert grid.size[1] == 2 * (14 + 2) + 2


def test_what_is_not_measured_is_none(larger_vqvae, images):
    result, _ = measure_tokenizer(larger_vqvae, images, max_images=5)

    assert result["rfid"] is result["rsfid"] is result["features"] is None
    assert result["images"] == 5


def test_watchers_see_every_image_once(larger_vqvae, images):
    seen: list[tuple[Tensor, Tensor]] = []

    evaluate_tokenizer(
        larger_vqvae, images, ImageTransform(14), 100,
        watchers=[lambda *pair: seen.append(pair)],
    )  # fmt: skip

    originals = torch.cat([original for original, _ in seen])
    assert originals.equal(normalize(pixels(images)))
    assert all(original.shape == copy.shape for original, copy in seen)


def test_perfect_copies_are_at_distance_zero(images, extractor):
    distance = ReconstructionDistance(extractor)
    for batch in normalize(pixels(images)).split(5):
        distance(batch, batch + 1e-4)  # less than half of a grey level

    found = distance.distances()
    assert found == {
        "rfid": pytest.approx(0, abs=1e-9),
        "rsfid": pytest.approx(0, abs=1e-9),
    }


def test_a_perceptual_distance_is_the_mean_over_all_images():
    """A small stand-in for LPIPS, of the same form: its weights are not at hand."""

    class MeanDifference(nn.Module):
        def forward(self, x, y):
            return (x - y).abs().mean(dim=(1, 2, 3), keepdim=True)

    distance = PerceptualDistance(MeanDifference())
    zeros = torch.zeros(3, 3, 4, 4)
    distance(zeros, zeros + 0.5)
    distance(zeros[:1], zeros[:1] - 7)  # what leaves the range is cut off, as in an image

    assert distance.mean() == pytest.approx((3 * 0.5 + 1) / 4)
