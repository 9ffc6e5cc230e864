import pytest
from hypothesis import given
from hypothesis import strategies as st

from var_hf.evaluation.sample_plan import SamplePlan, Share, image_seed

plans = st.builds(
    SamplePlan,
    num_classes=st.integers(1, 9),
    images_per_class=st.integers(1, 9),
    seed=st.integers(0, 2**40),
    shuffle_seed=st.integers(0, 9),
    batch_size=st.integers(1, 9),
    shard_size=st.integers(1, 30),
)


@given(plans)
def test_every_image_of_every_class_has_one_position_and_a_seed_of_its_own(plan):
    images = [plan.image(position) for position in range(len(plan))]
    seeds = {plan.seed_of(position) for position in range(len(plan))}

    assert sorted(images) == [
        (class_id, index)
        for class_id in range(plan.num_classes)
        for index in range(plan.images_per_class)
    ]
    assert len(seeds) == len(plan)
    assert all(0 <= seed < 2**32 for seed in seeds)


@given(plans, st.integers(1, 5))
def test_any_number_of_processes_does_everything_once(plan, count):
    shards = [shard for index in range(count) for shard in Share(index, count).shards(plan)]
    positions = [n for shard in sorted(shards) for batch in plan.batches(shard) for n in batch]

    assert sorted(shards) == list(range(plan.num_shards))
    assert positions == list(range(len(plan)))


def test_fifty_images_of_a_thousand_classes_share_no_seed():
    """Random 32-bit numbers would collide in one set out of four."""
    seeds = {image_seed(7, class_id, index) for class_id in range(1000) for index in range(50)}

    assert len(seeds) == 50_000


def test_the_seed_of_an_image_depends_on_neither_set_nor_order():
    small, large = SamplePlan(11, 2, seed=5), SamplePlan(11, 50, seed=5, shuffle_seed=3)

    of_small = {small.image(n): small.seed_of(n) for n in range(len(small))}
    of_large = {large.image(n): large.seed_of(n) for n in range(len(large))}
    assert of_small.items() <= of_large.items()


def test_the_order_mixes_the_classes():
    plan = SamplePlan(10, 50)

    assert len({plan.image(position)[0] for position in range(50)}) > 5


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"images_per_class": 0}, r"images_per_class must lie in \[1, 65536\]. Got 0"),
        ({"num_classes": 70_000}, "num_classes must lie in .* Got 70000"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"shard_size": 0}, "shard_size must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"format": "jpeg"}, "format must be one of png, tar, npz. Got 'jpeg'"),
    ],
)
def test_plans_that_cannot_be_carried_out_are_refused(change, problem):
    with pytest.raises(ValueError, match=problem):
        SamplePlan(**{"num_classes": 3} | change)


def test_a_launcher_says_which_share_is_ours(monkeypatch):
    assert Share.from_environment() == Share(0, 1, 0)
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)

    assert Share.from_environment() == Share(5, 8, 1)
