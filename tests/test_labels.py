import numpy as np
import pytest
import torch

from var_hf.labels import label_ids, parse_label, resolve_labels

NAMES = {0: "tench, Tinca tinca", 1: "goldfish", 2: "crane", 3: "crane"}


@pytest.mark.parametrize(
    "labels, ids",
    [
        (3, [3]),
        ("Goldfish", [1]),
        (None, [11]),
        ([None, "tinca tinca", 10], [11, 0, 10]),
        (("goldfish",), [1]),
        (torch.tensor([1, 2]), [1, 2]),
        (torch.tensor(4), [4]),
        (np.array([5, 6]), [5, 6]),
        (np.int64(7), [7]),
        ([np.int32(7), torch.tensor(8)], [7, 8]),
    ],
    ids=str,
)
def test_labels_become_ids(labels, ids):
    assert resolve_labels(labels, NAMES, num_classes=11) == ids


@pytest.mark.parametrize(
    "labels, words",
    [
        ([], "class_labels is empty"),
        (11, r"lie in \[0, 10\] for this model. Got 11"),
        (-1, "Got -1"),
        (True, "Got True"),
        (1.0, r"an id or a name. Got 1.0 \(float\)"),
        ([[1]], r"Got \[1\] \(list\)"),
        ("crane", r"is the name of classes \[2, 3\]"),
        ("goldfisch", "Did you mean 'goldfish'"),
        ("", "There is no class ''"),
    ],
    ids=str,
)
def test_other_labels_are_refused(labels, words):
    with pytest.raises(ValueError, match=words):
        resolve_labels(labels, NAMES, num_classes=11)


def test_a_model_without_names_takes_ids_alone():
    with pytest.raises(ValueError, match="Pass class ids from 0 to 10"):
        label_ids(["hen"], {}, num_classes=11)


@pytest.mark.parametrize(
    "text, label", [("7", 7), (" 12 ", 12), ("hen", "hen"), ("-1", "-1"), ("9" * 20, "9" * 20)]
)
def test_a_typed_label_is_an_id_or_a_name(text, label):
    assert parse_label(text) == label
