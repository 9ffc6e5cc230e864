"""Repositories that carry their own code, for three kinds of readers."""

import ast
import json

import pytest

PLAIN_PIPELINE = """
pipe = diffusers.DiffusionPipeline.from_pretrained(name, trust_remote_code=True, cache_dir=cache)
pipe.set_progress_bar_config(disable=True)
generator = torch.Generator().manual_seed(0)
images = pipe([3, "tench"], generator=generator, output_type="pt").images
"""


@pytest.fixture
def carrying(hub, client):
    """A repository with code; returns its files."""
    client.run('pipe.push_to_hub("user/carrying", with_code=True)')
    return hub.model("user/carrying").files()


def test_the_installed_package_needs_no_trust_and_runs_none_of_the_code(
    hub, client, cache, carrying
):
    result = client.run(
        """
        import sys
        before = set(sys.modules)  # other tests of this process may have run code of theirs
        back = VARPipeline.from_pretrained("user/carrying", cache_dir=cache)
        trust = {"cache_dir": cache, "trust_remote_code": True}
        trusted = VARPipeline.from_pretrained("user/carrying", **trust)
        result = [same(one) for one in (back, trusted)]
        for one in (back, trusted):
            result += [type(one) is VARPipeline and type(one.transformer) is VARModel]
        new = sys.modules.keys() - before
        result += [not any(name.startswith("diffusers_modules") for name in new)]
        """,
        cache=cache,
    )

    assert result == [True] * 5


def test_auto_classes_take_the_installed_class_where_there_is_one(client, cache, carrying):
    result = client.run(
        """
        from transformers import AutoModel
        model = AutoModel.from_pretrained("user/carrying", subfolder="transformer", cache_dir=cache)
        result = type(model) is VARModel and same(model, pipe.transformer)
        """,
        cache=cache,
    )

    assert result


def test_plain_diffusers_draws_the_same_images(client, plain_client, cache, carrying, tmp_path):
    # Compared with what the package loads from the same files: in memory, tensors lie at other
    # addresses, and where they lie decides in which order a product is summed.
    client.run(
        'torch.save(draw(VARPipeline.from_pretrained("user/carrying", cache_dir=cache)), '
        'f"{tmp}/drawn.pt")',
        tmp=tmp_path,
        cache=cache,
    )

    result = plain_client.run(
        PLAIN_PIPELINE
        + 'result = [torch.equal(images, torch.load(f"{tmp}/drawn.pt")), type(pipe).__module__]',
        name="user/carrying",
        cache=cache,
        tmp=tmp_path,
    )

    assert result == [True, "diffusers_modules.local.pipeline"]


def test_plain_transformers_computes_the_same_logits(
    client, plain_client, cache, carrying, tmp_path
):
    client.run(
        """
        loaded = VARModel.from_pretrained("user/carrying", subfolder="transformer", cache_dir=cache)
        torch.save(loaded(torch.tensor([3])).logits, f"{tmp}/it.pt")
        """,
        tmp=tmp_path,
        cache=cache,
    )

    result = plain_client.run(
        """
        load = transformers.AutoModel.from_pretrained
        trust = {"cache_dir": cache, "trust_remote_code": True}
        model = load("user/carrying", subfolder="transformer", **trust)
        result = torch.equal(model(torch.tensor([3])).logits, torch.load(f"{tmp}/it.pt"))
        """,
        cache=cache,
        tmp=tmp_path,
    )

    assert result


def test_a_single_transformer_or_vqvae_carries_its_code_too(
    client, plain_client, hub, cache, tmp_path
):
    client.run(
        """
        pipe.transformer.push_to_hub("user/transformer", with_code=True)
        pipe.vqvae.push_to_hub("user/vqvae", with_code=True)
        images = torch.rand(1, 3, 10, 10, generator=seeded(1))
        vqvae = MultiScaleVQVAE.from_pretrained("user/vqvae", cache_dir=cache)
        transformer = VARModel.from_pretrained("user/transformer", cache_dir=cache)
        logits = transformer(torch.tensor([3])).logits
        torch.save([images, vqvae.reconstruct(images), logits], f"{tmp}/it.pt")
        """,
        tmp=tmp_path,
        cache=cache,
    )

    result = plain_client.run(
        """
        images, reconstructed, logits = torch.load(f"{tmp}/it.pt")
        at = {"trust_remote_code": True, "cache_dir": cache}
        transformer = transformers.AutoModel.from_pretrained("user/transformer", **at)
        vqvae = diffusers.AutoModel.from_pretrained("user/vqvae", **at)
        result = [
            torch.equal(transformer(torch.tensor([3])).logits, logits),
            torch.equal(vqvae.reconstruct(images), reconstructed),
        ]
        """,
        tmp=tmp_path,
        cache=cache,
    )

    assert result == [True, True]


