import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training.transformer_runs import config, log_lines, settings, write_inputs

from var_hf.training.transformer import train_transformer

pytest.importorskip("ray.train", reason="the recipe for Ray needs the extra ray")
SCRIPT = Path(__file__).parents[2] / "examples" / "ray" / "train.py"


@pytest.mark.ray
def test_two_workers_of_ray_train_as_one_process_does(tmp_path):
    inputs = write_inputs(tmp_path / "inputs")
    train_transformer(config(inputs), tmp_path / "one")
    (tmp_path / "recipe.json").write_text(json.dumps(settings(inputs)))
    place = {"RAY_TMPDIR": "/tmp"}  # the paths of its sockets are limited to 107 bytes

    done = subprocess.run(
        [
            sys.executable, str(SCRIPT), str(tmp_path / "recipe.json"), str(tmp_path / "two"),
            "--retries", "0",
        ],
        env=os.environ | place | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-4000:]
    one, two = (log_lines(tmp_path / name, "training") for name in ("one", "two"))
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-5)
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == len(two)
    assert (tmp_path / "two" / "pipeline" / "model_index.json").exists()
