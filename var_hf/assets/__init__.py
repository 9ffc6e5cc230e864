"""Files that ship with the package."""

from pathlib import Path

VAR_EMOJI_64 = Path(__file__).with_name("var-emoji-64")
"""Folder of var-emoji-64: 40 emoji at 64 x 64 pixels, trained by ``examples/emoji/``, in bfloat16.

``VARPipeline.from_pretrained(VAR_EMOJI_64)`` loads it.
"""


def shipped_model(model: str) -> str:
    """Resolve the name of the shipped model to its folder; return any other `model` unchanged.

    A folder of that name in the working directory goes first.
    """
    if model == VAR_EMOJI_64.name and not Path(model).exists():
        return str(VAR_EMOJI_64)
    return model
