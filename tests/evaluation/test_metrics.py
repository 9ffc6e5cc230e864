import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from var_hf.evaluation.metrics import (
    Moments,
    MomentsBuilder,
    coverage,
    frechet_distance,
    inception_score,
    moments,
)


def random_features(seed, count=60, size=7):
    """Correlated features, far from zero."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) @ mix + 3 * seed


def random_probabilities(seed, count=60, classes=5):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(count, classes, generator=generator, dtype=torch.float64)).softmax(1)


# Moments


@given(st.lists(st.integers(1, 13), min_size=2, max_size=6), st.integers(0, 100))
def test_moments_do_not_depend_on_how_features_are_cut_into_batches(sizes, seed):
    features = random_features(seed, count=sum(sizes)) + 1e4
    builder = MomentsBuilder()
    for batch in features.split(sizes):
        builder.add(batch)

    found = builder.finish()

    np.testing.assert_allclose(found.mean, features.numpy().mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        found.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize("count", [0, 1])
def test_a_covariance_needs_two_images(count):
    builder = MomentsBuilder()
    if count:
        builder.add(torch.zeros(count, 3))

    with pytest.raises(ValueError, match=f"at least two images. Got {count}"):
        builder.finish()


@pytest.mark.parametrize(
    ("mean", "covariance", "problem"),
    [
        (np.zeros(3), np.eye(4), r"shapes \(3,\) and \(4, 4\)"),
        (np.zeros((3, 1)), np.eye(3), r"shapes \(3, 1\)"),
        (np.array([0, np.nan, 0]), np.eye(3), "NaN or infinity"),
        (np.zeros(3), np.full((3, 3), np.inf), "NaN or infinity"),
        (np.zeros(2), np.array([[1.0, 0.5], [0.1, 1.0]]), "not symmetric"),
    ],
)
def test_statistics_that_no_images_have_are_refused(mean, covariance, problem):
    with pytest.raises(ValueError, match=problem):
        Moments(mean, covariance)


# Fréchet distance


@given(st.lists(st.floats(0.01, 9), min_size=3, max_size=3), st.floats(-4, 4), st.integers(0, 50))
def test_two_gaussians_with_common_axes_have_the_closed_form(variances, shift, seed):
    """With common axes the distance is that of the standard deviations, axis by axis."""
    axes = torch.linalg.qr(random_features(seed, count=3, size=3)).Q.numpy()
    first = Moments(np.zeros(3), axes @ np.diag(variances) @ axes.T)
    second = Moments(np.full(3, shift), axes @ np.diag([1.0, 2.0, 3.0]) @ axes.T)

    expected = 3 * shift**2 + sum(
        (math.sqrt(a) - math.sqrt(b)) ** 2 for a, b in zip(variances, [1, 2, 3], strict=True)
    )
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9, abs=1e-11)


@given(st.integers(0, 1000))
def test_the_distance_is_that_of_scipys_matrix_root(seed):
    first, second = moments(random_features(seed)), moments(random_features(seed + 1))

    root = linalg.sqrtm(first.covariance @ second.covariance)
    shift = first.mean - second.mean
    expected = shift @ shift + np.trace(first.covariance + second.covariance - 2 * root.real)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_the_distance_is_that_of_torchmetrics():
    class Features(nn.Identity):
        num_features = 7

    metric = FrechetInceptionDistance(feature=Features()).set_dtype(torch.float64)
    first, second = random_features(3), random_features(4, count=90)
    metric.update(first, real=True)
    metric.update(second, real=False)

    expected = metric.compute().item()
    assert frechet_distance(moments(first), moments(second)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [5, 60])  # fewer than features, and more
def test_a_set_is_at_distance_zero_from_itself(count):
    found = moments(random_features(1, count=count, size=19))

    assert frechet_distance(found, found) == pytest.approx(0, abs=1e-9)


@given(st.integers(0, 1000))
def test_the_distance_is_symmetric(seed):
    first, second = moments(random_features(seed)), moments(random_features(seed + 1, count=5))

    assert frechet_distance(first, second) == pytest.approx(
        frechet_distance(second, first), rel=1e-9
    )


def test_features_of_different_extractors_are_refused():
    with pytest.raises(ValueError, match="statistics of 7 and of 5 features"):
        frechet_distance(moments(random_features(1)), moments(random_features(1, size=5)))


# Inception Score


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save all extracted features")
@pytest.mark.filterwarnings(
    "ignore:std\\(\\):UserWarning"
)  # its spread over one split, which we do not ask for
def test_the_score_is_that_of_torchmetrics():
    metric = InceptionScore(feature=nn.Identity(), splits=1)
    probabilities = random_probabilities(2, count=80)
    metric.update(probabilities.log())

    expected = metric.compute()[0].item()
    assert inception_score(probabilities) == pytest.approx(expected, rel=1e-6)


def test_sure_guesses_score_the_number_of_classes():
    assert inception_score(torch.eye(6).repeat(4, 1)) == pytest.approx(6)


def test_clueless_guesses_score_one():
    assert inception_score(torch.full((9, 5), 0.2)) == pytest.approx(1)


@given(st.permutations(range(20)))
def test_the_score_of_a_whole_set_does_not_depend_on_its_order(order):
    probabilities = random_probabilities(5, count=20)

    assert inception_score(probabilities[list(order)]) == pytest.approx(
        inception_score(probabilities), rel=1e-12
    )


def test_blocks_in_the_order_of_the_classes_score_a_fraction():
    """What happens to a file in the order of its classes in the evaluator of ADM."""
    guesses = torch.eye(6).repeat_interleave(10, dim=0)

    assert inception_score(guesses, block=20) == pytest.approx(2)
    assert inception_score(guesses[torch.arange(60).view(6, 10).T.flatten()], 20) > 5.9


# Precision and recall


@given(st.integers(0, 200), st.integers(1, 5))
def test_precision_and_recall_are_those_of_scikit_learns_neighbours(seed, neighbours):
    samples = random_features(seed, count=40).numpy()
    reference = random_features(seed + 2, count=50).numpy() * 0.5 + samples.mean(axis=0)

    def share_on_manifold(points, members):
        # Its own nearest neighbour is each member itself.
        tree = NearestNeighbors(n_neighbors=neighbours + 1).fit(members)
        radii = tree.kneighbors(members)[0][:, -1]
        distances = np.linalg.norm(points[:, None] - members[None], axis=2)
        return (distances <= radii).any(axis=1).mean()

    found = coverage(torch.from_numpy(samples), torch.from_numpy(reference), neighbours)

    assert found.precision == share_on_manifold(samples, reference)
    assert found.recall == share_on_manifold(reference, samples)


def test_a_set_covers_itself():
    features = random_features(8).float()

    found = coverage(features, features)

    assert (found.precision, found.recall) == (1, 1)
    assert found.nearest.max() == 0


def test_a_model_that_draws_half_of_the_world_and_as_much_nonsense():
    """Two far clusters are the reference; the samples know one of them, and a third place."""
    cluster = random_features(9, count=30, size=3)
    reference = torch.cat([cluster, cluster + 1000])
    samples = torch.cat([cluster, cluster - 1000])

    found = coverage(samples, reference)

    assert (found.precision, found.recall) == (0.5, 0.5)
    assert found.in_reference[:30].all()


def test_one_image_learnt_by_heart_is_precise_and_covers_nothing():
    reference = random_features(10, count=40)

    found = coverage(reference[:1].repeat(20, 1), reference)

    assert found.precision == 1
    assert found.recall == pytest.approx(1 / 40)  # a ball of no size holds itself


def test_distances_are_the_same_however_many_rows_are_taken_at_a_time(monkeypatch):
    samples, reference = random_features(11), random_features(12, count=50)
    expected = coverage(samples, reference)

    monkeypatch.setattr("var_hf.evaluation.metrics._ROWS", 7)
    found = coverage(samples, reference)

    for name in ("in_reference", "in_samples", "nearest", "reference_nearest"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


def test_manifolds_of_three_images_are_refused():
    with pytest.raises(ValueError, match="more than 3 images in each set; the samples have 3"):
        coverage(random_features(1, count=3), random_features(2))
