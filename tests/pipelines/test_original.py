import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from hub_server import HubServer
from original_release import original_transformer, original_vqvae
from safetensors.torch import load_file

from var_hf import VARModel, VARPipeline
from var_hf.conversion import CheckpointError, read_original
from var_hf.conversion.class_names import imagenet_class_names
from var_hf.pipelines.original import (
    convert_checkpoint,
    convert_from_hub,
    export_original,
    verify_folder,
)

SIZES = (1, 2, 4)
HALF_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture
def files(tmp_path):
    """A transformer and a VQVAE in the original layout; every dimension is another number."""
    folder = tmp_path / "original"
    folder.mkdir()
    torch.save(original_transformer(sizes=SIZES), folder / "var.pth")
    torch.save(original_vqvae(num_scales=len(SIZES), groups=2), folder / "vae.pth")
    return folder / "var.pth", folder / "vae.pth"


def convert(files, output, **options):
    return convert_checkpoint(*files, output, norm_num_groups=2, **options)


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def in_a_subprocess(script, *arguments, **options):
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def entries(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


# Converting and exporting


def test_a_complete_pipeline_folder_is_written(files, tmp_path):
    output = convert(files, tmp_path / "new" / "out")

    assert output == tmp_path / "new" / "out"
    assert entries(output) == [
        "README.md",
        "model_index.json",
        "provenance.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/model.safetensors",
        "vqvae/config.json",
        "vqvae/diffusion_pytorch_model.safetensors",
    ]
    assert os.listdir(output.parent) == ["out"]
    card = (output / "README.md").read_text()
    assert "var.pth" in card and "vae.pth" in card
    assert "_name_or_path" not in json.loads((output / "model_index.json").read_text())
    modes = {(output / name).stat().st_mode for name in entries(output)}
    assert len(modes) == 1  # weights can be read by whoever can read the rest


def test_convert_then_export_gives_the_two_files_back(files, tmp_path):
    output = convert(files, tmp_path / "out")

    export_original(output, tmp_path / "var_back.pth", tmp_path / "vae_back.pth")

    assert_same_tensors(read_original(tmp_path / "var_back.pth"), read_original(files[0]))
    assert_same_tensors(read_original(tmp_path / "vae_back.pth"), read_original(files[1]))


def test_golden_files_come_back_bit_for_bit(golden, tmp_path):
    output = convert_checkpoint(golden.var_file, golden.vae_file, tmp_path / "out")

    export_original(output, tmp_path / "var.pth", tmp_path / "vae.pth")

    assert_same_tensors(read_original(tmp_path / "var.pth"), golden.var_weights)
    assert_same_tensors(read_original(tmp_path / "vae.pth"), golden.vae_weights)


@torch.no_grad()
def test_the_folder_draws_what_the_files_draw(golden, tmp_path):
    output = convert_checkpoint(golden.var_file, golden.vae_file, tmp_path / "out")
    arguments = {"class_labels": [3, 5], "output_type": "pt"}

    images = [
        pipe(generator=torch.Generator().manual_seed(0), **arguments).images
        for pipe in (
            VARPipeline.from_pretrained(output),
            VARPipeline.from_original(golden.var_file, golden.vae_file),
        )
    ]

    assert torch.equal(*images)


@pytest.mark.parametrize("variant", ["shared", "no q/k norm", "one refiner", "no refiner"])
def test_other_architectures_come_back_bit_for_bit(variant, tmp_path):
    transformer = {"shared": {"shared": True}, "no q/k norm": {"qk_norm": False}}.get(variant, {})
    vqvae = {"one refiner": {"share_quant_resi": 1}, "no refiner": {"quant_resi": 0}}.get(
        variant, {}
    )
    weights = original_transformer(sizes=(2, 3, 5), **transformer), original_vqvae(**vqvae)
    torch.save(weights[0], tmp_path / "var.pth")
    torch.save(weights[1], tmp_path / "vae.pth")
    overrides = {"num_attention_heads": 3} if variant == "no q/k norm" else {}

    output = convert((tmp_path / "var.pth", tmp_path / "vae.pth"), tmp_path / "out", **overrides)
    export_original(output, tmp_path / "var_back.pth", tmp_path / "vae_back.pth")

    assert_same_tensors(read_original(tmp_path / "var_back.pth"), weights[0])
    assert_same_tensors(read_original(tmp_path / "vae_back.pth"), weights[1])


def test_one_trainers_checkpoint_serves_as_both_files(files, tmp_path):
    trainer = {
        "var_wo_ddp": {f"_orig_mod.{name}": t for name, t in read_original(files[0]).items()},
        "vae_local": dict(read_original(files[1])),
        "var_opt": {"optimizer": {"state": {}}},
    }
    torch.save({"epoch": 1, "trainer": trainer, "args": {"depth": 2}}, tmp_path / "last.pth")

    output = convert((tmp_path / "last.pth", tmp_path / "last.pth"), tmp_path / "out")

    plain = convert(files, tmp_path / "plain")
    for name in ("transformer/model.safetensors", "vqvae/diffusion_pytorch_model.safetensors"):
        assert (output / name).read_bytes() == (plain / name).read_bytes()
    provenance = json.loads((output / "provenance.json").read_text())
    assert [source["name"] for source in provenance["sources"]] == ["last.pth", "last.pth"]


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_half_precision_keeps_scales_quantizer_and_last_layers_in_float32(files, tmp_path, dtype):
    exact = convert(files, tmp_path / "exact")
    half = convert(files, tmp_path / "half", dtype=dtype)
    in_float32 = {"logit_scale", "quantizer", "norm_out", "conv_out"}

    for name in ("transformer/model.safetensors", "vqvae/diffusion_pytorch_model.safetensors"):
        expected, found = load_file(exact / name), load_file(half / name)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            kept = not in_float32.isdisjoint(key.split("."))
            assert torch.equal(found[key], tensor if kept else tensor.to(HALF_TYPES[dtype])), key
    assert VARModel.from_pretrained(half / "transformer").dtype == HALF_TYPES[dtype]


def test_weights_too_large_for_the_type_are_refused(files, tmp_path):
    weights = torch.load(files[0], weights_only=True)
    weights["head.weight"][0, 0] = 1e5  # float16 ends at 65504
    torch.save(weights, files[0])

    with pytest.raises(ValueError, match=r"lm_head\.weight holds weights too large for float16"):
        convert(files, tmp_path / "out", dtype="float16")
    assert convert(files, tmp_path / "out", dtype="bfloat16").is_dir()


def test_weights_above_the_shard_size_are_split_and_load_the_same(files, tmp_path):
    whole, split = (
        convert(files, tmp_path / "whole"),
        convert(files, tmp_path / "split", max_shard_size="20KB"),
    )

    for part in ("transformer", "vqvae"):
        assert len(list((split / part).glob("*-of-*.safetensors"))) > 1
        assert len(list((split / part).glob("*.safetensors.index.json"))) == 1
    models = [VARPipeline.from_pretrained(folder) for folder in (whole, split)]
    for part in ("transformer", "vqvae"):
        states = [getattr(model, part).state_dict() for model in models]
        assert_same_tensors(*states)
    assert verify_folder(split).ok
    export_original(split, tmp_path / "var_back.pth", tmp_path / "vae_back.pth")
    assert_same_tensors(read_original(tmp_path / "var_back.pth"), read_original(files[0]))


def test_a_thousand_classes_are_named_after_imagenet_and_others_are_not(files, tmp_path):
    torch.save(original_transformer(sizes=SIZES, classes=1000), tmp_path / "var1000.pth")

    thousand = convert((tmp_path / "var1000.pth", files[1]), tmp_path / "thousand")
    seven = convert(files, tmp_path / "seven")
    named = convert(files, tmp_path / "named", id2label={0: "sun", 1: "moon"})

    assert VARPipeline.from_pretrained(thousand).id2label == imagenet_class_names()
    assert VARPipeline.from_pretrained(seven).id2label == {}
    assert VARPipeline.from_pretrained(named).id2label == {0: "sun", 1: "moon"}


def test_overrides_reach_the_configs_and_the_provenance(files, tmp_path):
    output = convert(
        files, tmp_path / "out", layer_norm_eps=1e-5, norm_eps=1e-4, dtype=torch.bfloat16
    )

    pipe = VARPipeline.from_pretrained(output)
    assert pipe.transformer.config.layer_norm_eps == 1e-5
    assert pipe.vqvae.config.norm_eps == 1e-4
    options = json.loads((output / "provenance.json").read_text())["options"]
    assert options == {
        "layer_norm_eps": 1e-5,
        "norm_eps": 1e-4,
        "norm_num_groups": 2,
        "dtype": "bfloat16",
    }


# From the Hub

FROM_HUB = """
    import sys
    from var_hf.pipelines.original import convert_from_hub

    try:
        print(convert_from_hub("some/var", "d16", sys.argv[1], norm_num_groups=2))
    except OSError as error:
        print(f"OSError: {error}")
"""


def test_the_two_files_are_downloaded_and_converted(files, tmp_path):
    content = {
        "var_d16.pth": files[0].read_bytes(),
        "vae_ch160v4096z32.pth": files[1].read_bytes(),
        "var_d20.pth": b"not asked for",
    }
    with HubServer() as hub:
        hub.add("some/var", content)
        environment = hub.environment(tmp_path / "cache")
        result = in_a_subprocess(FROM_HUB, tmp_path / "out", env=environment)
        commit = hub.model("some/var").refs["main"]
        asked_for_d20 = any("var_d20" in request for request in hub.requests)

    assert result.stdout.strip() == str(tmp_path / "out"), result.stderr
    assert not asked_for_d20
    local = convert(files, tmp_path / "local")
    for name in ("transformer/model.safetensors", "vqvae/diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (local / name).read_bytes()
    sources = json.loads((tmp_path / "out" / "provenance.json").read_text())["sources"]
    assert [source["name"] for source in sources] == ["var_d16.pth", "vae_ch160v4096z32.pth"]
    assert all(source["repository"] == "some/var" for source in sources)
    assert all(source["revision"] == commit for source in sources)


def test_a_download_that_fails_is_one_error_and_nothing_is_left(files, tmp_path):
    with HubServer() as hub:
        hub.add("some/var", {"var_d16.pth": files[0].read_bytes()})
        environment = hub.environment(tmp_path / "cache")
        result = in_a_subprocess(FROM_HUB, tmp_path / "out", env=environment)

    message = "OSError: some/var has no file vae_ch160v4096z32.pth at "
    (line,) = result.stdout.splitlines()
    assert line.startswith(message), result.stderr
    assert sorted(os.listdir(tmp_path)) == ["cache", "original"]


# Bad input: one error, and nothing appears


def test_swapped_files_are_said_to_be_swapped(files, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"vae\.pth is a VQVAE, not a transformer\. Were the two"
    ):
        convert(files[::-1], tmp_path / "out")
    assert os.listdir(tmp_path) == ["original"]


@pytest.mark.parametrize(
    ("vqvae", "message"),
    [
        ({"vocab": 38}, "differ in codes .* the transformer has 37 and the VQVAE 38"),
        ({"channels": 6}, "differ in latent channels .* the transformer has 5 and the VQVAE 6"),
        (
            {"num_scales": 4},
            r"vae2\.pth was trained on 4 scales, but token_map_sizes=\(1, 2, 4\) has 3",
        ),
    ],
)
def test_a_vqvae_of_another_transformer_is_refused(files, tmp_path, vqvae, message):
    torch.save(original_vqvae(**vqvae), files[1].with_name("vae2.pth"))

    with pytest.raises(ValueError, match=message):
        convert((files[0], files[1].with_name("vae2.pth")), tmp_path / "out")
    assert os.listdir(tmp_path) == ["original"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("pos_1LC"), r"var\.pth .*lacks 1 tensor: pos_1LC"),
        (lambda weights: weights.update(more=torch.ones(1)), r"var\.pth .*unknown 1 tensor: more"),
        (lambda weights: weights["head.weight"].fill_(torch.nan), r"var\.pth holds NaN"),
    ],
)
def test_a_wrong_tensor_leaves_no_folder(files, tmp_path, change, message):
    weights = torch.load(files[0], weights_only=True)
    change(weights)
    torch.save(weights, files[0])

    with pytest.raises(CheckpointError, match=message):
        convert(files, tmp_path / "out")
    assert os.listdir(tmp_path) == ["original"]


