import io

import numpy as np
import pytest
import torch
from image_files import an_image, write_image_folder
from PIL import Image, ImageCms

from var_hf.images import (
    ImageTransform,
    TrainingSamples,
    UnreadableImageError,
    collate,
    decode_image,
    normalize,
    open_images,
    to_rgb,
)

datasets = pytest.importorskip("datasets", reason="reads tables only with the datasets library")


def pixels_of(image):
    return np.asarray(image).astype(int)


# ---------------------------------------------------------------- folders


def test_sub_folders_are_classes_in_alphabetical_order(tmp_path):
    folder = write_image_folder(tmp_path / "images", classes=("rocket", "fox", "apple"), count=2)

    images = open_images(folder)

    assert images.class_names == ["apple", "fox", "rocket"]
    assert images.labels == [0, 0, 1, 1, 2, 2]
    assert images.names[2].endswith("fox/000.png")
    assert pixels_of(images.read(4)).tolist() == pixels_of(an_image(0)).tolist()


def test_a_flat_folder_has_no_classes(tmp_path):
    for number in range(3):
        an_image(number).save(tmp_path / f"{number}.png")

    images = open_images(tmp_path)

    assert len(images) == 3
    assert images.labels is None
    assert images.class_names is None


def test_one_class_is_a_class(tmp_path):
    images = open_images(write_image_folder(tmp_path / "images", classes=("fox",), count=2))

    assert images.class_names == ["fox"]
    assert images.labels == [0, 0]


def test_a_split_is_a_sub_folder(tmp_path):
    write_image_folder(tmp_path / "train", count=3)
    write_image_folder(tmp_path / "test", count=1)

    assert len(open_images(tmp_path, split="train")) == 6
    assert len(open_images(tmp_path, split="test")) == 2


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")

    with pytest.raises(ValueError, match=r"holds no images \(.*\.png.*\)"):
        open_images(tmp_path)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        open_images(tmp_path / "nowhere")


def test_images_beside_class_folders_are_refused(image_folder):
    an_image(5).save(image_folder / "stray.png")

    with pytest.raises(ValueError, match=r"images beside them \(stray.png, 1 in all\)"):
        open_images(image_folder)


def test_the_fingerprint_tells_contents_apart(tmp_path):
    one = open_images(write_image_folder(tmp_path / "one", count=2))
    same = open_images(write_image_folder(tmp_path / "same", count=2))
    more = open_images(write_image_folder(tmp_path / "more", count=3))

    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, more.fingerprint, one.select([0, 2]).fingerprint}) == 3


def test_a_selection_keeps_images_and_classes_together(image_folder):
    images = open_images(image_folder)

    chosen = images.select([9, 1])

    assert chosen.labels == [1, 0]
    assert chosen.class_names == images.class_names
    assert pixels_of(chosen.read(0)).tolist() == pixels_of(images.read(9)).tolist()


# ---------------------------------------------------------------- tables


def table_of(count):
    cells = []
    for number in range(count):
        file = io.BytesIO()
        an_image(number).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ant"])}
    )
    return datasets.Dataset.from_dict(
        {"image": cells, "label": [number % 2 for number in range(count)]}, features=features
    )


def test_parquet_files_are_read_with_their_class_names(tmp_path):
    table_of(5).to_parquet(tmp_path / "part.parquet")

    for source in (tmp_path, tmp_path / "part.parquet"):
        images = open_images(source)

        assert images.class_names == ["zebra", "ant"]
        assert images.labels == [0, 1, 0, 1, 0]
        assert pixels_of(images.read(3)).tolist() == pixels_of(an_image(3)).tolist()


def test_a_data_set_saved_to_disk_is_read(tmp_path):
    table_of(4).save_to_disk(tmp_path / "saved")

    images = open_images(tmp_path / "saved")

    assert len(images) == 4
    assert pixels_of(images.read(1)).tolist() == pixels_of(an_image(1)).tolist()


