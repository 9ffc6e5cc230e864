import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from var_hf.evaluation.classifier import load_classifier, save_classifier
from var_hf.images import open_images

EXAMPLE = Path(__file__).parents[2] / "examples" / "emoji"


def load(name):
    spec = importlib.util.spec_from_file_location(f"emoji_{name}", EXAMPLE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draw = load("draw")
classifier = load("train_classifier")

needs_font = pytest.mark.skipif(
    not draw.FONT.exists(), reason="needs the Debian package fonts-noto-color-emoji"
)


def pixels(*arguments, **keywords):
    return np.asarray(draw.draw(*arguments, **keywords)).astype(int)


@needs_font
def test_a_picture_follows_from_its_four_keys_alone():
    first = pixels("fox", 3, "train", seed=5)

    pixels("owl", 1)
    assert (pixels("fox", 3, "train", seed=5) == first).all()
    others = [("fox", 4, "train", 5), ("fox", 3, "test", 5), ("fox", 3, "train", 6), ("owl", 3, "train", 5)]  # fmt: skip
    assert all((pixels(*keys) != first).any() for keys in others)


@needs_font
@pytest.mark.parametrize("name", draw.CLASSES)
def test_every_class_has_a_visible_glyph(name):
    picture = pixels(name, 0)

    assert picture.shape == (64, 64, 3)
    glyph = np.asarray(draw.sprite(name))
    assert max(glyph.shape[:2]) >= 96  # drawn from the large strike, not blown up
    assert (glyph[..., 3] > 128).mean() > 0.2


@needs_font
def test_pictures_of_a_class_vary_in_ground_size_and_place():
    corners = {tuple(pixels("star", index)[0, 0]) for index in range(12)}
    extents = []
    for index in range(12):
        picture = pixels("star", index)
        ground = np.abs(picture - np.median(picture, axis=(0, 1))).sum(axis=2)
        rows, columns = np.nonzero(ground > 120)
        extents.append((rows.min(), columns.min(), np.ptp(rows), np.ptp(columns)))

    assert len(corners) == 12
    assert np.std(extents, axis=0).min() > 2


def run_draw(*arguments):
    command = [sys.executable, EXAMPLE / "draw.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small data set, written as a user does."""
    folder = tmp_path_factory.mktemp("data") / "emoji"
    done = run_draw(folder, "--train", "4", "--validation", "1", "--test", "2")
    assert done.returncode == 0, done.stderr
    return folder


@needs_font
def test_the_data_set_is_an_image_folder(data):
    train, test = open_images(data, "train"), open_images(data, "test")

    assert train.class_names == test.class_names == sorted(draw.CLASSES)
    assert (len(train), len(test)) == (160, 80)
    assert (np.asarray(train.read(5)) == pixels(train.class_names[1], 1, "train")).all()


@needs_font
def test_an_existing_folder_is_left_alone(data):
    done = run_draw(data)

    assert done.returncode != 0
    assert "exists already" in done.stderr


def test_a_missing_font_is_named():
    with pytest.raises(FileNotFoundError, match="apt-get install fonts-noto-color-emoji"):
        draw.sprite("fox", Path("nowhere.ttf"))


@needs_font
def test_the_classifier_learns_and_comes_back_from_its_file(data, tmp_path):
    few = tmp_path / "few"
    for name in ("heart", "panda", "sun"):  # few enough to learn in seconds
        shutil.copytree(data / "train" / name, few / "train" / name)

    model, names = classifier.train(few, steps=40, batch_size=9)
    save_classifier(model, names, tmp_path / "classifier.safetensors")
    loaded, loaded_names = load_classifier(tmp_path / "classifier.safetensors")

    assert loaded_names == names == ["heart", "panda", "sun"]
    assert classifier.accuracy(loaded, few, "train", names) >= 0.9
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(model(images), loaded(images))


def test_the_recipe_is_a_valid_configuration():
    from var_hf import MultiScaleVQVAE
    from var_hf.training.tokenizer_config import TokenizerTrainingConfig

    config = TokenizerTrainingConfig.from_json(EXAMPLE / "tokenizer.json", data="data/emoji")
    assert json.dumps(config.to_dict())
    with torch.device("meta"):
        assert MultiScaleVQVAE(**config.architecture).image_size == 64
