"""Cards: they say what the files say, pass the Hub's checks, and claim nothing else."""

import json
import re

import pytest
from conftest import make_pipe
from hub_server import card_errors
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from var_hf.conversion import PUBLISHED_TRANSFORMERS, registry
from var_hf.model_card import (
    CardOptions,
    Result,
    is_generated,
    model_card,
    read_configs,
    read_results,
)
from var_hf.provenance import describe_files, new_provenance

DIGEST = "ab" * 32


@pytest.fixture
def configs(pipe_folder):
    return read_configs(pipe_folder)


@pytest.fixture
def provenance(pipe_folder):
    files = {p.relative_to(pipe_folder).as_posix(): p for p in pipe_folder.rglob("*.safetensors")}
    return new_provenance([], {}) | {"files": describe_files(files)}


def released(configs, provenance, repository="FoundationVision/var", size="d16"):
    """The configurations and the provenance of a converted release."""
    values = PUBLISHED_TRANSFORMERS[size].values
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
    source = {"part": "transformer", "name": f"var_{size}.pth", "size": 1, "sha256": DIGEST}
    source |= {"repository": repository, "revision": "c" * 40} if repository else {}
    return (
        configs | {"transformer/config.json": configs["transformer/config.json"] | values},
        provenance | {"sources": [source]},
    )


