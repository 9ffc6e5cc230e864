"""Searches on a tiny pipeline, reported by the script."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import make_pipe, make_transformer, quiet, seeded

from var_hf import VARPipeline
from var_hf.evaluation.classifier import SmallClassifier, load_classifier, save_classifier
from var_hf.images import normalize
from var_hf.pipelines.search import ClassifierJudge

NAMES = ["ant", "bee", "cat"]
COUNT, SEED = 4, 7


@pytest.fixture
def search_images(example):
    return example("search_images")


@pytest.fixture
def model(tmp_path):
    pipe = make_pipe(
        transformer=make_transformer(num_classes=len(NAMES)), id2label=dict(enumerate(NAMES))
    )
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def classifier(tmp_path):
    """Writes a classifier, whose logits are in another order than the model's classes."""

    def write(seed):
        torch.manual_seed(seed)
        file = tmp_path / f"{seed}.safetensors"
        save_classifier(SmallClassifier(3, channels=(8, 16)).eval(), NAMES[::-1], file)
        return file

    return write


def test_the_best_by_one_classifier_are_counted_by_another(
    search_images, model, classifier, monkeypatch, capsys
):
    judge, recogniser = classifier(0), classifier(1)
    options = {
        "--model": model, "--judge": judge, "--candidates": 3, "--count": COUNT, "--seed": SEED,
        "--batch-size": 1,
    }  # fmt: skip
    arguments = [str(part) for option in options.items() for part in option]
    searches = ["--searches", "classifier", "plain"]
    monkeypatch.setattr(sys, "argv", ["search_images.py", str(recogniser), *arguments, *searches])
    search_images.main()

    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 12
    assert not {"likelihood", "classifier-between-scales"} & report.keys()
    pipe = quiet(VARPipeline.from_pretrained(model))
    module, names = load_classifier(recogniser)
    by_judge = ClassifierJudge(load_classifier(judge)[0], [2, 1, 0])
    for name, search in (("plain", {}), ("classifier", {"candidates": 3, "judge": by_judge})):
        right = []
        for number in range(12):
            generator = seeded(SEED + number)
            image = pipe(number // COUNT, generator=generator, **search).images[0]
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
            found = names[int(module(normalize(pixels)).argmax())]
            right.append(found == NAMES[number // COUNT])
        assert report[name]["recognised"] == round(float(np.mean(right)), 4)
        assert min(report[name]["worst"].values()) <= report[name]["recognised"]
