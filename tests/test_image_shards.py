import io
import json
import os
import tarfile
from itertools import chain

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import an_image, write_image_folder
from PIL import Image

from var_hf import image_shards
from var_hf.image_shards import Blocks
from var_hf.images import ImageTransform, TrainingSamples, UnreadableImageError, open_images
from var_hf.training.order import StepSampler

datasets = pytest.importorskip("datasets", reason="reads tables only with the datasets library")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(image_shards.constants, "HF_HOME", str(tmp_path_factory.mktemp("cache")))


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_tar(file, members):
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return file


def samples(numbers, label=lambda number: number % 3):
    for number in numbers:
        yield f"{number:04d}.png", png(an_image(number))
        yield f"{number:04d}.cls", str(label(number)).encode()


def write_parquet(file, numbers, row_group_size=3, names=("zebra", "ant")):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    )
    table = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": png(an_image(n)), "path": f"{n}.png"} for n in numbers],
            "label": [number % 2 for number in numbers],
        },
        features=features,
    )
    pq.write_table(table.data.table, file, row_group_size=row_group_size)
    return file


def shards_of(kind, folder, sizes):
    """One shard of each size; the images are numbered through."""
    folder.mkdir()
    start = 0
    for number, size in enumerate(sizes):
        if kind == "tar":
            write_tar(folder / f"part-{number}.tar", samples(range(start, start + size)))
        else:
            write_parquet(folder / f"part-{number}.parquet", range(start, start + size))
        start += size
    return folder


def pixels_of(image):
    return np.asarray(image).tolist()


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_shards_hold_what_the_datasets_library_streams(kind, tmp_path):
    suffix = {"parquet": "parquet", "webdataset": "tar"}[kind]
    folder = shards_of(suffix, tmp_path / "shards", (4, 7))
    images = open_images(folder)

    streamed = datasets.load_dataset(
        kind, data_files=sorted(map(str, folder.iterdir())), split="train", streaming=True
    )
    rows = list(streamed)

    image, label = ("image", "label") if kind == "parquet" else ("png", "cls")
    assert [pixels_of(row[image].convert("RGB")) for row in rows] == [
        pixels_of(images.read(i)) for i in range(len(images))
    ]
    assert [row[label] for row in rows] == images.labels
    assert images.class_names == (["zebra", "ant"] if kind == "parquet" else ["0", "1", "2"])


def test_a_parquet_file_is_not_copied(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("load_dataset copies")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    folder = shards_of("parquet", tmp_path / "shards", (5,))

    assert pixels_of(open_images(folder).read(3)) == pixels_of(an_image(3))
    assert [file.name for file in folder.iterdir()] == ["part-0.parquet"]


def test_the_fingerprint_is_that_of_the_files_wherever_they_lie(tmp_path):
    for kind in ("tar", "parquet"):
        prints = [
            open_images(shards_of(kind, tmp_path / f"{kind}{name}", sizes)).fingerprint
            for name, sizes in (("here", (4, 2)), ("there", (4, 2)), ("other", (3, 3)))
        ]

        assert prints[0] == prints[1] != prints[2]


def test_class_names_of_a_tar_file_are_read(tmp_path):
    write_tar(tmp_path / "a.tar", samples(range(4), label=lambda n: ["owl", "cat"][n % 2]))

    images = open_images(tmp_path / "a.tar")

    assert images.class_names == ["cat", "owl"]
    assert images.labels == [1, 0, 1, 0]


def test_the_extension_chooses_between_several_images(tmp_path):
    members = [("1.in.png", png(an_image(1))), ("1.out.png", png(an_image(2))), ("1.kind", b"3")]
    write_tar(tmp_path / "a.tar", members)

    with pytest.raises(ValueError, match=r"1 has several images; its files are in\.png, kind, out"):
        open_images(tmp_path)
    images = open_images(tmp_path, image_column="out.png", label_column="kind")
    assert pixels_of(images.read(0)) == pixels_of(an_image(2))
    assert images.labels == [3]


def test_shards_of_a_split_begin_with_its_name(tmp_path):
    for name, numbers in (
        ("train-0", (1, 2)),
        ("train-1", (3,)),
        ("training", (4,)),
        ("test", (5,)),
    ):
        write_parquet(tmp_path / f"{name}.parquet", numbers)

    assert len(open_images(tmp_path, split="train")) == 3
    assert len(open_images(tmp_path, split="test")) == 1
    with pytest.raises(ValueError, match=r"no files of the split 'val'.*first is test\.parquet"):
        open_images(tmp_path, split="val")


def test_a_folder_of_images_stays_one_beside_the_archive_it_came_in(tmp_path):
    folder = write_image_folder(tmp_path / "images", count=2)
    write_tar(folder / "original.tar", samples(range(3)))

    assert open_images(folder).class_names == ["circle", "dot"]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_addresses_are_read_without_a_copy(kind, tmp_path):
    folder = shards_of(kind, tmp_path / "shards", (4, 3))
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), f"/{kind}-set", recursive=True)
    try:
        for address in (f"memory://{kind}-set", f"memory://{kind}-set/part-*.{kind}"):
            images = open_images(address)

            assert len(images) == 7
            assert pixels_of(images.read(5)) == pixels_of(an_image(5))
    finally:
        memory.rm(f"/{kind}-set", recursive=True)
    for address in (f"memory://{kind}-set/part-0.{kind}", f"memory://{kind}-set/*.{kind}"):
        with pytest.raises(FileNotFoundError, match="There are no files at memory://"):
            open_images(address)


