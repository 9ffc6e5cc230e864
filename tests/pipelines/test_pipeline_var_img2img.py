import numpy as np
import pytest
import torch
from conftest import make_pipe, make_transformer, make_vqvae, quiet, seeded
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from var_hf import VARImg2ImgPipeline, VARInpaintPipeline, VARPipeline
from var_hf.configuration_var import TOKEN_MAP_SIZES_256

SIDE = 10  # of the tiny model's images, in pixels


@pytest.fixture(scope="module")
def pipe():
    return quiet(VARImg2ImgPipeline.from_pipe(make_pipe()))


def some_images(height=SIDE, width=SIDE, batch=2):
    return torch.rand(batch, 3, height, width, generator=seeded(3))


@torch.no_grad()
def test_strength_0_is_the_reconstruction(pipe):
    images = some_images()
    redrawn = pipe(images, [3, None], strength=0, output_type="pt").images
    expected = pipe.vqvae.reconstruct(images * 2 - 1) / 2 + 0.5
    torch.testing.assert_close(redrawn, expected)


def test_strength_1_is_plain_generation(pipe):
    plain = quiet(VARPipeline.from_pipe(pipe))
    expected = plain([3, 7], generator=seeded(5), output_type="pt").images
    arguments = {"strength": 1, "generator": seeded(5), "output_type": "pt"}
    assert torch.equal(pipe(some_images(), [3, 7], **arguments).images, expected)


@pytest.mark.parametrize(
    ("strength", "first"), [(0.0, 4), (0.25, 3), (0.5, 2), (0.75, 1), (1.0, 0)]
)
def test_coarse_scales_are_kept_and_fine_ones_drawn(pipe, strength, first):
    images = some_images()
    own = pipe.vqvae.encode(images * 2 - 1).token_maps
    assert pipe.first_redrawn_scale(strength) == first
    outputs = list(pipe.stream(images, [3, 7], strength=strength, generator=seeded(0)))
    kept = [torch.equal(o.tokens, t) for o, t in zip(outputs, own, strict=True)]
    assert kept == [True] * first + [False] * (4 - first)


def test_the_table_of_strengths_holds_for_the_release():
    """The table in the docstring, line by line."""
    sizes = TOKEN_MAP_SIZES_256
    pipe = VARImg2ImgPipeline.from_pipe(
        make_pipe(
            transformer=make_transformer(token_map_sizes=sizes),
            vqvae=make_vqvae(token_map_sizes=sizes),
        )
    )
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in VARImg2ImgPipeline.first_redrawn_scale.__doc__.splitlines()
        if line.strip().startswith("| ") and line.strip()[2].isdigit()
    ]
    assert len(rows) == 11
    for strength, first, side, kept in rows:
        scale = pipe.first_redrawn_scale(float(strength))
        assert first == (str(scale) if scale < 10 else "none")
        assert side == (str(sizes[scale]) if scale < 10 else "")
        assert int(kept) == sum(size**2 for size in sizes[:scale])


@given(strengths=st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted))
def test_more_strength_never_keeps_more(pipe, strengths):
    gentle, strong = map(pipe.first_redrawn_scale, strengths)
    assert 0 <= strong <= gentle <= 4


def test_images_come_back_in_their_own_size(pipe):
    images = [Image.new("RGB", size, "teal") for size in [(31, 8), (1, 1), (10, 57)]]
    redrawn = pipe(images, "hen", generator=seeded(0)).images
    assert [image.size for image in redrawn] == [(31, 8), (1, 1), (10, 57)]


def test_variations_of_one_image(pipe):
    redrawn = pipe(some_images(batch=1), 3, num_images_per_prompt=3, generator=seeded(0)).images
    assert len({image.tobytes() for image in redrawn}) == 3


def test_one_image_as_several_classes(pipe):
    generators = [seeded(1), seeded(1)]
    arguments = {"strength": 0.5, "output_type": "pt"}
    both = pipe(some_images(batch=1), [3, 7], generator=generators, **arguments).images
    alone = pipe(some_images(batch=1), 7, generator=[seeded(1)], **arguments).images
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=1e-2)


def test_previews_and_the_result_are_one_loop(pipe):
    images = pipe(some_images(), [3, 7], generator=seeded(1), output_type="np").images
    stream = pipe.stream(some_images(), [3, 7], generator=seeded(1), output_type="np", preview=True)
    outputs = list(stream)
    assert len(outputs) == 4
    assert np.array_equal(outputs[-1].image, images)


def test_all_pipelines_share_one_set_of_weights(pipe):
    inpaint = VARInpaintPipeline.from_pipe(pipe)
    assert VARImg2ImgPipeline.from_pipe(inpaint).transformer is pipe.transformer


def test_a_saved_pipeline_loads_as_an_image_to_image_pipeline(pipe_folder, pipe):
    loaded = quiet(VARImg2ImgPipeline.from_pretrained(pipe_folder))
    expected = pipe(some_images(), 3, generator=seeded(1), output_type="pt").images
    images = loaded(some_images(), 3, generator=seeded(1), output_type="pt").images
    assert torch.equal(images, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 1.1}, r"strength must lie in \[0, 1\].*Got 1.1"),
        ({"strength": -0.1}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"class_labels": [1, 2, 3]}, "3 class_labels, 2 images"),
        ({"class_labels": [1, 11]}, "Got 11"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
    ],
)
def test_bad_input_ends_in_one_clear_error(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(some_images(), **arguments)
    with pytest.raises(ValueError, match=message):
        pipe.stream(some_images(), **arguments)


def test_an_unknown_argument_is_refused(pipe):
    with pytest.raises(TypeError, match="strenght"):
        pipe.stream(some_images(), strenght=0.5)