def test_plain_modular_diffusers_draws_and_edits_the_same_images(
    client, plain_client, cache, carrying, tmp_path
):
    client.run(
        """
        from var_hf import VARInpaintPipeline
        back = VARPipeline.from_pretrained("user/carrying", cache_dir=cache)
        image, mask = torch.rand(1, 3, 10, 10, generator=seeded(1)), torch.ones(1, 1, 10, 10)
        mask[..., 6:] = 0
        inpaint = quiet(VARInpaintPipeline.from_pipe(back))
        edited = inpaint(image, mask, "hen", generator=seeded(0), output_type="pt").images
        torch.save([draw(back), image, mask, edited], f"{tmp}/drawn.pt")
        """,
        tmp=tmp_path,
        cache=cache,
    )

    result = plain_client.run(
        """
        drawn, image, mask, edited = torch.load(f"{tmp}/drawn.pt")
        trust = {"trust_remote_code": True, "cache_dir": cache}
        blocks = diffusers.ModularPipeline.from_pretrained("user/carrying", **trust)
        blocks.load_components(cache_dir=cache)
        blocks.set_progress_bar_config(disable=True)
        def seeded(seed):
            return {"generator": torch.Generator().manual_seed(seed), "output_type": "pt"}
        one = blocks(class_labels=[3, "tench"], **seeded(0), output="images")
        two = blocks(image=image, mask_image=mask, class_labels="hen", **seeded(0)).images
        result = [torch.equal(one, drawn), torch.equal(two, edited)]
        result += [type(blocks.transformer).__module__.split(".")[0]]
        """,
        cache=cache,
        tmp=tmp_path,
    )

    assert result == [True, True, "diffusers_modules"]


def test_the_handler_needs_nothing_of_the_package(client, plain_client, cache, carrying, tmp_path):
    client.run(
        """
        back = quiet(VARPipeline.from_pretrained("user/carrying", cache_dir=cache))
        drawn = back("hen", generator=seeded(3)).images[0]
        drawn.save(f"{tmp}/hen.png")
        Path(f"{tmp}/classes.json").write_text(json.dumps(back.classify(drawn)[0]))
        """,
        tmp=tmp_path,
        cache=cache,
    )

    result = plain_client.run(
        """
        import base64, huggingface_hub, json, pathlib, PIL.Image, sys
        folder = huggingface_hub.snapshot_download("user/carrying", cache_dir=cache)
        # As the toolkit loads it.
        place = "handler.EndpointHandler", f"{folder}/handler.py"
        spec = importlib.util.spec_from_file_location(*place)
        handler = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(handler)
        answer = handler.EndpointHandler(folder)
        hen = PIL.Image.open(f"{tmp}/hen.png")
        file = base64.b64encode(pathlib.Path(f"{tmp}/hen.png").read_bytes()).decode()
        drawn = answer({"inputs": "hen", "parameters": {"seed": 3}})
        classes = {"inputs": file, "parameters": {"task": "image-classification"}}
        edit = {"task": "image-to-image", "expand": [1, 2, 3, 4]}
        result = [
            drawn.tobytes() == hen.tobytes(),
            answer(classes) == json.loads(pathlib.Path(f"{tmp}/classes.json").read_text()),
            answer({"inputs": file, "parameters": edit}).size,
        ]
        """,
        cache=cache,
        tmp=tmp_path,
    )

    assert result == [True, True, [14, 16]]


def test_the_installed_blocks_load_a_repository_with_code(client, cache, carrying):
    result = client.run(
        """
        from var_hf.pipelines.modular_blocks import VARBlocks
        blocks = VARBlocks().init_pipeline("user/carrying")
        blocks.load_components(cache_dir=cache)
        result = [type(blocks.transformer) is VARModel, same(blocks.vqvae, pipe.vqvae)]
        """,
        cache=cache,
    )

    assert result == [True, True]


