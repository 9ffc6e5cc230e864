import json
import math

import pytest
import torch
from conftest import GOLDEN, make_pipe, make_transformer, quiet, seeded
from torch.utils.flop_counter import FlopCounterMode

from var_hf import VARConfig, VARPipeline
from var_hf.budgets import Stage, resolve_budget
from var_hf.conversion import PUBLISHED_TRANSFORMERS
from var_hf.costs import classification_cost
from var_hf.modeling_var import VARLinear
from var_hf.pipelines.classification import Candidates
from var_hf.pipelines.likelihood import token_log_likelihood

SIDE = 10  # of the tiny model's images, in pixels
CLASSES, SCALES = 11, 4
STAGES = [(7, 1), (5, 2), (3, 4), (2, 4, 3)]


@pytest.fixture(scope="module")
def pipe():
    return make_pipe()


def some_images(count=3, height=SIDE, width=SIDE):
    return torch.rand(count, 3, height, width, generator=seeded(3))


def ids(rows):
    return [[guess["class_id"] for guess in row] for row in rows]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_classes_follow_bayes_rule(pipe, batch_size):
    images = some_images(2)
    rows = pipe.classify(images, top=11, batch_size=batch_size)
    for i, row in enumerate(rows):
        by_class = torch.stack(
            [pipe.log_likelihood(images[i], class_id).total[0] for class_id in range(11)]
        )
        posterior = by_class.softmax(0)
        assert [guess["class_id"] for guess in row] == posterior.argsort(descending=True).tolist()
        for guess in row:
            class_id = guess["class_id"]
            assert guess["score"] == pytest.approx(posterior[class_id].item(), rel=1e-3)
            assert guess["log_likelihood"] == pytest.approx(by_class[class_id].item(), rel=1e-5)
            assert guess["label"] == pipe.id2label.get(class_id)
        assert sum(guess["score"] for guess in row) == pytest.approx(1)


def test_the_class_of_an_image_that_a_strongly_conditional_model_drew_is_found():
    """Distant class embeddings make the class matter, so generated images must be recognised."""
    pipe = make_pipe()
    with torch.no_grad():
        pipe.transformer.embeddings.class_embedding.weight.mul_(6)
    labels = [1, 4, 6, 9]
    outputs = list(pipe.stream(labels, guidance_scale=1.0, top_k=0, top_p=1.0, generator=seeded(0)))
    token_maps = [output.tokens for output in outputs]
    tokens = torch.cat(token_maps, dim=1)
    inputs = pipe.vqvae.quantizer.teacher_inputs(token_maps).detach()
    with torch.no_grad():
        totals = torch.stack(
            [token_log_likelihood(pipe, [c] * 4, tokens, inputs).sum(1) for c in range(11)], dim=1
        )
    assert totals.argmax(1).tolist() == labels


def test_classification_counts_pairs_and_can_be_read_as_json(pipe, capsys):
    pipe.set_progress_bar_config()
    rows = pipe.classify(some_images(2), top=2, batch_size=5)
    quiet(pipe)
    assert "22/22" in capsys.readouterr().err
    assert [len(row) for row in json.loads(json.dumps(rows))] == [2, 2]


def test_no_more_rows_than_the_batch_size_are_computed_at_once(pipe):
    rows = []
    hook = pipe.transformer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    encode_hook = pipe.vqvae.encoder.register_forward_pre_hook(
        lambda _, args: rows.append(len(args[0]))
    )
    pipe.classify(some_images(5), batch_size=3)
    hook.remove()
    encode_hook.remove()
    assert max(rows) == 3


# Stages


@pytest.mark.parametrize("golden", ["adaln-256style"], indirect=True)
@pytest.mark.parametrize("run", [0, 1])
def test_every_stage_keeps_the_classes_of_a_varc(golden, run):
    """Also of the noisy samples, which both draw in the same order: in the second run for both
    images at once.
    """
    expected = json.loads((GOLDEN / "a-varc.json").read_text())
    run = expected["runs"][run]
    pipe = quiet(VARPipeline.from_original(golden.var_file, golden.vae_file))
    for number in (1, 2, 3):
        rows = pipe.classify(
            golden.data["image"] / 2 + 0.5,
            top=10,
            batch_size=run["batch_size"],
            budget=expected["stages"][:number],
            smoothing=expected["smoothing"],
            generator=seeded(expected["seed"]),
        )
        for row, stages in zip(rows, run["images"], strict=True):
            found = {str(guess["class_id"]): guess["log_likelihood"] for guess in row}
            assert list(found) == list(stages[number - 1])
            assert found == pytest.approx(stages[number - 1], abs=1e-3)


