"""The tab that looks inside."""

from dataclasses import dataclass

import gradio as gr

from var_hf.demo.controls import class_choice
from var_hf.demo.film import facts_line, ranking
from var_hf.demo.gpu import on_gpu
from var_hf.demo.handlers import Handlers
from var_hf.demo.queueing import add_cancel, working

QUICKLY_NAMED = 100  # classes: up to here they are named unless switched off


@dataclass(frozen=True)
class InsideTab:
    """What other tabs use of this one.

    Attributes:
        image: The image to look into.
        class_id: Its class.
    """

    image: gr.Image
    class_id: gr.Dropdown


def inside_tab(handlers: Handlers) -> InsideTab:
    """Build the tab."""
    facts = handlers.facts
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=4, min_width=280):
            picture = gr.Image(
                label="Picture",
                sources=["upload", "clipboard"],
                image_mode=None,
                type="filepath",
                format="png",
                height=300,
                buttons=[],
                elem_id="inside-picture",
                elem_classes="one-picture",
            )
            class_id = class_choice(
                facts,
                "Given the class",
                "What the model is told. Type to search.",
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
                '<h3 class="part">What each scale adds</h3><p class="hint">Grey is no change. '
                "Below: "
                "the mean surprise of a token, in nats; small numbers are what the model "
                "expected.</p>"
            )
            added = gr.HTML(handlers.film([], "What each scale adds"))
            with gr.Row():
                seen = gr.Image(
                    label="What the model saw",
                    interactive=False,
                    buttons=[],
                    height=260,
                    format="png",
                    elem_classes="one-picture",
                )
                surprise = gr.Image(
                    label="Where it was surprised",
                    interactive=False,
                    buttons=[],
                    height=260,
                    format="png",
                    elem_id="surprise",
                    elem_classes=["one-picture", "pixels-shown"],
                )
            gr.HTML('<p class="legend">expected <i></i> surprising</p>')
            gr.HTML('<h3 class="part">Likeliest classes</h3>')
            classes = gr.HTML(ranking([]), elem_id="classes")

    # The file as it came: images are opened by our own rules, with our own errors.
    looking = look.click(
        on_gpu(handlers.look_inside),
        [picture, class_id, name_the_class],
        [strip, added, seen, surprise, line, classes],
        preprocess=False,
        **working(surprise),
    )
    add_cancel(cancel, [looking], line)
    return InsideTab(picture, class_id)
