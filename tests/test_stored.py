import json
import os
import shutil
import socket

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from var_hf import MultiScaleVQVAE, NextScaleScheduler, VARConfig, VARModel, VARPipeline


@pytest.fixture
def folder(pipe_folder, tmp_path):
    return shutil.copytree(pipe_folder, tmp_path / "pipe")


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def weights_of(folder, part):
    (file,) = (folder / part).glob("*.safetensors")
    return file


def rewrite(folder, part, name, tensor):
    file = weights_of(folder, part)
    weights = load_file(file)
    weights[name] = tensor(weights[name])
    save_file(weights, file, {"format": "pt"})


def refused(folder, match):
    """The pipeline is refused, and so is the part alone."""
    with pytest.raises((ValueError, OSError), match=match) as caught:
        VARPipeline.from_pretrained(folder)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("part", "values", "match"),
    [
        ("transformer", {"num_hidden_layers": 2}, r"unknown \d+ tensors: layers\.2\."),
        ("transformer", {"num_hidden_layers": 4}, r"lacks \d+ tensors: layers\.3\."),
        ("transformer", {"num_hidden_layers": 1000, "hidden_size": 2**20}, "num_attention_heads"),
        ("transformer", {"num_hidden_layers": 1000, "hidden_size": 7 * 2**17}, "lacks"),
        ("transformer", {"quantization_config": {"quant_method": "torchao"}}, "KeyError: 'quant_"),
        ("transformer", {"quantization_config": {}}, "quantization_config cannot be read"),
        ("transformer", {"quantization_config": [3]}, "quantization_config cannot be read"),
        ("transformer", {"qk_norm": False}, r"unknown 3 tensors: .*logit_scale"),
        ("transformer", {"share_modulation": True}, r"lacks .*shared_modulation"),
        ("transformer", {"num_classes": 12}, r"wrong shape in 1 tensor: .*class_embedding"),
        ("transformer", {"layer_norm_eps": float("nan")}, r"\.json: layer_norm_eps .*Got nan"),
        ("transformer", {"layer_norm_eps": -1.0}, r"layer_norm_eps must be a finite number in \(0"),
        ("transformer", {"hidden_size": "112"}, r"hidden_size must be a whole .*Got '112' \(str\)"),
        ("transformer", {"token_map_sizes": [3, 2]}, "increasing positive sides"),
        ("transformer", {"return_dict": False}, "return_dict must be one of true"),
        ("transformer", {"to_dict": 5}, "to_dict is no value of a transformer's configuration"),
        ("transformer", {"dtype": "float8_e4m3fn"}, "dtype must be one of"),
        ("transformer", {"_attn_implementation": "user/kernel"}, "_attn_implementation must be"),
        ("transformer", {"attn_implementation": "kernels-community/flash-attn"}, "must be one of"),
        ("transformer", {"use_kernels": True}, "use_kernels must be"),
        ("transformer", {"kernel_config": {"a": "b/c:D"}}, "kernel_config must be"),
        ("transformer", {"transformers_weights": "../model.safetensors"}, "transformers_weights"),
        ("vqvae", {"num_res_blocks": 0}, r"num_res_blocks must be a whole number from 1"),
        ("vqvae", {"num_res_blocks": 2}, "lacks"),
        ("vqvae", {"channel_multipliers": [1]}, "unknown"),
        ("vqvae", {"refiner_mix": 0}, r"unknown \d+ tensors: quantizer\.refiners"),
        ("vqvae", {"refiner_mix": float("inf")}, r"refiner_mix must be .* in \[0, 1\]"),
        ("vqvae", {"refiner_of_scale": [0, 1, 2, 9]}, "must name refiners from 0 to 3"),
        ("vqvae", {"refiner_sharing": -1}, "refiner_sharing must be a whole number from 0"),
        ("vqvae", {"norm_eps": 0}, r"norm_eps must be a finite number in \(0"),
        ("vqvae", {"norm_num_groups": 3}, "multiple of norm_num_groups"),
        ("scheduler", {"gumbel_temperature": 0}, "gumbel_temperature must be a finite number"),
        ("scheduler", {"gumbel_temperature": float("nan")}, "gumbel_temperature"),
        ("scheduler", {"top_k": 1.5}, "top_k must be a whole number"),
        ("scheduler", {"sampling": ["multinomial"]}, "sampling must be one of"),
        (".", {"id2label": {"a": "b"}}, r"model_index\.json: id2label must be a dictionary"),
        (".", {"id2label": {str(2**62): "b"}}, "id2label must be a dictionary"),
        (".", {"transformer": 3}, "transformer must be a list of 2 values"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_hold_is_refused_in_one_line(part, values, match, folder):
    (file,) = [
        path
        for path in (folder / part).glob("*.json")
        if path.name in ("config.json", "scheduler_config.json", "model_index.json")
    ]
    change(file, **values)

    refused(folder, match)


@pytest.mark.parametrize("content", ["[]", "3", "{", "", '{"top_k": 1, "top_k": 2}', "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(content, folder):
    (folder / "scheduler" / "scheduler_config.json").write_text(content)

    refused(folder, r"scheduler_config\.json (must hold one JSON object|is damaged or not JSON)")
    with pytest.raises(ValueError, match=r"scheduler_config\.json"):
        NextScaleScheduler.from_pretrained(folder / "scheduler")


@pytest.mark.parametrize(
    ("part", "name"), [("transformer", "lm_head.weight"), ("vqvae", "decoder.conv_in.bias")]
)
@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (
            lambda tensor: tensor.int(),
            r"wrong dtype \(expected 16 to 64 bit floats\) in 1 tensor: .*I32",
        ),
        (lambda tensor: tensor.bool(), r"wrong dtype \(expected 16 to 64 bit floats\)"),
        (lambda tensor: tensor.index_fill(0, torch.tensor(1), torch.nan), "holds NaN or infinite"),
        (lambda tensor: tensor.index_fill(0, torch.tensor(1), -torch.inf), "holds NaN or infinite"),
        (lambda tensor: tensor[1:].clone(), "wrong shape in 1 tensor"),
    ],
)
def test_weights_of_no_use_are_refused(part, name, damage, match, folder):
    rewrite(folder, part, name, damage)

    refused(folder, match)
    kind = VARModel if part == "transformer" else MultiScaleVQVAE
    with pytest.raises(ValueError, match=match):
        kind.from_pretrained(folder / part)


@pytest.mark.parametrize("model", [VARModel, MultiScaleVQVAE])
def test_a_single_odd_weight_anywhere_is_refused(model, pipe_folder, tmp_path):
    part = "transformer" if model is VARModel else "vqvae"
    folder = shutil.copytree(pipe_folder / part, tmp_path / part)
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)

    @settings(max_examples=30)
    @given(name=st.sampled_from(sorted(weights)), place=st.integers(0, 10**6), data=st.data())
    def check(name, place, data):
        odd = weights[name].clone()
        kind = data.draw(st.sampled_from((float("nan"), float("inf"), -float("inf"), torch.int32)))
        if isinstance(kind, torch.dtype):
            odd = odd.to(kind)
        else:
            odd.view(-1)[place % odd.numel()] = kind
        save_file(weights | {name: odd}, file, {"format": "pt"})

        with pytest.raises(ValueError, match=r"NaN or infinite|wrong dtype") as caught:
            model.from_pretrained(folder)
        assert len(str(caught.value).splitlines()) == 1

    check()


@pytest.mark.parametrize("part", ["transformer", "vqvae"])
def test_a_pickle_is_not_loaded(part, folder):
    file = weights_of(folder, part)
    name = "pytorch_model.bin" if part == "transformer" else "diffusion_pytorch_model.bin"
    torch.save(load_file(file), folder / part / name)
    kind = VARModel if part == "transformer" else MultiScaleVQVAE
    with pytest.raises(ValueError, match="use_safetensors=False would load a pickle"):
        kind.from_pretrained(folder / part, verify=False, use_safetensors=False)
    file.unlink()

    with pytest.raises(ValueError, match=r"holds its weights as a pickle \(.*\.bin\)"):
        kind.from_pretrained(folder / part)


@pytest.mark.parametrize("part", ["transformer", "vqvae"])
def test_damaged_and_odd_weight_files_are_refused(part, folder):
    file = weights_of(folder, part)
    file.write_bytes(file.read_bytes()[:-10])
    refused(folder, "is truncated, damaged or no safetensors file")

    file.unlink()
    os.mkfifo(file)
    refused(folder, "is a FIFO")

    file.unlink()
    with socket.socket(socket.AF_UNIX):
        file.symlink_to("/dev/zero")
    refused(folder, "is a character device")


def test_a_list_of_shards_stays_in_its_folder(folder):
    transformer = VARModel.from_pretrained(folder / "transformer")
    weights_of(folder, "transformer").unlink()
    transformer.save_pretrained(folder / "transformer", max_shard_size="40KB")
    assert VARModel.from_pretrained(folder / "transformer").num_parameters()
    (index,) = (folder / "transformer").glob("*.index.json")
    shards = json.loads(index.read_text())["weight_map"]
    name, shard = next(iter(shards.items()))

    for other in ("../vqvae/model.safetensors", "/etc/passwd", "model.bin", "config.json", 3):
        change(index, weight_map=shards | {name: other})
        refused(folder, "weight_map must")
    change(index, weight_map=shards)
    (folder / "transformer" / shard).unlink()
    refused(folder, f"There is no file .*{shard}")


def test_an_adapter_beside_the_weights_is_refused(folder):
    adapter = {"base_model_name_or_path": "user/other", "peft_type": "LORA"}
    (folder / "transformer" / "adapter_config.json").write_text(json.dumps(adapter))

    refused(folder, "adapter")


def test_what_is_asked_for_in_python_still_goes(folder):
    model = VARModel.from_pretrained(folder / "transformer", attn_implementation="eager")
    assert model.config._attn_implementation == "eager"

    other = VARModel.from_pretrained(
        folder / "transformer", num_classes=5, ignore_mismatched_sizes=True
    )
    assert other.config.num_classes == 5


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"layer_norm_eps": float("nan")}, "VARConfig: layer_norm_eps"),
        ({"num_classes": 0}, "VARConfig: num_classes"),
        ({"head_init_scale": float("inf")}, "VARConfig: head_init_scale"),
    ],
)
def test_a_config_made_in_python_is_checked_as_well(values, match):
    with pytest.raises(ValueError, match=match):
        VARConfig(**values)