def test_an_output_folder_that_exists_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "out").mkdir()

    with pytest.raises(FileExistsError, match="out exists already"):
        convert_checkpoint("no such file", "nor this one", tmp_path / "out")


def test_wrong_arguments_are_refused(files, tmp_path):
    with pytest.raises(ValueError, match=r"dtype must be one of .*, float16\. Got 'int8'"):
        convert(files, tmp_path / "out", dtype="int8")
    with pytest.raises(ValueError, match="Unknown override depth"):
        convert(files, tmp_path / "out", depth=3)
    with pytest.raises(ValueError, match=r"no published size 'd12'\. Sizes: d16, d20"):
        convert_from_hub("FoundationVision/var", "d12", tmp_path / "out")
    assert os.listdir(tmp_path) == ["original"]


def test_exported_files_that_exist_are_refused(files, tmp_path):
    output = convert(files, tmp_path / "out")

    with pytest.raises(FileExistsError, match=r"vae\.pth exists already"):
        export_original(output, tmp_path / "new.pth", files[1])
    with pytest.raises(ValueError, match="cannot both be written"):
        export_original(output, tmp_path / "new.pth", tmp_path / "new.pth")
    assert not (tmp_path / "new.pth").exists()


# Full disks and interrupts


def test_a_disk_that_refuses_more_bytes_is_one_error_and_nothing_is_left(files, tmp_path):
    """A limit on file sizes stops the writing of weights where a full disk would."""
    output = convert(files, tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    script = """
        import resource, sys
        from var_hf.pipelines.original import convert_checkpoint, export_original

        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        var, vae, out, again = sys.argv[1:]
        for work in (
            lambda: convert_checkpoint(var, vae, again, norm_num_groups=2),
            lambda: export_original(out, again + "_var.pth", again + "_vae.pth"),
        ):
            try:
                work()
            except OSError as error:
                print(error.errno, error)
    """

    result = in_a_subprocess(script, *files, output, tmp_path / "again")

    lines = result.stdout.splitlines()
    assert len(lines) == 2, result.stderr
    for line in lines:
        assert line.startswith(f"{errno.EFBIG} ")
        assert "failed and nothing of it was left behind: File too large" in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_is_too_small_is_told_before_writing(files, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    with pytest.raises(OSError, match=r"out failed .*MB are needed, 0\.1 MB are free") as caught:
        convert(files, tmp_path / "deep" / "out")
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == ["original"]


@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_stopping_in_the_middle_of_writing_leaves_no_folder(files, tmp_path, how):
    """The process stops itself between two files, by SIGINT or by a signal without handler."""
    number = signal.SIGINT if how == "interrupt" else signal.SIGKILL
    script = """
        import os, sys
        from var_hf.modeling_vqvae import MultiScaleVQVAE
        from var_hf.pipelines.original import convert_checkpoint

        save = MultiScaleVQVAE.save_pretrained

        def save_and_stop(self, *arguments, **options):
            save(self, *arguments, **options)
            os.kill(os.getpid(), int(sys.argv[4]))

        MultiScaleVQVAE.save_pretrained = save_and_stop
        convert_checkpoint(*sys.argv[1:4], norm_num_groups=2)
    """

    result = in_a_subprocess(script, *files, tmp_path / "work" / "out", int(number))

    assert result.returncode == -number
    left = os.listdir(tmp_path / "work")
    if how == "interrupt":
        assert left == []
    else:  # nobody was left to clean up, but what is left cannot be taken for the folder
        assert len(left) == 1 and left[0].startswith(".out.") and left[0].endswith(".partial")


# Verifying


def test_a_converted_folder_verifies_until_it_is_changed(files, tmp_path):
    output = convert(files, tmp_path / "out")
    assert verify_folder(output).ok

    config = output / "transformer" / "config.json"
    config.write_text(config.read_text().replace("37", "38"))
    (output / "vqvae" / "pytorch_model.bin").write_bytes(b"\x80\x02}")

    found = verify_folder(output)
    assert found.changed == ["transformer/config.json"]
    assert found.pickles == found.extra == ["vqvae/pytorch_model.bin"]
    assert found.lacking == {}  # var.pth is no published file


def test_what_a_published_file_has_and_the_folder_lacks_is_listed(files, tmp_path):
    """The files have published names, so their tensors are compared with the published ones."""
    names = [files[0].with_name("var_d16.pth"), files[1].with_name("vae_ch160v4096z32.pth")]
    for file, name in zip(files, names, strict=True):
        file.rename(name)
    output = convert(names, tmp_path / "out")

    lacking = verify_folder(output).lacking

    assert "layers.15.self_attn.k_proj.weight" in lacking["transformer"]  # absent
    assert "lm_head.weight" in lacking["transformer"]  # of another shape
    assert "encoder.down.4.attn.1.qkv.weight" in lacking["vqvae"]
    assert "quantizer.refiners.3.weight" in lacking["vqvae"]


def test_a_truncated_weight_file_lacks_its_tensors(files, tmp_path):
    names = files[0].with_name("var_d16.pth")
    files[0].rename(names)
    output = convert((names, files[1]), tmp_path / "out")
    weights = output / "transformer" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])

    found = verify_folder(output)

    assert found.changed == ["transformer/model.safetensors"]
    assert "embeddings.start_embedding" in found.lacking["transformer"]


def test_export_refuses_tensors_without_a_place_in_the_original_layout(files, tmp_path):
    output = convert(files, tmp_path / "out")
    config = output / "vqvae" / "config.json"
    content = json.loads(config.read_text())
    content["refiner_of_scale"] = [0, 1, 3]
    config.write_text(json.dumps(content))

    with pytest.raises(CheckpointError, match=r"assigns refiners \(0, 1, 3\)"):
        export_original(output, tmp_path / "var.pth", tmp_path / "vae.pth")
    assert not (tmp_path / "var.pth").exists()
    assert not (tmp_path / "vae.pth").exists()
