import pytest
import torch

from var_hf.int8 import input_levels
from var_hf.pipelines import loading

# Taken before the tests' own float32_unless_asked replaces it.
HAS_FAST_BFLOAT16 = loading.has_fast_bfloat16

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_dtype_that_is_named_is_taken(name):
    assert loading.choose_dtype(name, CPU) == getattr(torch, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_keeps_the_other_layers_in_the_fast_dtype(monkeypatch, dtype):
    monkeypatch.setattr(loading, "choose_dtype", lambda name, device: dtype)
    pipe = loading.load_pipeline("var-emoji-64", "int8", "cpu")
    assert pipe.precision == ("int8" if input_levels() else str(dtype).removeprefix("torch."))
    assert pipe.transformer.lm_head.weight.dtype == dtype


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_processor_that_multiplies_bfloat16_gets_it(monkeypatch, fast, dtype):
    monkeypatch.setattr(loading, "has_fast_bfloat16", lambda: fast)

    assert loading.choose_dtype("auto", CPU) == dtype
    assert loading.choose_dtype("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize(
    ("instructions", "fast"),
    [
        ({}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_tile": True}, True),
        ({"avx512_bf16": False, "amx_tile": False}, False),
    ],
)
def test_instructions_decide_and_a_torch_that_cannot_tell_means_no(monkeypatch, instructions, fast):
    for name in ("avx512_bf16", "amx_tile"):
        known = instructions.get(name)
        if known is None:
            monkeypatch.delattr(torch.cpu, f"_is_{name}_supported", raising=False)
        else:
            monkeypatch.setattr(
                torch.cpu, f"_is_{name}_supported", lambda known=known: known, raising=False
            )

    assert HAS_FAST_BFLOAT16() is fast
