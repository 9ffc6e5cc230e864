from pathlib import Path

import pytest
import torch
from evaluation.inception_weights import stand_in_weights
from safetensors.torch import load_file
from torch.testing import assert_close

from var_hf.evaluation.features import load_features
from var_hf.evaluation.inception import WEIGHTS_SHA256, Inception, enlarge, load_inception

GOLDEN = Path(__file__).parents[1] / "golden" / "inception.safetensors"


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    with torch.device("meta"):
        model = Inception()
    torch.save(stand_in_weights(model), file)
    return file


@torch.no_grad()
def test_the_network_computes_what_torch_fidelitys_does(weights_file):
    golden = load_file(GOLDEN)
    model = load_inception(weights_file, sha256_of_weights=None)

    pooled, spatial, logits = model(golden["pixels"])

    assert_close(pooled, golden["pooled"], rtol=1e-5, atol=1e-5)
    assert_close(spatial, golden["spatial"], rtol=1e-5, atol=1e-5)
    assert_close(logits, golden["logits"], rtol=1e-5, atol=1e-5)


def test_images_are_enlarged_as_tensorflow_1_did_it():
    golden = load_file(GOLDEN)

    assert_close(enlarge(golden["small"], 13), golden["enlarged"])


def test_an_image_of_the_right_size_stays_as_it_is():
    image = torch.rand(1, 3, 9, 9)

    assert enlarge(image, 9).equal(image)


def test_the_layout_is_that_of_the_published_file():
    """566 tensors, as those who have loaded the published file report."""
    with torch.device("meta"):
        weights = Inception().state_dict()

    assert len(weights) == 566
    assert weights["fc.weight"].shape == (1008, 2048)


def test_weights_with_another_digest_are_refused(weights_file):
    with pytest.raises(ValueError, match=f"other weights than .* theirs {WEIGHTS_SHA256}"):
        load_features("inception", weights_file)


def test_missing_weights_are_named_with_their_source(tmp_path):
    with pytest.raises(ValueError, match=r"do not ship .* Fetch them .* https://.*--weights"):
        load_features("inception")
    with pytest.raises(FileNotFoundError, match=r"no Inception weights at .*none.pth. Fetch"):
        load_features("inception", tmp_path / "none.pth")


@pytest.mark.parametrize("content", [{"fc.weight": torch.zeros(2)}, [1, 2]])
def test_other_weights_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")

    with pytest.raises(ValueError, match="holds no weights of the Inception network"):
        load_inception(tmp_path / "other.pth", sha256_of_weights=None)


def test_what_is_no_weights_file_is_refused(tmp_path):
    (tmp_path / "other.pth").write_bytes(b"not weights at all")

    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_inception(tmp_path / "other.pth", sha256_of_weights=None)
