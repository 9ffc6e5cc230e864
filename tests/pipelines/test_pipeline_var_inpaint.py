import numpy as np
import pytest
import torch
from conftest import make_pipe, quiet, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from var_hf import VARInpaintPipeline, VARPipeline
from var_hf.pipelines.image_processing import Frame, feather, window_around
from var_hf.pipelines.pipeline_var_inpaint import keep_masks

SIDE = 10  # of the tiny model's images, in pixels
TOKEN = 2  # pixels to a token of its finest map
NULL_CLASS = 11


@pytest.fixture(scope="module")
def pipe():
    return quiet(VARInpaintPipeline.from_pipe(make_pipe()))


def an_image(height=SIDE, width=SIDE, channels=3, batch=2, seed=3):
    return torch.rand(batch, channels, height, width, generator=seeded(seed))


def half_mask(height=SIDE, width=SIDE):
    """The left half white, a little more than half a token wide."""
    mask = torch.zeros(height, width)
    mask[:, : width // 2] = 1
    return mask


def original_reconstruction(pipe, images):
    return pipe.vqvae.reconstruct(images * 2 - 1).detach() / 2 + 0.5


# The original's numbers


@pytest.fixture(scope="module")
def golden_pipe(golden):
    return quiet(VARInpaintPipeline.from_original(golden.var_file, golden.vae_file))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_edits_are_those_of_the_release(golden, golden_pipe, number):
    """Its keep mask at the finest token map, as a mask in pixels."""
    call, pipe = golden.meta["edit"][number], golden_pipe
    null_class = pipe.transformer.config.num_classes
    labels = golden.data[f"edit{number}.class_labels"].tolist()
    assert null_class in labels
    stride = pipe.vqvae.stride
    keep = golden.data[f"edit{number}.keep_mask"].repeat_interleave(stride, 0)
    expected = golden.data[f"edit{number}.image"]

    images = pipe(
        golden.data["image"] / 2 + 0.5,
        1 - keep.repeat_interleave(stride, 1),
        [None if label == null_class else label for label in labels],
        paste_back=False,
        guidance_scale=1 + call["guidance"],
        top_k=call["top_k"],
        top_p=call["top_p"] or 1.0,
        sampling="gumbel_softmax" if call["more_smooth"] else "multinomial",
        generator=seeded(call["seed"]),
        output_type="pt",
    ).images

    tolerance = 1e-3 if call["more_smooth"] else 1e-4
    torch.testing.assert_close(images, expected, rtol=0, atol=tolerance)


def test_every_edit_of_the_golden_data_is_compared(golden):
    assert len(golden.meta["edit"]) == 3


# What is kept and what is redrawn


@torch.no_grad()
def test_a_black_mask_gives_the_reconstruction(pipe):
    images = an_image()
    edited = pipe(
        images, torch.zeros(SIDE, SIDE), [3, None], paste_back=False, output_type="pt"
    ).images
    torch.testing.assert_close(edited, original_reconstruction(pipe, images))


def test_a_white_mask_without_the_coarsest_map_is_plain_generation(pipe):
    plain = quiet(VARPipeline.from_pipe(pipe))
    expected = plain([3, 7], generator=seeded(5), output_type="pt").images
    arguments = {"generator": seeded(5), "output_type": "pt", "keep_coarsest": False}
    edited = pipe(an_image(), torch.ones(SIDE, SIDE), [3, 7], **arguments).images
    assert torch.equal(edited, expected)


def test_a_white_mask_keeps_the_coarsest_map_unless_told_otherwise(pipe):
    images = an_image()
    own = pipe.vqvae.encode(images * 2 - 1).token_maps
    outputs = list(pipe.stream(images, torch.ones(SIDE, SIDE), [3, 7], generator=seeded(5)))
    assert torch.equal(outputs[0].tokens, own[0])
    assert not torch.equal(outputs[1].tokens, own[1])


@pytest.mark.parametrize("sampling", ["multinomial", "gumbel_softmax"])
def test_kept_tokens_stay_bit_for_bit_at_every_scale(pipe, sampling):
    images, mask = an_image(), half_mask()
    own = pipe.vqvae.encode(images * 2 - 1).token_maps
    keep = mask.view(5, TOKEN, 5, TOKEN).mean((1, 3)) <= 0.5
    masks = keep_masks(keep[None], (1, 2, 3, 5), keep_coarsest=True)
    assert [int(m.sum()) for m in masks] == [1, 2, 6, 15]

    generator = seeded(2)
    outputs = pipe.stream(images, mask, [3, None], sampling=sampling, generator=generator)
    changed = 0
    for output, kept, tokens in zip(outputs, masks, own, strict=True):
        assert torch.equal(output.tokens[:, kept[0]], tokens[:, kept[0]])
        changed += (output.tokens != tokens).sum()
    assert changed > 0


@pytest.mark.parametrize(("share", "kept"), [(0.5, True), (0.51, False)])
def test_a_token_is_redrawn_where_more_than_half_of_it_is(pipe, share, kept):
    images = an_image(batch=1)
    own = pipe.vqvae.encode(images * 2 - 1).token_maps[-1]
    mask = torch.full((SIDE, SIDE), share)
    *_, last = pipe.stream(images, mask, 3, generator=seeded(0))
    assert torch.equal(last.tokens, own) is kept


def test_keep_masks_are_a_bilinear_average_of_the_finest_one():
    keep = torch.zeros(1, 6, 6, dtype=torch.bool)
    keep[:, :, 2:] = True
    coarsest, two, four, six = keep_masks(keep, (1, 2, 4, 6), keep_coarsest=False)
    assert coarsest.tolist() == [[True]]
    # Its columns lie at 1.0 and 4.0 of the finest map's.
    assert two.view(2, 2).tolist() == [[False, True]] * 2
    # Its second column lies at 1.75: three quarters of a kept one.
    assert four.view(4, 4).tolist() == [[False, True, True, True]] * 4
    assert torch.equal(six.view(1, 6, 6), keep)


def test_previews_and_the_result_are_one_loop(pipe):
    arguments = {"guidance_scale": 2.0, "output_type": "np"}
    images = pipe(an_image(), half_mask(), [3, 7], generator=seeded(1), **arguments).images
    outputs = list(
        pipe.stream(an_image(), half_mask(), [3, 7], generator=seeded(1), preview=True, **arguments)
    )
    assert len(outputs) == outputs[0].num_scales == 4
    assert np.array_equal(outputs[-1].image, images)
    assert outputs[0].image.shape == images.shape


# Pasting back


@settings(max_examples=12)
@given(width=st.integers(1, 40), height=st.integers(1, 40))
def test_pixels_far_from_the_mask_come_back_bit_for_bit(pipe, width, height):
    image = np.random.default_rng(width * 41 + height).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[: height // 2, : width // 2] = 255
    edited = pipe(Image.fromarray(image), Image.fromarray(mask), 3, generator=seeded(0)).images[0]

    assert edited.size == (width, height)
    # One token's width in pixels of the image, and one more pixel for the resampling.
    reach = 2 + (TOKEN + 2) * max(1, max(width, height) / SIDE)
    rows, columns = np.indices((height, width))
    far = (rows - height // 2 + 1 > reach) | (columns - width // 2 + 1 > reach)
    assert np.array_equal(np.asarray(edited)[far], image[far])


def test_a_black_mask_gives_the_image_itself_when_pasted_back(pipe):
    images = an_image(17, 23)
    edited = pipe(images, torch.zeros(17, 23), output_type="pt").images
    assert torch.equal(edited, images)


def test_the_masked_pixels_are_all_the_models(pipe):
    arguments = {"output_type": "pt", "class_labels": 3}
    mask = half_mask()
    pasted = pipe(an_image(), mask, generator=seeded(1), **arguments).images
    drawn = pipe(an_image(), mask, generator=seeded(1), paste_back=False, **arguments).images
    assert torch.equal(pasted[..., mask == 1], drawn[..., mask == 1])


def test_the_seam_is_one_within_the_mask_and_falls_to_zero_in_a_tokens_width():
    mask = torch.zeros(1, 32, 32)
    mask[:, :, :11] = 1
    seam = feather(mask, radius=4)[0, 5]
    assert (seam[:11] == 1).all()
    assert (seam[19:] == 0).all()
    assert (seam.diff() <= 0).all()
    torch.testing.assert_close(seam[11:19], torch.arange(8, 0, -1) / 9)


# Sizes and shapes


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    side=st.sampled_from([10, 16, 64]),
)
def test_an_image_lies_inside_the_square_and_comes_out_in_its_size(height, width, side):
    frame = Frame(height, width, side)
    (top, left), (inner_height, inner_width) = frame.corner, frame.inner_size
    assert top >= 0
    assert left >= 0
    assert top + inner_height <= side
    assert left + inner_width <= side
    assert max(inner_height, inner_width) == side
    colour = torch.tensor([0.25, 0.5, 0.75])[:, None, None].expand(3, height, width)
    square = frame.enter(colour)
    assert square.shape == (3, side, side)
    torch.testing.assert_close(square, colour[:, :1, :1].expand(3, side, side))
    torch.testing.assert_close(frame.leave(square), colour)


def test_an_image_of_the_models_size_is_not_touched():
    image = an_image()[0]
    frame = Frame(SIDE, SIDE, SIDE)
    assert torch.equal(frame.enter(image), image)
    assert torch.equal(frame.leave(image), image)


def test_images_of_different_sizes_come_back_in_their_own(pipe):
    sizes = [(13, 29), (40, 7), (10, 10)]
    images = [Image.new("RGB", size, "red") for size in sizes]
    masks = [Image.new("L", size, 255) for size in sizes]
    edited = pipe(images, masks, [1, None, "hen"], generator=seeded(0)).images
    assert [image.size for image in edited] == sizes


def test_arrays_of_different_sizes_are_refused_before_any_work(pipe):
    images = [np.zeros((5, 6, 3)), np.zeros((7, 8, 3))]
    masks = [np.ones((5, 6)), np.ones((7, 8))]
    with pytest.raises(ValueError, match="do not fit into one array"):
        pipe(images, masks, output_type="np")


def test_an_image_of_one_pixel(pipe):
    image = Image.new("RGB", (1, 1), (9, 99, 199))
    edited = pipe(image, Image.new("L", (1, 1), 255), 3, generator=seeded(0)).images[0]
    assert edited.size == (1, 1)


def test_a_panorama_of_ten_thousand_pixels(pipe):
    image = np.random.default_rng(0).integers(0, 256, (120, 10_000, 3), dtype=np.uint8)
    mask = np.zeros((120, 10_000), dtype=np.uint8)
    mask[:, 4000:6500] = 255
    edited = pipe(Image.fromarray(image), Image.fromarray(mask), 3, generator=seeded(0)).images[0]
    assert edited.size == (10_000, 120)
    result = np.asarray(edited)
    assert np.array_equal(result[:, :1500], image[:, :1500])
    assert not np.array_equal(result[:, 4000:6500], image[:, 4000:6500])


# A window around the mask


def test_a_window_leaves_the_rest_of_the_image_alone(pipe):
    image = an_image(60, 90, batch=1)
    mask = torch.zeros(60, 90)
    mask[20:30, 50:60] = 1
    arguments = {"padding_mask_crop": 5, "paste_back": False, "output_type": "pt"}
    edited = pipe(image, mask, 3, generator=seeded(0), **arguments).images
    window = torch.zeros(60, 90, dtype=torch.bool)
    window[15:35, 45:65] = True
    assert torch.equal(edited[..., ~window], image[..., ~window])
    assert (edited[..., window] != image[..., window]).any()


@given(
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    corners=st.lists(st.floats(0, 0.999), min_size=4, max_size=4),
    margin=st.integers(0, 60),
)
def test_a_window_holds_the_mask_and_is_square_where_there_is_room(size, corners, margin):
    height, width = size
    rows = sorted(int(x * height) for x in corners[:2])
    columns = sorted(int(x * width) for x in corners[2:])
    mask = torch.zeros(1, height, width)
    mask[:, rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = 1
    window_rows, window_columns = window_around(mask, margin)
    assert mask[:, window_rows, window_columns].sum() == mask.sum()
    assert window_rows.start >= 0
    assert window_columns.start >= 0
    side = 2 * margin + 1 + max(rows[1] - rows[0], columns[1] - columns[0])
    assert window_rows.stop - window_rows.start == min(side, height)
    assert window_columns.stop - window_columns.start == min(side, width)


def test_the_window_of_an_empty_mask_is_the_whole_image():
    assert window_around(torch.zeros(1, 7, 9), 2) == (slice(0, 7), slice(0, 9))


# Outpainting


def test_expanding_adds_pixels_on_the_sides_named(pipe):
    arguments = {"expand": (8, 12, 16, 4), "output_type": "pt", "paste_back": False}
    edited = pipe(an_image(40, 40), class_labels=3, generator=seeded(0), **arguments).images
    assert edited.shape == (2, 3, 12 + 40 + 4, 8 + 40 + 16)


def test_expanding_keeps_the_image_in_its_place(pipe):
    image = an_image(60, 60, batch=1)
    edited = pipe(image, expand=(40, 0, 0, 0), output_type="pt", generator=seeded(0)).images
    # The image's right part, beyond the seam: a token is 20 pixels wide here.
    assert torch.equal(edited[..., -18:], image[..., -18:])


def test_expanding_and_a_mask_work_together(pipe):
    images = an_image(20, 20, batch=1)
    mask = torch.zeros(20, 20)
    mask[:, 10:] = 1
    edited = pipe(images, mask, expand=(0, 0, 5, 0), output_type="pt", generator=seeded(0)).images
    assert edited.shape == (1, 3, 20, 25)


# Kinds of images


def same_edit(pipe, image, mask):
    return pipe(image, mask, 3, generator=seeded(4), output_type="pt", guidance_scale=1.0).images


def test_pil_numpy_and_tensors_are_the_same_image(pipe):
    array = np.random.default_rng(1).integers(0, 256, (12, 15, 3), dtype=np.uint8)
    mask = np.zeros((12, 15), dtype=np.uint8)
    mask[:, 8:] = 255
    expected = same_edit(pipe, Image.fromarray(array), Image.fromarray(mask))
    tensor = torch.from_numpy(array).movedim(-1, 0) / 255
    for image, its_mask in (
        (array, mask),
        (array / 255, mask > 0),
        (array[None], mask[None, :, :, None]),
        (tensor, torch.from_numpy(mask > 0)),
        (tensor[None], torch.from_numpy(mask > 0)[None, None]),
        ([tensor], [Image.fromarray(mask)]),
        (array, Image.fromarray(mask).convert("1")),
        (array, Image.fromarray(mask).convert("RGB")),
        (array, np.stack([mask] * 3, axis=-1)),
    ):
        torch.testing.assert_close(same_edit(pipe, image, its_mask), expected)


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "L", "CMYK", "1"])
def test_images_of_any_pil_mode_are_read(pipe, mode):
    image = Image.new("RGB", (12, 12), "white").convert(mode)
    edited = pipe(image, Image.new("L", (12, 12), 0)).images[0]
    assert edited.mode == "RGB"
    assert np.asarray(edited).min() == 255


def test_transparency_is_laid_on_white(pipe):
    transparent = Image.new("RGBA", (12, 12), (0, 0, 0, 0))
    palette = Image.new("P", (12, 12), 0)
    palette.info["transparency"] = 0
    for image in (transparent, palette):
        edited = pipe(image, Image.new("L", (12, 12), 0)).images[0]
        assert np.asarray(edited).min() == 255


def test_unpainted_parts_of_a_transparent_mask_are_kept(pipe):
    mask = Image.new("RGBA", (12, 12), (255, 255, 255, 0))
    image = an_image(12, 12, batch=1)
    assert torch.equal(pipe(image, mask, output_type="pt").images, image)


def test_a_photo_is_turned_upright(pipe, tmp_path):
    image = Image.new("RGB", (12, 30), "blue")
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: turned by a quarter
    image.save(tmp_path / "photo.jpg", exif=exif)
    with Image.open(tmp_path / "photo.jpg") as photo:
        edited = pipe(photo, Image.new("L", (30, 12), 0)).images[0]
    assert edited.size == (30, 12)


# Batches


def test_one_mask_serves_many_images_and_one_image_many_masks(pipe):
    images, mask = an_image(), half_mask()
    masks = torch.stack([mask, 1 - mask])[:, None]
    arguments = {"output_type": "pt", "guidance_scale": 1.0}

    def generators():
        return [seeded(1), seeded(2)]

    by_mask = pipe(images, mask, 3, generator=generators(), **arguments).images
    both = pipe(
        images, torch.stack([mask, mask])[:, None], [3, 3], generator=generators(), **arguments
    )
    assert torch.equal(by_mask, both.images)
    by_image = pipe(images[:1], masks, 3, generator=generators(), **arguments).images
    both = pipe(images[[0, 0]], masks, [3, 3], generator=generators(), **arguments).images
    assert torch.equal(by_image, both)


def test_one_image_takes_many_labels(pipe):
    edited = pipe(an_image(batch=1), half_mask(), [3, None, "hen"], generator=seeded(0)).images
    assert len(edited) == 3


def test_num_images_per_prompt_keeps_the_order(pipe):
    images, mask = an_image(), torch.zeros(SIDE, SIDE)
    edited = pipe(images, mask, [3, 7], num_images_per_prompt=3, output_type="pt").images
    assert torch.equal(edited, images.repeat_interleave(3, dim=0))


def test_an_image_does_not_depend_on_its_batch_mates(pipe):
    arguments = {"mask_image": half_mask(), "output_type": "pt"}
    images = an_image()
    together = pipe(images, class_labels=[3, None], generator=[seeded(1), seeded(2)], **arguments)
    alone = pipe(images[1:], class_labels=3, generator=[seeded(2)], **arguments).images
    null = pipe(images[1:], class_labels=None, generator=[seeded(2)], **arguments).images
    torch.testing.assert_close(together.images[1:], null, rtol=0, atol=1e-4)
    assert not torch.equal(alone, null)


def test_guidance_does_nothing_for_the_null_class(pipe):
    arguments = {"mask_image": half_mask(), "output_type": "latent"}
    rows = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args: rows.append(len(args[0]))
    )
    guided = pipe(an_image(), guidance_scale=5.0, generator=seeded(0), **arguments).images
    plain = pipe(an_image(), guidance_scale=1.0, generator=seeded(0), **arguments).images
    hook.remove()
    assert torch.equal(guided, plain)
    assert set(rows) == {2}


