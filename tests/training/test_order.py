from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from var_hf.training.order import StepSampler


def positions(*arguments, **keywords):
    return list(StepSampler(*arguments, **keywords))


@given(
    num_samples=st.integers(1, 40),
    share=st.integers(1, 5),
    processes=st.integers(1, 4),
    first=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_processes_share_what_one_process_would_take(num_samples, share, processes, first, seed):
    batch = share * processes
    alone = positions(num_samples, batch, first, first + 3, seed)

    shares = [
        positions(num_samples, batch, first, first + 3, seed, index, processes)
        for index in range(processes)
    ]

    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == alone


@given(num_samples=st.integers(1, 40), batch=st.integers(1, 9), cut=st.integers(0, 12))
def test_a_continued_run_takes_the_same_samples(num_samples, batch, cut):
    whole = positions(num_samples, batch, 0, 12, seed=3)

    assert positions(num_samples, batch, cut, 12, seed=3) == whole[cut:]


@given(num_samples=st.integers(1, 30), batch=st.integers(1, 9))
def test_every_epoch_takes_every_sample_once(num_samples, batch):
    steps = -(-3 * num_samples // batch)
    flat = list(chain(*positions(num_samples, batch, 0, steps, seed=1)))[: 3 * num_samples]

    for epoch in range(3):
        seen = [index for each, index in flat if each == epoch]
        assert sorted(seen) == list(range(num_samples))


def test_epochs_are_shuffled_anew():
    orders = [
        [index for _, index in positions(30, 30, epoch, epoch + 1, seed=5)[0]] for epoch in range(2)
    ]

    assert orders[0] != orders[1]


def test_an_uneven_share_is_refused():
    with pytest.raises(ValueError, match="global batch of 7 images cannot be shared evenly by 2"):
        StepSampler(10, 7, 0, 1, 0, 0, 2)
