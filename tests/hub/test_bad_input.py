"""One clear line for whatever is wrong with a name, a token, or what stands in a repository."""

import json

import pytest

PULL = "VARPipeline.from_pretrained(name, cache_dir=cache, **options)"


def pull_fails(client, cache, name="user/tiny", kind="HubError", **options):
    return client.fails(PULL, kind, name=name, cache=cache, options=options)


def push_fails(client, name="user/tiny", kind="HubError", **options):
    return client.fails("pipe.push_to_hub(name, **options)", kind, name=name, options=options)


@pytest.mark.parametrize(
    "name", ["a/b/c", "user/two--dashes", "user/-x", "user/" + "x" * 100, "user/a b"]
)
def test_a_bad_name(client, cache, name):
    wrong = "cannot be the name of a Hub repository. Names look like user/var-d16-256"
    message = pull_fails(client, cache, name, "ValueError")
    assert f"{name!r} is no folder here and {wrong}" in message
    assert f"{name!r} {wrong}" in push_fails(client, name, "ValueError")


def test_no_token(hub, client):
    client.run('import os; token = os.environ.pop("HF_TOKEN")')

    message = push_fails(client)
    pulling = client.fails("VARPipeline.from_pretrained('user/tiny')")
    client.run('os.environ["HF_TOKEN"] = token')

    assert "Pushing to user/tiny needs an access token. Log in with `hf auth login`" in message
    assert "There is neither a folder user/tiny nor a model of that name" in pulling
    assert not hub.repos


def test_an_expired_token(hub, client, cache):
    message = "The Hub does not accept the access token: it is wrong or has expired."
    client.run('pipe.push_to_hub("user/tiny")')
    before = dict(hub.model("user/tiny").refs)

    assert message in push_fails(client, token="hf_expired")
    assert message in pull_fails(client, cache, token="hf_expired")
    assert message in push_fails(client, "user/other", token="hf_expired")
    assert message in push_fails(client, "no-namespace", token="hf_expired")
    assert hub.model("user/tiny").refs == before and len(hub.repos) == 1


def test_no_right_to_write(hub, client):
    client.run('pipe.push_to_hub("user/tiny")')

    for token in ("hf_reader", "hf_other"):
        message = push_fails(client, token=token)
        assert "The token may not write to user/tiny (You don't have the rights to write" in message
    assert "may not write to somebody/new" in push_fails(client, "somebody/new")
    assert len(hub.model("user/tiny").commits) == 2


def test_a_name_without_namespace_is_that_of_the_account(hub, client):
    client.run('pipe.push_to_hub("tiny")')

    assert ("model", "user/tiny") in hub.repos


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_a_repository_of_another_kind(hub, client, cache, kind):
    hub.add("user/pictures", {"a.txt": b"a"}, kind=kind)
    words = "data set" if kind == "dataset" else "space"

    for message in (
        pull_fails(client, cache, "user/pictures"),
        push_fails(client, "user/pictures"),
    ):
        assert f"user/pictures is a {words} on the Hub, not a model." in message
    assert ("model", "user/pictures") not in hub.repos


def test_a_missing_repository_and_a_missing_revision(hub, client, cache):
    assert "There is neither a folder user/none nor a model of that name" in pull_fails(
        client, cache, "user/none"
    )
    client.run('pipe.push_to_hub("user/tiny")')
    message = pull_fails(client, cache, revision="v9")
    assert "user/tiny has no such revision (branch, tag or commit): v9." in message