def published(configs, provenance, entry):
    """The configurations and the provenance of a converted checkpoint of the registry."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in entry.file.values.items()}
    source = {"part": "transformer", "name": entry.file.name.rpartition("/")[2], "size": 1}
    source |= {"sha256": DIGEST, "repository": entry.family.repository, "revision": "c" * 40}
    return (
        configs | {"transformer/config.json": configs["transformer/config.json"] | values},
        provenance | {"sources": [source]},
    )


def make(configs, provenance, repo_id="user/tiny", **options) -> ModelCard:
    card = model_card(configs, provenance, CardOptions(**options), repo_id)
    assert card_errors(str(card)) == []
    assert is_generated(str(card))
    return card


def test_a_card_says_what_the_files_say(configs, provenance):
    card = make(configs, provenance)

    assert card.data.library_name == "diffusers"
    assert card.data.pipeline_tag == "unconditional-image-generation"
    assert card.data.license is None and card.data.base_model is None
    assert "eval_results" not in card.data.to_dict() and "model-index" not in card.data.to_dict()
    for words in (
        'VARPipeline.from_pretrained("user/tiny"',
        "10 x 10 pixel images of 11 classes",
        "| token maps, coarse to fine | 1², 2², 3², 5² |",
        "| tokens per image | 39 |",
        "| `guidance_scale` | 3 | `cfg=2` |",
        "tench, Tinca tinca; goldfish",
        "No metrics were measured on these files.",
        "did not state the licence of the weights",
        "@inproceedings{tian2024visual",
        "var-hf verify user/tiny",
    ):
        assert words in card.text, words
    for name, entry in provenance["files"].items():
        assert f"| `{name}` | `{entry['sha256']}` |" in card.text
    assert "trust_remote_code" not in card.text


def test_a_code_carrying_repository_says_how_to_use_its_code(configs, provenance):
    text = make(configs, provenance, with_code=True).text

    assert 'DiffusionPipeline.from_pretrained("user/tiny", trust_remote_code=True)' in text
    assert (
        'AutoModel.from_pretrained("user/tiny", subfolder="transformer", trust_remote_code=True)'
        in text
    )
    assert 'revision="<commit>"' in text


@pytest.mark.parametrize("size", PUBLISHED_TRANSFORMERS)
def test_numbers_of_the_authors_are_marked_as_theirs(configs, provenance, size):
    card = make(*released(configs, provenance, size=size))

    assert card.data.license == "mit"
    assert card.data.datasets == ["ILSVRC/imagenet-1k"]
    assert card.data.base_model is None  # a conversion is no derived model
    name, results = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert name == "tiny"
    assert {result.metric_type for result in results} >= {"fid", "inception_score"}
    for result in results:
        assert "reported by the" in result.metric_name
        assert "not measured on these files" in result.source_name and result.source_url
    assert "**Reported by the authors, not measured here**" in card.text
    assert "| parameters of the transformer |" in card.text
    assert DIGEST in card.text and "FoundationVision/var at cccccccccccc" in card.text


def test_the_d16_numbers_are_those_of_table_1(configs, provenance):
    card = make(*released(configs, provenance))
    _, results = model_index_to_eval_results(card.data.to_dict()["model-index"])

    numbers = {(r.source_url, r.metric_type): r.metric_value for r in results}
    assert numbers == {
        ("https://arxiv.org/abs/2404.02905", "fid"): 3.30,
        ("https://arxiv.org/abs/2404.02905", "inception_score"): 274.4,
        ("https://arxiv.org/abs/2404.02905", "precision"): 0.84,
        ("https://arxiv.org/abs/2404.02905", "recall"): 0.51,
        ("https://github.com/FoundationVision/VAR", "fid"): 3.55,
    }


@pytest.mark.parametrize("name", registry().checkpoints)
def test_a_published_checkpoint_is_named_with_its_licence_and_base_model(configs, provenance, name):
    entry = registry().checkpoints[name]
    card = make(*published(configs, provenance, entry))

    assert card.data.license == entry.license.name
    assert card.data.base_model == entry.family.base_model
    for words in (
        f"The weights are {name}, {entry.family.about}",
        f"[{entry.family.title}]({entry.family.code}), {entry.family.copyright}, under the ",
        f"[{entry.license.title}]({entry.license.url})",
        entry.license.restrictions or "",
        entry.note or "",
    ):
        assert words.rstrip(".") in card.text, words
    _, results = model_index_to_eval_results(card.data.to_dict()["model-index"])
    numbers = {(result.source_url, result.metric_value) for result in results}
    assert numbers == {(r.url, value) for r in entry.metrics for value in r.values.values()}


HOSTILE = (
    "a\n# Title\n---\nlicense: mit\n---",
    "<script>alert(1)</script>",
    "[click](https://example.org)",
    "![image](https://example.org/x.png)",
    "```\nimport os\n```",
    "a | b",
    "\x1b[2Jgone",
    "&lt;b&gt;",
    "x" * 5000,
)


def test_names_from_files_are_text_in_the_card_and_nothing_else(configs, provenance):
    configs["model_index.json"] |= {"id2label": dict(enumerate(HOSTILE))}
    source = {"part": "transformer", "sha256": "`x`|y", "name": "<b>`a|b`</b>\n# Title"}
    source |= {"repository": "user/<i>x</i>", "revision": None}
    provenance |= {"sources": [source], "tools": {"<u>tool</u>": "1"}}

    card = make(configs, provenance, repo_id="folder/<h1>my var</h1>")

    assert card.data.license is None
    visible = re.sub(r"^```.*?^```$", "", card.text, flags=re.DOTALL | re.MULTILINE)
    visible = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", visible)  # without what stands in code
    for words in (
        "# Title",
        "<script",
        "<b>",
        "<i>",
        "<u>",
        "<h1",
        "](https://example.org",
        "&lt;b",
    ):
        assert not re.search(rf"(?<!\\){re.escape(words)}", visible), words
    assert card.text.count("\n# ") == 1
    assert all(len(line) < 2000 for line in card.text.splitlines())
    assert "\x1b" not in card.text


def test_a_local_file_of_the_same_name_is_not_taken_for_the_release(configs, provenance):
    card = make(*released(configs, provenance, repository=None))

    assert card.data.license is None and "model-index" not in card.data.to_dict()
    assert "Compare its digest below to check" in card.text


def test_a_file_of_the_same_name_and_another_shape_gets_no_numbers(configs, provenance):
    configs, provenance = released(configs, provenance)
    configs["transformer/config.json"] |= {"num_hidden_layers": 3}

    card = make(configs, provenance)

    assert "Reported by the authors" not in card.text and "model-index" not in card.data.to_dict()


def test_measured_numbers_come_with_their_command(configs, provenance, tmp_path):
    measured = {
        "metric": "FID",
        "value": 12,
        "command": "var-hf evaluate",
        "dataset": "ImageNet 10 x 10",
    }
    (tmp_path / "results.json").write_text(json.dumps([measured]))
    results = read_results(tmp_path / "results.json")
    assert results == [Result("FID", 12.0, "var-hf evaluate", "ImageNet 10 x 10")]

    card = make(*released(configs, provenance), results=results, base_model="user/base")

    assert "| FID | 12 | ImageNet 10 x 10 | `var-hf evaluate` |" in card.text
    assert card.data.base_model == "user/base"
    _, listed = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert [r.metric_value for r in listed if r.metric_name == "FID"] == [12.0]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "3",
        '[{"metric": "FID"}]',
        '[{"metric": "FID", "value": "x", "command": "", "dataset": ""}]',
    ],
)
def test_damaged_results_are_one_clear_error(tmp_path, text):
    (tmp_path / "results.json").write_text(text)

    with pytest.raises(
        ValueError, match=r"results.json has to be a JSON list of objects with metric"
    ):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize("part", ["transformer", "vqvae"])
def test_a_single_model_has_a_card_of_its_own(tmp_path, part, provenance):
    getattr(make_pipe(), part).save_pretrained(tmp_path)

    card = make(read_configs(tmp_path), provenance, with_code=True)

    library, name = (
        ("transformers", "VARModel") if part == "transformer" else ("diffusers", "MultiScaleVQVAE")
    )
    assert card.data.library_name == library
    assert card.data.pipeline_tag is None
    assert f'{name}.from_pretrained("user/tiny")' in card.text
    assert f"from {library} import AutoModel" in card.text


def test_many_classes_are_not_all_listed(configs, provenance):
    names = {str(i): f"thing {i}, object {i}" for i in range(1000)}
    configs["model_index.json"] |= {"id2label": names}
    configs["transformer/config.json"] |= {"num_classes": 1000}

    text = make(configs, provenance).text

    assert "1,000 classes, among them: thing 0; thing 200; thing 400; thing 600; thing 800." in text


def test_the_card_of_this_test_hub_finds_what_is_wrong():
    """The checks above would be worth nothing if the checker let everything pass."""
    for metadata, words in (
        ("license: my-own", '"license" must be one of'),
        ("license: other", '"license_name" is required'),
        ("pipeline_tag: class-to-image", '"pipeline_tag" must be one of'),
        ("tags: [1, 2]", '"tags" must be an array of strings'),
        ("base_model: not a name", "which is no repository id"),
        ("model-index:\n- name: x\n  results: 3", '"model-index"'),
        ("a: [", "YAML"),
    ):
        (error, *_) = card_errors(f"---\n{metadata}\n---\n# Title\n")
        assert words in error
