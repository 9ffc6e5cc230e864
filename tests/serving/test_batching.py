"""Continuous batching: whatever shares a pass, every picture is that of a call of its own, bit for
bit, and an error or a cancellation concerns one picture alone.
"""

import random

import pytest
import torch
from conftest import make_pipe, make_transformer, seeded

from var_hf import NextScaleScheduler
from var_hf.serving.batching import DONE, Batcher, BatcherThread, Job, Picture

OPTIONS = [
    {},
    {"guidance_scale": 1.0},
    {"guidance_scale": 5.0, "top_k": 5},
    {"guided_scales": 2},
    {"sampling": "gumbel_softmax", "temperature": [1.0, 0.9, 0.8, 0.7]},
    {"ssg_scale": 0.5},
    {"ssg_scale": 0.7, "guidance_schedule": "constant", "guided_scales": [1, 3]},
]


def order(pipe, label, seed, previews=(), **options):
    """A picture, and the list that its results go to."""
    results = []
    class_id = pipe.resolve_labels(label)[0]
    settings = pipe.resolve_settings(**options)
    return Picture(results.append, class_id, seed, settings, previews), results


def run(batcher):
    while batcher.has_work:
        batcher.turn()


def is_offline_picture(pipe, results, label, seed, **options):
    *_, last, done = results
    expected = pipe(label, generator=seeded(seed), **options).images[0]
    return done is DONE and last.images[0].tobytes() == expected.tobytes()


def test_pictures_that_come_at_any_time_with_any_settings_equal_offline_ones(pipe):
    rng = random.Random(0)
    batcher, orders = Batcher(pipe, max_pictures=6), []
    for seed in range(42):
        label, options = rng.choice([0, 3, "hen", None]), OPTIONS[seed % len(OPTIONS)]
        picture, results = order(pipe, label, seed, **options)
        orders.append((results, label, seed, options))
        batcher.add(picture)
        for _ in range(rng.randrange(3)):
            batcher.turn()
    run(batcher)

    assert all(
        is_offline_picture(pipe, results, label, seed, **options)
        for results, label, seed, options in orders
    )
    assert max(results[-2].sharing for results, *_ in orders) > 2


def test_a_newcomer_catches_up_and_shares_the_last_pass(pipe):
    batcher = Batcher(pipe)
    first, of_first = order(pipe, 0, 0)
    second, of_second = order(pipe, 1, 1, guidance_scale=4.0)
    batcher.add(first)
    batcher.turn()
    batcher.turn()
    batcher.add(second)
    run(batcher)

    assert of_first[0].sharing == of_second[0].sharing == 2
    assert batcher.turns == 2 + 2 + 2  # two scales alone, the same two again, two together


def test_no_more_pictures_than_allowed_are_under_way(pipe):
    batcher = Batcher(pipe, max_pictures=2)
    orders = [order(pipe, 0, seed) for seed in range(5)]
    for picture, _ in orders:
        batcher.add(picture)
    batcher.turn()

    assert batcher.room() == 0 and len(batcher.waiting) == 3
    run(batcher)
    assert [results[-1] for _, results in orders] == [DONE] * 5


def test_previews_come_after_the_scales_that_were_asked_for(pipe):
    picture, results = order(pipe, "hen", 3, previews=(0, 2))
    batcher = Batcher(pipe)
    batcher.add(picture)
    batcher.add(order(pipe, "hen", 4)[0])
    run(batcher)

    streamed = [out.image[0] for out in pipe.stream("hen", generator=seeded(3), preview=True)]
    assert [result.scale for result in results[:-1]] == [0, 2, 3]
    assert all(
        result.images[0].tobytes() == streamed[result.scale].tobytes() for result in results[:-1]
    )


@pytest.mark.parametrize("turns", range(4))
def test_a_cancelled_picture_ends_without_a_word_and_its_mates_go_on(pipe, turns):
    batcher = Batcher(pipe)
    orders = [order(pipe, seed, seed, guided_scales=2) for seed in range(3)]
    for picture, _ in orders:
        batcher.add(picture)
    for _ in range(turns):
        batcher.turn()
    orders[1][0].cancelled = True
    run(batcher)

    assert orders[1][1] == []
    for seed in (0, 2):
        assert is_offline_picture(pipe, orders[seed][1], seed, seed, guided_scales=2)


def test_an_error_concerns_the_picture_that_causes_it_alone():
    pipe = make_pipe(transformer=make_transformer())
    with torch.no_grad():
        pipe.transformer.embeddings.class_embedding.weight[7] = torch.nan
    batcher = Batcher(pipe)
    orders = [order(pipe, label, label, previews=(0,)) for label in (6, 7, 8)]
    for picture, _ in orders:
        batcher.add(picture)
    run(batcher)

    (error,) = orders[1][1]
    assert isinstance(error, ValueError) and "not finite" in str(error)
    for label, (_, results) in zip((6, 8), (orders[0], orders[2]), strict=True):
        assert [result.scale for result in results[:-1]] == [0, 3]
        assert is_offline_picture(pipe, results, label, label)


def test_jobs_take_turns_with_pictures(pipe):
    batcher, heard = Batcher(pipe), []
    orders = [order(pipe, 0, seed) for seed in range(2)]

    def steps():
        for step in range(3):
            yield step, sum(len(results) for _, results in orders)

    def fails():
        raise ValueError("no")
        yield

    for picture, _ in orders:
        batcher.add(picture)
    cancelled = Job(heard.append, steps)
    cancelled.cancelled = True
    for job in (Job(heard.append, steps), cancelled, Job(heard.append, fails)):
        batcher.add(job)
    run(batcher)

    assert heard[:4] == [(0, 0), (1, 0), (2, 0), DONE]  # between the scales of the pictures
    assert str(heard[4]) == "no" and len(heard) == 5
    assert all(is_offline_picture(pipe, results, 0, s) for s, (_, results) in enumerate(orders))


def test_models_whose_first_scale_has_several_tokens():
    sizes = (2, 3, 5)
    from conftest import make_vqvae

    pipe = make_pipe(
        transformer=make_transformer(token_map_sizes=sizes),
        vqvae=make_vqvae(token_map_sizes=sizes),
        scheduler=NextScaleScheduler(guidance_scale=1.0, top_k=13),
    )
    batcher = Batcher(pipe)
    orders = [order(pipe, seed, seed) for seed in range(3)]
    for picture, _ in orders:
        batcher.add(picture)
    run(batcher)

    assert all(is_offline_picture(pipe, results, s, s) for s, (_, results) in enumerate(orders))


def test_a_thread_draws_what_comes_from_other_threads_and_stops(pipe):
    import queue

    thread, results = BatcherThread(Batcher(pipe)), queue.Queue()
    for seed in range(3):
        settings = pipe.resolve_settings()
        thread.add(Picture(results.put, 0, seed, settings))
    drawn = [results.get(timeout=30) for _ in range(6)]
    thread.close()

    assert drawn.count(DONE) == 3


@pytest.mark.parametrize("count", [0, 10**9])
def test_a_number_of_pictures_that_cannot_be_is_refused(pipe, count):
    with pytest.raises(ValueError, match=r"at least 1|At most .* fit"):
        Batcher(pipe, max_pictures=count)
