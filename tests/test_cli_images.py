"""The commands that generate images and read them."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import ID2LABEL, make_pipe, make_transformer, make_vqvae, quiet, seeded
from PIL import Image

from var_hf import (
    VARCollaborativeInpaintPipeline,
    VARCollaborativePipeline,
    VARImg2ImgPipeline,
    VARInpaintPipeline,
    VARPipeline,
    __version__,
)
from var_hf.evaluation.classifier import SmallClassifier, load_classifier, save_classifier
from var_hf.pipelines.search import ClassifierJudge

SIDE = 10  # of the tiny model's images, in pixels


@pytest.fixture
def original(tmp_path):
    """The file of an image, and the image."""
    array = np.random.default_rng(3).integers(0, 256, (14, 21, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    image.save(tmp_path / "in.png")
    return tmp_path / "in.png", image


@pytest.fixture
def mask(tmp_path):
    image = Image.new("L", (21, 14))
    image.paste(255, (0, 0, 11, 14))
    image.save(tmp_path / "mask.png")
    return tmp_path / "mask.png", image


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


@pytest.fixture
def classifier(tmp_path):
    """A classifier of the tiny model's classes, in another order."""
    names = [ID2LABEL.get(i) or f"class {i}" for i in range(11)]
    torch.manual_seed(0)
    file = tmp_path / "classifier.safetensors"
    save_classifier(SmallClassifier(11, (8, 16)), names[::-1], file)
    return file, names


# Generate: what is drawn


def test_the_grid_is_what_the_pipeline_draws(var_hf, pipe, pipe_folder):
    """Image i has the generator of seed + i, so it can be drawn again alone."""
    code, out, _ = var_hf("generate", "hen", 0, "--model", pipe_folder, "--seed", 5, "-o", "x.png")

    assert (code, out) == (0, "x.png\n")
    side = pipe.vqvae.stride * 5
    images = pipe(["hen", 0], generator=[torch.Generator().manual_seed(5 + i) for i in (0, 1)])
    hen, tench = map(np.asarray, images.images)
    grid = pixels("x.png")
    assert grid.shape == (side, 2 * side + 1, 3)
    np.testing.assert_array_equal(grid[:, :side], hen)
    np.testing.assert_array_equal(grid[:, side + 1 :], tench)
    assert (grid[:, side] == 255).all()


def test_an_image_can_be_drawn_again_alone(var_hf, pipe_folder):
    common = ("--model", pipe_folder, "--separate")
    var_hf("generate", 1, "hen", *common, "-n", 3, "--seed", 40, "--batch-size", 4, "-o", "all.png")
    var_hf("generate", "hen", *common, "--seed", 44, "-o", "one.png")

    difference = pixels("all-004-hen.png") - pixels("one-000-hen.png")
    assert abs(difference).max() <= 1  # another batch, another rounding


@pytest.mark.parametrize("index", range(4))
def test_one_stream_draws_the_original_codes_images(var_hf, golden, tmp_path, index):
    pipe = VARPipeline.from_original(
        golden.var_file,
        golden.vae_file,
        token_map_sizes=golden.meta["config"]["patch_nums"],
    )
    pipe.save_pretrained(tmp_path / "model")
    wanted = golden.meta["generate"][index]
    code, _, err = var_hf(
        *("generate", *golden.data["class_labels"].tolist(), "--model", "model"),
        *("--cfg", wanted["guidance"], "--top-k", wanted["top_k"]),
        *("--top-p", wanted["top_p"] or 1.0, "--seed", wanted["seed"]),
        *(["--sampling", "gumbel_softmax"] if wanted["more_smooth"] else []),
        *("--one-stream", "--separate"),
    )

    assert code == 0, err
    drawn = np.stack([pixels(file) for file in sorted(tmp_path.glob("out-*.png"))])
    expected = golden.data[f"generate{index}.image"].permute(0, 2, 3, 1).numpy() * 255
    assert abs(drawn - expected).max() < 0.5 + 255 * 1e-3


