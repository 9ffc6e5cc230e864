import numpy as np
import pytest
import torch
from conftest import seeded
from PIL import Image

from var_hf import VARImg2ImgPipeline, VARInpaintPipeline
from var_hf.demo.orders import Edit
from var_hf.demo.settings import Settings

SIDE = 10  # of the tiny model's images, in pixels


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


def an_image(width=SIDE, height=SIDE):
    rows = np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(rows)


def left_half(size):
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def last(drawn):
    *_, finished = drawn
    assert finished.is_finished
    return finished


def test_images_are_those_of_the_pipeline_and_come_scale_by_scale(studio):
    settings = Settings(
        num_images=3,
        guidance_scale=2.0,
        top_k=7,
        top_p=0.8,
        sampling="gumbel_softmax",
        temperature=0.6,
        guidance_schedule="constant",
        ssg_scale=0.25,
        seed=11,
    )
    drawn = list(studio.generate("pizza", settings))

    generators = [seeded(11 + index) for index in range(3)]
    expected = studio.pipe(
        [3] * 3,
        guidance_scale=2.0,
        top_k=7,
        top_p=0.8,
        sampling="gumbel_softmax",
        temperature=0.6,
        guidance_schedule="constant",
        ssg_scale=0.25,
        generator=generators,
    ).images
    assert [one.scale for one in drawn] == [0, 1, 2, 3]
    assert [one.is_finished for one in drawn] == [False, False, False, True]
    assert np.array_equal(pixels(drawn[-1].images), pixels(expected))
    assert not np.array_equal(pixels(drawn[0].images), pixels(expected))
    assert drawn[-1].settings == settings and drawn[-1].class_id == 3


def test_the_defaults_are_the_checkpoints(studio):
    drawn = last(studio.generate(3, Settings(seed=4)))

    assert np.array_equal(
        pixels(drawn.images), pixels(studio.pipe(3, generator=[seeded(4)]).images)
    )


def test_an_image_can_be_drawn_again_alone(studio):
    together = last(studio.generate(3, Settings(num_images=4, seed=20))).images
    alone = last(studio.generate(3, Settings(seed=22))).images

    # Batches round differently, by at most one step of 256.
    assert np.abs(pixels(alone).astype(int) - pixels(together[2:3])).max() <= 1


@pytest.mark.parametrize(
    ("label", "class_id"), [("pizza", 3), ("Tinca tinca", 0), (" FOX ", 7), ("10", 10), (10, 10)]
)
def test_classes_have_names_and_numbers(studio, label, class_id):
    assert studio.class_id(label) == class_id


@pytest.mark.parametrize(
    ("label", "line"),
    [
        ("piza", "Did you mean 'pizza'"),
        ("crane", "is the name of classes [1, 2]"),
        (11, "Class ids lie in [0, 10]"),
        (-1, "Class ids lie in [0, 10]"),
        ("9" * 30, "There is no class"),
        ("x" * 100_000, "There is no class 'xxx"),
        ("<img src=x onerror=alert(1)>", "There is no class '<img"),
        (1.5, "A class is a name or a number. Got 1.5."),
        (True, "A class is a name or a number. Got True."),
        ({"a": 1}, "A class is a name or a number."),
        (None, "Choose a class to draw."),
    ],
)
def test_a_class_that_does_not_exist(studio, label, line):
    with pytest.raises(ValueError) as error:
        next(studio.generate(label, Settings(seed=0)))

    assert line in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("label", [None, "fox"])
@pytest.mark.parametrize("margin", [None, 2])
def test_redrawing_a_part_is_the_inpainting_pipeline(studio, label, margin):
    image, mask = an_image(21, 13), left_half((21, 13))
    drawn = last(
        studio.edit(
            Edit(image, mask, padding_mask_crop=margin), label, Settings(num_images=2, seed=3)
        )
    )

    pipe = VARInpaintPipeline.from_pipe(studio.pipe)
    expected = pipe(
        image,
        mask,
        label,
        num_images_per_prompt=2,
        padding_mask_crop=margin,
        generator=[seeded(3), seeded(4)],
    ).images
    assert np.array_equal(pixels(drawn.images), pixels(expected))
    assert drawn.images[0].size == (21, 13)


def test_extending_and_varying_are_the_pipelines(studio):
    image = an_image(12, 10)
    extended = last(studio.edit(Edit(image, expand=(3, 0, 5, 2)), 7, Settings(seed=3)))
    varied = last(studio.edit(Edit(image, strength=0.5), 7, Settings(seed=3)))

    assert extended.images[0].size == (20, 12)
    pipe = VARImg2ImgPipeline.from_pipe(studio.pipe)
    expected = pipe(image, 7, strength=0.5, generator=[seeded(3)]).images
    assert np.array_equal(pixels(varied.images), pixels(expected))


def test_nothing_painted(studio):
    edit = Edit(an_image(), Image.new("L", (SIDE, SIDE)))

    with pytest.raises(ValueError, match="Nothing is painted"):
        next(studio.edit(edit, None, Settings()))


def test_too_little_painted_for_any_token(studio):
    dot = Image.new("L", (SIDE, SIDE))
    dot.putpixel((4, 4), 255)  # a quarter of a token of 2 x 2 pixels

    with pytest.raises(ValueError, match="Too little is painted"):
        next(studio.edit(Edit(an_image(), dot), None, Settings()))
    assert last(studio.edit(Edit(an_image(), dot, padding_mask_crop=2), None, Settings())).images


def test_results_that_would_fill_the_memory(studio):
    edit = Edit(an_image(1000, 1000), expand=(1000, 1000, 1000, 1000))

    with pytest.raises(
        ValueError, match="8 results of 3000 x 3000 pixels are more than 16 million"
    ):
        next(studio.edit(edit, None, Settings(num_images=8)))


def test_a_visitor_who_stops_leaves_nothing_behind(studio):
    """Closing the stream ends the loop; the next visitor gets the same image as ever."""
    expected = last(studio.generate("fox", Settings(seed=1))).images
    begun = studio.generate("pizza", Settings(seed=2, guidance_scale=9.0))
    next(begun)
    begun.close()

    assert np.array_equal(
        pixels(last(studio.generate("fox", Settings(seed=1))).images), pixels(expected)
    )


def test_out_of_memory_is_one_line(studio, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(studio.pipe.transformer, "forward", full)
    with pytest.raises(ValueError, match="8 images at a time do not fit"):
        next(studio.generate(3, Settings(num_images=8)))
