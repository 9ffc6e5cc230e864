from collections import defaultdict

import pytest

from var_hf.conversion.class_names import imagenet_class_names


def test_ids_are_0_to_999_in_order():
    assert list(imagenet_class_names()) == list(range(1000))


@pytest.mark.parametrize(
    ("class_id", "names"),
    [
        (0, "tench, Tinca tinca"),
        (1, "goldfish, Carassius auratus"),
        (207, "golden retriever"),
        (281, "tabby, tabby cat"),
        (817, "sports car, sport car"),
        (980, "volcano"),
        (999, "toilet tissue, toilet paper, bathroom tissue"),
    ],
)
def test_known_classes_have_their_names(class_id, names):
    assert imagenet_class_names()[class_id] == names


def test_every_name_is_clean_text():
    for names in imagenet_class_names().values():
        assert all(name and name == name.strip() for name in names.split(", "))
        assert names.isascii() and "_" not in names


def test_only_crane_names_two_classes_by_the_whole_entry():
    ids_of_entry = defaultdict(list)
    for class_id, names in imagenet_class_names().items():
        ids_of_entry[names].append(class_id)

    assert {k: v for k, v in ids_of_entry.items() if len(v) > 1} == {"crane": [134, 517]}


def test_synonyms_shared_by_two_classes_are_the_known_ones():
    """Whoever looks ids up by name meets these: a name alone does not say which class is meant."""
    ids_of_name = defaultdict(list)
    for class_id, names in imagenet_class_names().items():
        for name in names.split(", "):
            ids_of_name[name].append(class_id)
    shared = {name: ids for name, ids in ids_of_name.items() if len(ids) > 1}

    assert shared["crane"] == [134, 517]
    assert shared["maillot"] == [638, 639]
    assert len(shared) == 18
    assert all(len(ids) == 2 for ids in shared.values())


def test_a_caller_may_change_what_it_got():
    imagenet_class_names()[207] = "cat"

    assert imagenet_class_names()[207] == "golden retriever"