def test_the_settings_are_in_the_file_and_in_the_json(var_hf, pipe_folder):
    code, out, _ = var_hf(
        *("generate", 2, "tench, tinca tinca", "--model", pipe_folder, "--seed", 3, "--json"),
        *(
            "--cfg",
            0.5,
            "--top-k",
            7,
            "--top-p",
            0.8,
            "--sampling",
            "gumbel_softmax",
            "--temperature",
            0.7,
            "--guided-scales",
            "1:3",
            "--guidance-schedule",
            "constant",
            "--ssg-scale",
            0.25,
            "--dtype",
            "bfloat16",
        ),
    )
    result = json.loads(out)

    assert code == 0
    assert result.pop("files") == ["out.png"]
    assert json.loads(Image.open("out.png").text["var-hf"]) == result
    assert result == {
        "software": f"var-hf {__version__}",
        "model": str(pipe_folder),
        "device": "cpu",
        "dtype": "bfloat16",
        "seed": 3,
        "one_stream": False,
        "guidance_scale": 1.5,
        "top_k": 7,
        "top_p": 0.8,
        "sampling": "gumbel_softmax",
        "temperature": 0.7,
        "guided_scales": [1, 3],
        "guidance_schedule": "constant",
        "ssg_scale": 0.25,
        "images": [
            {"class_id": 2, "class_name": "crane", "seed": 3},
            {"class_id": 0, "class_name": "tench, Tinca tinca", "seed": 4},
        ],
    }


def test_what_is_not_said_comes_from_the_checkpoint_and_the_seed_is_fresh(var_hf, pipe_folder):
    results = [
        json.loads(var_hf("generate", 2, "--model", pipe_folder, "--json")[1]) for _ in range(2)
    ]

    assert [results[0][name] for name in ("guidance_scale", "top_k", "top_p", "sampling")] == [
        *(3.0, 13, 0.9, "multinomial")
    ]
    assert results[0]["seed"] != results[1]["seed"]


def test_separate_files_are_named_after_their_class(var_hf, pipe_folder):
    """Class 9 has no name in this model; an old file is replaced."""
    with open("new-001-class_9.png", "w") as file:
        file.write("old")
    code, out, _ = var_hf(
        "generate", 0, 9, "--model", pipe_folder, "--separate", "-o", "a/new.png", "--seed", 1
    )
    var_hf("generate", 9, "--model", pipe_folder, "-o", "new-001-class_9.png", "--seed", 2)

    assert code == 0
    assert out.split() == ["a/new-000-tench.png", "a/new-001-class_9.png"]
    np.testing.assert_array_equal(pixels("a/new-001-class_9.png"), pixels("new-001-class_9.png"))
    assert json.loads(Image.open("a/new-001-class_9.png").text["var-hf"])["images"] == [
        {"class_id": 9, "class_name": None, "seed": 2}
    ]


@pytest.mark.parametrize(
    ("labels", "num_images", "columns", "rows"),
    [(1, 5, 3, 2), (5, 1, 3, 2), (2, 3, 3, 2), (1, 1, 1, 1)],
)
def test_layout_of_the_grid(var_hf, pipe_folder, labels, num_images, columns, rows):
    """A row per class where there are several of several, else nearly a square."""
    code, *_ = var_hf("generate", *range(labels), "-n", num_images, "--model", pipe_folder)

    side, gap = 10, 1
    assert code == 0
    height, width, _ = pixels("out.png").shape
    assert (width, height) == (columns * (side + gap) - gap, rows * (side + gap) - gap)


