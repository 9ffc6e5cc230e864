import pytest
import torch
from conftest import seeded
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from var_hf import NextScaleScheduler
from var_hf.sampling_settings import temperature_at

BATCH, LENGTH, CODES = 3, 4, 17
finite = st.floats(-20, 20, width=32)
logit_arrays = arrays.arrays("float32", (2, 3, CODES), elements=finite).map(torch.from_numpy)
# Few different values: ties everywhere.
tied_arrays = arrays.arrays("float32", (2, 3, CODES), elements=st.integers(-2, 2)).map(
    torch.from_numpy
)
top_ks = st.integers(0, CODES + 3)
top_ps = st.sampled_from([1e-9, 1e-3, 0.5, 0.96]) | st.floats(0.001, 1.0)


def random_logits(seed=0, batch=BATCH):
    return 3 * torch.randn(batch, LENGTH, CODES, generator=seeded(seed))


# Guidance


@given(logit_arrays, logit_arrays, st.floats(0, 1), st.floats(1, 10))
def test_guidance_pushes_away_from_the_unconditional_logits(cond, uncond, progress, scale):
    guided = NextScaleScheduler().guide(cond, uncond, progress, scale)

    t = (scale - 1) * progress
    torch.testing.assert_close(guided, cond + t * (cond - uncond), atol=1e-3, rtol=1e-5)


def test_guidance_is_off_at_the_coarsest_scale_and_full_at_the_finest():
    scheduler, cond, uncond = NextScaleScheduler(), random_logits(0), random_logits(1)

    assert torch.equal(scheduler.guide(cond, uncond, 0.0, 4.0), cond)
    torch.testing.assert_close(scheduler.guide(cond, uncond, 1.0, 4.0), 4 * cond - 3 * uncond)
    torch.testing.assert_close(scheduler.guide(cond, uncond, 0.5, 4.0), 2.5 * cond - 1.5 * uncond)


def test_the_releases_cfg_of_1_5_is_a_guidance_scale_of_2_5():
    """The release: guided = (1 + t) * cond - t * uncond with t = cfg * scale / (S - 1)."""
    cond, uncond = random_logits(0), random_logits(1)

    for scale in range(10):
        t = 1.5 * scale / 9
        guided = NextScaleScheduler().guide(cond, uncond, scale / 9, 2.5)
        assert torch.equal(guided, (1 + t) * cond - t * uncond)


# Filtering


@given(st.one_of(logit_arrays, tied_arrays), top_ks, top_ps)
def test_filters_only_remove_and_never_the_largest(logits, top_k, top_p):
    kept = NextScaleScheduler().filter(logits, top_k, top_p)

    removed = kept == -torch.inf
    assert torch.equal(kept[~removed], logits[~removed])
    largest = logits.max(-1, keepdim=True).values
    assert (kept.max(-1, keepdim=True).values == largest).all()


@given(st.one_of(logit_arrays, tied_arrays), st.integers(1, CODES - 1))
def test_top_k_keeps_the_k_largest_and_whatever_ties_with_the_last_of_them(logits, top_k):
    kept = NextScaleScheduler().filter(logits, top_k, 1.0) > -torch.inf

    larger = (logits[..., None, :] > logits[..., :, None]).sum(-1)  # how many beat each code
    assert torch.equal(kept, larger < top_k)


@given(st.one_of(logit_arrays, tied_arrays), top_ks, top_ps)
def test_top_p_removes_the_unlikely_end_of_what_top_k_left(logits, top_k, top_p):
    """A code goes if all codes up to its likelihood sum to at most 1 - p, ties included."""
    scheduler = NextScaleScheduler()
    probabilities = scheduler.filter(logits, top_k, 1.0).double().softmax(-1)

    kept = scheduler.filter(logits, top_k, top_p) > -torch.inf

    no_likelier = probabilities[..., None, :] <= probabilities[..., :, None]
    mass = torch.where(no_likelier, probabilities[..., None, :], 0).sum(-1)
    largest = probabilities == probabilities.max(-1, keepdim=True).values
    expected = (probabilities > 0) & ((mass > 1 - top_p) | largest)
    at_the_edge = (mass - (1 - top_p)).abs() < 1e-5  # float32 decides
    assert torch.equal(kept | at_the_edge, expected | at_the_edge)
    assert (torch.where(kept, probabilities, 0).sum(-1) >= top_p - 1e-5).all()


