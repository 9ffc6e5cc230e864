"""Make names from files and repositories safe to display."""

import os
import re
from collections.abc import Iterable

_FILE_NAME_BYTES = 100  # file systems allow 255; a number and a suffix follow


def printable(name: object, limit: int = 300) -> str:
    r"""Escape a name from a file for a terminal, a log or an error message.

    Line breaks, escape sequences, direction marks, undecodable bytes and all other unprintable
    characters are escaped as in Python: ``\n``, ``\x1b``, ``\u202e``. A name stays on one line and
    cannot imitate other output.

    Args:
        name: A name or path.
        limit: Maximum length of the result, at least 3. The middle of a longer name is left out.
    """
    text = os.fspath(name) if isinstance(name, os.PathLike) else str(name)
    start, end = limit - limit // 3, limit // 3
    if len(text) > limit:  # a name may have megabytes
        text = text[:start] + "…" + text[-end:]
    text = "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )
    return text if len(text) <= limit else f"{text[: start - 1]}…{text[-end:]}"


def listed(names: Iterable[object], shown: int = 8) -> str:
    """Join names for display: ``"a, b and 3 more"``."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(printable(name) for name in names[:shown]) + more


def file_name(label: str) -> str:
    """Convert a class name for a file name: letters, digits, underscores; at most 100 bytes.

    Returns:
        The text. It is empty if the label has no letters and no digits.
    """
    text = re.sub(r"\W+", "_", label).strip("_").lower()
    return text.encode()[:_FILE_NAME_BYTES].decode(errors="ignore").strip("_")
