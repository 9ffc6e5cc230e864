import hashlib
import json
import os
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pipe, seeded
from PIL import Image
from tqdm import tqdm

from var_hf.evaluation import sampling
from var_hf.evaluation.sample_plan import SamplePlan, Share
from var_hf.evaluation.sample_set import (
    DamagedSamplesError,
    SampleSet,
    UnfinishedSamplesError,
)
from var_hf.evaluation.sampling import sample_images
from var_hf.files import FolderInUseError, lock_folder

PLAN = SamplePlan(num_classes=11, images_per_class=3, batch_size=4, shard_size=7)  # 5 shards


def plan_of(**changes):
    return SamplePlan(**PLAN.describe() | changes)


def sample(folder, plan=PLAN, share=None, pipe=None, **settings):
    pipe = pipe or make_pipe()
    defaults = {"guidance_scale": None, "top_k": None, "top_p": None, "sampling": None}
    chosen = pipe.resolve_settings(**defaults | settings)
    return sample_images(pipe, folder, plan, chosen, model="tiny", share=share or Share())


def digests(folder):
    """SHA-256 of every file, by its name."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module", params=["png", "tar", "npz"])
def finished(request, tmp_path_factory):
    """A finished set of each format: plan and folder."""
    folder = tmp_path_factory.mktemp("finished") / "set"
    plan = plan_of(format=request.param)
    sample(folder, plan)
    return plan, folder


def images_of(folder, plan):
    if plan.format != "npz":
        return [(image.copy(), label) for image, label in SampleSet.open(folder).images()]
    arrays = np.load(folder / "samples.npz")
    return list(zip(arrays["arr_0"], arrays["arr_1"], strict=True))


# What is drawn


def test_every_format_holds_the_images_that_the_pipeline_draws(finished):
    plan, folder = finished
    pipe = make_pipe()

    images = images_of(folder, plan)

    assert len(images) == 33
    assert [label for _, label in images] == [plan.image(n)[0] for n in range(33)]
    for position in (0, 5, 32):  # alone, where they were drawn four at a time: up to rounding
        drawn = pipe(
            plan.image(position)[0],
            generator=seeded(plan.seed_of(position)),
            output_type="pt",
        ).images[0]
        difference = torch.from_numpy(images[position][0]).permute(2, 0, 1) - 255 * drawn
        assert difference.abs().max() < 0.51


def test_the_manifest_says_how_the_images_were_made(finished):
    plan, folder = finished
    manifest = json.loads((folder / "manifest.json").read_text())

    assert manifest["plan"] == plan.describe()
    assert manifest["num_images"] == 33
    assert manifest["settings"] == {
        "guidance_scale": 3.0,
        "top_k": 13,
        "top_p": 0.9,
        "sampling": "multinomial",
        "temperature": 1.0,
        "guided_scales": None,
        "guidance_schedule": "ramp",
        "ssg_scale": 0.0,
    }
    assert manifest["model"] == "tiny"
    assert manifest["model_sha256"] == sampling.model_digest(make_pipe())
    assert manifest["versions"]["torch"] == version("torch")
    assert [record["images"] for record in manifest["shards"]] == [7, 7, 7, 7, 5]
    assert not list(folder.rglob(".*"))


def test_the_digest_of_the_pixels_is_the_same_in_all_formats(tmp_path):
    found = {
        sample_format: [
            record["pixels_sha256"]
            for record in sample(tmp_path / sample_format, plan_of(format=sample_format))["shards"]
        ]
        for sample_format in ("png", "tar", "npz")
    }

    assert found["png"] == found["tar"] == found["npz"]


def test_another_seed_draws_other_images_and_another_shuffle_the_same(tmp_path):
    sample(tmp_path / "one")
    sample(tmp_path / "seed", plan_of(seed=1))
    sample(tmp_path / "order", plan_of(shuffle_seed=1, batch_size=1))

    def by_image(folder, plan):
        found = images_of(tmp_path / folder, plan)
        return {plan.image(n): image for n, (image, _) in enumerate(found)}

    one = by_image("one", PLAN)
    seed = by_image("seed", plan_of(seed=1))
    order = by_image("order", plan_of(shuffle_seed=1))
    assert all((one[key] != seed[key]).any() for key in one)
    assert all(np.abs(one[key].astype(int) - order[key]).max() <= 1 for key in one)


@pytest.mark.parametrize("sample_format", ["png", "tar", "npz"])
def test_the_set_is_the_same_byte_for_byte_for_one_two_and_three_processes(tmp_path, sample_format):
    plan = plan_of(format=sample_format)
    for count in (1, 2, 3):
        for index in reversed(range(count)):  # the first process finishes the set
            sample(tmp_path / str(count), plan, Share(index, count))

    one, two, three = (digests(tmp_path / str(count)) for count in (1, 2, 3))
    assert one == two == three


@pytest.mark.slow
def test_two_processes_of_torchrun_draw_what_one_does(tmp_path, pipe_folder):
    command = [
        "-m",
        "var_hf.cli",
        "sample",
        "--model",
        str(pipe_folder),
        "-n",
        "3",
        "--batch-size",
        "4",
        "--shard-size",
        "7",
        "--format",
        "tar",
        "--device",
        "cpu",
        "-o",
    ]
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-addr",
        "127.0.0.1",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = {"check": True, "capture_output": True, "text": True, "cwd": tmp_path, "env": environment}
    one = subprocess.run([sys.executable, *command, "one"], **run)
    two = subprocess.run([*launcher, *command, "two"], **run)

    assert (one.stdout, two.stdout) == ("one\n", "two\n")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


@pytest.mark.parametrize("batch_size", [7, 32])
def test_another_micro_batch_changes_hardly_a_token(batch_size):
    """The images of a class and an index, drawn alone and among others."""
    pipe = make_pipe()
    plan = plan_of(images_per_class=6)

    def tokens(size):
        drawn = []
        for start in range(0, len(plan), size):
            positions = range(start, min(start + size, len(plan)))
            outputs = pipe.stream(
                [plan.image(n)[0] for n in positions],
                generator=[seeded(plan.seed_of(n)) for n in positions],
            )
            drawn.append(torch.cat([output.tokens for output in outputs], dim=1))
        return torch.cat(drawn)

    alone, together = tokens(1), tokens(batch_size)
    assert alone.shape == (66, 39)
    assert (alone == together).float().mean() >= 0.999


# Cut off and continued


KILL_AND_RESUME = """
import os, random, signal, sys, time
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from pathlib import Path
from evaluation.test_sampling import PLAN, plan_of, sample
target, sample_format, kills = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
plan = plan_of(format=sample_format, shard_size=3)
moments = random.Random(0)
killed = 0
def count():
    return sum(len(files) for _, _, files in os.walk(target))
