import re

import pytest
import torch
from conftest import make_pipe, seeded
from hypothesis import given
from hypothesis import strategies as st

from var_hf import memory

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with so much memory: the files that Linux would show."""

    def files(available_kb, limit=None, used=0):
        (tmp_path / "meminfo").write_text(
            f"MemTotal:       99999999 kB\nMemFree:               7 kB\nMemAvailable:   "
            f"{available_kb} kB\n"
        )
        monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
        monkeypatch.setattr(memory, "CGROUP", tmp_path)
        if limit is not None:
            (tmp_path / "memory.max").write_text(f"{limit}\n")
            (tmp_path / "memory.current").write_text(f"{used}\n")

    return files


def test_what_is_free_is_what_linux_says(machine):
    machine(4096)
    assert memory.available_bytes(CPU) == 4096 * 1024


def test_a_container_has_less(machine):
    machine(4096, limit=1_000_000, used=400_000)
    assert memory.available_bytes(CPU) == 600_000


def test_a_container_without_a_limit_has_what_the_machine_has(machine):
    machine(4096, limit="max")
    assert memory.available_bytes(CPU) == 4096 * 1024


def test_where_free_memory_cannot_be_told_nothing_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "nothing")
    assert memory.available_bytes(CPU) is None
    assert memory.available_bytes(torch.device("mps")) is None
    assert len(make_pipe()([1] * 3).images) == 3


def test_a_batch_that_does_not_fit_is_refused_and_the_largest_one_drawn(machine):
    pipe = make_pipe()
    machine(512)

    with pytest.raises(
        ValueError,
        match=r"Drawing 5000 images at a time takes about [\d.]+ GB beside the weights, and cpu "
        r"has",
    ) as refused:
        pipe([1] * 5000, generator=seeded(0))

    fits = int(re.search(r"At most (\d+) fit", str(refused.value))[1])
    assert 0 < fits < 5000
    assert len(pipe([1] * fits, output_type="latent").images) == fits
    with pytest.raises(ValueError, match=f"At most {fits} fit"):
        pipe([1] * (fits + 1))


def test_without_guidance_more_images_fit(machine):
    pipe = make_pipe()
    machine(512)

    def fits(**settings):
        with pytest.raises(ValueError, match="At most") as refused:
            pipe([1] * 5000, **settings)
        return int(re.search(r"At most (\d+) fit", str(refused.value))[1])

    assert fits(guidance_scale=1.0) > fits()


@given(st.integers(0, 2**20))
def test_the_largest_batch_fits_and_one_more_does_not(most):
    assert memory.largest_batch(lambda count: count <= most) == most


@pytest.mark.usefixtures("fresh_compiler")
def test_memory_that_an_earlier_call_left_counts_as_free(machine):
    """A compiled pipeline keeps its cache: the batch that just fitted has to fit again."""
    pipe = make_pipe()
    pipe.compile(backend="eager")
    pipe([1] * 2, output_type="latent")
    config = pipe.transformer.config
    cache, work = memory.call_memory(config, pipe.vqvae.config, 2, config.num_scales, 4, "cpu")
    held = pipe._runner.held_bytes
    assert 0 < held <= cache

    machine((cache + work - held) // 1024 + 1)

    pipe([1] * 2, output_type="latent")
    with pytest.raises(ValueError, match="At most"):
        make_pipe()([1] * 2)
