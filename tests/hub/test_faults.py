"""Servers that fail, lie, or go away: nothing is lost, and nothing is silently wrong."""

import os
import signal
import subprocess
import sys
import time

import pytest
from hub_client import ClientError

PULL = "result = same(VARPipeline.from_pretrained('user/tiny', cache_dir=cache))"


def complete(repo) -> bool:
    return (
        "provenance.json" in repo.files()
        and "vqvae/diffusion_pytorch_model.safetensors" in repo.files()
    )


def until_it_works(run, check, attempts=30):
    """Try again after every clear error; returns the number of attempts."""
    for attempt in range(1, attempts + 1):
        try:
            run()
            return attempt
        except ClientError as error:
            assert "HubError" in error.kinds, error.trace
            assert "ry again." in error.args[0] or "Push again." in error.args[0], error.args[0]
            check()
    raise AssertionError(f"It has not worked in {attempts} attempts.")


@pytest.mark.parametrize("one_in", [5, 7])
def test_a_flaky_server_loses_nothing(hub, client, cache, one_in):
    hub.faults.one_in = one_in
    hub.faults.seconds_per_chunk = 0.002

    def nothing_or_all():
        repo = hub.repos.get(("model", "user/tiny"))
        assert repo is None or list(repo.files()) == [".gitattributes"] or complete(repo)

    until_it_works(lambda: client.run('pipe.push_to_hub("user/tiny")'), nothing_or_all)
    assert complete(hub.model("user/tiny"))
    until_it_works(lambda: client.run(PULL, cache=cache), lambda: None)
    hub.faults.one_in = 0
    assert client.run(PULL, cache=cache)


@pytest.mark.parametrize("path", ["model.safetensors", "vqvae/config.json"])
def test_a_file_damaged_on_the_way_is_fetched_again(hub, client, cache, path):
    client.run('pipe.push_to_hub("user/tiny")')
    hub.faults.corrupted = {path: 1}

    assert client.run(PULL, cache=cache)
    assert "arrived damaged" in client.log
    assert hub.faults.corrupted == {path: 0}


@pytest.mark.parametrize("path", ["model.safetensors", "provenance.json"])
def test_a_file_that_is_always_damaged_is_an_error_and_mends_later(hub, client, cache, path):
    client.run('pipe.push_to_hub("user/tiny")')
    hub.faults.corrupted = {path: 1000}

    assert "arrives damaged again and again" in client.fails(PULL, cache=cache)

    hub.faults.corrupted = {}
    assert client.run(PULL, cache=cache)


def test_a_file_damaged_in_the_cache_is_fetched_again(hub, client, cache):
    client.run('pipe.push_to_hub("user/tiny")')
    assert client.run(PULL, cache=cache)
    (weights,) = cache.rglob("model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.resolve().write_bytes(content)

    message = client.fails(
        PULL.replace("cache_dir", "local_files_only=True, cache_dir"), cache=cache
    )
    assert "transformer/model.safetensors changed after provenance.json was written" in message
    assert client.run(PULL, cache=cache)


def test_a_file_cut_short_is_never_taken_for_whole(hub, client, cache):
    client.run('pipe.push_to_hub("user/tiny")')
    hub.faults.cut_off = ("model.safetensors",)
    assert "Try again" in client.fails(PULL, cache=cache)

    hub.faults.cut_off = ()
    assert client.run(PULL, cache=cache)


def test_wherever_a_push_breaks_off_the_repository_is_as_before(hub, client, cache):
    """The server goes away after ever more requests, until the push gets through."""
    client.run('pipe.push_to_hub("user/tiny")')
    repo = hub.model("user/tiny")
    before = repo.refs["main"]
    broken_off = 0
    while True:
        hub.lfs.clear()
        hub.faults.gone_after = broken_off
        code = """
        other = make_pipe()
        other.transformer.lm_head.bias.data += 1
        other.push_to_hub("user/tiny")
        """
        try:
            client.run(code)
            break
        except ClientError as error:
            assert "HubError" in error.kinds, error.trace
            assert "A push is one commit" in error.args[0]
        assert repo.refs["main"] == before
        broken_off += 1
    hub.faults.gone_after = None

    assert broken_off > 5
    assert repo.refs["main"] != before and repo.commits[repo.refs["main"]].parent == before


def test_a_full_store_leaves_the_repository_as_it_was(hub, client):
    hub.faults.storage_full = True
    message = client.fails('pipe.push_to_hub("user/tiny")')

    assert "The Hub answered 507 for user/tiny" in message
    assert list(hub.model("user/tiny").files()) == [".gitattributes"]

    hub.faults.storage_full = False
    client.run('pipe.push_to_hub("user/tiny")')
    assert complete(hub.model("user/tiny"))


def test_a_full_disk_here_leaves_the_repository_as_it_was(hub, client):
    message = client.fails(
        """
        import resource
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # no file may grow beyond
        try:
            pipe.push_to_hub("user/tiny")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        """,
        "OSError",
    )

    assert "File too large" in message
    assert not hub.repos


def test_two_pushes_at_once_do_not_mix(hub, client, folder):
    """The second one is told that the first one came between."""
    client.run('push_folder(folder, "user/tiny")', folder=folder)
    message = client.fails(
        """
        from huggingface_hub import HfApi
        original = HfApi.preupload_lfs_files
        def preupload(self, *args, **kwargs):
            HfApi.preupload_lfs_files = original
            other = make_pipe()
            other.scheduler.register_to_config(top_k=3)
            other.push_to_hub("user/tiny")
            return original(self, *args, **kwargs)
        HfApi.preupload_lfs_files = preupload
        pipe.push_to_hub("user/tiny", with_code=True)
        """
    )

    assert "Somebody else has pushed to user/tiny in the meantime. Push again." in message
    assert "pipeline.py" not in hub.model("user/tiny").files()


def test_an_interrupted_push_leaves_the_repository_as_it_was(hub, client, folder, tmp_path):
    hub.faults.seconds_per_chunk = 0.5
    environment = hub.environment(tmp_path / "home") | {"PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "var_hf.cli", "push", str(folder), "user/tiny"]
    process = subprocess.Popen(
        command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while (
        not any("/storage/" in request for request in hub.requests) and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert list(hub.model("user/tiny").files()) == [".gitattributes"]

    hub.faults.seconds_per_chunk = 0
    client.run('push_folder(folder, "user/tiny")', folder=folder)
    assert complete(hub.model("user/tiny"))
