"""Computation in 8-bit integers: exact products, independent tokens, nothing saved by accident."""

import pytest
import torch
from conftest import make_pipe, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from var_hf import VARImg2ImgPipeline, int8
from var_hf.evaluation.sampling import model_digest
from var_hf.modeling_var import VARDecoderLayer, VARLinear

LEVELS = int8.input_levels()
pytestmark = pytest.mark.skipif(LEVELS is None, reason="no 8-bit product of oneDNN on this CPU")


def make_layer(inputs=70, outputs=36, bias=True):
    layer = VARLinear(inputs, outputs, bias=bias)
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.normal_(generator=seeded(number))
    return layer


def rounded(rows, levels):
    """Integers and step sizes of rows, in float64."""
    steps = (rows.abs().amax(-1, keepdim=True).float() / levels).double()
    return (rows.double() / steps).round(), steps


@given(
    inputs=st.integers(1, 200),
    outputs=st.integers(1, 50),
    rows=st.integers(1, 40),
    size=st.sampled_from([1e-6, 1.0, 1e4]),
)
@settings(max_examples=25, deadline=None)
def test_a_layer_equals_the_product_of_rounded_numbers_in_float64(inputs, outputs, rows, size):
    layer = make_layer(inputs, outputs)
    x = size * torch.randn(rows, inputs, generator=seeded(3))
    weights, weight_steps = rounded(layer.weight.detach(), int8.WEIGHT_LEVELS)
    integers, steps = rounded(x, LEVELS)

    found = int8.Int8Linear(layer, LEVELS)(x)

    exact = (integers @ weights.T) * steps * weight_steps.T + layer.bias.detach()
    # A number half-way between two integers may go either way: one unit of one product.
    unit = (steps * weight_steps.T * int8.WEIGHT_LEVELS).max()
    near = torch.isclose(found.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))
    assert near.float().mean() > 0.9
    assert (found - exact).abs().max() <= 4 * unit


def test_the_largest_sums_do_not_overflow():
    layer = VARLinear(128, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -1.0])[:, None].expand(2, 128))

    found = int8.Int8Linear(layer, LEVELS)(torch.ones(3, 128))

    torch.testing.assert_close(found, torch.tensor([128.0, -128.0]).expand(3, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_error_is_a_few_thousandths_and_the_dtype_stays(dtype, bias):
    layer = make_layer(bias=bias)
    x = torch.randn(2, 5, 70, generator=seeded(3)).to(dtype)
    with torch.no_grad():
        exact = layer(x.float(), gelu=True)
        found = int8.Int8Linear(layer, LEVELS)(x, gelu=True)

    assert (found.dtype, found.shape) == (dtype, (2, 5, 36))
    assert (found - exact).norm() / exact.norm() < 0.02


def test_a_token_does_not_depend_on_the_others_of_its_batch():
    layer = int8.Int8Linear(make_layer(), LEVELS)
    x = torch.randn(9, 70, generator=seeded(3)) * torch.logspace(-3, 3, 9)[:, None]

    alone = torch.cat([layer(row[None]) for row in x])

    assert torch.equal(layer(x), alone)


def test_a_token_of_zeros_gives_the_bias():
    layer = make_layer()
    found = int8.Int8Linear(layer, LEVELS)(torch.zeros(1, 70))
    torch.testing.assert_close(found[0], layer.bias.detach())


def test_gradients_and_other_devices_are_refused():
    layer = int8.Int8Linear(make_layer(), LEVELS)
    with pytest.raises(ValueError, match="has no gradients"):
        layer(torch.zeros(1, 70, requires_grad=True))
    with pytest.raises(ValueError, match="its input is on meta"):
        layer(torch.zeros(1, 70, device="meta"))


def test_all_linear_layers_of_the_blocks_are_replaced_and_no_other():
    pipe = make_pipe()
    pipe.enable_int8()

    model = pipe.transformer
    inside = {
        m
        for block in model.modules()
        if isinstance(block, VARDecoderLayer)
        for m in block.modules()
    }
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert {m for m in linear if isinstance(m, int8.Int8Linear)} == inside & set(linear)
    assert not isinstance(model.lm_head, int8.Int8Linear)
    assert pipe.precision == "int8"
    pipe.enable_int8()  # again: nothing is left to do
    assert "Int8Linear(in_features=112, out_features=60" in repr(model)


def test_logits_and_images_stay_near():
    exact, pipe = make_pipe(), make_pipe()
    pipe.enable_int8()
    outputs = list(exact.stream([3, 5], generator=seeded(0)))
    quantizer = exact.vqvae.quantizer
    inputs = quantizer.teacher_inputs([output.tokens for output in outputs])
    with torch.no_grad():
        logits, rounded_logits = (
            each.transformer(torch.tensor([3, 5]), inputs).logits for each in (exact, pipe)
        )

    assert (rounded_logits - logits).abs().mean() < 0.05 * logits.std()
    images = pipe([3, 5], generator=seeded(0), output_type="pt").images
    assert images.isfinite().all()


def test_nothing_is_saved_by_accident(tmp_path):
    pipe = make_pipe()
    pipe.enable_int8()
    for save in (pipe.save_pretrained, pipe.transformer.save_pretrained):
        with pytest.raises(ValueError, match=r"before enable_int8\(\)"):
            save(tmp_path / "model")
    for read in (pipe.transformer.state_dict, pipe.transformer.to_original):
        with pytest.raises(ValueError, match="cannot be saved"):
            read()
    assert list(tmp_path.iterdir()) == []


def test_pipelines_that_share_the_transformer_share_int8():
    pipe = make_pipe()
    pipe.enable_int8()
    assert VARImg2ImgPipeline.from_pipe(pipe).precision == "int8"


def test_a_set_of_samples_tells_the_weights_of_two_models_apart():
    pipes = [make_pipe(), make_pipe(), make_pipe()]
    with torch.no_grad():
        pipes[2].transformer.layers[0].mlp.fc1.weight[0, 0] += 5
    digests = []
    for pipe in pipes:
        pipe.enable_int8()
        digests.append(model_digest(pipe))
    assert digests[0] == digests[1] != digests[2]


def test_an_adapter_stays_in_float():
    from peft import LoraConfig

    pipe = make_pipe()
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["fc1"], init_lora_weights=False))
    exact = pipe.transformer(torch.tensor([3])).logits
    pipe.enable_int8()
    with torch.no_grad():
        found = pipe.transformer(torch.tensor([3])).logits
    assert isinstance(pipe.transformer.layers[0].mlp.fc1.base_layer, int8.Int8Linear)
    assert (found - exact).abs().mean() < 0.05 * exact.std()


def test_without_an_8_bit_product_a_warning_says_so_and_nothing_changes(monkeypatch, caplog):
    pipe = make_pipe()
    monkeypatch.setattr(int8, "input_levels", lambda: None)
    pipe.enable_int8()
    assert pipe.precision == "float32"
    assert "It stays in torch.float32" in caplog.text


def test_compiled_offloaded_and_quantized_weights_are_refused():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    compiled = make_pipe()
    compiled.compile(backend="eager")
    with pytest.raises(ValueError, match="is compiled"):
        compiled.enable_int8()

    pipe = make_pipe()
    pipe.enable_int8()
    with pytest.raises(ValueError, match="in int8 cannot be compiled"):
        pipe.compile(backend="eager")

    quantized = make_pipe()
    quantize_(quantized.transformer, Int8WeightOnlyConfig())
    with pytest.raises(ValueError, match="are quantized already"):
        quantized.enable_int8()
    assert quantized.precision == "float32"
