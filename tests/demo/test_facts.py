import json
import shutil
import subprocess
import sys

import pytest

from var_hf.demo.facts import ModelFacts


def test_the_files_say_what_the_loaded_model_says(facts, studio):
    pipe, defaults = studio.pipe, studio.pipe.scheduler.config

    assert facts.side == pipe.vqvae.image_size
    assert facts.token_map_sizes == tuple(pipe.transformer.config.token_map_sizes)
    assert facts.num_tokens == 39
    assert facts.num_classes == pipe.transformer.config.num_classes
    assert facts.id2label == pipe.id2label
    assert (facts.guidance_scale, facts.top_k, facts.top_p) == (
        defaults.guidance_scale,
        defaults.top_k,
        defaults.top_p,
    )
    assert facts.sampling == "multinomial"
    assert facts.temperature == defaults.temperature
    assert facts.guidance_schedule == defaults.guidance_schedule
    assert facts.ssg_scale == defaults.ssg_scale


def test_every_class_has_a_name_of_its_own(facts):
    names = [facts.class_name(class_id) for class_id in range(facts.num_classes)]

    assert len(set(names)) == facts.num_classes
    assert names[1:4] == ["crane (1)", "crane (2)", "pizza"]
    assert names[10] == "class 10"


def test_a_class_is_found_by_name_or_taken_from_the_list(facts):
    assert facts.find_class("pizza", 0) == 3
    assert facts.find_class("zebra", 1) == 10


def test_the_page_is_built_without_torch():
    """So that it is there before the model: importing torch and diffusers takes longer."""
    code = (
        "import sys, var_hf.demo.interface, var_hf.demo.server; "
        "print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder nowhere"):
        ModelFacts.read("nowhere")
    with pytest.raises(ValueError, match="no pipeline folder"):
        ModelFacts.read(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("transformer/config.json", "{"),
        ("transformer/config.json", "[]"),
        ("transformer/config.json", "{}"),
        ("vqvae/config.json", '{"channel_multipliers": 3}'),
        ("scheduler/scheduler_config.json", '{"guidance_scale": "much"}'),
        ("model_index.json", '{"_class_name": "Other"}'),
    ],
)
def test_damaged_files_are_one_line(model_folder, tmp_path, file, content):
    folder = tmp_path / "damaged"
    shutil.copytree(model_folder, folder)
    (folder / file).write_text(content)

    with pytest.raises(ValueError) as error:
        ModelFacts.read(str(folder))
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_names_may_be_missing_altogether(model_folder, tmp_path):
    folder = tmp_path / "nameless"
    shutil.copytree(model_folder, folder)
    index = json.loads((folder / "model_index.json").read_text())
    del index["id2label"]
    (folder / "model_index.json").write_text(json.dumps(index))

    assert ModelFacts.read(str(folder)).class_name(3) == "class 3"


def test_a_model_from_before_temperature_draws_with_one():
    assert ModelFacts.read("var-emoji-64").temperature == 1.0  # it stores none


def test_where_each_scale_has_its_temperature_the_page_keeps_it(pipe_folder, tmp_path):
    folder = shutil.copytree(pipe_folder, tmp_path / "warm")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"temperature": [1.1, 1.1, 1, 1]}))

    code = (
        "import sys, gradio; from var_hf.demo.controls import drawing_controls; "
        "from var_hf.demo.facts import ModelFacts; facts = ModelFacts.read(sys.argv[1]); "
        "block = gradio.Blocks(); block.__enter__(); "
        "control = drawing_controls(facts).temperature; "
        "print(facts.temperature, type(control).__name__, control.value)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
    )
    assert done.stdout == "None State None\n"


def test_a_pipeline_of_two_transformers_is_refused(pipe_folder, tmp_path):
    folder = shutil.copytree(pipe_folder, tmp_path / "pair")
    shutil.copytree(folder / "transformer", folder / "refiner")
    (folder / "transformer").rename(folder / "drafter")
    index = json.loads((folder / "model_index.json").read_text())
    index["drafter"] = index["refiner"] = index.pop("transformer")
    (folder / "model_index.json").write_text(json.dumps(index))

    with pytest.raises(ValueError, match="takes a pipeline of one transformer"):
        ModelFacts.read(str(folder))
