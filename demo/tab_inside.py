"""The tab that analyses an image."""

from dataclasses import dataclass

import gradio as gr

from var_hf.demo.controls import class_choice
from var_hf.demo.film import facts_line, ranking
from var_hf.demo.gpu import on_gpu
from var_hf.demo.handlers import Handlers
from var_hf.demo.queueing import add_cancel, working

QUICKLY_NAMED = 100  # with at most this many classes, classification is on by default


@dataclass(frozen=True)
class InsideTab:
    """The components that other tabs use.

    Attributes:
        image: The image to analyse.
        class_id: Its class.
    """

    image: gr.Image
    class_id: gr.Dropdown


def inside_tab(handlers: Handlers) -> InsideTab:
    """Build the tab."""
    facts = handlers.facts
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=4, min_width=280):
            image = gr.Image(
                label="Image",
                sources=["upload", "clipboard"],
                image_mode=None,
                type="filepath",
                format="png",
                height=300,
                buttons=[],
                elem_id="inside-image",
                elem_classes="one-image",
            )
            class_id = class_choice(
                facts,
                "Given the class",
                "The condition of the model. Type to search.",
                no_class="None: any image",
            )
            name_the_class = gr.Checkbox(
                value=facts.num_classes <= QUICKLY_NAMED,
                label="Name its class",
                info=f"Tries all {facts.num_classes:,} classes and ranks them.",
            )
            with gr.Row():
                look = gr.Button(
                    "Look inside", variant="primary", size="lg", elem_id="look", scale=3
                )
                cancel = gr.Button("Stop", size="lg", scale=1, min_width=80)
        with gr.Column(scale=8, min_width=300):
            line = gr.HTML(
                facts_line("Upload an image, or take one from Generate."), elem_id="inside-facts"
            )
            gr.HTML('<h3 class="part">The image after each scale</h3>')
            strip = gr.HTML(handlers.film([], "The image after each scale"))
            gr.HTML(
                '<h3 class="part">What each scale adds</h3><p class="hint">Grey is no change. The '
                "number below is the mean surprise of a token in nats; small means expected.</p>"
            )
            added = gr.HTML(handlers.film([], "What each scale adds"))
            with gr.Row():
                seen = gr.Image(
                    label="What the model saw",
                    interactive=False,
                    buttons=[],
                    height=260,
                    format="png",
                    elem_classes="one-image",
                )
                surprise = gr.Image(
                    label="Where it was surprised",
                    interactive=False,
                    buttons=[],
                    height=260,
                    format="png",
                    elem_id="surprise",
                    elem_classes=["one-image", "pixels-shown"],
                )
            gr.HTML('<p class="legend">expected <i></i> surprising</p>')
            gr.HTML('<h3 class="part">Likeliest classes</h3>')
            classes = gr.HTML(ranking([]), elem_id="classes")

    # Without preprocessing, our own code opens the file, with its checks and errors.
    looking = look.click(
        on_gpu(handlers.look_inside),
        [image, class_id, name_the_class],
        [strip, added, seen, surprise, line, classes],
        preprocess=False,
        **working(surprise),
    )
    add_cancel(cancel, [looking], line)
    return InsideTab(image, class_id)