def test_of_several_splits_one_must_be_named(tmp_path):
    parts = datasets.DatasetDict({"train": table_of(4), "test": table_of(3)})
    parts.save_to_disk(tmp_path / "saved")

    assert len(open_images(tmp_path / "saved", split="test")) == 3
    with pytest.raises(ValueError, match="has the splits train, test, not None"):
        open_images(tmp_path / "saved")


def test_an_unknown_column_is_refused_with_the_known_ones(tmp_path):
    table_of(2).to_parquet(tmp_path / "part.parquet")

    with pytest.raises(ValueError, match="no column 'photo', only image, label"):
        open_images(tmp_path / "part.parquet", image_column="photo")
    with pytest.raises(ValueError, match="no column 'kind', only image, label"):
        open_images(tmp_path / "part.parquet", label_column="kind")


def test_text_labels_become_ids_in_alphabetical_order(tmp_path):
    table = table_of(3).remove_columns("label").add_column("kind", ["owl", "cat", "owl"])
    table.to_parquet(tmp_path / "part.parquet")

    images = open_images(tmp_path / "part.parquet", label_column="kind")

    assert images.class_names == ["cat", "owl"]
    assert images.labels == [1, 0, 1]


def test_a_broken_cell_is_named_by_its_row(tmp_path):
    table = datasets.Dataset.from_dict({"image": [{"bytes": b"nothing", "path": None}] * 2})
    table.to_parquet(tmp_path / "part.parquet")

    with pytest.raises(UnreadableImageError, match=r"part\.parquet, row 1"):
        open_images(tmp_path / "part.parquet").read(1)


# ---------------------------------------------------------------- pixel formats


def test_transparent_pixels_are_put_on_white():
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))

    assert pixels_of(to_rgb(image)).tolist() == [[[200, 0, 0], [255, 255, 255]]]


def test_a_transparent_palette_entry_is_put_on_white(tmp_path):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=0)

    loaded = decode_image(tmp_path / "palette.png", "palette")

    assert pixels_of(loaded).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_sixteen_bits_become_eight(tmp_path):
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")

    loaded = pixels_of(decode_image(tmp_path / "deep.png", "deep"))

    assert loaded[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (loaded[..., 0] == loaded[..., 2]).all()


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)

    loaded = pixels_of(decode_image(tmp_path / "print.jpg", "print"))

    assert loaded.shape == (8, 8, 3)
    assert abs(loaded[4, 4] - [255, 0, 0]).max() <= 3  # JPEG is not exact


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (6, 4), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: to be shown rotated by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)

    loaded = decode_image(tmp_path / "turned.png", "turned")

    assert loaded.size == (4, 6)
    assert loaded.getpixel((3, 0)) == (255, 255, 255)


def test_float_pixels_are_refused():
    with pytest.raises(ValueError, match="32-bit floats of unknown range"):
        to_rgb(Image.new("F", (2, 2)))


