import json
import re

import numpy as np
import pytest
import torch
from conftest import make_pipe
from image_files import an_image, write_image_folder
from PIL import Image

from var_hf.evaluation.classifier import SmallClassifier, save_classifier
from var_hf.evaluation.evaluate import (
    evaluate_samples,
    is_sorted_by_class,
    measure,
    prepare_reference,
    write_statistics,
)
from var_hf.evaluation.features import load_features
from var_hf.evaluation.image_sources import StatisticsFile, open_source
from var_hf.evaluation.metrics import frechet_distance, moments
from var_hf.evaluation.report import write_report
from var_hf.evaluation.sample_plan import SamplePlan
from var_hf.evaluation.sampling import sample_images
from var_hf.evaluation.sweep import evaluate_sweep, sample_sweep

NAMES = ["circle", "dot", "ring"]


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    """A small network of our own, untrained: what it sees is no matter here, that it is the same
    is.
    """
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("extractor") / "classifier.safetensors"
    save_classifier(SmallClassifier(3, channels=(8, 16)).eval(), NAMES, file)
    return load_features(str(file))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_image_folder(root / "first", tuple(NAMES), count=9, side=20)
    write_image_folder(root / "second", ("dot", "ring", "circle"), count=6, side=20)
    return root


def evaluated(samples, reference, extractor, **keywords):
    found = prepare_reference(open_source(reference), extractor)
    source = open_source(samples)
    return evaluate_samples(source, found, extractor, **{"min_images": 0} | keywords), found


def save_npz(file, count=12, side=20, labels=None, **arrays):
    images = np.stack([np.asarray(an_image(number, side)) for number in range(count)])
    if labels is not None:
        arrays["arr_1"] = labels
    np.savez(file, arr_0=images, **arrays)
    return images


# Numbers


def test_a_set_against_itself_is_perfect(folders, extractor):
    result = evaluated(folders / "first", folders / "first", extractor)[0].result

    assert result["fid"] == pytest.approx(0, abs=1e-9)
    assert result["sfid"] == pytest.approx(0, abs=1e-9)
    assert (result["precision"], result["recall"]) == (1, 1)


def test_the_distance_is_that_of_the_features(folders, extractor):
    evaluation, reference = evaluated(folders / "second", folders / "first", extractor)

    first, second = (
        moments(
            torch.cat([extractor(batch).pooled for batch in open_source(folders / name).batches(5)])
        )
        for name in ("first", "second")
    )
    assert evaluation.result["fid"] == pytest.approx(frechet_distance(second, first), rel=1e-6)
    assert evaluation.result["images"] == 18
    assert evaluation.result["reference"]["sha256"] == reference.about["sha256"]
    assert evaluation.result["features"] == extractor.describe()


def test_the_batch_changes_nothing(folders, extractor):
    one, seven = (
        evaluated(folders / "second", folders / "first", extractor, batch_size=size)[0].result
        for size in (1, 7)
    )

    for name in ("fid", "sfid", "inception_score", "precision", "recall"):
        assert one[name] == pytest.approx(seven[name], rel=1e-4), name


def test_the_score_does_not_depend_on_the_order_of_the_file(tmp_path, extractor, monkeypatch):
    images = save_npz(tmp_path / "a.npz", count=40)
    np.savez(tmp_path / "b.npz", arr_0=images[::-1])
    monkeypatch.setattr("var_hf.evaluation.evaluate.inception_score", _score_in_blocks_of_ten)

    a, b = (
        evaluated(tmp_path / name, tmp_path / "a.npz", extractor)[0].result
        for name in ("a.npz", "b.npz")
    )

    assert a["inception_score"] == pytest.approx(b["inception_score"], rel=1e-6)
    assert a["inception_score_in_file_order"] != pytest.approx(a["inception_score"], rel=1e-6)


def _score_in_blocks_of_ten(probabilities):
    from var_hf.evaluation.metrics import inception_score

    return inception_score(probabilities, block=10)


def test_classes_are_compared_by_name(folders, extractor):
    rows = evaluated(folders / "second", folders / "first", extractor)[0].result["per_class"]

    # In the folder "second", circle, dot and ring hold what dot, ring and circle hold in the order
    # of "first".
    assert [row["class_name"] for row in rows] == NAMES
    assert all(row["images"] == 6 for row in rows)
    assert all(0 <= row["recognised"] <= 1 and row["mean_distance"] > 0 for row in rows)
    itself = evaluated(folders / "first", folders / "first", extractor)[0].result["per_class"]
    assert all(row["mean_distance"] == 0 for row in itself)
    assert all(row["spread"] == row["reference_spread"] for row in itself)


def test_copies_are_counted(tmp_path, folders, extractor):
    images = save_npz(tmp_path / "a.npz")
    np.savez(tmp_path / "copies.npz", arr_0=np.concatenate([images, images[:5]]))

    result = evaluated(tmp_path / "copies.npz", folders / "first", extractor)[0].result

    assert "5 of 17 images are copies of others, pixel by pixel." in result["warnings"]


