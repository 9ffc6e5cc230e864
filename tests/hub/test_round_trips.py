"""From a folder or a pipeline to the Hub and back, through processes of their own."""

import json

import pytest
from hub_server import Habits

HABITS = {
    "other host, relative redirects": Habits(),
    "no redirects, uploads in parts, short pages": Habits(
        lfs_redirect=False, regular_redirect="directly", lfs_upload="multipart", page_size=3
    ),
    "absolute redirects": Habits(regular_redirect="absolute", page_size=7),
}


@pytest.mark.parametrize("habits", HABITS.values(), ids=HABITS)
def test_what_was_pushed_comes_back(hub, client, cache, habits):
    hub.habits = habits

    result = client.run(
        """
        commit = pipe.push_to_hub("user/tiny", max_shard_size="600KB")
        back = VARPipeline.from_pretrained("user/tiny", cache_dir=cache)
        again = VARPipeline.from_pretrained("user/tiny", cache_dir=cache, local_files_only=True)
        result = {
            "oid": commit.oid,
            "equal": [same(one) for one in (back, again)],
            "images": torch.allclose(draw(back), draw(pipe)),
            "name": back.config._name_or_path,
            "labels": back.id2label == pipe.id2label,
        }
        """,
        cache=cache,
    )

    repo = hub.model("user/tiny")
    assert result == {
        "oid": repo.refs["main"],
        "equal": [True, True],
        "images": True,
        "name": "user/tiny",
        "labels": True,
    }
    assert len(repo.commits) == 2  # the one that made the repository, and ours
    assert "transformer/model.safetensors.index.json" in repo.files()  # it was split
    assert {"README.md", "provenance.json", "model_index.json"} <= repo.files().keys()


def test_the_pushed_index_names_installed_classes_and_no_path(hub, client):
    client.run('pipe.push_to_hub("user/tiny")')

    index = json.loads(hub.model("user/tiny").files()["model_index.json"])
    assert index["_class_name"] == "VARPipeline"
    assert index["transformer"] == ["var_hf.modeling_var", "VARModel"]
    assert "_name_or_path" not in index


def test_a_variant_of_one_part_comes_with_the_plain_weights_of_the_others(
    hub, client, folder, cache
):
    result = client.run(
        """
        pipe.transformer.save_pretrained(f"{folder}/transformer", variant="fp16")
        push_folder(folder, "user/mixed")
        back = VARPipeline.from_pretrained("user/mixed", variant="fp16", cache_dir=cache)
        result = same(back)
        """,
        folder=folder,
        cache=cache,
    )

    assert result
    fetched = {path.name for path in cache.rglob("*.safetensors")}
    assert fetched == {"model.fp16.safetensors", "diffusion_pytorch_model.safetensors"}

    client.run("VARPipeline.from_pretrained('user/mixed', cache_dir=cache)", cache=cache)
    assert {path.name for path in cache.rglob("*.safetensors")} - fetched == {"model.safetensors"}

    message = client.fails(
        "VARPipeline.from_pretrained('user/mixed', variant='bf16')", "ValueError"
    )
    assert "no weights of the variant 'bf16'. It has fp16." in message


def test_variants_are_pushed_beside_each_other_and_replace_only_themselves(hub, client, cache):
    result = client.run(
        """
        pipe.push_to_hub("user/tiny", max_shard_size="600KB")
        pipe.push_to_hub("user/tiny", variant="fp16", max_shard_size="600KB")
        pipe.push_to_hub("user/tiny")  # whole again: the shards without a variant have to go
        plain = VARPipeline.from_pretrained("user/tiny", cache_dir=cache)
        variant = VARPipeline.from_pretrained("user/tiny", variant="fp16", cache_dir=cache)
        from var_hf.provenance import verify
        result = [same(one) for one in (plain, variant)]
        result += [verify(pull_everything("user/tiny", cache_dir=cache)).ok]
        """,
        cache=cache,
    )

    assert result == [True, True, True]
    names = {path for path in hub.model("user/tiny").files() if path.startswith("transformer/")}
    assert {
        "transformer/model.safetensors",
        "transformer/model.safetensors.index.fp16.json",
    } <= names
    assert not any("/model-0" in name or name.endswith("index.json") for name in names)
    assert any("/model.fp16-0" in name for name in names)