# Generate: what is refused


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["tensch"], "no class 'tensch' among the 6 known names. Did you mean 'tench'?"),
        (["crane"], "'crane' is the name of classes [2, 5]. Pass the number"),
        ([11], "Class ids lie in [0, 10] for this model. Got 11."),
        (["hen", "--cfg", 1.5, "--guidance-scale", 2.5], "--cfg 1.5 is --guidance-scale 2.5."),
        (["hen", "--cfg", -1], "--cfg must be a finite number of at least 0 (0 is off). Got -1."),
        (["hen", "--cfg", "inf"], "--cfg must be a finite number of at least 0"),
        (["hen", "--guidance-scale", "nan"], "guidance_scale must be a finite number"),
        (["hen", "--top-p", 1.5], "top_p must be a finite number in (0, 1]. Got 1.5 (float)."),
        (["hen", "--top-k", -1], "top_k must be a whole number of at least 0. Got -1 (int)."),
        (["hen", "--one-stream", "--batch-size", 2], "leave --batch-size out"),
        (["hen", "--device", "gpu"], "There is no device 'gpu'. Pass cpu, cuda, cuda:1, mps"),
        (["hen", "--device", "cuda:99"], "PyTorch finds no device 'cuda:99'"),
        (["hen", "-o", "image.jpg"], "The output has to be a .png file. Got image.jpg."),
        (["hen", "-o", "folder.png"], "The output folder.png is a folder."),
    ],
)
def test_bad_requests_are_refused(fails, pipe_folder, tmp_path, arguments, problem):
    (tmp_path / "folder.png").mkdir()

    assert problem in fails("generate", *arguments, "--model", pipe_folder)


def test_without_a_model_the_one_that_ships_draws(var_hf):
    code, out, err = var_hf("generate", "pizza", 34, "--seed", 3, "--json")

    assert code == 0, err
    result = json.loads(out)
    assert result["model"] == "var-emoji-128"
    assert [image["class_name"] for image in result["images"]] == ["pizza", "fox"]
    with Image.open("out.png") as grid:
        assert grid.size == (128 + 2 + 128, 128)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("nowhere", "There is no folder nowhere, and a Hub repository is named user/name."),
        ("./user/name", "There is no folder ./user/name"),
        (
            "var_d16.pth",
            "var_d16.pth is a file. Convert original checkpoints first: var-hf convert.",
        ),
        ("empty", "empty is no pipeline folder: it has no model_index.json."),
        ("part", "part is no complete VAR pipeline folder: it lacks transformer/config.json."),
        ("other", "other is no VAR pipeline but StableDiffusionPipeline"),
        ("damaged", "damaged/model_index.json is damaged or not JSON"),
        ("cut", "cut/transformer/model.safetensors is truncated, damaged or no safetensors file"),
        ("swapped", "Transformer and VQVAE do not belong together: they differ in codes"),
    ],
)
def test_a_model_that_is_none_is_refused(fails, pipe_folder, tmp_path, model, problem):
    (tmp_path / "var_d16.pth").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    for name in ("part", "other", "damaged", "cut", "swapped"):
        shutil.copytree(pipe_folder, tmp_path / name)
    (tmp_path / "other/model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet"]})
    )
    (tmp_path / "part/transformer/config.json").unlink()
    (tmp_path / "damaged/model_index.json").write_text("{")
    weights = tmp_path / "cut/transformer/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    make_vqvae(codebook_size=31).save_pretrained(tmp_path / "swapped/vqvae")

    assert problem in fails("generate", "hen", "--model", model)


# edit


def test_edit_draws_what_the_pipeline_draws(var_hf, pipe_folder, original, mask):
    code, out, err = var_hf(
        *("edit", original[0], "--mask", mask[0], "--class-labels", "hen", "-m", pipe_folder),
        *("-o", "out.png", "--seed", 7, "--cfg", 1, "--top-p", 0.8),
    )
    assert (code, out) == (0, "out.png\n")
    assert "seed 7" in err
    pipe = quiet(VARInpaintPipeline.from_pipe(make_pipe()))
    arguments = {"guidance_scale": 2.0, "top_p": 0.8, "generator": [seeded(7)]}
    expected = pipe(original[1], mask[1], "hen", **arguments).images[0]
    assert np.array_equal(pixels("out.png"), np.asarray(expected))


