"""The compiled path on the CPU: the same numbers, fixed memory, and no waiting for the device."""

import pytest
import torch
from conftest import make_pipe, make_transformer, make_vqvae, quiet, seeded
from diffusers.hooks import apply_group_offloading
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from var_hf import VARInpaintPipeline, VARPipeline
from var_hf.generation import draw_scale

CLOSE = {"atol": 1e-5, "rtol": 0}
pytestmark = pytest.mark.usefixtures("fresh_compiler")


def small_pipe(sizes=(1, 2, 3)):
    """Tracing takes as long as there are layers and scales."""
    return make_pipe(
        transformer=make_transformer(token_map_sizes=sizes, num_hidden_layers=1),
        vqvae=make_vqvae(token_map_sizes=sizes),
    )


def draw(pipe, labels=(3, 5), seed=0, **settings):
    return pipe(list(labels), generator=seeded(seed), output_type="pt", **settings).images


class Graphs:
    """A backend that runs what it is given, and counts it."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


@pytest.mark.parametrize(
    "settings",
    [
        {"guided_scales": 2},
        {"sampling": "gumbel_softmax", "guidance_scale": 1.0},
    ],
    ids=str,
)
def test_the_compiled_pipeline_draws_the_same(settings):
    pipe = small_pipe()
    expected = draw(pipe, **settings)

    pipe.compile(backend="eager")

    assert pipe.is_compiled
    for _ in range(2):  # compiled and replayed
        torch.testing.assert_close(draw(pipe, **settings), expected, **CLOSE)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what torch says while it compiles
def test_the_default_compiler_draws_the_same():
    """In the mode that records CUDA graphs where there is a GPU."""
    pipe = small_pipe(sizes=(1, 2))
    expected = draw(pipe)

    pipe.compile(mode="reduce-overhead")

    torch.testing.assert_close(draw(pipe), expected, **CLOSE)


def test_one_graph_per_scale_and_another_batch_size_makes_new_ones():
    pipe, graphs = small_pipe(), Graphs()
    expected = {n: draw(pipe, [3] * n) for n in (1, 2)}
    pipe.compile(backend=graphs)

    counts = []
    for n in (2, 2, 1, 2, 1):
        torch.testing.assert_close(draw(pipe, [3] * n), expected[n], **CLOSE)
        counts.append(graphs.count)

    # The decoder sees one image at a time on a CPU, whatever the batch.
    scales, decoder = pipe.num_timesteps, 1
    assert counts == [scales + decoder] * 2 + [2 * scales + decoder] * 3


def test_another_guidance_scale_is_not_compiled_again():
    pipe, graphs = small_pipe(), Graphs()
    expected = {scale: draw(pipe, guidance_scale=scale) for scale in (1.5, 4.0)}
    pipe.compile(backend=graphs)

    draw(pipe, guidance_scale=3.0)
    count = graphs.count

    for scale, images in expected.items():
        torch.testing.assert_close(draw(pipe, guidance_scale=scale), images, **CLOSE)
    assert graphs.count == count


def test_another_model_or_schedule_is_compiled_anew():
    pipe = small_pipe()
    pipe.compile(backend="eager")
    draw(pipe)
    other = small_pipe(sizes=(1, 3))
    expected = draw(other)

    pipe.register_modules(transformer=other.transformer, vqvae=other.vqvae)

    torch.testing.assert_close(draw(pipe), expected, **CLOSE)


def test_keys_and_values_stay_where_they_are():
    pipe = small_pipe()
    pipe.compile(backend="eager")

    def addresses():
        (cache,) = pipe._runner.caches.values()
        return [t.data_ptr() for layer in cache.layers for t in (layer.keys, layer.values)]

    draw(pipe)
    before = addresses()
    draw(pipe, [7, 8], seed=1)

    assert addresses() == before


def test_results_of_one_call_survive_the_next():
    pipe = small_pipe()
    pipe.compile(backend="eager")

    first = list(pipe.stream([3, 5], generator=seeded(0)))
    copies = [(o.tokens.clone(), o.logits.clone(), o.latents.clone()) for o in first]
    draw(pipe, [7, 8], seed=1)

    for output, (tokens, logits, latents) in zip(first, copies, strict=True):
        assert torch.equal(output.tokens, tokens)
        assert torch.equal(output.logits, logits)
        assert torch.equal(output.latents, latents)


def test_two_generations_at_once_are_refused():
    """They would write into one memory."""
    pipe = small_pipe()
    pipe.compile(backend="eager")
    stream = pipe.stream(3, generator=seeded(0))
    next(stream)

    draw(pipe)

    with pytest.raises(ValueError, match="draws one batch at a time"):
        next(stream)


class Waits(TorchDispatchMode):
    """Records operations that make the host wait, which turn a tensor into a number or shape."""

    NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "equal", "unique")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name == func._opname.removeprefix("aten::") for name in self.NAMES):
            self.seen.append(func._opname)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("compiled", [True, False])
def test_the_compiled_loop_waits_once_and_at_its_end(compiled):
    """torch compiles nothing under a mode: this path runs the same function uncompiled."""
    pipe = small_pipe()
    if compiled:
        pipe.compile(backend="eager")
        pipe._runner.function = lambda scale: draw_scale
    stream = pipe.stream([3, 5], generator=seeded(0))

    waits = []
    for _ in range(pipe.num_timesteps):
        with Waits() as seen:
            next(stream)
        waits.append(len(seen.seen))

    assert waits == ([0, 0, 1] if compiled else [1, 1, 1])


def test_editing_goes_through_the_compiled_path_too():
    pipe = quiet(VARInpaintPipeline.from_pipe(small_pipe()))
    image = Image.new("RGB", (6, 6), (200, 30, 90))
    mask = Image.new("L", (6, 6), 0)
    mask.paste(255, (0, 0, 3, 6))

    def edit():
        return pipe(image, mask, 3, generator=seeded(0), output_type="pt").images

    expected = edit()
    pipe.compile(backend="eager")

    torch.testing.assert_close(edit(), expected, **CLOSE)


def test_a_compiled_pipeline_is_saved_as_any_other(tmp_path):
    pipe = small_pipe()
    expected = draw(pipe)
    pipe.compile(backend="eager")
    draw(pipe)

    pipe.save_pretrained(tmp_path)

    loaded = quiet(VARPipeline.from_pretrained(tmp_path))
    assert not loaded.is_compiled
    assert torch.equal(draw(loaded), expected)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match=r"no backend 'inducter' here. It knows .*inductor"):
        small_pipe().compile(backend="inducter")


@pytest.mark.parametrize("way", ["model", "group"])
def test_offloaded_weights_are_refused(way):
    pipe = small_pipe()
    if way == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    else:
        cpu = torch.device("cpu")
        apply_group_offloading(
            pipe.transformer, onload_device=cpu, offload_device=cpu, offload_type="leaf_level"
        )

    with pytest.raises(ValueError, match="weights of the transformer are offloaded"):
        pipe.compile(backend="eager")
    assert not pipe.is_compiled


@pytest.mark.parametrize("compiled", [False, True])
def test_logits_that_are_not_finite_are_an_error(compiled):
    pipe = small_pipe()
    with torch.no_grad():
        pipe.transformer.embeddings.position_embedding[:, 1:5] = torch.nan
    if compiled:
        pipe.compile(backend="eager")

    with pytest.raises(
        ValueError, match=r"logits at scale 1 are not finite, computed in torch.float32"
    ):
        draw(pipe)
