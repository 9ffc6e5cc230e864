"""The handlers of the page's buttons: they take and return values of its controls."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from var_hf.demo import film, snippets
from var_hf.demo.facts import ModelFacts
from var_hf.demo.files import editor_files, image_file
from var_hf.demo.film import FilmFrame
from var_hf.demo.models import StudioLoader
from var_hf.demo.orders import Drawn, Edit
from var_hf.demo.settings import Settings
from var_hf.demo.uploads import painted_image, uploaded_image

if TYPE_CHECKING:
    from var_hf.demo.examples import EditExample
    from var_hf.demo.studio import Studio

NO_CLASS = -1  # the choice of no class in a list of classes
PAINT, EXPAND, VARY = "Redraw a part", "Extend", "Vary"
# Sending an image again would overwrite its file while a browser still reads it.
UNCHANGED = gr.skip()
SIDES = ("Left", "Top", "Right", "Bottom")
CROP_MARGIN = 8  # the margin around the mask is the image's longer side divided by this


@contextmanager
def visitor_errors() -> Iterator[None]:
    """Show errors of invalid input to the visitor. Other errors stay in the server's log."""
    try:
        yield
    except (ValueError, OSError) as error:
        # The page renders messages as HTML, and messages may contain file names.
        raise gr.Error(html.escape(str(error)), print_exception=False) from error