def test_top_p_counts_what_top_k_has_left():
    logits = torch.tensor([[[0.4, 0.3, 0.2, 0.1]]]).log()

    # Of the two that top-k leaves, the first has 4/7 of the probability: enough for 0.55, not for
    # 0.6.
    one = NextScaleScheduler().filter(logits, 2, 0.55) > -torch.inf
    two = NextScaleScheduler().filter(logits, 2, 0.6) > -torch.inf

    assert one.tolist() == [[[True, False, False, False]]]
    assert two.tolist() == [[[True, True, False, False]]]


@given(st.one_of(logit_arrays, tied_arrays), st.sampled_from([0, CODES, CODES + 1, 10_000]))
def test_filters_that_are_off_change_nothing(logits, top_k):
    assert torch.equal(NextScaleScheduler().filter(logits, top_k, 1.0), logits)


@given(tied_arrays, top_ks, top_ps, st.permutations(range(CODES)))
def test_filters_do_not_care_about_the_order_of_the_codes(logits, top_k, top_p, order):
    scheduler = NextScaleScheduler()

    shuffled = scheduler.filter(logits[..., order], top_k, top_p)

    assert torch.equal(shuffled, scheduler.filter(logits, top_k, top_p)[..., order])


# Drawing


def test_the_same_seed_draws_the_same_tokens():
    scheduler, logits = NextScaleScheduler(top_k=0), random_logits()

    first = scheduler.step(logits, 0.5, generator=seeded(7))
    again = scheduler.step(logits, 0.5, generator=seeded(7))
    other = scheduler.step(logits, 0.5, generator=seeded(8))

    assert first.tokens.shape == (BATCH, LENGTH)
    assert first.tokens.dtype == torch.int64
    assert first.code_weights is None
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, other.tokens)


def test_without_a_generator_the_global_seed_counts():
    scheduler, logits = NextScaleScheduler(top_k=0), random_logits()

    with torch.random.fork_rng():
        torch.manual_seed(5)
        first = scheduler.step(logits, 0.5).tokens
        torch.manual_seed(5)
        assert torch.equal(scheduler.step(logits, 0.5).tokens, first)


def test_one_generator_makes_one_draw_over_the_whole_batch():
    logits = random_logits()

    drawn = NextScaleScheduler(top_k=0, top_p=1.0).step(logits, 0.0, generator=seeded(3)).tokens

    at_once = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=seeded(3))
    assert torch.equal(drawn, at_once.view(BATCH, LENGTH))


@pytest.mark.parametrize("sampling", ["multinomial", "gumbel_softmax"])
def test_with_a_list_of_generators_an_image_ignores_its_batch_mates(sampling):
    scheduler, logits = NextScaleScheduler(sampling=sampling, top_k=5), random_logits()

    batch = scheduler.step(logits, 0.5, generator=[seeded(i) for i in range(BATCH)])

    for i in range(BATCH):
        alone = scheduler.step(logits[i : i + 1], 0.5, generator=[seeded(i)])
        as_one = scheduler.step(logits[i : i + 1], 0.5, generator=seeded(i))
        assert torch.equal(batch.tokens[i : i + 1], alone.tokens)
        assert torch.equal(alone.tokens, as_one.tokens)
        if sampling == "gumbel_softmax":
            assert torch.equal(batch.code_weights[i : i + 1], alone.code_weights)


@pytest.mark.parametrize("count", [0, 1, BATCH - 1, BATCH + 1])
def test_a_list_of_generators_of_another_length_is_refused(count):
    with pytest.raises(ValueError, match=f"{count} generators for {BATCH} images"):
        NextScaleScheduler().step(random_logits(), 0.5, generator=[seeded(i) for i in range(count)])