# One set of weights


def test_from_pipe_shares_the_weights_both_ways_and_leaves_their_dtype():
    plain = make_pipe()
    plain.transformer.to(torch.bfloat16)
    inpaint = VARInpaintPipeline.from_pipe(plain)
    back = VARPipeline.from_pipe(inpaint)
    for pipe in (inpaint, back):
        assert pipe.transformer is plain.transformer
        assert pipe.vqvae is plain.vqvae
        assert pipe.id2label == plain.id2label
        assert pipe.config.id2label == plain.config.id2label
    assert plain.transformer.dtype == torch.bfloat16
    assert type(back) is VARPipeline


def test_from_pipe_casts_when_asked_to():
    inpaint = VARInpaintPipeline.from_pipe(make_pipe(), dtype=torch.bfloat16)
    assert inpaint.transformer.dtype == torch.bfloat16


def test_a_saved_pipeline_loads_as_an_inpaint_pipeline(pipe_folder, pipe):
    loaded = quiet(VARInpaintPipeline.from_pretrained(pipe_folder))
    arguments = {"generator": None, "output_type": "pt", "class_labels": 3}
    expected = pipe(an_image(), half_mask(), **arguments | {"generator": seeded(1)}).images
    images = loaded(an_image(), half_mask(), **arguments | {"generator": seeded(1)}).images
    assert torch.equal(images, expected)