def test_an_unknown_kind_of_address_is_refused():
    with pytest.raises(ValueError, match=r"nosuch://place cannot be read: .*nosuch"):
        open_images("nosuch://place")


# ---------------------------------------------------------------- the index of a tar file


def test_headers_are_read_once_and_again_when_the_file_changes(tmp_path, monkeypatch):
    file = write_tar(tmp_path / "a.tar", samples(range(3)))
    scans = []
    scan = image_shards._scan
    monkeypatch.setattr(image_shards, "_scan", lambda *a: scans.append(a) or scan(*a))

    first, second = open_images(file), open_images(file)
    write_tar(file, samples(range(5)))
    third = open_images(file)

    assert len(scans) == 2
    assert first.fingerprint == second.fingerprint
    assert (len(first), len(third)) == (3, 5)


def test_a_cache_that_cannot_be_written_does_not_matter(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(image_shards.constants, "HF_HOME", str(tmp_path / "file"))
    write_tar(tmp_path / "a.tar", samples(range(3)))

    assert len(open_images(tmp_path / "a.tar")) == 3


# ---------------------------------------------------------------- order


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(["tar", "parquet"]),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    processes=st.integers(1, 4),
    share=st.integers(1, 3),
    at_once=st.integers(1, 3),
    cut=st.integers(0, 5),
)
def test_each_image_is_read_once_an_epoch_by_any_number_of_processes(
    tmp_path_factory, kind, sizes, processes, share, at_once, cut
):
    images = open_images(shards_of(kind, tmp_path_factory.mktemp("data") / "shards", sizes))
    if images.blocks is not None:
        images.blocks = Blocks(images.blocks.of_image, at_once)
    data = TrainingSamples(images, ImageTransform(24))
    number_of = {png(an_image(number)): number for number in range(len(images))}
    batch, epochs = share * processes, 2
    steps = -(-epochs * len(images) // batch)

    def read(first, index, count):
        sampler = StepSampler(
            len(images), batch, first, steps, 3, index, count, blocks=images.blocks
        )
        return [
            [
                (epoch, number_of[png(Image.fromarray(sample.pixels.permute(1, 2, 0).numpy()))])
                for (epoch, _), sample in ((position, data[position]) for position in part)
            ]
            for part in sampler
        ]

    alone = read(0, 0, 1)
    shares = [read(0, index, processes) for index in range(processes)]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == alone
    assert read(min(cut, steps), 0, 1) == alone[cut:]
    flat = list(chain(*alone))[: epochs * len(images)]
    assert sorted(flat) == [(e, n) for e in range(epochs) for n in range(len(images))]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    at_once=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_an_order_stays_with_a_few_blocks_at_a_time(sizes, at_once, seed):
    blocks = Blocks(np.repeat(np.arange(len(sizes)), sizes), at_once)

    order = blocks.shuffle(np.random.default_rng(seed))

    assert sorted(order.tolist()) == list(range(sum(sizes)))
    entered = [blocks.of_image[index] for index in order]
    windows = []
    for block in dict.fromkeys(entered):  # by first use
        windows.append(block)
    for start in range(0, len(windows), at_once):
        together = windows[start : start + at_once]
        places = [i for i, block in enumerate(entered) if block in together]
        assert places == list(range(places[0], places[-1] + 1))


def test_an_epoch_reads_every_row_group_once(tmp_path, monkeypatch):
    monkeypatch.setattr(image_shards, "MOST_GROUP_BYTES", 5000)  # two row groups of three images
    images = open_images(shards_of("parquet", tmp_path / "shards", (9, 8, 4)))
    assert 1 < images.blocks.at_once < 4
    read = []
    inner = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda *a, **k: read.append(a[1]) or inner(*a, **k)
    )

    chosen = images.select([i for i in range(21) if i != 5])  # as for held-out images
    for (_, index), *_ in StepSampler(20, 1, 0, 20, seed=1, blocks=chosen.blocks):
        chosen.read(index)

    assert len(read) == 8  # 3 + 3 + 3, 3 + 3 + 2, 3 + 1 images


# ---------------------------------------------------------------- bad input