def test_a_colour_profile_does_not_stop_reading(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    an_image(1).save(tmp_path / "profile.png", icc_profile=profile)

    assert pixels_of(decode_image(tmp_path / "profile.png", "x")).shape == (24, 24, 3)


# ---------------------------------------------------------------- transform


def test_an_image_of_the_right_size_is_untouched():
    image = an_image(3)

    pixels = ImageTransform(24)(image, epoch=0, index=0)

    assert pixels.dtype == torch.uint8
    assert pixels.permute(1, 2, 0).tolist() == pixels_of(image).tolist()


@pytest.mark.parametrize("size", [(13, 29), (57, 31), (24, 24)])
@pytest.mark.parametrize("factor", [1.0, 1.125])
def test_every_size_comes_out_square(size, factor):
    image = an_image(4, side=60).resize(size)

    assert ImageTransform(20, factor, random_crop=True)(image, 0, 0).shape == (3, 20, 20)


def test_random_choices_follow_from_seed_epoch_and_index_alone():
    image = an_image(5, side=50)
    transform = ImageTransform(20, 2.0, random_crop=True, horizontal_flip=True, seed=7)

    first = transform(image, epoch=2, index=9)
    transform(image, epoch=3, index=1)

    assert torch.equal(first, transform(image, epoch=2, index=9))
    others = [transform(image, 2, 10), transform(image, 4, 9)]
    others.append(ImageTransform(20, 2.0, True, True, seed=8)(image, 2, 9))
    assert not any(torch.equal(first, other) for other in others)


def test_the_centre_crop_is_central():
    pixels = np.zeros((6, 10, 3), dtype=np.uint8)
    pixels[:, 2:8] = 255

    cropped = ImageTransform(6)(Image.fromarray(pixels), 0, 0)

    assert (cropped == 255).all()


def test_normalize_maps_bytes_onto_minus_one_to_one():
    values = normalize(torch.tensor([0, 255], dtype=torch.uint8))

    assert values.tolist() == [-1.0, 1.0]


# ---------------------------------------------------------------- broken files


def broken_folder(image_folder, index=2):
    file = image_folder / "circle" / f"{index:03d}.png"
    file.write_bytes(file.read_bytes()[:60])
    return file


def test_a_corrupt_image_is_named_and_its_successor_taken(image_folder, caplog):
    file = broken_folder(image_folder)
    samples = TrainingSamples(open_images(image_folder), ImageTransform(24))

    pixels, labels, skipped = collate([samples[0, 1], samples[0, 2]])

    assert skipped == (str(file),)
    assert str(file) in caplog.text
    assert torch.equal(pixels[1], samples[0, 3].pixels)
    assert labels.tolist() == [0, 0]


def test_strict_stops_at_a_corrupt_image(image_folder):
    file = broken_folder(image_folder)
    samples = TrainingSamples(open_images(image_folder), ImageTransform(24), strict=True)

    with pytest.raises(UnreadableImageError, match=str(file)):
        samples[0, 2]


def test_nothing_but_corrupt_images_stops(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"nothing")
    samples = TrainingSamples(open_images(tmp_path), ImageTransform(24))

    with pytest.raises(UnreadableImageError):
        samples[0, 1]


# ---------------------------------------------------------------- odd tables


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2**62], r"holds the class id 4611686018427387904\. Ids count from 0"),
        ([0, -1], "holds neither class names nor ids"),
        ([0.5, 1.0], "holds neither class names nor ids"),
        ([[1], [2]], "holds neither class names nor ids"),
        ([None, 1], "some rows have no class"),
    ],
)
def test_odd_labels_are_refused(labels, message, tmp_path):
    table = table_of(2).remove_columns("label").to_list()
    rows = [row | {"kind": label} for row, label in zip(table, labels, strict=True)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "part.parquet")

    with pytest.raises(ValueError, match=message):
        open_images(tmp_path / "part.parquet", label_column="kind")


def test_a_damaged_table_gives_one_line(tmp_path):
    table_of(3).to_parquet(tmp_path / "part.parquet")
    content = (tmp_path / "part.parquet").read_bytes()

    for damaged in (content[:-20], content[:200], b"nothing", b""):
        (tmp_path / "part.parquet").write_bytes(damaged)
        with pytest.raises((ValueError, OSError)) as caught:
            open_images(tmp_path / "part.parquet")
        assert len(str(caught.value).splitlines()) == 1


def test_a_column_of_other_things_holds_no_images(tmp_path):
    datasets.Dataset.from_dict({"image": [1, 2]}).to_parquet(tmp_path / "part.parquet")

    with pytest.raises(ValueError, match="holds no images"):
        open_images(tmp_path / "part.parquet")


def test_a_needle_is_refused_before_it_is_resized(tmp_path):
    Image.new("RGB", (1, 4000)).save(tmp_path / "needle.png")

    with pytest.raises(UnreadableImageError, match="more than 64 times as long as wide"):
        open_images(tmp_path).read(0)
