"""The scripts around the emoji transformer, with small models in place of the trained ones."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pipe
from image_files import an_image, write_image_folder
from PIL import Image

from var_hf.evaluation.classifier import save_classifier
from var_hf.training.transformer_config import TransformerTrainingConfig

EXAMPLE = Path(__file__).parents[2] / "examples" / "emoji"


def load(name, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE)
    spec = importlib.util.spec_from_file_location(f"emoji_{name}", EXAMPLE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def judging(monkeypatch):
    return load("judge_images", monkeypatch)


def test_images_do_not_depend_on_the_batch(judging):
    pipe = make_pipe(id2label={i: f"class {i}" for i in range(11)})

    small = judging.draw_images(pipe, count=2, batch_size=3, seed=5)
    large = judging.draw_images(pipe, count=2, batch_size=22, seed=5)

    assert list(small) == [f"class {i}" for i in range(11)]
    for name, images in small.items():
        assert len(images) == 2
        for one, other in zip(images, large[name], strict=True):
            difference = np.abs(np.asarray(one).astype(int) - np.asarray(other))
            assert difference.max() <= 1


def test_rates_are_those_of_the_classifier(judging):
    by_class = {
        "fox": [an_image(i) for i in range(5)],
        "apple": [an_image(i) for i in range(9, 12)],
    }
    class_names = ["apple", "car", "fox"]
    torch.manual_seed(0)
    classifier = judging.SmallClassifier(3).eval()

    rates = judging.judge(by_class, classifier, class_names)

    for name, images in by_class.items():
        right = 0
        for image in images:
            pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
            with torch.no_grad():
                logits = classifier(pixels / 127.5 - 1)
            right += class_names[logits.argmax().item()] == name
        assert rates[name] == pytest.approx(right / len(images))
    with pytest.raises(ValueError, match="does not know owl"):
        judging.judge({"owl": [an_image(0)]}, classifier, class_names)


def test_spread_is_the_usual_distance_between_two_images(judging):
    images = [an_image(number) for number in range(4)]
    arrays = [np.asarray(image).astype(float) for image in images]

    squares = [((a - b) ** 2).mean() for i, a in enumerate(arrays) for b in arrays[:i]]

    assert judging.spread(images) == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-6)
    assert judging.spread([images[0]] * 3) == 0.0


def test_the_feature_distance_of_the_test_images_to_themselves_is_zero(judging, tmp_path):
    write_image_folder(tmp_path / "test", ("apple", "fox"), count=6)
    torch.manual_seed(0)
    save_classifier(judging.SmallClassifier(2), ["apple", "fox"], tmp_path / "classifier")
    judged = judging.Judging(tmp_path / "classifier", tmp_path)
    test = judging.real_images(tmp_path, "test", ["apple", "fox"])

    assert judged.distance(test) == pytest.approx(0.0, abs=1e-6)
    turned = {name: [image.rotate(180) for image in images] for name, images in test.items()}
    assert judged.distance(turned) > 1e-4


def test_curves_are_drawn_from_a_log(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="the curves are drawn with matplotlib")
    curves = load("plot_transformer_curves", monkeypatch)
    vqvae = tmp_path / "whole" / "pipeline" / "vqvae"
    vqvae.mkdir(parents=True)
    (vqvae / "config.json").write_text('{"token_map_sizes": [1, 3]}')
    # An epoch is 600 images.
    summary = {"train_samples_per_second": 30.0, "train_runtime": 20.0, "epoch": 1.0}
    for run, scales in (("coarse", 1), ("whole", 2)):
        values = {"loss_per_scale": [2.0, 4.0][:scales], "accuracy_per_scale": [0.1, 0.2][:scales]}
        lines = [
            {"step": step, kind: {"loss": 3.0, "epoch": step / 2, **values}}
            for step in (1, 2)
            for kind in ("training", "evaluation")
        ]
        log = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 2, "summary": summary}])
        (tmp_path / run).mkdir(exist_ok=True)
        (tmp_path / run / "log.jsonl").write_text(log)
    folders = [tmp_path / "coarse", tmp_path / "whole"]

    arguments = ["plot", *map(str, folders), str(tmp_path / "curves.png")]
    monkeypatch.setattr(sys, "argv", arguments)
    curves.main()

    runs, sizes = curves.read_runs(folders, tmp_path / "whole" / "pipeline")
    for lines, expected in zip(runs, ([0.3, 0.6], [0.9, 1.2]), strict=True):
        assert [images for images, _ in lines["training"]] == pytest.approx(expected)
    assert sizes == [1, 3]
    with Image.open(tmp_path / "curves.png") as drawn:
        assert drawn.size == (1500, 400)

    log = tmp_path / "coarse" / "log.jsonl"
    log.write_text("\n".join(log.read_text().splitlines()[:-1]))
    with pytest.raises(ValueError, match="coarse: the log has no summary"):
        curves.main()


def test_the_recipe_is_a_valid_configuration():
    config = TransformerTrainingConfig.from_recipe(
        EXAMPLE / "transformer.json", data="images", tokenizer="vqvae"
    )

    assert config.architecture["hidden_size"] % config.architecture["num_attention_heads"] == 0
    assert config.batch_size % 2 == 0  # two processes share it