def test_edit_options_reach_the_pipeline(var_hf, pipe_folder, original, mask):
    code, out, _ = var_hf(
        *("edit", original[0], "--mask", mask[0], "-m", pipe_folder, "--seed", 7, "--json"),
        *(
            "--expand",
            "3,0,4,1",
            "--no-keep-coarsest",
            "--no-paste-back",
            "--padding-mask-crop",
            5,
            "-n",
            2,
        ),
    )
    assert code == 0
    result = json.loads(out)
    assert result["class_id"] is None
    assert [entry["seed"] for entry in result["images"]] == [7, 8]
    pipe = quiet(VARInpaintPipeline.from_pipe(make_pipe()))
    expected = pipe(
        original[1],
        mask[1],
        expand=(3, 0, 4, 1),
        keep_coarsest=False,
        paste_back=False,
        padding_mask_crop=5,
        num_images_per_prompt=2,
        generator=[seeded(7), seeded(8)],
    ).images
    grid = pixels("out.png")
    assert grid.shape == (15, 2 * 28 + 1, 3)
    assert np.array_equal(grid[:, :28], np.asarray(expected[0]))
    assert np.array_equal(grid[:, 29:], np.asarray(expected[1]))
    with Image.open("out.png") as image:
        assert json.loads(image.info["var-hf"])["expand"] == [3, 0, 4, 1]


def test_edit_by_strength_draws_variations(var_hf, pipe_folder, original):
    code, out, _ = var_hf(
        *("edit", original[0], "--strength", 0.5, "-l", 3, "-m", pipe_folder, "--seed", 1)
    )
    assert (code, out) == (0, "out.png\n")
    pipe = quiet(VARImg2ImgPipeline.from_pipe(make_pipe()))
    expected = pipe(original[1], 3, strength=0.5, generator=[seeded(1)]).images[0]
    assert np.array_equal(pixels("out.png"), np.asarray(expected))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to redraw"),
        (["--mask", "missing.png"], "no image missing.png"),
        (["--mask", "broken.png"], "broken.png cannot be read as an image"),
        (["--mask", "small.png"], "21 x 14"),
        (["--mask", "red.png"], "colours"),
        (["--expand", "1,2,3"], "--expand takes four numbers"),
        (["--expand", "1,2,3,-4"], "--expand takes four numbers"),
        (["--strength", "1.5"], "strength must lie in"),
        (["--strength", "0.5", "--expand", "1,0,0,0"], "leave --mask"),
        (["--expand", "1,0,0,0", "--class-labels", "hne"], "hen"),
        (["--expand", "1,0,0,0", "-o", "out.jpg"], ".png file"),
    ],
)
def test_bad_edits_are_refused(fails, pipe_folder, tmp_path, original, arguments, message):
    (tmp_path / "broken.png").write_bytes(original[0].read_bytes()[:60])
    Image.new("L", (20, 14)).save(tmp_path / "small.png")
    Image.new("RGB", (21, 14), "red").save(tmp_path / "red.png")
    assert message in fails("edit", original[0], "-m", pipe_folder, *arguments)


def test_a_file_that_is_no_image_is_refused(fails, pipe_folder, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    for command in (["edit", "--strength", 0.5], ["classify"]):
        line = fails(*command, tmp_path / "notes.txt", "-m", pipe_folder)
        assert "notes.txt cannot be read as an image" in line


# generate --best-of


@pytest.mark.parametrize("by_classifier", [False, True])
def test_the_best_of_several_is_what_the_pipeline_finds(
    var_hf, pipe, tmp_path, classifier, by_classifier
):
    """Image i draws all its candidates from the generator of seed + i."""
    file, names = classifier
    pipe.id2label = dict(enumerate(names))
    pipe.register_to_config(id2label=pipe.id2label)
    pipe.save_pretrained(tmp_path / "model")
    judge = file if by_classifier else "likelihood"
    code, out, _ = var_hf(
        *("generate", 3, 5, "-m", tmp_path / "model", "--seed", 7, "--best-of", 3),
        *("--judge", judge, "--json"),
    )

    assert code == 0
    result = json.loads(out)
    assert (result["best_of"], result["judge"]) == (3, str(judge))
    if by_classifier:
        judge = ClassifierJudge(load_classifier(file)[0], range(11)[::-1])
    generators = [seeded(7), seeded(8)]
    images = pipe([3, 5], candidates=3, judge=judge, generator=generators).images
    grid = pixels("out.png")
    for i, image in enumerate(images):
        left = i * (SIDE + 1)
        np.testing.assert_array_equal(grid[:, left : left + SIDE], np.asarray(image))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scales", "x.png"], "leave --best-of out"),
        (["--judge", "taste"], "There is no classifier taste. Give emoji, emoji-128, or"),
        (["--judge", "emoji-128"], "judge emoji-128 does not know 11 of the model's 11 classes"),
        (["--judge", "in.png"], "holds no classifier"),
        (["--judge", "classifier.safetensors"], "does not know 5 of the model's 11 classes"),
    ],
)
def test_a_wrong_judge_is_refused(fails, pipe_folder, original, classifier, arguments, message):
    assert message in fails("generate", 3, "-m", pipe_folder, "--best-of", 2, *arguments)


