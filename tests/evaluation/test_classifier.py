import json

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from var_hf.assets import VAR_EMOJI_64, VAR_EMOJI_128
from var_hf.evaluation.classifier import (
    SHIPPED,
    SmallClassifier,
    load_classifier,
    save_classifier,
)
from var_hf.evaluation.features import load_features
from var_hf.images import normalize


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return SmallClassifier(5, channels=(8, 16, 24)).eval()


def test_a_saved_classifier_gives_the_same_answers(classifier, tmp_path):
    save_classifier(classifier, ["a", "b", "c", "d", "e"], tmp_path / "c.safetensors")

    loaded, names = load_classifier(tmp_path / "c.safetensors")

    images = torch.randn(2, 3, 17, 17)
    assert names == ["a", "b", "c", "d", "e"]
    assert loaded(images).equal(classifier(images))
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]


def test_features_are_the_input_of_the_last_layer_and_a_map_before(classifier):
    images = torch.randn(2, 3, 16, 16)

    pooled, spatial, logits = classifier.features(images)

    assert logits.equal(classifier(images))
    assert (pooled.shape, spatial.shape) == ((2, 24), (2, 7 * 4 * 4))
    assert_close(classifier[-1](pooled), logits)


def test_an_extractor_looks_at_stored_pixels(classifier, tmp_path):
    file = tmp_path / "c.safetensors"
    save_classifier(classifier, ["a", "b", "c", "d", "e"], file)
    extractor = load_features(str(file))
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)

    features = extractor(pixels)

    expected = classifier(normalize(pixels)).detach()
    assert_close(
        features.probabilities.log(), expected.double().log_softmax(dim=1), atol=1e-5, rtol=0
    )
    assert extractor.class_names == ["a", "b", "c", "d", "e"]
    assert extractor.describe()["name"] == "c.safetensors"


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_extractors_load(name):
    extractor = load_features(name)

    features = extractor(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert features.probabilities.shape == (1, len(extractor.class_names))


@pytest.mark.parametrize(("name", "model"), [("emoji", VAR_EMOJI_64), ("emoji-128", VAR_EMOJI_128)])
def test_a_shipped_classifier_knows_the_classes_of_its_model(name, model):
    config = json.loads((model / "model_index.json").read_text("utf-8"))

    module, class_names = load_classifier(name)

    assert sorted(class_names) == sorted(config["id2label"].values())
    assert module[-1].out_features == len(class_names)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no feature extractor 'vgg'. Give inception, emoji"):
        load_features("vgg")
    with pytest.raises(ValueError, match="Only inception takes weights of its own"):
        load_features("emoji", "weights.pth")
    with pytest.raises(FileNotFoundError, match=r"There is no classifier .*Give emoji, emoji-128"):
        load_classifier(tmp_path / "none")
    save_file({"0.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no classifier"):
        load_classifier(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ValueError, match="holds no classifier"):
        load_classifier(tmp_path / "text.safetensors")
