import pytest
import torch
from conftest import make_transformer, make_vqvae

from var_hf import MultiScaleVQVAE, VARModel
from var_hf.precision import cast, stored_dtype


@pytest.mark.parametrize(
    "make, load", [(make_transformer, VARModel), (make_vqvae, MultiScaleVQVAE)]
)
def test_a_cast_model_has_the_dtypes_of_a_loaded_one(tmp_path, make, load):
    model = make()
    model.save_pretrained(tmp_path)
    loaded = load.from_pretrained(tmp_path, dtype=torch.bfloat16)

    cast(model, torch.bfloat16)

    dtypes = {name: tensor.dtype for name, tensor in model.named_parameters()}
    assert dtypes == {name: tensor.dtype for name, tensor in loaded.named_parameters()}
    assert set(dtypes.values()) == {torch.bfloat16, torch.float32}
    for name, dtype in dtypes.items():
        assert stored_dtype(model, name, torch.bfloat16) == dtype


def test_weights_that_overflow_are_refused():
    model = make_transformer()
    with torch.no_grad():
        model.lm_head.weight[3, 4] = 1e6
    with pytest.raises(ValueError, match=r"lm_head.weight holds weights too large for float16"):
        cast(model, torch.float16)