def test_a_truncated_tar_file_is_refused_wherever_it_was_cut(tmp_path):
    content = write_tar(tmp_path / "a.tar", samples(range(3))).read_bytes()
    end = len(content.rstrip(b"\0"))

    for length in (0, 100, 512, 700, 1024, end // 2, end - 1, -(-end // 512) * 512):
        (tmp_path / "a.tar").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"a\.tar is truncated or no tar file: .* Copy it"):
            open_images(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(b"something else" * 1000)
    with pytest.raises(ValueError, match="truncated or no tar file"):
        open_images(tmp_path / "a.tar")


def test_a_broken_image_in_a_shard_is_named_and_skipped(tmp_path):
    members = [*samples(range(2)), ("0002.png", png(an_image(2))[:60]), ("0002.cls", b"0")]
    write_tar(tmp_path / "a.tar", [*members, *samples([3])])
    images = open_images(tmp_path / "a.tar")

    with pytest.raises(UnreadableImageError, match=r"a\.tar, 0002\.png cannot be read"):
        images.read(2)
    sample = TrainingSamples(images, ImageTransform(24))[0, 2]
    assert sample.skipped == (f"{tmp_path / 'a.tar'}, 0002.png",)
    assert pixels_of(sample.pixels.permute(1, 2, 0)) == pixels_of(an_image(3))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], r"holds no images .*000017\.jpg"),
        ([("notes.txt", b"text")], r"notes has no image; its files are txt\. Pass the extension"),
        ([*samples([1]), ("2.png", b"x")], r"2\.png has no class: its sample has no file \.cls"),
        ([("1.png", b"x"), ("1.cls", b"\xff")], r"1\.cls holds no class"),
        ([("1.png", b"x"), ("1.cls", b"")], r"1\.cls holds no class"),
        ([("1.png", b"x"), ("1.cls", b"-1")], "neither class names nor ids"),
        ([("1.png", b"x"), ("1.png", b"y")], r"holds two files 1\.png in one sample"),
    ],
)
def test_odd_tar_files_are_refused(members, message, tmp_path):
    write_tar(tmp_path / "a.tar", members)

    with pytest.raises(ValueError, match=message) as caught:
        open_images(tmp_path / "a.tar")
    assert len(str(caught.value).splitlines()) == 1


def test_a_link_in_a_tar_file_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)

    with pytest.raises(ValueError, match=r"1\.png is a link or no plain file"):
        open_images(tmp_path / "a.tar")


def test_a_packed_tar_file_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass

    for source in (tmp_path, tmp_path / "a.tar.gz"):
        with pytest.raises(ValueError, match=r"a\.tar\.gz is packed.*Unpack it"):
            open_images(source)


def test_a_tar_file_that_shrinks_while_it_is_used_is_named(tmp_path):
    file = write_tar(tmp_path / "a.tar", samples(range(3)))
    images = open_images(file)
    os.truncate(file, 3000)

    with pytest.raises(ValueError, match=r"a\.tar was cut short while it was in use"):
        images.read(2)


def test_the_shard_without_a_column_is_named(tmp_path):
    folder = shards_of("parquet", tmp_path / "shards", (2, 2))
    table = pq.read_table(folder / "part-1.parquet").rename_columns(["photo", "label"])
    pq.write_table(table, folder / "part-1.parquet")

    with pytest.raises(ValueError, match=r"part-1\.parquet has no column 'image', only photo"):
        open_images(folder)


def test_shards_with_other_classes_are_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", (1, 2))
    write_parquet(tmp_path / "b.parquet", (3, 4), names=("ant", "zebra"))

    with pytest.raises(ValueError, match=r"b\.parquet and .*a\.parquet have other classes"):
        open_images(tmp_path)


def test_a_table_without_rows_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", ())

    with pytest.raises(ValueError, match=r"a\.parquet has no rows"):
        open_images(tmp_path / "a.parquet")


def test_two_kinds_of_shards_are_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", (1,))
    write_tar(tmp_path / "a.tar", samples([1]))

    with pytest.raises(ValueError, match="holds Parquet and tar files"):
        open_images(tmp_path)


def test_a_damaged_row_group_is_named(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", range(6))
    content = bytearray(file.read_bytes())
    about = pq.ParquetFile(file).metadata.row_group(1).column(0)
    content[about.data_page_offset : about.data_page_offset + 40] = b"\0" * 40
    file.write_bytes(content)
    images = open_images(file)

    assert pixels_of(images.read(0)) == pixels_of(an_image(0))
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as a Parquet file") as caught:
        images.read(4)
    assert len(str(caught.value).splitlines()) == 1


def test_a_remote_cell_cannot_name_a_file_of_this_machine(tmp_path):
    an_image(1).save(tmp_path / "secret.png")
    table = datasets.Dataset.from_dict(
        {"image": [{"bytes": None, "path": str(tmp_path / "secret.png")}]}
    )
    file = io.BytesIO()
    table.to_parquet(file)
    with fsspec.open("memory://names/a.parquet", "wb") as target:
        target.write(file.getvalue())

    with pytest.raises(UnreadableImageError, match="does not hold it"):
        open_images("memory://names/a.parquet").read(0)


def test_samples_drawn_as_tar_files_are_images_to_learn_from(tmp_path):
    members = [
        (f"{n:06d}.{suffix}", content)
        for n in range(4)
        for suffix, content in (
            ("png", png(an_image(n))),
            ("cls", str(n % 2).encode()),
            ("json", json.dumps({"class_id": n % 2}).encode()),
        )
    ]
    write_tar(tmp_path / "shard-00000.tar", members)

    assert open_images(tmp_path).labels == [0, 1, 0, 1]