def test_sorted_sets_are_told_from_shuffled_ones():
    labels = np.repeat(np.arange(40), 50)

    assert is_sorted_by_class(labels)
    assert not is_sorted_by_class(np.random.default_rng(0).permutation(labels))
    assert not is_sorted_by_class(np.zeros(100, dtype=int))  # one class has no order
    assert not is_sorted_by_class(np.tile(np.arange(40), 50))


def test_a_sorted_file_is_warned_about(tmp_path, folders, extractor, monkeypatch):
    monkeypatch.setattr("var_hf.evaluation.evaluate.SCORE_BLOCK", 10)
    save_npz(tmp_path / "sorted.npz", count=30, labels=np.repeat([0, 1, 2], 10))

    result = evaluated(tmp_path / "sorted.npz", folders / "first", extractor)[0].result

    assert any(
        warning.startswith("The images are sorted by class.") for warning in result["warnings"]
    )


# References


def test_statistics_serve_as_the_images_did(tmp_path, folders, extractor):
    expected, reference = evaluated(folders / "second", folders / "first", extractor)
    write_statistics(tmp_path / "statistics.npz", reference, extractor)

    result = evaluated(folders / "second", tmp_path / "statistics.npz", extractor)[0].result

    assert result["fid"] == pytest.approx(expected.result["fid"], rel=1e-9)
    assert result["sfid"] == pytest.approx(expected.result["sfid"], rel=1e-9)
    assert result["precision"] is result["recall"] is None
    assert (
        "The reference holds no images: there is no precision and no recall." in result["warnings"]
    )


def test_a_reference_of_the_evaluator_of_adm_is_read_as_it_is(tmp_path, folders, extractor):
    """Images for precision and recall, and statistics that are not of these images."""
    _, reference = evaluated(folders / "second", folders / "first", extractor)
    stored = reference.moments
    save_npz(
        tmp_path / "reference.npz",
        mu=stored["pooled"].mean,
        sigma=stored["pooled"].covariance,
        mu_s=stored["spatial"].mean,
        sigma_s=stored["spatial"].covariance,
    )

    result = evaluated(folders / "second", tmp_path / "reference.npz", extractor)[0].result

    by_images = evaluated(folders / "second", folders / "first", extractor)[0].result
    assert result["fid"] == pytest.approx(by_images["fid"], rel=1e-9)
    assert result["reference"]["images"] == 12
    assert result["recall"] * 12 == round(result["recall"] * 12)


# The report


def test_the_report_is_one_page_with_the_numbers(tmp_path, folders, extractor):
    evaluation, reference = evaluated(folders / "second", folders / "first", extractor)

    file = write_report(tmp_path / "report", evaluation, reference)

    page = file.read_text("utf-8")
    assert f"{evaluation.result['fid']:.3f}" in page
    assert reference.about["sha256"] in page
    assert len(re.findall(r"data:image/png;base64,[A-Za-z0-9+/=]{1000}", page)) == 3
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # nothing from elsewhere
    assert json.loads((file.parent / "result.json").read_text()) == evaluation.result


def test_names_in_the_report_are_text_and_no_markup(tmp_path, extractor):
    write_image_folder(tmp_path / "images", ("<b>dot", "ring"), count=5, side=20)
    evaluation, reference = evaluated(tmp_path / "images", tmp_path / "images", extractor)

    page = write_report(tmp_path / "report", evaluation, reference).read_text("utf-8")

    assert "&lt;b&gt;dot" in page and "<b>dot" not in page


# Sweeps


def test_a_sweep_goes_on_where_it_was_cut_off(tmp_path, folders, extractor, monkeypatch):
    pipe = make_pipe()
    save_npz(tmp_path / "reference.npz", side=10)
    reference = prepare_reference(open_source(tmp_path / "reference.npz"), extractor)
    plan = SamplePlan(11, 2, batch_size=11)
    settings = pipe.resolve_settings()
    sample_sweep(pipe, tmp_path / "sweep", plan, settings, [1, 2.5])

    sweep = evaluate_sweep(tmp_path / "sweep", [1, 2.5], reference, extractor, min_images=0)

    assert [point["guidance_scale"] for point in sweep["points"]] == [1, 2.5]
    assert sweep["points"][0]["fid"] != sweep["points"][1]["fid"]
    with Image.open(tmp_path / "sweep" / "sweep.png") as plot:
        assert np.asarray(plot).std() > 10  # something is drawn
    # Neither is anything drawn again nor measured again.
    monkeypatch.setattr("var_hf.evaluation.sampling.draw", None)
    monkeypatch.setattr("var_hf.evaluation.sweep.evaluate_samples", None)
    sample_sweep(pipe, tmp_path / "sweep", plan, settings, [1, 2.5])
    assert evaluate_sweep(tmp_path / "sweep", [1, 2.5], reference, extractor, min_images=0) == sweep


# Bad input


def test_fewer_images_than_published_numbers_are_of_are_refused(folders, extractor):
    with pytest.raises(ValueError, match=r"holds 18 images, .* 50000: .*--min-images 18"):
        evaluated(folders / "second", folders / "first", extractor, min_images=50_000)


