"""The names of the 1,000 ImageNet classes that the published checkpoints know."""

from __future__ import annotations

import json
from importlib.resources import files


def imagenet_class_names() -> dict[int, str]:
    """Return the names of the ImageNet-1k classes, as models in the ecosystem store them.

    Every value holds the class's synonyms in WordNet, joined by ``", "``, the usual one first:
    class 207 is ``"golden retriever"``, class 0 is ``"tench, Tinca tinca"``. Some names belong to
    two classes: 134 (the bird) and 517 (the machine) are both ``"crane"``, and ``"maillot"`` is
    the only name of 638 and a synonym of 639. A lookup by name has to handle these cases.

    Returns:
        A new dictionary from id, 0 to 999 in order, to names.

    Source: the ``source`` and ``license`` fields of ``imagenet_class_names.json``, beside this
    file.
    """
    text = files("var_hf.conversion").joinpath("imagenet_class_names.json").read_text("utf-8")
    return {int(class_id): names for class_id, names in json.loads(text)["names"].items()}