# classify


def test_classify_prints_what_the_pipeline_finds(var_hf, pipe_folder, original):
    other = original[0].with_name("other.jpg")
    Image.new("RGB", (40, 30), "teal").save(other)
    arguments = ("classify", original[0], other, "-m", pipe_folder, "--top", 2, "--batch-size", 4)

    code, out, _ = var_hf(*arguments, "--json")
    assert code == 0
    result = json.loads(out)
    with Image.open(other) as image:
        expected = make_pipe().classify([original[1], image], top=2, batch_size=4)
    assert [entry["classes"] for entry in result["images"]] == expected

    code, out, _ = var_hf(*arguments)
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[0] for line in lines] == [str(original[0])] * 2 + [str(other)] * 2
    assert float(lines[0][1]) == pytest.approx(expected[0][0]["score"], abs=1e-4)


def test_classify_in_stages_counts_its_operations(var_hf, pipe_folder, original):
    arguments = ("classify", original[0], "-m", pipe_folder, "--budget", "7:1,3:2,2:4:3", "--json")
    code, out, err = var_hf(*arguments)
    result = json.loads(out)

    assert code == 0
    stages = [(7, 1, 1), (3, 2, 1), (2, 4, 3)]
    assert [tuple(stage.values()) for stage in result["budget"]] == stages
    expected = make_pipe().classify(original[1], budget=stages, generator=seeded(0))
    assert [entry["classes"] for entry in result["images"]] == expected
    ratio = result["flops_of_full_search"] / result["flops_per_image"]
    assert ratio > 1
    assert f"TFLOP per image, {ratio:.1f} times fewer than the full search" in err


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("slow", "full, fast, a-varc, or stages CANDIDATES:SCALES[:SAMPLES]"),
        ("12:4", "at most all 11"),
        ("5:5", "1 to 4 scales"),
        ("3:2,3:4", "fewer than the stage before. Got 3 candidates"),
    ],
)
def test_a_wrong_budget_is_refused(fails, pipe_folder, original, budget, message):
    assert message in fails("classify", original[0], "-m", pipe_folder, "--budget", budget)


# generate --scales


def test_generate_writes_the_scales_as_a_strip_and_as_an_animation(var_hf, pipe_folder):
    arguments = ("generate", 3, 1, "-m", pipe_folder, "--seed", 5)
    code, out, _ = var_hf(*arguments, "--scales", "scales.png", "--scales", "scales.webp")
    assert code == 0
    assert out.splitlines() == ["out.png", "scales.png", "scales.webp"]
    strip = pixels("scales.png")
    assert strip.shape == (2 * SIDE + 1, 4 * SIDE + 3, 3)
    stream = quiet(make_pipe()).stream([3, 1], generator=[seeded(5), seeded(6)], preview=True)
    for scale, output in enumerate(stream):
        left = scale * (SIDE + 1)
        for row, image in enumerate(output.image):
            top = row * (SIDE + 1)
            tile = strip[top : top + SIDE, left : left + SIDE]
            assert np.array_equal(tile, np.asarray(image))
    grid = pixels("out.png")
    assert np.array_equal(grid[:, :SIDE], strip[:SIDE, -SIDE:])
    with Image.open("scales.webp") as animation:
        assert animation.n_frames == 4
        animation.seek(3)
        assert np.array_equal(animation.convert("RGB"), grid)