@pytest.mark.parametrize("budget", [None, "full", [(11, 4)], [(11, 4, 1)]], ids=str)
def test_the_full_search_is_the_default_where_classes_are_few(pipe, budget):
    images = some_images(2)
    totals = torch.stack([pipe.log_likelihood(images, label).total for label in range(CLASSES)], 1)
    rows = pipe.classify(images, top=CLASSES, budget=budget)
    assert ids(rows) == totals.argsort(dim=1, descending=True).tolist()
    for row, total in zip(rows, totals, strict=True):
        for guess in row:
            assert guess["log_likelihood"] == pytest.approx(total[guess["class_id"]].item())


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_stages_keep_the_likeliest_classes_so_far(pipe, batch_size):
    """By log_likelihood of the first scales, which reads them all at once and without a cache."""
    images = some_images(2)
    outputs = [pipe.log_likelihood(images, class_id) for class_id in range(CLASSES)]
    so_far = torch.stack([output.per_scale.cumsum(dim=1) for output in outputs], dim=1)
    rows = pipe.classify(images, budget=[(7, 1), (5, 2), (3, 4)], batch_size=batch_size)
    for row, of_image in zip(rows, so_far, strict=True):
        left = list(range(CLASSES))
        for candidates, scales in ((7, 1), (5, 2), (3, 4)):
            compared = left
            left = sorted(left, key=lambda i: -of_image[i, scales - 1])[:candidates]
        assert [guess["class_id"] for guess in row] == left
        posterior = of_image[compared, -1].softmax(0)
        for guess in row:
            expected = of_image[guess["class_id"], -1].item()
            assert guess["log_likelihood"] == pytest.approx(expected, rel=1e-5)
            probability = posterior[compared.index(guess["class_id"])].item()
            assert guess["score"] == pytest.approx(probability, rel=1e-3)


def test_without_noise_every_sample_is_the_image(pipe):
    images = some_images(2)
    rows = pipe.classify(images, budget=STAGES, smoothing=0)
    once = pipe.classify(images, budget=STAGES[:-1])
    assert ids(rows) == [row[:2] for row in ids(once)]
    assert rows[0][0]["log_likelihood"] == pytest.approx(once[0][0]["log_likelihood"], rel=1e-5)


def test_a_seed_repeats_the_noise(pipe):
    def totals(seed):
        rows = pipe.classify(some_images(2), budget=STAGES, generator=seeded(seed))
        return [guess["log_likelihood"] for row in rows for guess in row]

    assert totals(1) == totals(1)
    assert totals(1) != totals(2)


def test_a_preset_reads_first_scales_under_all_classes_and_the_rest_under_the_likeliest():
    """In a model of many classes the fast search is the default."""
    pipe = make_pipe(transformer=make_transformer(num_classes=101))
    rows = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(args[0])), with_kwargs=True
    )
    guesses = pipe.classify(some_images(1), batch_size=128)
    hook.remove()
    assert rows == [101, 20]  # the first three of four scales, then the last one
    assert len(guesses[0]) == 5


@pytest.mark.parametrize("budget", [[(11, 4)], [(7, 1), (5, 2), (3, 4)], STAGES], ids=str)
@pytest.mark.parametrize("kind", [{}, {"share_modulation": True}], ids=str)
def test_operations_are_those_that_torch_counts(monkeypatch, budget, kind):
    """torch counts no operations of oneDNN, so they go through its plain functions."""
    monkeypatch.setattr(VARLinear, "_through_onednn", lambda *_: False)
    pipe = make_pipe(transformer=make_transformer(**kind))
    pipe.transformer.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counted:
        pipe.classify(some_images(1), budget=budget, batch_size=5)
    counts = counted.get_flop_counts()
    of_inputs = sum(counts.get("VARModel.embeddings", {}).values())

    stages = [Stage(*stage) for stage in budget]
    costs = classification_cost(pipe.transformer.config, stages)

    assert sum(costs) == sum(counts["VARModel"].values()) - of_inputs


def test_the_published_model_takes_twenty_times_fewer_operations():
    config = VARConfig(**PUBLISHED_TRANSFORMERS["d16"].values)
    full, fast, published = (
        sum(classification_cost(config, resolve_budget(name, 1000, 10)))
        for name in ("full", None, "a-varc")
    )
    assert full / fast > 20
    assert full / published > 7


def test_few_classes_may_be_kept_of_many(pipe):
    """Ties go to the lower id."""
    left = Candidates.all_of(2, 4, 1)
    left.log_likelihood = torch.tensor([0.0, 2, 1, 2, 3, 3, 3, 4]).double()
    best = left.likeliest(2, num_images=2)
    assert best.class_ids.tolist() == [1, 3, 3, 0]
    assert best.images.tolist() == [0, 0, 1, 1]


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top"),
        ({"batch_size": -1}, "batch_size"),
        ({"smoothing": -0.1}, "smoothing"),
        ({"smoothing": math.nan}, "smoothing"),
        ({"budget": "slow"}, "full, fast, a-varc, or a list of stages. Got 'slow'"),
        ({"budget": [(12, 4)]}, "Stage 0 .* 1 to 11 classes.* Got 12"),
    ],
)
def test_bad_input_ends_in_one_clear_error(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe.classify(some_images(1), **options)


def test_an_image_needs_pixels(pipe):
    with pytest.raises(ValueError, match="without pixels"):
        pipe.classify(torch.zeros(1, 3, 0, 4))
