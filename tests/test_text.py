from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from var_hf.text import file_name, listed, printable

ANY_TEXT = st.text(st.characters())  # surrogates too: names of files that are no UTF-8 hold them


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("transformer/model.safetensors", "transformer/model.safetensors"),
        ("vögel und 鳥 🐤", "vögel und 鳥 🐤"),
        ("x\nmodel: all 7 files are as written", "x\\nmodel: all 7 files are as written"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("gnp\u202e.exe", "gnp\\u202e.exe"),
        ("two\u2028lines", "two\\u2028lines"),
        ("not\udcffutf-8", "not\\udcffutf-8"),
        (Path("a/b\r"), "a/b\\r"),
        (7, "7"),
    ],
)
def test_a_name_is_shown_as_one_line_of_visible_characters(name, shown):
    assert printable(name) == shown


@given(ANY_TEXT, st.integers(3, 60))
def test_no_name_has_more_than_its_share_of_visible_characters(name, limit):
    shown = printable(name, limit)

    assert shown.isprintable() and len(shown) <= limit
    shown.encode()


def test_a_long_name_keeps_both_ends():
    assert printable("a" * 10**6 + ".pth", 12) == "aaaaaaa….pth"


@pytest.mark.parametrize(
    ("label", "name"),
    [("golden retriever", "golden_retriever"), ("../../etc/passwd", "etc_passwd"), ("!?", "")],
)
def test_a_label_becomes_part_of_a_file_name(label, name):
    assert file_name(label) == name


@given(ANY_TEXT.map(lambda text: text * 30))
def test_no_label_makes_a_name_that_a_file_system_refuses(label):
    name = file_name(label)

    assert len(name.encode()) <= 100
    assert not set("/\\\0\n ") & set(name)


def test_many_names_are_counted():
    assert listed(["a", "b\n"]) == "a, b\\n"
    assert listed(map(str, range(11))) == "0, 1, 2, 3, 4, 5, 6, 7 and 3 more"