@given(logit_arrays, top_ks, top_ps, st.integers(0, 99))
def test_only_what_the_filters_keep_is_drawn(logits, top_k, top_p, seed):
    scheduler = NextScaleScheduler()

    drawn = scheduler.step(logits, 0.5, top_k=top_k, top_p=top_p, generator=seeded(seed)).tokens

    kept = scheduler.filter(logits, top_k, top_p) > -torch.inf
    assert kept.gather(-1, drawn[..., None]).all()


def test_tokens_come_as_often_as_their_probability_says():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probabilities.log().expand(1, 40_000, 4)

    drawn = NextScaleScheduler(top_k=0, top_p=1.0).step(logits, 0.0, generator=seeded(0)).tokens

    share = drawn.flatten().bincount(minlength=4) / 40_000
    torch.testing.assert_close(share, probabilities, atol=0.01, rtol=0)  # four standard deviations


@given(logit_arrays, st.floats(0, 1), st.integers(0, 99))
def test_gumbel_weights_are_a_mixture_of_the_codes_that_may_be_drawn(logits, progress, seed):
    scheduler = NextScaleScheduler(sampling="gumbel_softmax", top_k=5)

    weights = scheduler.step(logits, progress, generator=seeded(seed)).code_weights

    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))
    removed = scheduler.filter(logits, 5, 0.96) == -torch.inf
    assert (weights[removed] == 0).all()


def test_gumbel_softmax_with_one_code_to_choose_from_is_plain_drawing():
    scheduler, logits = NextScaleScheduler(top_k=1), random_logits()

    step = scheduler.step(logits, 0.3, sampling="gumbel_softmax", generator=seeded(0))

    plain = scheduler.step(logits, 0.3, generator=seeded(0))
    one_hot = torch.nn.functional.one_hot(logits.argmax(-1), CODES).float()
    assert torch.equal(step.tokens, plain.tokens)
    assert torch.equal(step.code_weights, one_hot)


def test_gumbel_weights_sharpen_from_scale_to_scale():
    scheduler, logits = NextScaleScheduler(), random_logits(batch=50)

    (noise,) = scheduler.noise(logits, "multinomial", seeded(0))

    peaks = [
        scheduler.gumbel_weights(logits, progress, noise).max(-1).values.mean().item()
        for progress in (0.0, 0.5, 1.0)
    ]

    assert peaks == sorted(peaks)
    assert peaks[-1] > 0.99 > peaks[0]


@pytest.mark.parametrize("sampling", ["multinomial", "gumbel_softmax"])
@pytest.mark.parametrize("several", [False, True])
def test_noise_drawn_before_is_that_of_the_generator(sampling, several):
    scheduler, logits = NextScaleScheduler(), random_logits()

    def generator():
        return [seeded(i) for i in range(BATCH)] if several else seeded(4)

    noise = scheduler.noise(torch.empty(()).expand(logits.shape), sampling, generator())
    given = scheduler.step(logits, 0.5, sampling=sampling, noise=noise)

    step = scheduler.step(logits, 0.5, sampling=sampling, generator=generator())
    assert torch.equal(given.tokens, step.tokens)
    if sampling == "gumbel_softmax":
        assert torch.equal(given.code_weights, step.code_weights)


def test_gumbel_softmax_draws_the_same_tokens_first():
    """The draw is part of the release's random stream also where its result is not used."""
    scheduler, logits = NextScaleScheduler(), random_logits()

    plain = scheduler.step(logits, 0.5, generator=seeded(4))
    smooth = scheduler.step(logits, 0.5, sampling="gumbel_softmax", generator=seeded(4))

    assert torch.equal(plain.tokens, smooth.tokens)


def test_a_tuple_holds_what_the_output_holds():
    scheduler, logits = NextScaleScheduler(sampling="gumbel_softmax"), random_logits()

    tokens, code_weights = scheduler.step(logits, 0.5, generator=seeded(0), return_dict=False)

    output = scheduler.step(logits, 0.5, generator=seeded(0))
    assert torch.equal(tokens, output.tokens)
    assert torch.equal(code_weights, output.code_weights)


