"""The page: four tabs, one queue."""

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from var_hf.demo import texts
from var_hf.demo.api import add_api
from var_hf.demo.examples import editor_value
from var_hf.demo.files import editor_files, picture_file
from var_hf.demo.handlers import Handlers
from var_hf.demo.models import StudioLoader
from var_hf.demo.queueing import LONGEST_QUEUE, at_once, on_device
from var_hf.demo.tab_edit import EditTab, edit_tab
from var_hf.demo.tab_generate import GenerateTab, generate_tab
from var_hf.demo.tab_inside import InsideTab, inside_tab
from var_hf.demo.theme import theme

HOUR = 3600  # seconds: how often files are deleted, and how old they are by then
LARGEST_UPLOAD = "30mb"
# Gradio keeps the state of the page for every visitor and every call of the API, some 0.4 MB each,
# of the last 10,000. These are more than can wait at a time; who has been forgotten only loses
# which image was clicked.
MOST_SESSIONS = 2 * LONGEST_QUEUE
Pictures = list[tuple[Image.Image, str]] | None
STYLE = Path(__file__).with_name("style.css")


def build_demo(loader: StudioLoader) -> gr.Blocks:
    """Build the page for a model; nothing is served yet."""
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
    """Let drawn images be taken to the other tabs, with their class."""
    chosen = gr.State(0)
    generate.gallery.select(chosen_picture, None, chosen, **at_once())
    inputs = [generate.gallery, chosen, generate.class_id]
    generate.to_edit.click(take_to_editor, inputs, [tabs, edit.editor, edit.class_id], **at_once())
    generate.to_inside.click(
        take_inside, inputs, [tabs, inside.image, inside.class_id], **at_once()
    )


def chosen_picture(event: gr.SelectData) -> int:
    """The number of the image that was clicked."""
    return int(event.index)


def take_to_editor(pictures: Pictures, chosen: int, class_id: int) -> tuple[gr.Tabs, Any, int]:
    """Take a drawn image to the editor."""
    value = editor_value(drawn_picture(pictures, chosen))
    return gr.Tabs(selected="edit"), editor_files(value), class_id


def take_inside(pictures: Pictures, chosen: int, class_id: int) -> tuple[gr.Tabs, str, int]:
    """Take a drawn image to where it is taken apart."""
    return gr.Tabs(selected="inside"), picture_file(drawn_picture(pictures, chosen)), class_id


def drawn_picture(pictures: Pictures, chosen: int) -> Image.Image:
    """The image that was clicked last, or the first.

    Raises:
        gr.Error: There is none.
    """
    if not pictures:
        raise gr.Error("Nothing is drawn yet.", print_exception=False)
    return pictures[chosen if chosen < len(pictures) else 0][0]


def launch_arguments() -> dict[str, Any]:
    """Arguments of `launch` for every server: appearance, limits, and no use of other servers."""
    return {
        "theme": theme(),
        "css": STYLE.read_text(encoding="utf-8"),
        "max_file_size": LARGEST_UPLOAD,
        "state_session_capacity": MOST_SESSIONS,
        "footer_links": ["api", "settings"],
        "ssr_mode": False,
        "share": False,
    }
