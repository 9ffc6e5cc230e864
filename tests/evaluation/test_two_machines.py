"""Two launchers on 127.0.0.1, as on two machines; benchmarks/two_machines.py tries the rest."""

import json
import os
import socket
import subprocess
import sys
from contextlib import closing

import pytest
import torch
from image_files import write_image_folder

from var_hf.evaluation.classifier import SmallClassifier, save_classifier
from var_hf.evaluation.evaluate import evaluate_samples, prepare_reference
from var_hf.evaluation.features import load_features
from var_hf.evaluation.image_sources import open_source

NAMES = ["circle", "dot", "ring"]


@pytest.mark.slow
def test_two_machines_measure_what_one_process_does(tmp_path):
    torch.manual_seed(0)
    classifier = tmp_path / "classifier.safetensors"
    save_classifier(SmallClassifier(3, channels=(8, 16)).eval(), NAMES, classifier)
    write_image_folder(tmp_path / "samples", tuple(NAMES), count=9, side=20)
    write_image_folder(tmp_path / "reference", ("dot", "ring", "circle"), count=6, side=20)
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = str(server.getsockname()[1])
    command = [
        "evaluate", str(tmp_path / "samples"), "--reference", str(tmp_path / "reference"),
        "--features", str(classifier), "--min-images", "2", "--feature-batch-size", "4",
        "--device", "cpu", "--json",
    ]  # fmt: skip

    both = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
                "--nproc-per-node", "1", "--node-rank", str(number),
                "--master-addr", "127.0.0.1", "--master-port", port,
                "-m", "var_hf.cli", *command,
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    printed = [each.communicate(timeout=240) for each in both]

    assert [each.returncode for each in both] == [0, 0], printed
    assert printed[1][0] == ""  # the first process alone has the result
    extractor = load_features(str(classifier))
    expected = evaluate_samples(
        open_source(tmp_path / "samples"),
        prepare_reference(open_source(tmp_path / "reference"), extractor, 4),
        extractor,
        min_images=2,
        batch_size=4,
    )
    assert json.loads(printed[0][0]) == json.loads(json.dumps(expected.result))
