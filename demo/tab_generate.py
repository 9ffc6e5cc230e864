"""The tab that generates images."""

import random
from dataclasses import dataclass

import gradio as gr

from var_hf.demo.controls import DrawingControls, class_choice, class_choices, drawing_controls
from var_hf.demo.film import facts_line
from var_hf.demo.gpu import on_gpu
from var_hf.demo.handlers import Handlers
from var_hf.demo.queueing import add_cancel, at_once, working

NUM_EXAMPLES = 8
FAVOURITES = ("pizza", "octopus", "sunflower", "fox", "rocket", "strawberry", "penguin", "doughnut")


@dataclass(frozen=True)
class GenerateTab:
    """The components that other tabs use.

    Attributes:
        gallery: The images.
        class_id: The chosen class.
        controls: The sampling settings.
        to_edit, to_inside: Buttons that send an image to another tab.
    """

    gallery: gr.Gallery
    class_id: gr.Dropdown
    controls: DrawingControls
    to_edit: gr.Button
    to_inside: gr.Button


def generate_tab(handlers: Handlers) -> GenerateTab:
    """Build the tab."""
    facts = handlers.facts
    choices = class_choices(facts)
    with gr.Row(elem_classes=["columns", "three-parts"]):
        with gr.Column(elem_classes="ask"):
            class_id = class_choice(facts, "Class", "Type to search.")
            class_id.elem_id = "class"
            with gr.Row():
                draw = gr.Button("Draw", variant="primary", size="lg", elem_id="draw", scale=3)
                surprise = gr.Button("Random class", size="lg", elem_id="random-class", scale=2)
                cancel = gr.Button("Stop", size="lg", elem_id="stop", scale=1, min_width=80)
            examples = gr.Dataset(
                components=[gr.Textbox(visible=False)],
                samples=[[facts.class_name(one)] for one in example_classes(handlers)],
                label="Draw at once",
                samples_per_page=NUM_EXAMPLES,
                elem_id="examples",
            )
        with gr.Column(elem_classes="settings"):
            controls = drawing_controls(facts)
        with gr.Column(elem_classes="answer"):
            gallery = gr.Gallery(
                label="Images",
                type="pil",
                format="png",
                show_label=False,
                height=430,
                object_fit="contain",
                interactive=False,
                buttons=["download", "download_all", "fullscreen"],
                elem_id="images",
                elem_classes="stage",
            )
            strip = gr.HTML(handlers.film([], "The first image after each scale"), elem_id="strip")
            line = gr.HTML(facts_line("Choose a class and draw."), elem_id="facts")
            with gr.Row():
                to_edit = gr.Button("Edit this image", size="sm", elem_id="to-edit")
                to_inside = gr.Button("Look inside it", size="sm", elem_id="to-inside")
            with gr.Accordion("The Python that draws this again", open=False):
                code = gr.Code(
                    language="python", interactive=False, elem_id="code", show_label=False
                )

    outputs = [gallery, strip, line, code, controls.seed]
    inputs = [class_id, *controls.inputs()]
    run = on_gpu(handlers.generate)
    drawing = draw.click(run, inputs, outputs, **working(gallery))
    chosen = surprise.click(lambda: random.choice(choices)[1], None, class_id, **at_once())
    by_chance = chosen.then(run, inputs, outputs, **working(gallery))
    by_name = dict(choices)
    picked = examples.click(lambda sample: by_name[sample[0]], examples, class_id, **at_once())
    by_example = picked.then(run, inputs, outputs, **working(gallery))
    add_cancel(cancel, [drawing, by_chance, by_example], line)
    return GenerateTab(gallery, class_id, controls, to_edit, to_inside)


def example_classes(handlers: Handlers) -> list[int]:
    """Select classes to try first: favourites of the model, then some from the whole list."""
    facts = handlers.facts
    names = {facts.class_name(one): one for one in range(facts.num_classes)}
    favourites = [names[name] for name in FAVOURITES if name in names]
    step = max(1, facts.num_classes // NUM_EXAMPLES)
    others = [one for one in range(0, facts.num_classes, step) if one not in favourites]
    return (favourites + others)[:NUM_EXAMPLES]