def test_a_repository_with_variants_alone_says_so(hub, client, cache):
    message = client.fails(
        """
        pipe.push_to_hub("user/half", variant="fp16")
        VARPipeline.from_pretrained("user/half", cache_dir=cache)
        """,
        "ValueError",
        cache=cache,
    )

    assert "has the weights of the transformer only with variant='fp16'" in message


def test_parts_that_are_passed_are_not_fetched(hub, client, cache):
    result = client.run(
        """
        pipe.push_to_hub("user/tiny")
        back = VARPipeline.from_pretrained("user/tiny", vqvae=pipe.vqvae, cache_dir=cache)
        result = back.vqvae is pipe.vqvae and same(back)
        """,
        cache=cache,
    )

    assert result
    assert {path.name for path in cache.rglob("*.safetensors")} == {"model.safetensors"}


def test_a_branch_is_pushed_to_and_pulled_and_main_stays(hub, client, cache):
    result = client.run(
        """
        first = pipe.push_to_hub("user/tiny")
        other = make_pipe()
        other.scheduler.register_to_config(top_k=3)
        second = other.push_to_hub("user/tiny", revision="few/codes")
        def top_k(revision):
            back = VARPipeline.from_pretrained("user/tiny", revision=revision, cache_dir=cache)
            return back.scheduler.config.top_k
        result = [top_k(None), top_k("few/codes"), top_k(first.oid), top_k(second.oid[:12])]
        """,
        cache=cache,
    )

    assert result == [13, 3, 13, 3]


def test_a_pull_request_leaves_the_branch_alone_and_can_be_pulled(hub, client, cache):
    result = client.run(
        """
        pipe.push_to_hub("user/tiny")
        other = make_pipe()
        other.scheduler.register_to_config(top_k=3)
        commit = other.push_to_hub("user/tiny", create_pr=True, token="hf_other")
        at = {"revision": commit.pr_revision, "cache_dir": cache}
        back = VARPipeline.from_pretrained("user/tiny", **at)
        result = [commit.pr_num, back.scheduler.config.top_k]
        """,
        cache=cache,
    )

    assert result == [1, 3]
    repo = hub.model("user/tiny")
    assert json.loads(repo.files()["scheduler/scheduler_config.json"])["top_k"] == 13


def test_private_and_gated_repositories_open_to_those_who_may(hub, client, cache):
    client.run('pipe.push_to_hub("user/mine", private=True)')
    hub.model("user/mine").gated = True
    code = "result = same(VARPipeline.from_pretrained(name, token=token, cache_dir=cache))"

    assert client.run(code, name="user/mine", token="hf_writer", cache=cache / "1")
    message = client.fails(code, name="user/mine", token="hf_reader", cache=cache / "2")
    assert (
        "There is neither a folder user/mine nor a model of that name on the Hub, or it is private"
        in message
    )
    hub.model("user/mine").private = False
    message = client.fails(code, name="user/mine", token="hf_reader", cache=cache / "3")
    assert "user/mine is gated: accept its conditions" in message


def test_a_renamed_repository_is_still_found(hub, client, cache):
    client.run('pipe.push_to_hub("user/new")')
    hub.moved["user/old"] = "user/new"

    assert client.run(
        "result = same(VARPipeline.from_pretrained('user/old', cache_dir=cache))",
        cache=cache,
    )


def test_transformer_and_vqvae_come_alone_from_a_pipeline_or_their_own_repository(
    hub, client, cache
):
    result = client.run(
        """
        from transformers import AutoModel
        pipe.push_to_hub("user/tiny")
        pipe.transformer.push_to_hub("user/transformer", max_shard_size="600KB")
        pipe.vqvae.push_to_hub("user/vqvae")

        at = {"cache_dir": cache}
        def ours(model):
            return pipe.transformer if isinstance(model, VARModel) else pipe.vqvae

        result = [same(model, ours(model)) for model in (
            VARModel.from_pretrained("user/transformer", **at),
            VARModel.from_pretrained("user/tiny", subfolder="transformer", **at),
            AutoModel.from_pretrained("user/transformer", **at),
            AutoModel.from_pretrained("user/tiny", subfolder="transformer", **at),
            MultiScaleVQVAE.from_pretrained("user/vqvae", **at),
            MultiScaleVQVAE.from_pretrained("user/tiny", subfolder="vqvae", **at),
        )]
        from var_hf.provenance import verify
        names = ("user/transformer", "user/vqvae")
        result += [verify(pull_everything(name, **at)).ok for name in names]
        """,
        cache=cache,
    )

    assert result == [True] * 8
    assert (
        "library_name: transformers" in hub.model("user/transformer").files()["README.md"].decode()
    )