@dataclass(frozen=True)
class Handlers:
    """The functions behind the page's buttons.

    Attributes:
        loader: The model.
    """

    loader: StudioLoader

    @property
    def facts(self) -> ModelFacts:
        """The facts about the model."""
        return self.loader.facts

    @property
    def studio(self) -> Studio:
        """The model; waits until it is loaded."""
        return self.loader.studio

    def generate(
        self,
        class_id: int | None,
        num_images: int,
        fresh_seed: bool,
        seed: int | None,
        *sampling: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Generate images. Yields gallery, strip, facts, code and seed after every scale."""
        with visitor_errors():
            settings = page_settings(num_images, fresh_seed, seed, *sampling)
            strip: list[Image.Image] = []
            for drawn in self.studio.generate(class_id, settings):
                strip.append(drawn.images[0])
                code = snippets.generate_code(self.studio, drawn) if drawn.is_finished else ""
                yield (
                    self._gallery(drawn),
                    self.film(strip, "The first image after each scale"),
                    self._facts(drawn),
                    code,
                    drawn.settings.seed,
                )

    def edit(
        self,
        editor: dict[str, Any] | None,
        mode: str,
        class_id: int | None,
        crop: bool,
        sides: list[str],
        amount: int,
        strength: float,
        num_images: int,
        fresh_seed: bool,
        seed: int | None,
        *sampling: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Edit an image. Yields images before and after, facts, code and seed after every scale."""
        with visitor_errors():
            image, mask = painted_image(editor)
            settings = page_settings(num_images, fresh_seed, seed, *sampling)
            edit = what_to_edit(image, mask, mode, crop, sides, amount, strength)
            label = None if class_id == NO_CLASS else class_id
            before: Any = [(image_file(on_white(image)), "before")]
            for drawn in self.studio.edit(edit, label, settings):
                code = snippets.edit_code(self.studio, edit, drawn) if drawn.is_finished else ""
                yield (
                    before,
                    self._gallery(drawn),
                    self._facts(drawn),
                    code,
                    drawn.settings.seed,
                )
                before = UNCHANGED

    def prepare(self, example: EditExample) -> Callable[[], tuple[Any, ...]]:
        """Return the first handler of an example's button: generate its image, set the controls."""

        def prepare() -> tuple[Any, ...]:
            editor, *settings = example.prepare(self.studio)
            return editor_files(editor), *settings

        return prepare

    def look_inside(
        self, file: dict[str, Any] | None, class_id: int | None, name_the_class: bool
    ) -> Iterator[tuple[Any, ...]]:
        """Analyse an image. Yields strip, additions of the scales, image, surprise, facts,
        classes.
        """
        with visitor_errors():
            if file is None:
                raise ValueError("There is no image yet. Upload one, or take one from Generate.")
            from var_hf.demo import inside

            image = uploaded_image(file, "The image")
            if name_the_class:
                inside.check_work(self.studio)
            label = None if class_id == NO_CLASS else class_id
            seen = inside.look_inside(self.studio, image, label)
            shown: tuple[Any, ...] = (
                self.film(seen.by_scale, "The image after each scale"),
                self.film(
                    seen.added,
                    "What each scale adds",
                    notes=[f"{nats:.1f} nats" for nats in seen.nats_per_token],
                ),
                image_file(seen.seen),
                image_file(seen.surprise),
            )
            total = f"{-seen.log_likelihood:,.0f} nats of surprise in all"
            under = "no class" if label is None else self.facts.class_name(label)
            yield *shown, film.facts_line(total, f"given {under}"), film.ranking([])
            shown = (UNCHANGED,) * len(shown)
            if name_the_class:
                for done, totals in inside.name_classes(self.studio, image):
                    progress = f"{done} of {self.facts.num_classes} classes tried"
                    top = inside.top_classes(self.studio, totals, top=5)
                    rows = [
                        (
                            self.facts.class_name(one["class_id"]),
                            one["log_likelihood"],
                            one["score"],
                        )
                        for one in top
                    ]
                    facts_line = film.facts_line(total, f"given {under}", progress)
                    yield *shown, facts_line, film.ranking(rows)

    def film(self, images: list[Image.Image], name: str, notes: list[str] | None = None) -> str:
        """Return the strip of scales, with empty places for the scales to come."""
        sizes = self.facts.token_map_sizes
        frames = []
        for scale, size in enumerate(sizes):
            image = images[scale] if scale < len(images) else None
            note = notes[scale] if notes else ""
            description = f"scale {scale + 1} of {len(sizes)}, {size} by {size} tokens. {note}"
            frames.append(FilmFrame(image, f"{size}\u2009\u00d7\u2009{size}", description, note))
        return film.film(frames, name)

    def _gallery(self, drawn: Drawn) -> list[tuple[str, str]]:
        what = "image" if drawn.class_id is None else self.facts.class_name(drawn.class_id)
        return [
            (image_file(image), f"{what}, seed {seed}")
            for image, seed in zip(drawn.images, drawn.settings.seeds, strict=True)
        ]

    def _facts(self, drawn: Drawn) -> str:
        passes = f"scale {drawn.scale + 1} of {drawn.num_scales}"
        if not drawn.is_finished:
            return film.facts_line("Drawing", passes)
        count = drawn.settings.num_images
        return film.facts_line(
            "Done" if count == 1 else f"{count} images",
            f"{drawn.seconds:.2f} s",
            f"seed {drawn.settings.seed}",
            f"{self.facts.num_tokens} tokens in {drawn.num_scales} passes",
        )


def page_settings(
    num_images: int,
    fresh_seed: bool,
    seed: int | None,
    guidance_scale: float,
    top_k: int,
    top_p: float,
    sampling: str,
    temperature: float | None,
    guidance_schedule: str,
    ssg_scale: float,
) -> Settings:
    """Return the settings of the page's controls.

    Raises:
        ValueError: A value is out of range, or the seed is empty.
    """
    if not fresh_seed and seed is None:
        raise ValueError("Enter a seed, or check Fresh seed each time.")
    return Settings(
        num_images=num_images,
        guidance_scale=guidance_scale,
        top_k=top_k,
        top_p=top_p,
        sampling=sampling,
        temperature=temperature,
        guidance_schedule=guidance_schedule,
        ssg_scale=ssg_scale,
        seed=None if fresh_seed else seed,
    )


def what_to_edit(
    image: Image.Image,
    mask: Image.Image,
    mode: str,
    crop: bool,
    sides: list[str],
    amount: int,
    strength: float,
) -> Edit:
    """Return the edit that the controls describe.

    Raises:
        ValueError: Nothing is painted, or no side is chosen.
    """
    if mode == VARY:
        return Edit(image, strength=strength)
    if mode == PAINT:
        if not mask.getbbox():
            raise ValueError("Nothing is painted. Paint over what is to be redrawn.")
        margin = max(image.size) // CROP_MARGIN if crop else None
        return Edit(image, mask, padding_mask_crop=margin)
    if not sides:
        raise ValueError("Choose at least one side to draw beyond.")
    lengths = {"Left": image.width, "Right": image.width}
    left, top, right, bottom = (
        max(1, round(amount / 100 * lengths.get(side, image.height))) if side in sides else 0
        for side in SIDES
    )
    return Edit(image, expand=(left, top, right, bottom))


def on_white(image: Image.Image) -> Image.Image:
    """Lay an image on white to remove its transparency."""
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def guidance_words(guidance_scale: float) -> str:
    """Describe the effect of a guidance scale, and give the original code's value."""
    words = "extreme: hard colours, little variety"
    for limit, name in (
        (1, "off: all of the model's variety, half the work"),
        (1.75, "light: varied, not always typical"),
        (3, "balanced"),
        (6, "strong: typical and much alike"),
    ):
        if guidance_scale <= limit:
            words = name
            break
    return f"{words} \u00b7 the original\u2019s cfg {max(0, guidance_scale - 1):g}"
