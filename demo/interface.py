"""The page: four tabs, one queue."""

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from var_hf.demo import texts
from var_hf.demo.api import add_api
from var_hf.demo.examples import editor_value
from var_hf.demo.files import editor_files, image_file
from var_hf.demo.handlers import Handlers
from var_hf.demo.models import StudioLoader
from var_hf.demo.queueing import LONGEST_QUEUE, at_once, on_device
from var_hf.demo.tab_edit import EditTab, edit_tab
from var_hf.demo.tab_generate import GenerateTab, generate_tab
from var_hf.demo.tab_inside import InsideTab, inside_tab
from var_hf.demo.theme import theme

HOUR = 3600  # seconds: how often files are deleted, and how old they are by then
LARGEST_UPLOAD = "30mb"
# By default, Gradio keeps the page's state for the last 10,000 visitors and API calls, about 0.4 MB
# each. This limit is above the number of waiting requests. A visitor whose state is dropped loses
# only the selection of an image.
MOST_SESSIONS = 2 * LONGEST_QUEUE
GalleryValue = list[tuple[Image.Image, str]] | None
STYLE = Path(__file__).with_name("style.css")


def build_demo(loader: StudioLoader) -> gr.Blocks:
    """Build the page for a model, without serving it."""
    handlers = Handlers(loader)
    with gr.Blocks(
        title=texts.TITLE, analytics_enabled=False, delete_cache=(HOUR, HOUR), fill_width=True
    ) as demo:
        add_api(loader, **on_device())  # first, so that nothing else takes its names
        gr.HTML(texts.head(loader.facts), elem_id="head")
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
            with gr.Tab("Generate", id="generate"):
                generate = generate_tab(handlers)
            with gr.Tab("Edit", id="edit"):
                edit = edit_tab(handlers)
            with gr.Tab("Look inside", id="inside"):
                inside = inside_tab(handlers)
            with gr.Tab("About", id="about"):
                gr.Markdown(texts.about(loader.facts), elem_classes="prose-page")
        connect(tabs, generate, edit, inside)
    return demo.queue(max_size=LONGEST_QUEUE)


def connect(tabs: gr.Tabs, generate: GenerateTab, edit: EditTab, inside: InsideTab) -> None:
    """Connect the buttons that send a generated image and its class to the other tabs."""
    chosen = gr.State(0)
    generate.gallery.select(chosen_image, None, chosen, **at_once())
    inputs = [generate.gallery, chosen, generate.class_id]
    generate.to_edit.click(take_to_editor, inputs, [tabs, edit.editor, edit.class_id], **at_once())
    generate.to_inside.click(
        take_inside, inputs, [tabs, inside.image, inside.class_id], **at_once()
    )


def chosen_image(event: gr.SelectData) -> int:
    """Return the index of the clicked image."""
    return int(event.index)


def take_to_editor(images: GalleryValue, chosen: int, class_id: int) -> tuple[gr.Tabs, Any, int]:
    """Send a generated image to the editor."""
    value = editor_value(drawn_image(images, chosen))
    return gr.Tabs(selected="edit"), editor_files(value), class_id


def take_inside(images: GalleryValue, chosen: int, class_id: int) -> tuple[gr.Tabs, str, int]:
    """Send a generated image to the tab Look inside."""
    return gr.Tabs(selected="inside"), image_file(drawn_image(images, chosen)), class_id


def drawn_image(images: GalleryValue, chosen: int) -> Image.Image:
    """Return the image that was clicked last, or the first.

    Raises:
        gr.Error: There is none.
    """
    if not images:
        raise gr.Error("There is no image yet.", print_exception=False)
    return images[chosen if chosen < len(images) else 0][0]


def launch_arguments() -> dict[str, Any]:
    """Return the arguments of `launch`: appearance, limits, and no access to other servers."""
    return {
        "theme": theme(),
        "css": STYLE.read_text(encoding="utf-8"),
        "max_file_size": LARGEST_UPLOAD,
        "state_session_capacity": MOST_SESSIONS,
        "footer_links": ["api", "settings"],
        "ssr_mode": False,
        "share": False,
    }