while killed < kills:
    child = os.fork()
    if child == 0:
        try:
            sample(target, plan)
        finally:
            os._exit(0)
    # Somewhere between now and the second new file.
    wanted = count() + moments.randrange(0, 3)
    while count() < wanted and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(moments.uniform(0, 0.01))
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        break  # it had finished
    killed += 1
    print("killed", (target / "manifest.json").exists(), flush=True)
sample(target, plan)
"""


@pytest.mark.slow
@pytest.mark.parametrize("sample_format", ["png", "npz"])
def test_ten_kills_leave_neither_holes_nor_duplicates(tmp_path, sample_format):
    sample(tmp_path / "whole", plan_of(format=sample_format, shard_size=3))
    tests = str(Path(__file__).parents[1])

    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            KILL_AND_RESUME,
            tests,
            str(tmp_path / "killed"),
            sample_format,
            "10",
        ],
        check=True,
        capture_output=True,
        text=True,
    )

    assert done.stdout.count("killed False") >= 5
    SampleSet.open(tmp_path / "killed").check()
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_what_is_there_is_not_drawn_again(tmp_path, monkeypatch):
    sample(tmp_path / "set", share=Share(1, 2))  # the second of two processes: shards 1 and 3
    drawn = []
    draw = sampling.draw

    def watch(pipe, plan, positions, settings):
        drawn.extend(positions)
        return draw(pipe, plan, positions, settings)

    monkeypatch.setattr(sampling, "draw", watch)
    sample(tmp_path / "set")

    assert drawn == [*range(7), *range(14, 21), *range(28, 33)]


def test_a_finished_set_is_left_alone(finished):
    plan, folder = finished
    before = digests(folder), (folder / "manifest.json").stat().st_mtime_ns

    assert sample(folder, plan)["num_images"] == 33

    assert (digests(folder), (folder / "manifest.json").stat().st_mtime_ns) == before


def test_a_shard_that_was_cut_off_is_drawn_again(tmp_path, caplog):
    folder, plan = tmp_path / "set", plan_of(format="tar")
    sample(folder, plan, Share(1, 2))
    whole = (folder / "shard-00001.tar").read_bytes()
    (folder / "shard-00001.tar").write_bytes(whole[:1000])

    sample(folder, plan)

    assert "shard 1 is not as it was written; drawing it again" in caplog.text
    assert (folder / "shard-00001.tar").read_bytes() == whole
    SampleSet.open(folder).check()


def test_no_more_than_a_few_batches_wait_to_be_written(tmp_path, monkeypatch):
    """What is held does not grow with the set: it is written nearly as fast as it is drawn."""
    draw, waiting = sampling.draw, []

    def watch(pipe, plan, positions, settings):
        written = len(list((tmp_path / "set").rglob("*.png")))  # a shard is named at its end
        waiting.append(positions.start - written)
        return draw(pipe, plan, positions, settings)

    monkeypatch.setattr(sampling, "draw", watch)
    sample(tmp_path / "set", plan_of(images_per_class=12, batch_size=3, shard_size=1000))

    assert len(waiting) == 44
    assert max(waiting) <= 3 * 3


@pytest.mark.gpu
def test_decoding_beside_the_next_batch_changes_no_pixel(tmp_path):
    pipe = make_pipe().to("cuda")
    sample(tmp_path / "set", pipe=pipe)

    for position, (image, label) in enumerate(SampleSet.open(tmp_path / "set").images()):
        generator = torch.Generator().manual_seed(PLAN.seed_of(position))
        alone = np.asarray(pipe(label, generator=generator).images[0])
        assert abs(image.astype(int) - alone).max() <= 1  # another batch size rounds differently


# Bad input


def test_another_set_in_the_folder_is_refused(finished):
    plan, folder = finished

    with pytest.raises(
        ValueError, match=r"settings\.guidance_scale was 3\.0, is 1\.5; .*top_k was 13, is 5"
    ):
        sample(folder, plan, guidance_scale=1.5, top_k=5)
    with pytest.raises(ValueError, match=r"plan\.seed was 0, is 1\."):
        sample(folder, plan_of(format=plan.format, seed=1))
    with pytest.raises(ValueError, match="model_sha256 was"):
        sample(folder, plan, pipe=make_pipe().to(torch.float16))


def test_a_second_process_with_the_same_share_gets_one_line(tmp_path):
    sample(tmp_path / "set", share=Share(1, 2))
    lock = lock_folder(tmp_path / "set", ".work/writer-0")

    with pytest.raises(FolderInUseError, match="set is being written by another process"):
        sample(tmp_path / "set")
    lock.release()
    sample(tmp_path / "set")


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(ValueError, match="is not empty and holds no sample set"):
        sample(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("sample_format", ["png", "tar", "npz"])
def test_a_full_disk_loses_nothing_that_was_finished(tmp_path, monkeypatch, sample_format):
    plan = plan_of(format=sample_format, batch_size=7)
    whole = tmp_path / "whole"
    sample(whole, plan)
    folder = tmp_path / "set"
    sample(folder, plan, Share(9, 10))  # a process that has nothing to do makes the folder
    # The limit holds for all files, also for the one that pytest catches the progress bar in.
    monkeypatch.setattr(sampling, "tqdm", lambda **bar: tqdm(**bar | {"disable": True}))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        with pytest.raises(
            OSError,
            match="failed and nothing of it was left behind: File too large",
        ):
            sample(folder, plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(folder.rglob("*.partial"))

    sample(folder, plan)

    assert digests(folder) == digests(whole)


def test_a_set_without_its_manifest_is_unfinished(tmp_path):
    sample(tmp_path / "set", share=Share(1, 2))

    with pytest.raises(
        UnfinishedSamplesError, match="3 of 5 shards are missing, the first is number 0"
    ):
        SampleSet.open(tmp_path / "set")


def test_what_is_no_sample_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no sample set"):
        SampleSet.open(tmp_path)
    (tmp_path / "config.json").write_text('{"version": 99}')
    with pytest.raises(ValueError, match="version 99 of sample sets; this program reads 1"):
        SampleSet.open(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DamagedSamplesError, match=r"config\.json is damaged"):
        SampleSet.open(tmp_path)


def test_a_damaged_file_is_named(finished, tmp_path):
    plan, folder = finished
    samples = SampleSet.open(folder)
    names = {"png": "images/000009-*.png", "tar": "shard-00002.tar", "npz": "samples.npz"}
    (file,) = folder.glob(names[plan.format])
    content = file.read_bytes()
    samples.check()
    try:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DamagedSamplesError, match="is not as it was written"):
            samples.check()
        file.write_bytes(content[:-100])
        with pytest.raises(DamagedSamplesError, match=r"bytes|is not as it was written"):
            samples.check()
        file.unlink()
        with pytest.raises(DamagedSamplesError, match=f"{file.name} is missing"):
            samples.check()
    finally:
        file.write_bytes(content)


def test_a_manifest_that_was_edited_is_noticed(tmp_path):
    sample(tmp_path / "set")
    file = tmp_path / "set" / "manifest.json"
    file.write_text(file.read_text().replace('"guidance_scale": 3.0', '"guidance_scale": 2.0'))

    with pytest.raises(DamagedSamplesError, match="was changed after it was written"):
        SampleSet.open(tmp_path / "set")


def test_a_batch_too_large_for_the_memory_is_one_error(tmp_path, monkeypatch):
    pipe = make_pipe()

    def exhausted(*arguments, **keywords):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(pipe.transformer, "forward", exhausted)
    with pytest.raises(ValueError, match="4 images at a time do not fit into the memory of cpu"):
        sample(tmp_path / "set", pipe=pipe)


def test_the_images_are_readable_by_anyone(finished):
    plan, folder = finished
    if plan.format == "png":
        with Image.open(next((folder / "images").iterdir())) as image:
            assert (image.size, image.mode) == ((10, 10), "RGB")
    mask = os.umask(0)
    os.umask(mask)
    assert all(file.stat().st_mode & 0o777 == 0o666 & ~mask for file in folder.rglob("*.*"))
