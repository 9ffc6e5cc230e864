"""Files that ship with the package."""

from pathlib import Path

VAR_EMOJI_128 = Path(__file__).with_name("var-emoji-128")
"""Folder of var-emoji-128: 100 emoji at 128 x 128 pixels with the ten scales of the release, in
bfloat16, trained by ``examples/emoji/128/``.

``VARPipeline.from_pretrained(VAR_EMOJI_128)`` loads it.
"""

VAR_EMOJI_64 = Path(__file__).with_name("var-emoji-64")
"""Folder of var-emoji-64: 40 emoji at 64 x 64 pixels, trained by ``examples/emoji/``, in bfloat16.

The small one, for where seconds count.
"""

SHIPPED_MODELS = (VAR_EMOJI_128, VAR_EMOJI_64)
"""Folders of all models that ship with the package."""

DEFAULT_MODEL = VAR_EMOJI_128
"""The shipped model that commands and demo take unless another is named."""


def shipped_model(model: str) -> str:
    """Resolve the name of a shipped model to its folder; return any other `model` unchanged.

    A folder of that name in the working directory goes first.
    """
    for folder in SHIPPED_MODELS:
        if model == folder.name and not Path(model).exists():
            return str(folder)
    return model
