"""The numbers of a model card, measured on a tiny pipeline and a tiny data set."""

import math
import sys

import numpy as np
import pytest
from conftest import make_pipe, make_transformer, make_vqvae
from PIL import Image

from var_hf import VARPipeline
from var_hf.evaluation.classifier import SmallClassifier, load_classifier, save_classifier
from var_hf.model_card import read_results

NAMES = ["ant", "bee", "cat"]
SIZE = 20
COUNTS = {"train": 6, "test": 4}


@pytest.fixture
def measure(example):
    return example("measure")


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for name in NAMES:
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "data"


@pytest.fixture
def classifier(tmp_path):
    file = tmp_path / "classifier.safetensors"
    save_classifier(SmallClassifier(3, channels=(8, 16)).eval(), NAMES, file)
    return file


@pytest.fixture
def model(tmp_path):
    pipe = make_pipe(
        transformer=make_transformer(num_classes=len(NAMES)),
        vqvae=make_vqvae(channel_multipliers=(1, 2, 3)),
        id2label=dict(enumerate(NAMES)),
    )
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def size_of(file):
    with Image.open(file) as image:
        return image.size


def test_every_number_of_the_card_is_measured(measure, model, classifier, data, monkeypatch):
    output = model.parent / "results"
    output.mkdir()
    arguments = [str(model), str(classifier), str(data), "--per-class", "3"]
    monkeypatch.setattr(sys, "argv", ["measure.py", *arguments, "--output", str(output)])
    measure.main()

    results = read_results(output / "results.json")
    values = {entry.metric: entry.value for entry in results}
    assert len(values) == len(results) == 17
    assert all(map(math.isfinite, values.values()))
    assert all(str(model) in entry.command for entry in results)
    assert size_of(output / "samples.webp") == (9 * (SIZE + 1) - 1, SIZE)
    assert size_of(output / "nearest.webp") == (3 * (SIZE + 1) - 1, 2 * SIZE + 1)
    assert (output / "reconstructions.png").exists()


def test_a_copied_training_image_is_found(measure, data, tmp_path):
    copied = measure.real_images(data, "train", NAMES, 2)
    real = measure.real_images(data, "test", NAMES)
    assert {name: len(images) for name, images in real.items()} == dict.fromkeys(NAMES, 4)

    generated, tested = measure.memorisation(copied, real, data, tmp_path)

    assert generated.value == 0
    assert generated.dataset == "6 images against 18"
    # By definition: root of the mean squared difference, least over the class, median over all.
    known = measure.real_images(data, "train", NAMES)
    differences = [
        min(
            np.sqrt(np.mean((np.asarray(image, float) - np.asarray(other, float)) ** 2))
            for other in known[name]
        )
        for name, images in real.items()
        for image in images
    ]
    assert tested.value == pytest.approx(np.median(differences), abs=1e-3)
    with Image.open(tmp_path / "nearest.webp") as image:
        grid = np.asarray(image, float)
    assert np.abs(grid[:SIZE] - grid[SIZE + 1 :]).mean() < 20  # of noise, after compression


def test_distance_of_training_images_is_the_same_as_generated_ones(
    measure, data, classifier, tmp_path
):
    drawn = measure.real_images(data, "train", NAMES, 4)
    values = {
        entry.metric: entry.value
        for entry in measure.generation(
            drawn, measure.real_images(data, "test", NAMES), classifier, data, tmp_path
        )
    }
    distance = values["feature distance to the test images"]
    assert distance > 0
    assert distance == values["feature distance of as many training images to the test images"]


def test_edits_are_of_the_class_and_the_place_that_were_asked_for(
    measure, data, classifier, model, monkeypatch
):
    judged = []

    def judge(edited, *arguments):
        judged.append(edited)
        return original(edited, *arguments)

    original = measure.judge
    monkeypatch.setattr(measure, "judge", judge)
    real = measure.real_images(data, "test", NAMES)
    pipe = VARPipeline.from_pretrained(model)
    half, middle = measure.editing(pipe, real, *load_classifier(classifier))
    assert half.dataset == middle.dataset == "6 edits of test images"
    assert 0 <= half.value <= 1 and 0 <= middle.value <= 1

    halves, middles = judged
    assert list(halves) == NAMES
    assert list(middles) == ["bee", "cat", "ant"]
    token = SIZE // 5  # the width of a token, over which an edit fades
    for edited, kept, targets in (
        (halves, np.s_[:, : SIZE // 2 - token], NAMES),
        (middles, np.s_[:0], list(middles)),  # fades to every edge
    ):
        for name, target in zip(NAMES, targets, strict=True):
            for before, after in zip(real[name], edited[target], strict=False):
                first, second = np.asarray(before), np.asarray(after)
                assert (first[kept] == second[kept]).all()
                assert (first != second).any()
