"""Names from files and repositories as text that is safe to show."""

import os
import re
from collections.abc import Iterable

_FILE_NAME_BYTES = 100  # of the 255 of usual file systems; a number and a suffix follow


def printable(name: object, limit: int = 300) -> str:
    r"""Text of a name that comes from a file, for a terminal, a log or an error message.

    Line breaks, escape sequences, signs that turn the direction of writing, bytes that are no text,
    and every other character without a shape of its own are written as Python writes them: ``\n``,
    ``\x1b``, ``\u202e``. One name stays on one line and cannot imitate other output.

    Args:
        name: A name or path.
        limit: Characters of the result, at least 3. The middle of a longer one is left out.
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
    """Names one after the other, fit to show: ``"a, b and 3 more"``."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(printable(name) for name in names[:shown]) + more


def file_name(label: str) -> str:
    """A class name as part of a file's name: letters, digits and underscores, at most 100 bytes of
    them.

    Returns:
        The text, which is empty where the label has no letter and no digit.
    """
    text = re.sub(r"\W+", "_", label).strip("_").lower()
    return text.encode()[:_FILE_NAME_BYTES].decode(errors="ignore").strip("_")
