"""Class labels as users write them, resolved to class ids."""

import difflib
import operator
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Label: TypeAlias = int | str | None  # None is the null class
Labels: TypeAlias = Label | Sequence[Label]  # tensors and arrays of ids work as well


def parse_label(text: str) -> int | str:
    """Parse a typed label: a number of at most 19 digits is a class id, other text a name."""
    return int(text) if text.strip().isdecimal() and len(text) < 20 else text


def resolve_labels(labels: Any, id2label: Mapping[int, str], num_classes: int) -> list[int]:
    """Resolve labels to class ids.

    Args:
        labels: One label or several as a sequence, array or tensor. A label is a class id in
            [0, num_classes), a class name, or `None` for the null class.
        id2label: Class names by id; see [`label_ids`].
        num_classes: Number of classes.

    Returns:
        One id per label; `num_classes` is the null class.

    Raises:
        ValueError: There is no label, an id is out of range, a name is unknown or ambiguous, or a
            label is neither an id nor a name.
    """
    if hasattr(labels, "tolist"):  # arrays and tensors
        labels = labels.tolist()
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        labels = [labels]
    if len(labels) == 0:
        raise ValueError("class_labels is empty. Pass at least one class id or name.")
    return [_resolve(label, id2label, num_classes) for label in labels]


def _resolve(label: Any, id2label: Mapping[int, str], num_classes: int) -> int:
    if label is None:
        return num_classes
    if isinstance(label, str):
        return label_ids([label], id2label, num_classes)[0]
    try:
        class_id = operator.index(label)
    except TypeError:
        raise ValueError(
            f"A class label is an id or a name. Got {label!r} ({type(label).__name__})."
        ) from None
    if isinstance(label, bool) or not 0 <= class_id < num_classes:
        raise ValueError(f"Class ids lie in [0, {num_classes - 1}] for this model. Got {label!r}.")
    return class_id


def label_ids(names: Sequence[str], id2label: Mapping[int, str], num_classes: int) -> list[int]:
    """Look up the class ids of class names. Case is ignored.

    Args:
        names: Class names. An entry of `id2label` is a name, and so is each part between commas.
        id2label: Class names by id.
        num_classes: Number of classes, for the error message.

    Raises:
        ValueError: A name is unknown (close names are suggested) or belongs to several classes.
    """
    entries: dict[str, list[int]] = {}
    synonyms: dict[str, list[int]] = {}
    for class_id, entry in id2label.items():
        entries.setdefault(entry.lower(), []).append(class_id)
        for name in entry.lower().split(","):
            synonyms.setdefault(name.strip(), []).append(class_id)
    ids = []
    for name in names:
        wanted = name.strip().lower()
        found = entries.get(wanted) or synonyms.get(wanted, [])
        if len(found) > 1:
            raise ValueError(
                f"{name!r} is the name of classes {found}. Pass the number of the one you mean."
            )
        if not id2label:
            raise ValueError(
                f"This model has no class names, so {name!r} is unknown. "
                f"Pass class ids from 0 to {num_classes - 1}."
            )
        if not found:
            close = difflib.get_close_matches(wanted, {**entries, **synonyms}, n=3)
            hint = (
                f" Did you mean {' or '.join(map(repr, close))}?"
                if close
                else " See pipe.id2label for all names."
            )
            raise ValueError(
                f"There is no class {name!r} among the {len(id2label)} known names.{hint}"
            )
        ids += found
    return ids