def test_without_trust_no_code_is_run(plain_client, cache, carrying):
    message = plain_client.fails_somehow(
        "diffusers.DiffusionPipeline.from_pretrained(name, cache_dir=cache)",
        name="user/carrying",
        cache=cache,
    )

    assert "trust_remote_code" in message


def test_the_code_is_readable_licensed_and_needs_nothing_of_the_package(carrying):
    code = {path: content.decode() for path, content in carrying.items() if path.endswith(".py")}

    assert set(code) == {
        "pipeline.py",
        "modular_blocks.py",
        "handler.py",
        "modeling_var.py",
        "transformer/modeling_var.py",
        "vqvae/modeling_vqvae.py",
        "scheduler/scheduling_next_scale.py",
    }
    assert code["modeling_var.py"] == code["transformer/modeling_var.py"]
    for text in code.values():
        assert text.startswith("# Generated by var-hf ")
        assert "# MIT License" in text
        modules = [
            node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)
        ]
        assert modules and not any(
            module is None or module.startswith("var_hf") for module in modules
        )


def test_pushing_again_without_code_takes_it_out(hub, client, carrying, cache):
    result = client.run(
        """
        back = VARPipeline.from_pretrained("user/carrying", cache_dir=cache)
        back.push_to_hub("user/carrying")
        result = same(VARPipeline.from_pretrained("user/carrying", cache_dir=cache))
        """,
        cache=cache,
    )

    files = hub.model("user/carrying").files()
    assert result
    assert not [path for path in files if path.endswith(".py") or path.startswith("modular_")]
    assert "requirements.txt" not in files
    assert "auto_map" not in json.loads(files["transformer/config.json"])
    assert json.loads(files["model_index.json"])["transformer"][0] == "var_hf.modeling_var"


def test_what_plain_diffusers_saves_is_loaded_and_pushed_by_the_package(
    client, plain_client, hub, cache, carrying, tmp_path
):
    """Such a folder names classes of another process and holds no code."""
    plain_client.run(
        PLAIN_PIPELINE + 'pipe.save_pretrained(f"{tmp}/saved")',
        name="user/carrying",
        cache=cache,
        tmp=tmp_path,
    )

    result = client.run(
        """
        result = [same(VARPipeline.from_pretrained(f"{tmp}/saved"))]
        push_folder(f"{tmp}/saved", "user/again")
        result += [same(VARPipeline.from_pretrained("user/again", cache_dir=cache))]
        """,
        tmp=tmp_path,
        cache=cache,
    )

    assert result == [True, True]


def test_a_pair_of_transformers_comes_back_with_and_without_its_code(
    hub, client, plain_client, cache, tmp_path
):
    result = client.run(
        """
        import copy
        from var_hf import VARCollaborativePipeline
        from var_hf.pipelines.loading import load_pipeline
        small = copy.deepcopy(pipe.transformer)
        with torch.no_grad():
            for weight in small.parameters():
                weight.mul_(0.9)
        pair = VARCollaborativePipeline.from_pipe(pipe, refiner=small, draft_scales=3)
        pair.push_to_hub("user/pair", with_code=True)
        back = VARCollaborativePipeline.from_pretrained("user/pair", cache_dir=cache)
        by_name = load_pipeline("user/pair", dtype="float32")
        torch.save(draw(back), f"{tmp}/drawn.pt")
        result = [
            [type(one) is VARCollaborativePipeline, one.draft_scales, one.config._name_or_path]
            for one in (back, by_name)
        ] + [torch.allclose(draw(back), draw(pair)), torch.allclose(draw(by_name), draw(pair))]
        """,
        cache=cache,
        tmp=tmp_path,
    )
    assert result == [[True, 3, "user/pair"]] * 2 + [True, True]

    files = hub.model("user/pair").files()
    assert {"drafter/modeling_var.py", "refiner/model.safetensors", "pipeline.py"} <= files.keys()
    card = files["README.md"].decode()
    assert "A drafter predicts the first 3 scales" in card
    assert 'VARCollaborativePipeline.from_pretrained("user/pair"' in card

    result = plain_client.run(
        PLAIN_PIPELINE
        + 'result = [torch.equal(images, torch.load(f"{tmp}/drawn.pt")), pipe.draft_scales]',
        name="user/pair",
        cache=cache,
        tmp=tmp_path,
    )
    assert result == [True, 3]
