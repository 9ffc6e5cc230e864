"""Random numbers and drawing of the runner without torch; needs numpy alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from var_hf import NextScaleScheduler
from var_hf.onnx.drawing import draw, guide, weights
from var_hf.onnx.pipelines import image_seeds, read_squares
from var_hf.onnx.random_numbers import LARGEST_SEED, philox4x32, uniform

# The known answers of Random123's philox4x32 with ten rounds.
KNOWN = [
    ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    (
        [0xFFFFFFFF] * 4,
        (0xFFFFFFFF, 0xFFFFFFFF),
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
    ),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_known_answers(counter, key, words):
    assert philox4x32(np.array(counter, np.uint32), key).tolist() == words


@pytest.mark.parametrize(
    ("seed", "image", "position", "number"),
    [
        (0, 0, 0, 0.39904647231489565),
        (0, 1, 0, 0.41724812920840393),
        (42, 3, 17, 0.23947008550408377),
        (LARGEST_SEED, 0, 0, 0.3229007986588057),
        (2**32 + 7, 2, 679, 0.21604647969548185),
    ],
)
def test_the_documented_numbers_come_out(seed, image, position, number):
    assert uniform(seed, image, np.array([position])).tolist() == [number]
    around = np.arange(position + 2)
    assert uniform(seed, image, around)[position] == number


def test_the_numbers_are_uniform():
    numbers = uniform(5, 0, np.arange(20_000))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts, _ = np.histogram(numbers, 20, (0, 1))
    assert np.square(counts - 1000).sum() / 1000 < 44  # 99.9% of chi-square with 19 degrees


def rows(values):
    return np.array([values], np.float64)


logits = st.lists(st.integers(-6, 6).map(lambda n: n / 2), min_size=2, max_size=12)  # many ties


@given(logits, st.integers(0, 14), st.sampled_from([1.0, 0.95, 0.6, 0.3, 0.01]))
def test_the_kept_codes_are_those_of_the_scheduler(values, top_k, top_p):
    kept = NextScaleScheduler().filter(torch.tensor([[values]]).double(), top_k, top_p)
    ours = weights(rows(values), top_k, top_p)
    assert (ours[0] > 0).tolist() == kept[0, 0].isfinite().tolist()
    np.testing.assert_allclose(ours[0] / ours.sum(), kept[0, 0].softmax(0), atol=1e-12)


@given(logits, st.floats(0, 1, exclude_max=True))
def test_a_draw_inverts_the_distribution(values, number):
    of_codes = weights(rows(values), 0, 1.0)
    sums, total = [], 0.0
    for weight in of_codes[0].tolist():
        total += weight
        sums.append(total)
    expected = next(code for code, each in enumerate(sums) if each > number * total)
    assert draw(of_codes, np.array([number])).tolist() == [expected]


@pytest.mark.parametrize("values", [[1.0, 0.0], [0.1, 1.0, 0.7, 0.0, 0.0]])
def test_the_ends_of_the_interval_give_the_outermost_possible_codes(values):
    ends = np.array([0.0, math.nextafter(1, 0)])
    first, last = draw(np.array([[0.0, *values]] * 2), ends)
    assert first == 1
    assert last == max(code for code, weight in enumerate([0.0, *values]) if weight > 0)


def test_guidance_is_linear_in_float64():
    conditional, unconditional = np.float32([[[1.1, -2]]]), np.float32([[[0.3, 4]]])
    guided = guide(conditional, unconditional, 0.7)
    assert guided.dtype == np.float64
    expected = 1.7 * conditional.astype(float) - 0.7 * unconditional.astype(float)
    assert guided.tolist() == expected.tolist()


def test_seeds_address_images():
    assert image_seeds(7, 3) == [(7, 0), (7, 1), (7, 2)]
    assert image_seeds([7, 9], 2) == [(7, 0), (9, 0)]
    (first, _), (second, _) = image_seeds(None, 1) + image_seeds(None, 1)
    assert first != second


@pytest.mark.parametrize("seed", [-1, 2**53, 1.5, True, "7", [1, None], torch.Generator()])
def test_a_seed_is_a_whole_number_that_javascript_has(seed):
    with pytest.raises(ValueError, match=r"from 0 to 2\^53 - 1"):
        image_seeds(seed, 2)


def test_there_are_as_many_seeds_as_images():
    with pytest.raises(ValueError, match="list of 3 for 2 images"):
        image_seeds([1, 2, 3], 2)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "empty list"),
        (np.zeros((4, 5, 3)), r"5 x 5 pixels.*\(4, 5, 3\)"),
        (np.full((5, 5, 3), 1.5), r"numbers in \[0, 1\]"),
        (np.full((5, 5, 3), np.nan), r"numbers in \[0, 1\]"),
    ],
)
def test_an_image_has_the_size_of_the_model(images, message):
    with pytest.raises(ValueError, match=message):
        read_squares(images, 5)


def test_bytes_and_shares_are_one_image():
    of_bytes = np.arange(75, dtype=np.uint8).reshape(5, 5, 3)
    both = read_squares([of_bytes, of_bytes / 255], 5)
    assert both.shape == (2, 3, 5, 5)
    np.testing.assert_allclose(both[0], both[1], atol=1e-6)
    assert both[0, 1, 2, 3] == np.float32(of_bytes[2, 3, 1]) / 255 * 2 - 1
