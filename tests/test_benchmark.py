"""Figures are checked for what they are, never for how large they are."""

import json

import pytest
import torch
from conftest import make_pipe, make_transformer

from var_hf import VARCollaborativePipeline, benchmark
from var_hf.costs import Device

CPU = torch.device("cpu")


def test_a_pipeline_is_measured():
    pipe = make_pipe()

    found = benchmark.benchmark(pipe, 3, rounds=2)

    json.dumps(found)
    assert found["batch_size"] == 3
    assert len(found["seconds"]) == 2
    assert found["images_per_second"] == 3 / found["median_seconds"]
    assert min(found["seconds"]) <= found["median_seconds"] <= max(found["seconds"])
    assert found["limit"]["seconds"] > 0
    assert len(found["parts"]["transformer_by_scale"]) == pipe.num_timesteps
    # Images are decoded one by one on a CPU; all of it is the decoder's.
    parts = found["parts"]
    total = parts["transformer"] + parts["decoder"] + parts["sampling"]
    assert total == pytest.approx(parts["total"])
    assert min(parts["transformer"], parts["decoder"], parts["sampling"]) > 0
    assert not pipe.transformer._forward_hooks
    assert not pipe.vqvae.decoder._forward_hooks


def test_without_guidance_the_counted_work_is_half_of_the_transformers():
    pipe = make_pipe()

    guided, alone, half = (
        benchmark.benchmark(pipe, 1, rounds=1, **settings)["flops"]
        for settings in ({}, {"guidance_scale": 1.0}, {"guided_scales": 0})
    )

    assert alone == half < guided


def test_peak_memory_sees_what_was_taken_and_given_back():
    if not (benchmark._PROCESS / "clear_refs").exists():
        pytest.skip("peak memory of a process can be told on Linux only")
    with benchmark.peak_memory(CPU) as before:
        pass
    with benchmark.peak_memory(CPU) as during:
        torch.ones(50_000_000).sum()  # 200 MB
    with benchmark.peak_memory(CPU) as after:
        pass

    assert during["peak"] > before["peak"] + 150e6
    assert after["peak"] < during["peak"] - 150e6


def test_the_machine_is_named():
    found = benchmark.machine(CPU)

    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["device"] == "cpu"
    assert found["processor"]


def test_what_the_machine_reaches_is_a_speed():
    reached = benchmark.reached_limits(torch.float32, CPU)

    assert isinstance(reached, Device)
    assert reached.flops > 0
    assert reached.bandwidth > 0


@pytest.mark.slow
def test_random_weights_of_a_published_size_draw():
    pipe = benchmark.random_pipeline("d16", torch.bfloat16, CPU)

    output = next(pipe.stream(207))

    assert sum(p.numel() for p in pipe.transformer.parameters()) == 310_283_520
    assert pipe.transformer.dtype == pipe.vqvae.decoder.conv_in.weight.dtype == torch.bfloat16
    assert pipe.vqvae.quantizer.codebook.weight.dtype == torch.float32
    assert pipe.transformer.layers[0].self_attn.logit_scale.dtype == torch.float32
    assert output.logits.isfinite().all()
    assert output.logits.std() > 0.1


# The command


def test_bench_prints_a_table_and_writes_json(var_hf, pipe_folder, tmp_path):
    code, out, _ = var_hf(
        "bench",
        "-m",
        pipe_folder,
        "--batch-size",
        1,
        "--batch-size",
        2,
        "--rounds",
        1,
        "--dtype",
        "float32",
        "-o",
        "b.json",
    )

    assert code == 0
    assert out.split()[:3] == ["batch", "dtype", "median"]
    assert out.count("transformer by scale") == 2
    written = json.loads((tmp_path / "b.json").read_text())
    assert [one["batch_size"] for one in written["results"]] == [1, 2]
    assert {one["dtype"] for one in written["results"]} == {"float32"}
    assert written["random_weights"] is False
    assert written["machine"]["torch"] == torch.__version__


def test_a_plan_is_printed_at_once(var_hf):
    code, out, _ = var_hf("bench", "--plan", "d30", "--batch-size", 64)

    assert code == 0
    assert "2,010 M weights" in out
    assert "least time on H100 SXM" in out


def test_a_plan_as_json(var_hf):
    code, out, _ = var_hf("bench", "--plan", "d36", "--dtype", "float32", "--cfg", 0, "--json")

    assert code == 0
    (planned,) = json.loads(out)["plans"]
    assert planned["image_size"] == 512
    assert planned["tokens"] == 2240
    assert planned["weight_bytes"] == 4 * (2_353_893_904 + planned["decoder_parameters"])
    assert planned["least_seconds"] == {}  # the devices' speeds are of half precision


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Pass one of --size, --model and --plan."),
        (("--plan", "d16", "--dtype", "int8"), "--plan computes floating point only."),
        (("--size", "d16", "--plan", "d16"), "Pass one of --size, --model and --plan."),
        (("--plan", "d17"), "The published sizes are d16, d20, d24, d30, d36. Got d17."),
        (("--size", "large"), "Got large."),
        (("--size", "d16", "--device", "abacus"), "There is no device 'abacus'."),
    ],
)
def test_bad_input_is_one_line(fails, arguments, message):
    assert message in fails("bench", *arguments)


def test_a_pair_of_models_is_planned(var_hf):
    pair = ("bench", "--plan", "d30", "--refiner", "d16", "--dtype", "float32")
    plans = []
    for draft_scales in (0, 8, 10):
        code, out, err = var_hf(*pair, "--draft-scales", draft_scales, "--json")
        assert code == 0, err
        plans += json.loads(out)["plans"]
    alone = [benchmark.plan(size, 1, bytes_per_number=4) for size in ("d16", "d30")]

    assert [plans[0]["flops"], plans[2]["flops"]] == [one["flops"] for one in alone]
    assert alone[0]["flops"] < plans[1]["flops"] < alone[1]["flops"]
    assert len(plans[1]["scales"]) == 10
    weights = [one["transformer_parameters"] for one in (*alone, plans[1])]
    assert sum(weights[:2]) == weights[2]
    assert plans[1]["weight_bytes"] == 4 * (weights[2] + plans[1]["decoder_parameters"])
    code, out, _ = var_hf(*pair)
    assert out.startswith("d30 for 8 scales, then d16, 1 image")


def test_a_pair_of_models_is_measured():
    plain = make_pipe()
    pair = VARCollaborativePipeline.from_pipe(
        plain, refiner=make_transformer(num_hidden_layers=1), draft_scales=3
    )

    found = benchmark.benchmark(pair, 1, rounds=1)

    assert len(found["parts"]["transformer_by_scale"]) == 4
    assert found["flops"] < benchmark.benchmark(plain, 1, rounds=1)["flops"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--plan", "d30", "--refiner", "d17"), "The published sizes are"),
        (("--plan", "d30", "--refiner", "d36"), "differ in token_map_sizes"),
        (("--plan", "d30", "--draft-scales", 2), "pass --refiner as well"),
        (("--plan", "d30", "--refiner", "d16", "--draft-scales", 11), "from 0 (the refiner"),
    ],
)
def test_pairs_that_cannot_be_planned_are_refused(fails, arguments, problem):
    assert problem in fails("bench", *arguments)
