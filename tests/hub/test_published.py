"""Published checkpoints by name, on a Hub with small files of the published layouts."""

import hashlib
import json
from importlib.resources import files

import pytest
from original_release import original_transformer, original_vqvae

CONVERT = "from var_hf.pipelines.original import convert_published as convert\n"
SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
COMMAND = """
from typer.testing import CliRunner
from var_hf.cli_app import app
done = CliRunner().invoke(app, arguments)
result = [done.exit_code, done.stdout, done.stderr, str(done.exception or "")]
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The bytes of the two files: a transformer one layer deep, and a narrow VQVAE."""
    import torch

    folder = tmp_path_factory.mktemp("published")
    shape = {"depth": 1, "width": 64, "heads": 1, "inner": 256, "vocab": 4096, "channels": 32}
    torch.save(original_transformer(**shape, sizes=SIZES, classes=1000), folder / "t.pth")
    torch.save(original_vqvae(vocab=4096, channels=32, num_scales=10), folder / "v.pth")
    return {name: (folder / f"{name}.pth").read_bytes() for name in "tv"}


@pytest.fixture
def table(hub, client, published, tmp_path):
    """The registry with these files in place of the published ones."""
    table = json.loads(files("var_hf.conversion").joinpath("published.json").read_text("utf-8"))
    table["architectures"]["d1"] = {"depth": 1, "image_size": 256, "parameters": 1}
    for entry in table["checkpoints"]:
        entry["size"] = "d1"
        repository = table["families"][entry["family"]]["repository"]
        if ("model", repository) not in hub.repos:
            hub.add(repository, {})
        hub.change(repository, {entry["file"]: published["t"]})
    vqvae = table["vqvae"]
    vqvae |= {"bytes": len(published["v"]), "sha256": hashlib.sha256(published["v"]).hexdigest()}
    hub.change(vqvae["repository"], {vqvae["file"]: published["v"]})
    path = tmp_path / "table.json"

    def use(content):
        path.write_text(json.dumps(content))
        client.run(
            """
            from var_hf.conversion import published, registry
            published._TABLE = path
            registry.cache_clear()
            """,
            path=path,
        )

    use(table)
    yield table, use
    client.run("published._TABLE = 'published.json'; registry.cache_clear()")


@pytest.mark.parametrize("name", ["cca-d16", "ddo-d30", "var-d16", "code-refiner-6"])
def test_a_checkpoint_is_converted_by_its_name(hub, client, table, tmp_path, name):
    (entry,) = (e for e in table[0]["checkpoints"] if e["name"] == name)
    family = table[0]["families"][entry["family"]]

    convert = "convert(name, f'{tmp}/out', norm_num_groups=2)"
    if name == "var-d16":  # the release goes by its repository and size as well
        by_size = "from var_hf.pipelines.original import convert_from_hub\n"
        convert = (
            by_size
            + "convert_from_hub('FoundationVision/var', 'd16', f'{tmp}/out', norm_num_groups=2)"
        )
    client.run(CONVERT + convert, name=name, tmp=tmp_path)

    folder = tmp_path / "out"
    scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    assert {key: scheduler[key] for key in entry["sampling"]} == entry["sampling"]
    provenance = json.loads((folder / "provenance.json").read_text())
    transformer, vqvae = provenance["sources"]
    assert transformer["checkpoint"] == name and transformer["license"] == family["license"]
    assert transformer.get("base_model") == family["base_model"]
    assert transformer["repository"] == family["repository"] and len(transformer["revision"]) == 40
    assert vqvae["sha256"] == table[0]["vqvae"]["sha256"]
    card = (folder / "README.md").read_text()
    assert f"license: {family['license']}" in card and f"The weights are {name}" in card
    assert (f"base_model: {family['base_model']}" in card) == (family["base_model"] is not None)
    restricted = table[0]["licenses"][family["license"]]["restrictions"]
    assert (restricted in client.log and restricted in card) if restricted else not client.log