def test_half_precision_edits(pipe_folder):
    pipe = quiet(VARInpaintPipeline.from_pretrained(pipe_folder, dtype=torch.bfloat16))
    edited = pipe(an_image(), half_mask(), 3, output_type="np", generator=seeded(0)).images
    assert edited.dtype == np.float32
    assert np.isfinite(edited).all()


def test_return_dict_and_latents(pipe):
    (latents,) = pipe(an_image(), half_mask(), output_type="latent", return_dict=False)
    assert latents.shape == (2, 6, 5, 5)


def test_a_callback_sees_every_scale_and_can_stop(pipe):
    seen = []

    def stop(pipe, scale, step, tensors):
        seen.append((scale, tensors["latents"].shape))
        pipe._interrupt = scale == 1
        return tensors

    images = pipe(an_image(), half_mask(), callback_on_step_end=stop, output_type="pt").images
    assert seen == [(0, (2, 6, 5, 5)), (1, (2, 6, 5, 5))]
    assert images.shape == (2, 3, SIDE, SIDE)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to redraw"),
        ({"mask_image": torch.ones(SIDE, SIDE - 1)}, r"10 x 10 .* mask_image 9 x 10"),
        ({"mask_image": torch.ones(0, SIDE)}, "without pixels"),
        ({"mask_image": np.ones((SIDE, 0))}, "without pixels"),
        ({"mask_image": Image.new("RGB", (SIDE, SIDE), "red")}, "has colours"),
        ({"mask_image": torch.rand(3, SIDE, SIDE, generator=seeded(0))}, "has colours"),
        ({"mask_image": torch.ones(2, SIDE, SIDE)}, "one channel"),
        ({"mask_image": torch.ones(SIDE)}, "no image"),
        ({"mask_image": torch.full((SIDE, SIDE), 255.0)}, r"\[0, 1\]"),
        ({"mask_image": torch.full((SIDE, SIDE), torch.nan)}, r"\[0, 1\]"),
        ({"mask_image": Image.new("I", (SIDE, SIDE))}, "mode 'I'"),
        ({"mask_image": []}, "empty list"),
        ({"mask_image": "mask.png"}, "PIL.Image.open"),
        ({"mask_image": torch.ones(3, 1, SIDE, SIDE)}, "2 images, 3 masks"),
        ({"mask_image": half_mask(), "class_labels": [1, 2, 3]}, "3 class_labels, 2 images"),
        ({"mask_image": half_mask(), "class_labels": []}, "empty"),
        ({"mask_image": half_mask(), "class_labels": [1, NULL_CLASS]}, "Got 11"),
        ({"mask_image": half_mask(), "class_labels": "hne"}, "'hen'"),
        ({"mask_image": half_mask(), "expand": (1, 2, 3)}, "left, top, right, bottom"),
        ({"mask_image": half_mask(), "expand": (1, 2, 3, -1)}, "left, top, right, bottom"),
        ({"mask_image": half_mask(), "padding_mask_crop": -1}, "padding_mask_crop"),
        ({"mask_image": half_mask(), "padding_mask_crop": 2.5}, "padding_mask_crop"),
        ({"mask_image": half_mask(), "num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"mask_image": half_mask(), "generator": [seeded(0)]}, "list of 1 for 2 images"),
        ({"mask_image": half_mask(), "output_type": "jpeg"}, "output_type"),
        ({"mask_image": half_mask(), "top_p": 0}, "top_p"),
    ],
)
def test_bad_input_ends_in_one_clear_error(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(an_image(), **arguments)
    with pytest.raises(ValueError, match=message):
        pipe.stream(an_image(), **arguments)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, SIDE, SIDE), "3 channels"),
        (torch.zeros(4, SIDE, SIDE), "3 channels"),
        (np.zeros((SIDE, SIDE)), "3 channels"),
        (torch.zeros(2, 3, 0, SIDE), "without pixels"),
        (torch.full((3, SIDE, SIDE), -1.0), r"\[-1, -1\]"),
        (np.zeros((2, 2, SIDE, SIDE, 3)), "no image"),
        (Image.new("F", (SIDE, SIDE)), "mode 'F'"),
        ("dog.png", "PIL.Image.open"),
        (None, "NoneType"),
        ([], "empty list"),
    ],
)
def test_what_is_no_image_is_refused(pipe, image, message):
    with pytest.raises(ValueError, match=message):
        pipe(image, half_mask())