def test_the_images_do_not_depend_on_showing_their_scales(var_hf, pipe_folder):
    arguments = ("generate", 3, "-m", pipe_folder, "--seed", 5, "-n", 3, "--batch-size", 2)
    var_hf(*arguments, "-o", "plain.png")
    var_hf(*arguments, "-o", "shown.png", "--scales", "scales.gif")
    assert np.array_equal(pixels("plain.png"), pixels("shown.png"))


@pytest.mark.parametrize("path", ["scales.jpg", "scales"])
def test_scales_of_another_kind_are_refused(fails, pipe_folder, path):
    line = fails("generate", 3, "-m", pipe_folder, "--scales", path)
    assert "--scales takes a .png, .gif or .webp file" in line


# Two models


@pytest.fixture
def small_folder(tmp_path):
    """A smaller model for the same tokens."""
    small = make_pipe(transformer=make_transformer(num_hidden_layers=2))
    small.save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def test_two_models_draw_one_image(var_hf, pipe_folder, small_folder):
    pair = quiet(
        VARCollaborativePipeline.from_pretrained(
            pipe_folder, refiner=small_folder, draft_scales=3, dtype=torch.float32
        )
    )
    two = ("--refiner", "small", "--draft-scales", 3)
    warm = ("--temperature", "1.1,1.1,1,1")

    code, out, err = var_hf("generate", 3, "-m", pipe_folder, *two, *warm, "--seed", 5, "--json")

    assert code == 0, err
    result = json.loads(out)
    assert (result["refiner"], result["draft_scales"]) == ("small", 3)
    assert result["temperature"] == [1.1, 1.1, 1.0, 1.0]
    expected = pair(3, generator=[seeded(5)], temperature=[1.1, 1.1, 1, 1]).images[0]
    assert np.array_equal(pixels("out.png"), np.asarray(expected))
    # One folder with both is a model like others, and stores its number of scales.
    pair.save_pretrained("pair")
    code, out, _ = var_hf("generate", 3, "-m", "pair", *warm, "--seed", 5, "--json")
    result = json.loads(out)
    assert "refiner" not in result and result["draft_scales"] == 3
    assert np.array_equal(pixels("out.png"), np.asarray(expected))


def test_two_models_edit_an_image(var_hf, pipe_folder, small_folder, original, mask):
    for how in (("--strength", 0.5), ("--mask", mask[0])):
        code, out, err = var_hf(
            *("edit", original[0], *how, "-m", pipe_folder, "--refiner", "small", "--seed", 5),
            *("-l", 3, "-o", "edited.png", "--json"),
        )
        assert code == 0, err
        assert json.loads(out)["draft_scales"] == 2
    pair = VARCollaborativePipeline.from_pretrained(
        pipe_folder, refiner=small_folder, dtype=torch.float32
    )
    inpaint = quiet(VARCollaborativeInpaintPipeline.from_pipe(pair))
    expected = inpaint(original[1], mask[1], 3, generator=[seeded(5)]).images[0]
    assert np.array_equal(pixels("edited.png"), np.asarray(expected))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--draft-scales", 2), "has one transformer"),
        (("--refiner", "small", "--draft-scales", 5), "a whole number from 0"),
        (("--refiner", "nowhere"), "There is no folder nowhere"),
        (("--temperature", "1,2"), "one for each of the 4 scales"),
        (("--temperature", "1,0,1,1"), "temperature must be a finite number above 0"),
    ],
)
def test_numbers_that_fit_no_two_models_are_refused(
    fails, pipe_folder, small_folder, arguments, problem
):
    assert problem in fails("generate", 3, "-m", pipe_folder, *arguments)


def test_a_temperature_is_a_number_or_a_list(fails, pipe_folder):
    line = fails("generate", 3, "-m", pipe_folder, "--temperature", "1,warm", code=2)
    assert "one for each scale with commas between them. Got 1,warm" in line