def test_nothing_new_makes_no_commit(hub, client, folder):
    result = client.run(
        'result = [push_folder(folder, "user/tiny").oid for _ in range(2)]', folder=folder
    )

    assert result[0] == result[1]
    assert len(hub.model("user/tiny").commits) == 2


def test_saving_with_push_to_hub_pushes_the_same(hub, client, tmp_path):
    client.run('pipe.save_pretrained(f"{tmp}/tiny", push_to_hub=True)', tmp=tmp_path)

    assert {"provenance.json", "README.md"} <= hub.model("user/tiny").files().keys()


def test_a_card_written_by_hand_is_kept(hub, client, folder, cache):
    client.run('push_folder(folder, "user/tiny")', folder=folder)
    hub.change("user/tiny", {"README.md": b"# My own words\n"})
    result = client.run(
        """
        push_folder(folder, "user/tiny", with_code=True)
        from var_hf.provenance import verify
        result = verify(pull_everything("user/tiny", cache_dir=cache)).ok
        """,
        folder=folder,
        cache=cache,
    )
    assert result
    assert hub.model("user/tiny").files()["README.md"] == b"# My own words\n"

    (folder / "README.md").write_text("# Words of the folder\n")
    client.run('push_folder(folder, "user/tiny")', folder=folder)
    assert hub.model("user/tiny").files()["README.md"] == b"# Words of the folder\n"


def test_the_folder_pushed_is_left_as_it_is(hub, client, folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    client.run('push_folder(folder, "user/tiny", with_code=True)', folder=folder)

    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_not_part_of_a_model_is_named_and_not_pushed(hub, client, folder):
    (folder / "notes.txt").write_text("to do")
    (folder / "samples.png").write_bytes(b"\x89PNG")

    client.run(
        'push_folder(folder, "user/tiny", card=CardOptions(gallery="samples.png"))', folder=folder
    )

    files = hub.model("user/tiny").files()
    assert "notes.txt" not in files and "samples.png" in files
    assert "not pushed: notes.txt" in client.log
    assert "![Samples](samples.png)" in files["README.md"].decode()


def test_offline_the_cache_serves_and_says_what_it_lacks(hub, client, hub_client, folder, tmp_path):
    client.run(
        'push_folder(folder, "user/tiny"); VARPipeline.from_pretrained("user/tiny")', folder=folder
    )
    offline = hub_client(tmp_path / "offline", HF_HUB_OFFLINE="1", HF_HOME=str(client.home))
    number = len(hub.requests)

    assert offline.run('result = same(VARPipeline.from_pretrained("user/tiny"))')
    message = offline.fails('VARPipeline.from_pretrained("user/other")')
    assert "user/other is not (completely) in the cache, and the Hub is switched off" in message
    assert "switched off" in offline.fails('pipe.push_to_hub("user/tiny")')
    assert len(hub.requests) == number


def test_with_the_hub_gone_the_cache_serves(hub, client, cache):
    client.run('pipe.push_to_hub("user/tiny")')
    code = "result = same(VARPipeline.from_pretrained('user/tiny', cache_dir=cache))"
    assert client.run(code, cache=cache)
    hub.faults.gone_after = 0

    assert client.run(code, cache=cache)
    message = client.fails(code, cache=cache / "empty")
    assert "The connection to" in message and "broke or could not be made" in message


@pytest.mark.parametrize(
    "path",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/model-00002-of-00004.safetensors",
        "vqvae/diffusion_pytorch_model.safetensors",
    ],
)
@pytest.mark.parametrize("with_provenance", [True, False])
def test_what_a_broken_download_left_is_not_taken_for_a_pipeline(
    hub, client, cache, path, with_provenance
):
    client.run('pipe.push_to_hub("user/tiny", max_shard_size="600KB")')
    assert path in hub.model("user/tiny").files()
    if not with_provenance:
        hub.change("user/tiny", {"provenance.json": None})
    code = "result = same(VARPipeline.from_pretrained('user/tiny', cache_dir=cache))"
    assert client.run(code, cache=cache)
    (snapshot,) = (cache / "models--user--tiny" / "snapshots").iterdir()
    (snapshot / path).unlink()

    hub.faults.gone_after = 0
    assert "The connection to" in client.fails(code, cache=cache)

    hub.faults.gone_after = None
    assert client.run(code, cache=cache)