def fetch_fails(client, tmp_path, name="cca-d16"):
    message = client.fails(CONVERT + "convert(name, f'{tmp}/out')", name=name, tmp=tmp_path)
    assert not (tmp_path / "out").exists()
    return message


def test_a_file_that_is_not_there_is_one_clear_error(hub, client, table, tmp_path):
    hub.change("ChenDRAG/CCA_VAR", {"CCA_VAR_Guidance_Free/VAR_d16_CCA.pth": None})

    message = fetch_fails(client, tmp_path)

    assert "ChenDRAG/CCA_VAR has no file CCA_VAR_Guidance_Free/VAR_d16_CCA.pth at " in message
    assert "It has CCA_VAR_Guidance_Free/VAR_d20_CCA.pth, " in message


@pytest.mark.parametrize(
    ("change", "words"),
    [({"bytes": 7}, "bytes instead of 7"), ({"sha256": "0" * 64}, f"instead of {'0' * 64}")],
)
@pytest.mark.parametrize("in_lfs", [True, False])
def test_a_file_of_another_size_or_digest_is_refused(
    hub, client, table, tmp_path, change, words, in_lfs
):
    hub.habits.in_lfs = (".pth",) if in_lfs else ()
    content, use = table
    use(content | {"vqvae": content["vqvae"] | change})
    hub.requests.clear()

    message = fetch_fails(client, tmp_path)

    assert (
        "vae_ch160v4096z32.pth of FoundationVision/var is not the file that was published"
        in message
    )
    assert words in message
    if in_lfs:  # the Hub lists its size and digest: nothing of it was fetched
        assert not any("vae_ch160v4096z32.pth" in request for request in hub.requests)


def test_a_hub_that_has_gone_is_one_clear_error(hub, client, table, tmp_path):
    hub.faults.gone_after = 0

    assert "The connection to " in fetch_fails(client, tmp_path)


def test_a_licence_with_conditions_is_accepted_before_a_push(hub, client, table, tmp_path):
    client.run(CONVERT + "convert('ddo-d16', f'{tmp}/out', norm_num_groups=2)", tmp=tmp_path)
    push = "push_folder(f'{tmp}/out', 'user/ddo', **options)"

    message = client.fails(push, "ValueError", tmp=tmp_path, options={})
    assert "no commercial use" in message and "pass accept_license=True" in message
    assert ("model", "user/ddo") not in hub.repos
    other = push.replace("**", "card=CardOptions(license='mit'), **")
    message = client.fails(other, "ValueError", tmp=tmp_path, options={"accept_license": True})
    assert "are under cc-by-nc-sa-4.0 and stay so: mit cannot be their licence" in message

    client.run(push, tmp=tmp_path, options={"accept_license": True})
    card = hub.model("user/ddo").files()["README.md"].decode()
    assert "license: cc-by-nc-sa-4.0" in card and "no commercial use" in card
    assert "base_model: FoundationVision/var" in card


def test_the_command_converts_by_name_and_asks_for_the_licence_first(hub, client, table, tmp_path):
    convert = ["convert", "ddo-d16", "-o", str(tmp_path / "out"), "--set", "norm_num_groups=2"]
    hub.requests.clear()

    code, _, _, error = client.run(COMMAND, arguments=[*convert, "--push", "user/ddo"])
    assert code == 1 and "no commercial use" in error and "pass --accept-license" in error
    assert not hub.requests

    code, out, _, error = client.run(
        COMMAND, arguments=[*convert, "--push", "user/ddo", "--accept-license"]
    )
    assert code == 0, error
    assert "no commercial use" in client.log
    assert out.splitlines()[0] == str(tmp_path / "out")
    assert "ddo-d16" in hub.model("user/ddo").files()["README.md"].decode()

    again = ["push", str(tmp_path / "out"), "user/again"]
    assert "--accept-license" in client.run(COMMAND, arguments=again)[-1]
    assert client.run(COMMAND, arguments=[*again, "--accept-license"])[0] == 0
