"""Every write, rename and fsync of every writer goes wrong once.

Afterwards the old result or the new one is there.

The same command then finishes, byte for byte as if nothing had happened.
"""

import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import make_vqvae
from fault_injection import FAULTS, KILL, faulty_files, killed, snapshot
from image_files import write_image_folder
from PIL import Image
from safetensors.torch import save_file

from var_hf import files
from var_hf.conversion import write_original
from var_hf.evaluation.sample_plan import SamplePlan
from var_hf.evaluation.sample_set import SampleSet, encode
from var_hf.images import ImageTransform, open_images
from var_hf.training.run_folder import RunFolder
from var_hf.training.token_cache import encode_images

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and kills what it forked")

WEIGHTS = {"weight": torch.arange(300.0), "bias": torch.zeros(7)}


def write_file(root):
    files.write_json(root / "result.json", {"steps": 9})


def write_picture(root):
    with files.new_path(root / "grid.png", replace=True) as temporary:
        Image.new("RGB", (31, 17), "red").save(temporary)


def write_model(root):
    """As conversion does."""
    if not (root / "model").exists():
        with files.new_path(root / "model") as folder:
            folder.mkdir()
            save_file(WEIGHTS, folder / "model.safetensors")
            (folder / "config.json").write_text("{}")


def write_weights(root):
    if not (root / "var.pth").exists():
        write_original(WEIGHTS, root / "var.pth")


def replace_folder(root):
    with files.new_folder(root / "pipeline") as folder:
        save_file(WEIGHTS, folder / "model.safetensors")
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "config.json").write_text('{"new": true}')


def old_folder(root):
    (root / "pipeline").mkdir()
    (root / "pipeline" / "old.json").write_text("{}")


def checkpoint(root):
    """A run of two steps that logs, and makes a checkpoint of each."""
    run = RunFolder(root / "run", {"steps": 2}, keep=1)

    def write(folder):
        save_file(WEIGHTS, folder / "model.safetensors")
        torch.save(WEIGHTS, folder / "optimizer.pt")
        (folder / "trainer_state.json").write_text("{}")

    try:
        _, done = run.resume_point(2)
        run.rewind_log(done)
        for step in range(max(done, 0) + 1, 3):
            run.log(step, loss=1 / step)
            run.save_checkpoint(step, write)
    finally:
        run.close()


def cache(root):
    encode_images(
        open_images(root.parent / "images"),
        make_vqvae(),
        ImageTransform(10),
        root / "tokens",
        shard_size=4,
    )


def samples(root, sample_format):
    plan = SamplePlan(2, 3, format=sample_format, shard_size=4, batch_size=2)
    config = {"plan": plan.describe(), "image_size": 5}
    samples = SampleSet.claim(root / "set", config)
    try:
        if not samples.is_finished:
            for shard in range(plan.num_shards):
                if not samples.has(shard):
                    images = (np.full((5, 5, 3), n, np.uint8) for n in plan.positions(shard))
                    samples.write(shard, (encode(image, sample_format) for image in images))
            samples.finish()
        samples.tidy()
    finally:
        samples.close()


# Each writer with what is there before, and its claim while it has not finished.


def is_old_or_new(root, old, new):
    assert snapshot(root) in (old, new)


def has_only_finished_files(root, old, new):
    for name, content in snapshot(root).items():
        if ".work" not in name:
            assert new[name] == content, name


def goes_on_from_a_whole_checkpoint(root, old, new):
    if (root / "run" / "config.json").exists():
        run = RunFolder(root / "run", {"steps": 2})
        _, done = run.resume_point(2)
        run.close()
        assert len(run.read_log()) >= done


WRITERS = {
    "file": (write_file, lambda root: (root / "result.json").write_text("{}"), is_old_or_new),
    "picture": (write_picture, lambda root: None, is_old_or_new),
    "model": (write_model, lambda root: None, is_old_or_new),
    "weights": (write_weights, lambda root: None, is_old_or_new),
    "folder": (replace_folder, old_folder, is_old_or_new),
    "checkpoints": (checkpoint, lambda root: None, goes_on_from_a_whole_checkpoint),
    "tokens": (cache, lambda root: None, has_only_finished_files),
    "png": (lambda root: samples(root, "png"), lambda root: None, has_only_finished_files),
    "tar": (lambda root: samples(root, "tar"), lambda root: None, has_only_finished_files),
    "npz": (lambda root: samples(root, "npz"), lambda root: None, has_only_finished_files),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_leaves_the_old_or_the_new_and_finishes_alike(name, tmp_path, record_property):
    write, prepare, holds = WRITERS[name]
    write_image_folder(tmp_path / "images", ("apple", "fox"), count=3)
    root = tmp_path / "root"

    def start():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        prepare(root)

    start()
    old = snapshot(root)
    with faulty_files() as layer:
        write(root)
    new = snapshot(root)
    assert layer.count >= 4 and new != old
    record_property("faults", layer.count * len(FAULTS))  # in the file of --junit-xml

    for at in range(layer.count):
        for fault in FAULTS:
            start()
            if fault == KILL:
                killed(lambda: write(root), at)
            else:
                with faulty_files(at, fault), pytest.raises(OSError) as caught:
                    write(root)
                assert "\n" not in str(caught.value)
                assert str(root) in str(caught.value)
                assert list(root.rglob("*.partial")) == []
            holds(root, old, new)

            write(root)

            assert snapshot(root) == new, (at, fault)
            # A kill after the last rename may leave an empty shelter that nobody had to write over.
            left = {path.name for shelter in root.rglob("*.partial") for path in shelter.iterdir()}
            assert left <= {files._LOCK, files._PROBE}


def test_without_an_exchange_a_fault_between_two_renames_loses_nothing(tmp_path, monkeypatch):
    """On other systems the folder may be absent until the next writer of its name."""
    monkeypatch.setattr(files, "_find_renameat2", lambda: None)
    root = tmp_path / "root"
    at = 0
    while True:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        old_folder(root)
        old = snapshot(root)
        with faulty_files() as layer:
            replace_folder(root)
        new = snapshot(root)
        if at == layer.count:
            break
        shutil.rmtree(root / "pipeline")
        old_folder(root)
        with faulty_files(at), pytest.raises(OSError, match="pipeline"):
            replace_folder(root)
        assert snapshot(root) in (old, new)
        shutil.rmtree(root / "pipeline")
        old_folder(root)
        killed(lambda: replace_folder(root), at)
        files.remove_leftovers(root, ".pipeline.")
        assert snapshot(root) in (old, new)
        at += 1