def test_a_mask_too_thin_for_any_token_is_pointed_out(pipe, caplog):
    mask = torch.zeros(100, 100)
    mask[50, 50] = 1
    pipe(an_image(100, 100), mask)
    assert "nothing is redrawn" in caplog.text


@pytest.mark.parametrize("method", ["__call__", "stream"])
def test_a_misspelt_argument_is_reported_by_the_method_that_was_called(pipe, method):
    with pytest.raises(
        TypeError, match=rf"VARInpaintPipeline.{method}\(\) got an unexpected .*'guidence_scale'"
    ):
        getattr(pipe, method)(an_image(), guidence_scale=2.0)


def test_an_edit_can_guide_the_coarse_scales_alone():
    pipe = quiet(VARInpaintPipeline.from_pipe(make_pipe()))
    rows = []
    pipe.transformer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    pipe(an_image(batch=1), half_mask(), 3, guided_scales=2, temperature=0.5)
    assert rows == [2, 2, 1, 1]


def test_a_callback_changes_guidance_without_a_class_too(pipe):
    def increase(pipe, scale, _, tensors):
        pipe._guidance_scale += 1.0
        return tensors

    pipe(an_image(batch=1), half_mask(), guidance_scale=2.0, callback_on_step_end=increase)
    assert pipe.guidance_scale == 2.0 + pipe.num_timesteps
