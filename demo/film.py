"""HTML fragments: the strip of scales, facts, the logo. Text from outside is escaped."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

LARGEST_THUMBNAIL = 192  # pixels: enough for a strip on a sharp screen


@dataclass(frozen=True)
class FilmFrame:
    """One image of a strip.

    Attributes:
        image: The image; `None` leaves its place empty.
        caption: Caption below it.
        description: Text for screen readers.
        note: Second line of the caption.
    """

    image: Image.Image | None
    caption: str
    description: str = ""
    note: str = ""


def film(frames: Sequence[FilmFrame], name: str) -> str:
    """Return a strip of images, coarse to fine.

    Args:
        frames: Its images.
        name: Its name for screen readers.
    """
    items = "".join(f"<li>{_figure(frame)}</li>" for frame in frames)
    return (
        f'<ol class="film" aria-label="{html.escape(name)}" '
        f'style="--frames:{len(frames)}">{items}</ol>'
    )


def _figure(frame: FilmFrame) -> str:
    caption = html.escape(frame.caption)
    if frame.note:
        caption += f"<small>{html.escape(frame.note)}</small>"
    if frame.image is None:
        inner = '<span class="empty"></span>'
    else:
        alt = html.escape(frame.description)
        inner = f'<img src="{data_uri(frame.image)}" alt="{alt}" class="pixels">'
    return f"<figure>{inner}<figcaption>{caption}</figcaption></figure>"


def data_uri(image: Image.Image) -> str:
    """Return an image as a PNG data URI, reduced to the size of a strip."""
    if max(image.size) > LARGEST_THUMBNAIL:
        image = image.copy()
        image.thumbnail((LARGEST_THUMBNAIL, LARGEST_THUMBNAIL))
    content = io.BytesIO()
    image.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def facts_line(*parts: str) -> str:
    """Return one line of facts, which screen readers announce when it changes.

    The dots between the facts are text. Dots from a style sheet would be neither copied nor read
    out, so two adjacent numbers would read as one.
    """
    inner = " \u00b7 ".join(f"<span>{html.escape(part)}</span>" for part in parts)
    return f'<p class="facts" role="status" aria-live="polite">{inner}</p>'


def ranking(rows: Sequence[tuple[str, float, float]]) -> str:
    """Return a list of classes by likelihood: name, log-likelihood in nats, and probability."""
    if not rows:
        return '<p class="hint">Not requested yet.</p>'
    items = "".join(
        f"<li><span>{html.escape(name)}</span> <span>{_signed(nats)} nats</span> "
        f"<span>{f'{chance:.1%}' if chance >= 0.001 else '&lt; 0.1%'}</span></li>"
        for name, nats, chance in rows
    )
    return f'<ol class="ranking">{items}</ol>'


def _signed(nats: float) -> str:
    return f"{nats:,.1f}".replace("-", "\u2212")


def mark() -> str:
    """Return the page's logo: a sun above a hill, with 1, 2, 4 and 8 squares a side."""
    squares = []
    left = 0
    for size in (1, 2, 4, 8):
        for row in range(size):
            for column in range(size):
                colour = _landscape((column + 0.5) / size, (row + 0.5) / size, 1 / size)
                edge = 32 / size
                squares.append(
                    f'<rect x="{left + column * edge:g}" y="{row * edge:g}" width="{edge + 0.2:g}" '
                    f'height="{edge + 0.2:g}" fill="{colour}"/>'
                )
        left += 38
    return (
        f'<svg class="mark" viewBox="0 0 {left - 6} 32" aria-hidden="true">{"".join(squares)}</svg>'
    )


def _landscape(x: float, y: float, cell: float) -> str:
    """Return the mean colour of a square cell around a point of the landscape, all in [0, 1]."""
    samples = [
        _colour(x + dx * cell, y + dy * cell)
        for dx in (-0.375, -0.125, 0.125, 0.375)
        for dy in (-0.375, -0.125, 0.125, 0.375)
    ]
    red, green, blue = (
        round(sum(channel) / len(samples)) for channel in zip(*samples, strict=True)
    )
    return f"#{red:02x}{green:02x}{blue:02x}"


def _colour(x: float, y: float) -> tuple[int, int, int]:
    if y > 0.7 + 0.25 * (x - 0.4) ** 2:
        return 44, 18, 74  # the hill
    if (x - 0.58) ** 2 + (y - 0.42) ** 2 < 0.055:
        return 252, 214, 112  # the sun
    return (237, 105, 37) if y > 0.45 else (176, 52, 92)  # the sky, brighter below
