"""Small real models. Every dimension is another number, so a swapped axis cannot pass by luck."""

import json
import logging
import math
import os
import signal
import zlib
from pathlib import Path
from types import SimpleNamespace

# diffusers imports torchao, which warns of its libraries for other devices, as torch and diffusers
# warn of torchao. pytest would print that after its summary.
for name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
    logging.getLogger(name).setLevel(logging.ERROR)

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from golden.stand_in_weights import stand_in_state_dict
from hypothesis import settings
from image_files import write_image_folder
from safetensors.torch import load_file
from torch import nn
from transformers.utils import logging as transformers_logging

from var_hf import MultiScaleVQVAE, NextScaleScheduler, VARConfig, VARModel, VARPipeline
from var_hf.cli import run as run_command
from var_hf.pipelines import loading

GOLDEN = Path(__file__).parent / "golden"

# The same examples in every run: a failure that others cannot repeat helps nobody.
settings.register_profile("var_hf", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("var_hf")

diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

# Test processes that each take all cores wait for one another.
processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))

# A job in the background ignores Ctrl+C, and what it starts does as well; some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

BATCH = 2
TOKEN_MAP_SIZES = (1, 2, 3, 5)  # 1, 4, 9 and 25 tokens, 39 together
TRANSFORMER = {
    "vocab_size": 29,
    "latent_channels": 6,
    "hidden_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 7,  # of 16 channels, the least that flex attention takes
    "intermediate_size": 60,
    "token_map_sizes": TOKEN_MAP_SIZES,
    "num_classes": 11,
}
VQVAE = {
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
    "latent_channels": 6,
    "codebook_size": 29,
    "token_map_sizes": TOKEN_MAP_SIZES,
    "norm_num_groups": 4,
}
ID2LABEL = dict(enumerate(["tench, Tinca tinca", "goldfish", "crane", "hen", "ostrich", "crane"]))


def fill(model: nn.Module) -> nn.Module:
    """Weights of the size that training gives: fresh ones leave the residual stream almost as it
    is.
    """
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            tensor.normal_(generator=generator)
            if name.endswith("logit_scale"):
                tensor.mul_(0.1).add_(math.log(4))
            elif "norm" in name and tensor.ndim == 1:
                tensor.mul_(0.1).add_(name.endswith("weight"))
            elif name.endswith("bias"):
                tensor.mul_(0.1)
            elif "embedding" in name or "table" in name:
                tensor.mul_(0.5)
            elif "codebook" not in name:
                tensor.div_(math.sqrt(tensor[0].numel()))
    return model.eval()


def make_transformer(**changes) -> VARModel:
    return fill(VARModel(VARConfig(**TRANSFORMER | changes)))


def make_vqvae(**changes) -> MultiScaleVQVAE:
    return fill(MultiScaleVQVAE(**VQVAE | changes))


def make_pipe(**changes) -> VARPipeline:
    # A low top-k: the tiny model has 29 codes.
    scheduler = NextScaleScheduler(guidance_scale=3.0, top_k=13, top_p=0.9)
    components = {
        "transformer": make_transformer(),
        "vqvae": make_vqvae(),
        "scheduler": scheduler,
        "id2label": ID2LABEL,
    }
    return quiet(VARPipeline(**components | changes))


def quiet(pipe: VARPipeline) -> VARPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def transformer() -> VARModel:
    return make_transformer()


@pytest.fixture
def vqvae() -> MultiScaleVQVAE:
    return make_vqvae()


@pytest.fixture
def pipe() -> VARPipeline:
    return make_pipe()


@pytest.fixture(autouse=True)
def float32_unless_asked(monkeypatch):
    """The command line takes bfloat16 where the processor is fast at it: tests are to be the same
    on every machine.
    """
    monkeypatch.setattr(loading, "has_fast_bfloat16", lambda: False)


@pytest.fixture
def fresh_compiler():
    """torch counts the graphs of a function over all models of a process; no test may use up
    another one's.
    """
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def image_folder(tmp_path) -> Path:
    return write_image_folder(tmp_path / "images")


@pytest.fixture(scope="session")
def pipe_folder(tmp_path_factory) -> Path:
    """A saved pipeline, to read from."""
    folder = tmp_path_factory.mktemp("saved") / "pipe"
    make_pipe().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", params=["adaln-256style", "shared-adaln-512style"])
def golden(request, tmp_path_factory) -> SimpleNamespace:
    """One golden case: its calls (`meta`), its numbers (`data`), and its weights as files of the
    original layout.
    """
    meta = json.loads((GOLDEN / f"{request.param}.json").read_text())
    sizes = meta["config"]["patch_nums"]
    folder = tmp_path_factory.mktemp(request.param)
    case = SimpleNamespace(meta=meta, data=load_file(GOLDEN / f"{request.param}.safetensors"))
    for part in ("var", "vae"):
        shapes = {name: shape for name, (_, shape) in meta[f"{part}_tensors"].items()}
        state_dict = stand_in_state_dict(shapes, sizes)
        file = folder / f"{part}.pth"
        torch.save(state_dict, file)
        setattr(case, f"{part}_weights", state_dict)
        setattr(case, f"{part}_file", file)
    return case


@pytest.fixture
def var_hf(monkeypatch, capsys, tmp_path):
    """Run the command in this process, in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = run_command([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def fails(var_hf, tmp_path):
    """Run a command that has to fail: one line on stderr, nothing on stdout, no new file. Returns
    the line.
    """

    def run(*arguments, code=1):
        before = sorted(tmp_path.rglob("*"))
        exit_code, out, err = var_hf(*arguments)
        assert (exit_code, out) == (code, "")
        assert sorted(tmp_path.rglob("*")) == before
        (line,) = err.splitlines()
        assert line.startswith("var-hf: ")
        return line

    return run