def test_a_reference_of_another_resolution_is_refused(tmp_path, folders, extractor):
    save_npz(tmp_path / "large.npz", side=24)

    with pytest.raises(ValueError, match=r"images of 20 pixels a side and the reference .* of 24"):
        evaluated(folders / "first", tmp_path / "large.npz", extractor)


def test_images_of_mixed_size_are_refused(tmp_path, extractor):
    folder = write_image_folder(tmp_path / "images", count=3, side=20)
    an_image(7, side=16).save(folder / "dot" / "001.png")

    with pytest.raises(
        ValueError, match=r"differ in size: the first has 20 x 20 pixels, number 4 has 16 x 16"
    ):
        measure(open_source(folder), extractor)


def test_images_that_are_not_square_are_refused(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (20, 16)).save(tmp_path / "images" / "a.png")

    with pytest.raises(ValueError, match="is not square: it has 20 x 16 pixels"):
        open_source(tmp_path / "images")


@pytest.mark.parametrize("count", [0, 1])
def test_no_image_and_one_image_are_refused(tmp_path, extractor, count):
    np.savez(tmp_path / "few.npz", arr_0=np.zeros((count, 20, 20, 3), np.uint8))

    with pytest.raises(ValueError, match=r"holds no images|holds 1 image; a covariance needs"):
        measure(open_source(tmp_path / "few.npz"), extractor)


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"images": np.zeros(3)}, "holds the arrays images. Expected are arr_0"),
        ({"arr_0": np.zeros((4, 20, 20, 3))}, r"shape \(4, 20, 20, 3\) and the type float64"),
        ({"arr_0": np.zeros((4, 20, 16, 3), np.uint8)}, r"shape \(4, 20, 16, 3\)"),
        ({"mu": np.zeros(3)}, "holds the arrays mu. Expected"),
        (
            {"mu": np.array([np.nan, 0]), "sigma": np.eye(2)},
            "no usable statistics in mu and sigma: .*NaN",
        ),
        ({"mu": np.zeros(2), "sigma": np.eye(3)}, "no usable statistics in mu and sigma: .*shapes"),
        ({"mu": np.array([{}, {}], dtype=object), "sigma": np.eye(2)}, "mu of .* Python objects"),
        ({"arr_0": np.array([{}], dtype=object)}, "as Python objects"),
    ],
)
def test_an_npz_without_the_expected_arrays_is_refused(tmp_path, arrays, problem):
    np.savez(tmp_path / "odd.npz", **arrays)

    with pytest.raises(ValueError, match=problem):
        open_source(tmp_path / "odd.npz")


def test_statistics_of_another_extractor_are_refused(tmp_path, folders, extractor):
    _, reference = evaluated(folders / "second", folders / "first", extractor)
    write_statistics(tmp_path / "statistics.npz", reference, extractor)
    save_classifier(SmallClassifier(3, channels=(8, 16)).eval(), NAMES, tmp_path / "o.safetensors")
    other = load_features(str(tmp_path / "o.safetensors"))

    with pytest.raises(
        ValueError, match=r"made with classifier.safetensors .* looked at with o.safetensors"
    ):
        prepare_reference(open_source(tmp_path / "statistics.npz"), other)
    np.savez(tmp_path / "unnamed.npz", mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(ValueError, match=r"unnamed.npz: statistics of 16 and of 5 features"):
        evaluated(folders / "first", tmp_path / "unnamed.npz", extractor)


def test_an_npz_that_was_cut_off_is_refused(tmp_path, extractor):
    save_npz(tmp_path / "whole.npz", count=40)
    content = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:5000])
    # A zip whose table of contents survived, and whose array did not.
    (tmp_path / "short.npz").write_bytes(content[:200] + content[4200:])

    with pytest.raises(OSError, match=r"cut.npz cannot be read, the file is damaged"):
        open_source(tmp_path / "cut.npz")
    with pytest.raises((OSError, ValueError), match=r"short.npz"):
        measure(open_source(tmp_path / "short.npz"), extractor)
    with pytest.raises(FileNotFoundError, match=r"There is no file .*none.npz"):
        open_source(tmp_path / "none.npz")


def test_a_damaged_sample_set_is_refused_before_anything_is_measured(tmp_path, extractor):
    pipe = make_pipe()
    plan = SamplePlan(11, 1, batch_size=11, format="tar")
    sample_images(pipe, tmp_path / "set", plan, pipe.resolve_settings())
    shard = tmp_path / "set" / "shard-00000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])

    with pytest.raises(OSError, match=r"shard-00000.tar has \d+ bytes, \d+ were written"):
        measure(open_source(tmp_path / "set"), extractor)


def test_an_unreadable_image_is_named(tmp_path, extractor):
    folder = write_image_folder(tmp_path / "images", count=3, side=20)
    (folder / "dot" / "001.png").write_bytes(b"no image")

    with pytest.raises(OSError, match=r"001.png cannot be read as an image"):
        measure(open_source(folder), extractor)


def test_statistics_alone_are_no_samples(tmp_path):
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(5), sigma=np.eye(5))

    assert isinstance(open_source(tmp_path / "statistics.npz"), StatisticsFile)