def test_a_step_leaves_the_logits_as_they_were():
    logits = random_logits()
    before = logits.clone()

    NextScaleScheduler(top_k=3, top_p=0.5, sampling="gumbel_softmax").step(logits, 0.5)

    assert torch.equal(logits, before)


# Settings


def test_the_defaults_are_the_settings_of_the_published_fid():
    config = NextScaleScheduler().config

    assert (config.guidance_scale, config.top_k, config.top_p) == (2.5, 900, 0.96)
    assert (config.sampling, config.gumbel_temperature) == ("multinomial", 0.27)


def test_stored_settings_come_back_and_count(tmp_path):
    settings = {"guidance_scale": 4.0, "top_k": 1, "top_p": 0.5, "sampling": "gumbel_softmax"}
    NextScaleScheduler(**settings).save_pretrained(tmp_path)

    loaded = NextScaleScheduler.from_pretrained(tmp_path)

    assert loaded.config.items() >= settings.items()
    assert (tmp_path / "scheduler_config.json").exists()
    step = loaded.step(random_logits(), 0.5)
    assert torch.equal(step.tokens, random_logits().argmax(-1))
    assert step.code_weights is not None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"top_k": -1}, "top_k must be a whole number of at least 0"),
        ({"top_k": 2.5}, "top_k must be a whole number of at least 0"),
        ({"top_k": True}, "top_k must be a whole number of at least 0"),
        ({"top_k": float("nan")}, "top_k must be a whole number of at least 0"),
        ({"top_k": float("inf")}, "top_k must be a whole number of at least 0"),
        ({"top_k": "many"}, "top_k must be a whole number of at least 0"),
        ({"top_p": 0.0}, r"top_p must be a finite number in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p must be a finite number in \(0, 1\]"),
        ({"top_p": -0.5}, r"top_p must be a finite number in \(0, 1\]"),
        ({"top_p": float("nan")}, r"top_p must be a finite number in \(0, 1\]"),
        ({"top_p": "most"}, r"top_p must be a finite number in \(0, 1\]"),
        ({"sampling": "argmax"}, 'sampling must be one of "multinomial", "gumbel_softmax"'),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_where_they_are_stored_and_where_they_are_used(
    setting, message
):
    with pytest.raises(ValueError, match=message):
        NextScaleScheduler(**setting)
    with pytest.raises(ValueError, match=message):
        NextScaleScheduler().step(random_logits(), 0.5, **setting)


@pytest.mark.parametrize("guidance_scale", [-1.0, float("nan"), float("inf"), "strong"])
def test_a_guidance_scale_out_of_range_is_refused(guidance_scale):
    with pytest.raises(ValueError, match="guidance_scale must be a finite number of at least 0"):
        NextScaleScheduler(guidance_scale=guidance_scale)


@pytest.mark.parametrize("num_scales", [2, 7, 10, 64])
def test_each_scale_has_its_temperature(num_scales):
    temperatures = [1 + scale for scale in range(num_scales)]
    found = [temperature_at(temperatures, s / (num_scales - 1)) for s in range(num_scales)]
    assert found == temperatures
    assert temperature_at(0.7, 0.5) == 0.7


def test_a_list_of_temperatures_divides_scale_by_scale():
    logits = torch.randn(2, 5, 11, generator=seeded(0))
    options = {"top_k": 0, "top_p": 1.0, "noise": (torch.rand(2, 5, 11, generator=seeded(1)),)}
    scheduler = NextScaleScheduler(temperature=[1.0, 0.01, 3.0])
    for progress, temperature in ((0.0, 1.0), (0.5, 0.01), (1.0, 3.0)):
        by_list = scheduler.step(logits, progress, **options).tokens
        by_number = scheduler.step(logits, progress, temperature=temperature, **options).tokens
        assert torch.equal(by_list, by_number)


@pytest.mark.parametrize("temperature", [[], [1.0, 0.0], [1.0, "hot"], "hot", [True, 1.0]])
def test_a_list_of_other_things_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
        NextScaleScheduler(temperature=temperature)
