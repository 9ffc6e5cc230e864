import dataclasses
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from var_hf.evaluation.classifier import load_classifier, save_classifier
from var_hf.images import open_images

EXAMPLE = Path(__file__).parents[2] / "examples" / "emoji"


def load(name):
    spec = importlib.util.spec_from_file_location(f"emoji_{name}", EXAMPLE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where worker processes find its functions
    spec.loader.exec_module(module)
    return module


draw = load("draw")
classifier = load("train_classifier")
enlarge = load("enlarge")

DRAWING = draw.read_drawing(draw.DRAWING_64)
DRAWING_128 = draw.read_drawing(draw.DRAWING_128)

needs_font = pytest.mark.skipif(
    not draw.FONT.exists(), reason="needs the Debian package fonts-noto-color-emoji"
)


def pixels(*arguments, **keywords):
    return np.asarray(draw.draw(*arguments, **keywords)).astype(int)


@needs_font
def test_an_image_follows_from_its_four_keys_alone():
    first = pixels("fox", 3, "train", seed=5)

    pixels("owl", 1)
    assert (pixels("fox", 3, "train", seed=5) == first).all()
    others = [
        ("fox", 4, "train", 5),
        ("fox", 3, "test", 5),
        ("fox", 3, "train", 6),
        ("owl", 3, "train", 5),
    ]
    assert all((pixels(*keys) != first).any() for keys in others)


@needs_font
@pytest.mark.parametrize("name", DRAWING.classes)
def test_every_class_has_a_visible_glyph(name):
    image = pixels(name, 0)

    assert image.shape == (64, 64, 3)
    glyph = np.asarray(draw.sprite(DRAWING.classes[name], draw.FONT.name))
    assert max(glyph.shape[:2]) >= 96  # drawn from the large strike, not blown up
    assert (glyph[..., 3] > 128).mean() > 0.2


@needs_font
def test_images_of_a_class_vary_in_ground_size_and_place():
    corners = {tuple(pixels("star", index)[0, 0]) for index in range(12)}
    extents = []
    for index in range(12):
        image = pixels("star", index)
        ground = np.abs(image - np.median(image, axis=(0, 1))).sum(axis=2)
        rows, columns = np.nonzero(ground > 120)
        extents.append((rows.min(), columns.min(), np.ptp(rows), np.ptp(columns)))

    assert len(corners) == 12
    assert np.std(extents, axis=0).min() > 2


COUNTS = ("--train", "4", "--validation", "1", "--test", "2")
#: The font with which var-emoji-64's images were drawn.
DRAWN_WITH = "e5899ed38b8ed83e08bd3ac5de09791e9d19d288333a796de1d35ad17396f1ec"


def font_digest():
    return hashlib.sha256(draw.FONT.read_bytes()).hexdigest()


def run_draw(*arguments):
    command = [sys.executable, EXAMPLE / "draw.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small data set, written as a user does."""
    folder = tmp_path_factory.mktemp("data") / "emoji"
    done = run_draw(folder, *COUNTS)
    assert done.returncode == 0, done.stderr
    return folder


@needs_font
def test_the_data_set_is_an_image_folder(data):
    train, test = open_images(data, "train"), open_images(data, "test")

    assert train.class_names == test.class_names == sorted(DRAWING.classes)
    assert (len(train), len(test)) == (160, 80)
    assert (np.asarray(train.read(5)) == pixels(train.class_names[1], 1, "train")).all()


@needs_font
def test_the_pixels_of_var_emoji_64_are_those_that_it_was_trained_on():
    digest = hashlib.sha256()
    for name in ("fox", "automobile", "watermelon"):
        for index in (0, 7):
            digest.update(draw.draw(name, index, "train").tobytes())

    if font_digest() != DRAWN_WITH:
        pytest.skip("another version of the font")
    assert digest.hexdigest() == "b9994cf3c23a1a976f04820e8ed1fd42c3841fe1acab5e6aed877d2719a4cec7"


@needs_font
def test_a_finished_data_set_is_left_alone(data):
    before = {file: file.stat().st_mtime_ns for file in data.rglob("*")}

    done = run_draw(data, *COUNTS)

    assert done.returncode == 0
    assert {file: file.stat().st_mtime_ns for file in data.rglob("*")} == before


@needs_font
@pytest.mark.parametrize(
    ("arguments", "difference"),
    [((), "counts"), ((*COUNTS, "--seed", "7"), "seed")],
    ids=["other counts", "other seed"],
)
def test_a_folder_with_another_drawing_is_refused(data, arguments, difference):
    done = run_draw(data, *arguments)

    assert done.returncode != 0
    assert f"exists already, with images of another drawing ({difference} differ)" in done.stderr


@needs_font
def test_a_folder_of_another_version_of_the_drawing_code_is_refused(data, monkeypatch):
    record = json.loads((data / "drawing.json").read_text())
    monkeypatch.setattr(draw, "VERSION", draw.VERSION + 1)

    with pytest.raises(FileExistsError, match=r"another drawing \(version differ\)"):
        draw.write_dataset(data, record["counts"])


@pytest.fixture
def icons(tmp_path, monkeypatch):
    """Three icon sets as npm installs them: a red, a blue and a green square under every name.

    The fox is found by its alias.
    """
    pytest.importorskip("resvg_py")
    monkeypatch.setattr(draw, "NODE_MODULES", tmp_path / "node_modules")
    draw.sprite.cache_clear()
    draw.read_icons.cache_clear()
    for style, colour in zip(DRAWING_128.styles, ("red", "blue", "lime"), strict=True):
        folder = tmp_path / "node_modules" / style
        folder.mkdir(parents=True)
        body = f'<path fill="{colour}" d="M4 2h24v28H4z"/>'
        icons = {name: {"body": body} for name in DRAWING_128.classes.values() if name != "fox"}
        icons["fox-face"] = {"body": body}
        values = {
            "icons": icons,
            "aliases": {"fox": {"parent": "fox-face"}},
            "width": 32,
            "height": 32,
        }
        (folder / "icons.json").write_text(json.dumps(values))
    yield
    draw.sprite.cache_clear()
    draw.read_icons.cache_clear()


def middle(image):
    """Which of red, green and blue is strongest on average over the middle quarter."""
    return np.asarray(image)[48:80, 48:80].mean(axis=(0, 1)).argmax()


def test_the_styles_of_vector_glyphs_take_turns(icons):
    images = [draw.draw("fox", index, drawing=DRAWING_128) for index in range(6)]

    assert [middle(image) for image in images] == [0, 2, 1, 0, 2, 1]
    assert {image.size for image in images} == {(128, 128)}


def test_grounds_and_shadows_vary(icons):
    images = [np.asarray(draw.draw("owl", index, drawing=DRAWING_128)) for index in range(0, 60, 3)]
    bare = dataclasses.replace(DRAWING_128, shadows=0.0)
    without = [np.asarray(draw.draw("owl", index, drawing=bare)) for index in range(0, 60, 3)]

    darker = [(one < other).any() for one, other in zip(images, without, strict=True)]
    assert 0.3 < np.mean(darker) < 0.9
    assert not any((one > other).any() for one, other in zip(images, without, strict=True))
    corners = {tuple(image[0, 0]) for image in images}
    assert len(corners) == len(images)


def test_an_interrupted_data_set_is_continued(icons, tmp_path, monkeypatch):
    few = dataclasses.replace(DRAWING_128, classes={"fox": "fox", "owl": "owl"})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    counts = {"train": 2, "test": 1}
    draw.write_dataset(whole, counts, workers=1, drawing=few)
    shutil.copytree(whole, tmp_path / ".cut-partial")
    shutil.rmtree(tmp_path / ".cut-partial" / "test")
    kept = tmp_path / ".cut-partial" / "train" / "fox" / "00000.png"
    kept.write_bytes(b"as it was left")

    draw.write_dataset(cut, counts, workers=1, drawing=few)

    assert (cut / "train" / "fox" / "00000.png").read_bytes() == b"as it was left"
    for file in ("train/owl/00001.png", "test/owl/00000.png", "drawing.json"):
        assert (cut / file).read_bytes() == (whole / file).read_bytes()
    assert not (tmp_path / ".cut-partial").exists()


def test_what_another_drawing_left_half_done_is_drawn_anew(icons, tmp_path):
    few = dataclasses.replace(DRAWING_128, classes={"fox": "fox"})
    partial = tmp_path / ".data-partial" / "train" / "fox"
    partial.mkdir(parents=True)
    (partial / "00000.png").write_bytes(b"of another drawing")

    draw.write_dataset(tmp_path / "data", {"train": 1}, workers=1, drawing=few)

    assert len(open_images(tmp_path / "data", "train")) == 1
    assert (tmp_path / "data" / "train" / "fox" / "00000.png").stat().st_size > 1000


def test_a_missing_font_is_named(monkeypatch):
    monkeypatch.setattr(draw, "FONT", Path("nowhere/NotoColorEmoji.ttf"))

    with pytest.raises(FileNotFoundError, match="apt-get install fonts-noto-color-emoji"):
        draw.glyph_file("NotoColorEmoji.ttf")


def test_a_missing_icon_set_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(draw, "NODE_MODULES", tmp_path)

    with pytest.raises(FileNotFoundError, match="npm install @iconify-json/twemoji"):
        draw.glyph_file("@iconify-json/twemoji")


def test_a_missing_renderer_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "resvg_py", None)

    with pytest.raises(ImportError, match="pip install resvg-py"):
        draw.render_icon("fox", tmp_path / "icons.json")


def test_a_missing_icon_is_named(icons):
    with pytest.raises(ValueError, match="no icon 'griffin'; use a newer version"):
        draw.sprite("griffin", "@iconify-json/noto")


def test_the_drawing_of_var_emoji_128_holds_the_classes_of_the_small_one():
    assert len(DRAWING_128.classes) >= 100
    assert set(DRAWING.classes) <= set(DRAWING_128.classes)
    assert len(set(DRAWING_128.classes.values())) == len(DRAWING_128.classes)


@needs_font
def test_the_classifier_learns_and_comes_back_from_its_file(data, tmp_path):
    few = tmp_path / "few"
    for name in ("heart", "panda", "sun"):  # few enough to learn in seconds
        shutil.copytree(data / "train" / name, few / "train" / name)

    model, names = classifier.train(few, steps=40, batch_size=9)
    save_classifier(model, names, tmp_path / "classifier.safetensors")
    loaded, loaded_names = load_classifier(tmp_path / "classifier.safetensors")

    assert loaded_names == names == ["heart", "panda", "sun"]
    assert classifier.accuracy(loaded, few, "train", names) >= 0.9
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(model(images), loaded(images))


def test_the_classifier_halves_every_size_to_four():
    assert classifier.channels_for(64) == [16, 32, 64, 128]
    assert classifier.channels_for(128) == [16, 32, 64, 128, 128]


@pytest.mark.parametrize(("folder", "size"), [(".", 64), ("128", 128)])
def test_the_recipes_are_valid_configurations(folder, size):
    from var_hf import MultiScaleVQVAE
    from var_hf.training.tokenizer_config import TokenizerTrainingConfig
    from var_hf.training.transformer_config import TransformerTrainingConfig

    recipes = EXAMPLE / folder
    start = recipes / "start.json"
    config = TokenizerTrainingConfig.from_recipe(
        recipes / "tokenizer.json", data="data", model="start" if start.exists() else None
    )
    assert json.dumps(config.to_dict())
    architecture = json.loads(start.read_text()) if start.exists() else config.architecture
    with torch.device("meta"):
        assert MultiScaleVQVAE(**architecture).image_size == size
    given = {"data": "data", "tokenizer": "tokenizer"}
    if (recipes / "coarse.json").exists():
        coarse = TransformerTrainingConfig.from_recipe(recipes / "coarse.json", **given)
        assert coarse.trained_scales < len(architecture["token_map_sizes"])
        given["model"] = "coarse"
    assert TransformerTrainingConfig.from_recipe(recipes / "transformer.json", **given)


def test_the_decoder_of_var_emoji_128_is_trained_with_the_tokens_left_alone():
    from var_hf.training.tokenizer_config import TokenizerTrainingConfig

    recipe = EXAMPLE / "128" / "decoder.json"
    config = TokenizerTrainingConfig.from_recipe(recipe, data="data", model="tokenizer")
    assert config.decoder_only
    assert config.adversarial_weight > 0


def test_var_emoji_128_has_the_scales_of_the_release():
    from var_hf.configuration_var import TOKEN_MAP_SIZES_256

    architecture = json.loads((EXAMPLE / "128" / "start.json").read_text())
    assert tuple(architecture["token_map_sizes"]) == TOKEN_MAP_SIZES_256


def test_var_emoji_128_starts_from_the_convolutions_of_var_emoji_64(tmp_path):
    from var_hf import MultiScaleVQVAE
    from var_hf.assets import VAR_EMOJI_64

    architecture = json.loads((EXAMPLE / "128" / "start.json").read_text())
    source = VAR_EMOJI_64 / "vqvae"
    enlarge.enlarge(source, tmp_path / "start", architecture)
    small = MultiScaleVQVAE.from_pretrained(source, torch_dtype=torch.float32)
    large = MultiScaleVQVAE.from_pretrained(tmp_path / "start")
    assert large.image_size == 128
    assert large.quantizer.codebook.weight.shape == (2048, 16)
    images = torch.rand(1, 3, 128, 128) * 2 - 1
    with torch.no_grad():
        assert torch.equal(large.encoder(images), small.encoder(images))