def test_a_repository_without_weights(hub, client, cache, folder):
    files = {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    del files["vqvae/diffusion_pytorch_model.safetensors"]
    hub.add("user/tiny", files)

    message = pull_fails(client, cache, kind="ValueError")

    assert (
        "user/tiny has no weights for the vqvae: "
        "there is no vqvae/diffusion_pytorch_model.safetensors" in message
    )
    assert not list(cache.rglob("*.safetensors"))


def test_a_repository_of_another_model(hub, client, cache):
    index = {"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"]}
    hub.add("user/dit", {"model_index.json": json.dumps(index).encode()})
    hub.add("user/bert", {"config.json": b'{"model_type": "bert"}'})
    hub.add("user/empty", {".gitattributes": b""})
    hub.add("user/broken", {"model_index.json": b"{"})

    message = pull_fails(client, cache, "user/dit", "ValueError")
    assert (
        "user/dit is no VAR pipeline but DiTPipeline: its model_index.json does not name" in message
    )
    message = pull_fails(client, cache, "user/bert")
    assert (
        "user/bert is no pipeline: it has no model_index.json. It holds a single model" in message
    )
    assert "user/empty is no pipeline: it has no model_index.json." in pull_fails(
        client, cache, "user/empty"
    )
    assert "user/broken is damaged" in pull_fails(client, cache, "user/broken", "ValueError")


def test_a_folder_of_another_model(client, tmp_path):
    index = {"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))

    for code in ("VARPipeline.from_pretrained(folder)", 'push_folder(folder, "user/tiny")'):
        assert "is no VAR pipeline but DiTPipeline" in client.fails(
            code, "ValueError", folder=tmp_path
        )


def break_nothing(folder):
    (folder / "transformer" / "model.safetensors").unlink()
    return "has no weights for the transformer"


def break_config(folder):
    (folder / "vqvae" / "config.json").unlink()
    return "vqvae/config.json is missing"


def break_shard(folder):
    (folder / "transformer" / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
    )
    return "names model-00001-of-00002.safetensors"


def break_pickle(folder):
    (folder / "optimizer.pt").write_bytes(b"\x80")
    return "holds optimizer.pt, which may run code when it is loaded: move it elsewhere"


def break_json(folder):
    (folder / "transformer" / "config.json").write_text("{")
    return "config.json is no JSON"


def break_index(folder):
    (folder / "model_index.json").unlink()
    return "is no model of this package: it has neither a model_index.json nor"


@pytest.mark.parametrize(
    "damage", [break_nothing, break_config, break_shard, break_pickle, break_json, break_index]
)
def test_an_incomplete_folder_is_not_pushed(hub, client, folder, damage):
    expected = damage(folder)

    message = client.fails('push_folder(folder, "user/tiny")', "ValueError", folder=folder)

    assert expected in message and str(folder) in message
    assert not hub.repos


def test_other_bad_arguments_of_a_push(hub, client, folder):
    push = "push_folder(folder, 'user/tiny', **options)"
    message = client.fails(
        push, "ValueError", folder=folder, options={"create_pr": True, "revision": "dev"}
    )
    assert "create_pr opens a pull request against the main branch" in message
    message = client.fails("push_folder('/nowhere', 'user/tiny')", "FileNotFoundError")
    assert "There is no folder /nowhere" in message
    message = client.fails(
        "push_folder(folder, 'user/tiny', card=CardOptions(gallery='a.png'))",
        "ValueError",
        folder=folder,
    )
    assert "There is no image a.png" in message
    assert not hub.repos


def test_a_repository_with_a_pickle_is_not_pushed_into(hub, client):
    hub.add("user/tiny", {"pytorch_model.bin": b"\x80\x04."})

    assert "user/tiny already holds pytorch_model.bin" in push_fails(client)


def test_pipelines_and_single_models_are_not_mixed_in_one_repository(hub, client):
    client.run('pipe.push_to_hub("user/tiny"); pipe.vqvae.push_to_hub("user/vqvae")')

    message = client.fails('pipe.vqvae.push_to_hub("user/tiny")')
    assert "user/tiny holds a whole pipeline" in message
    assert "user/vqvae holds a single model" in push_fails(client, "user/vqvae")


def test_metadata_that_the_hub_refuses(hub, client):
    message = client.fails('pipe.push_to_hub("user/tiny", card=CardOptions(license="my-own"))')

    assert '"license" must be one of' in message
    assert list(hub.model("user/tiny").files()) == [".gitattributes"]
