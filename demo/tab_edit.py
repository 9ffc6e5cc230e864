"""The tab that edits images."""

from dataclasses import dataclass

import gradio as gr

from var_hf.demo.controls import class_choice, drawing_controls
from var_hf.demo.examples import edit_examples
from var_hf.demo.film import facts_line
from var_hf.demo.gpu import on_gpu
from var_hf.demo.handlers import EXPAND, PAINT, SIDES, VARY, Handlers
from var_hf.demo.queueing import add_cancel, at_once, working


@dataclass(frozen=True)
class EditTab:
    """The components that other tabs use.

    Attributes:
        editor: The image and its mask.
        class_id: The chosen class.
    """

    editor: gr.ImageEditor
    class_id: gr.Dropdown


def edit_tab(handlers: Handlers) -> EditTab:
    """Build the tab."""
    facts = handlers.facts
    with gr.Row(elem_classes=["columns", "three-parts"]):
        with gr.Column(elem_classes="ask"):
            editor = gr.ImageEditor(
                type="pil",
                image_mode="RGBA",
                format="png",
                label="Image",
                sources=["upload", "clipboard"],
                brush=gr.Brush(default_size="auto", colors=["#ed6925"], color_mode="fixed"),
                layers=False,
                transforms=[],
                buttons=["fullscreen"],
                height=360,
                canvas_size=(512, 512),
                elem_id="editor",
            )
            gr.HTML(
                '<p class="hint">Upload an image, or take one from Generate. Then paint over the '
                "part to redraw.</p>"
            )
            mode = gr.Radio([PAINT, EXPAND, VARY], value=PAINT, label="What to do", elem_id="mode")
            class_id = class_choice(
                facts,
                "Class",
                "What to draw. Type to search.",
                no_class="None: what fits the image",
            )
            class_id.elem_id = "edit-class"
            with gr.Group() as of_paint:
                crop = gr.Checkbox(
                    label="Crop around the mask",
                    info="Edit a crop around the painted part: sharper in large images.",
                )
            with gr.Group(visible=False) as of_expand:
                sides = gr.CheckboxGroup(list(SIDES), value=["Left", "Right"], label="Sides")
                amount = gr.Slider(
                    5,
                    100,
                    value=25,
                    step=5,
                    label="How far",
                    info="In percent of the image's side.",
                )
            with gr.Group(visible=False) as of_vary:
                strength = gr.Slider(
                    0,
                    1,
                    value=0.5,
                    step=0.05,
                    label="Strength",
                    info="Share of the scales to redraw, finest first: 0 copies, 1 redraws all.",
                )
            with gr.Row():
                redraw = gr.Button(
                    "Redraw", variant="primary", size="lg", elem_id="redraw", scale=3
                )
                cancel = gr.Button("Stop", size="lg", scale=1, min_width=80)
        with (
            gr.Column(elem_classes="settings"),
            gr.Accordion("Images, guidance, seed", open=False),
        ):
            controls = drawing_controls(facts)
        with gr.Column(elem_classes="answer"):
            with gr.Row():
                before = gr.Gallery(
                    label="Before", format="png", height=320, object_fit="contain",
                    interactive=False, buttons=["fullscreen"],
                    elem_id="before", elem_classes=["stage", "result"],
                )  # fmt: skip
                after = gr.Gallery(
                    label="After", format="png", height=320, object_fit="contain",
                    interactive=False, buttons=["download", "download_all", "fullscreen"],
                    elem_id="after", elem_classes=["stage", "result"],
                )  # fmt: skip
            line = gr.HTML(facts_line("The result will appear here."), elem_id="edit-facts")
            examples = edit_examples(facts)
            gr.HTML('<h3 class="part">Try at once</h3>')
            with gr.Row():
                buttons = [gr.Button(one.title, size="sm", min_width=150) for one in examples]
            with gr.Accordion("The Python that does this again", open=False):
                code = gr.Code(language="python", interactive=False, show_label=False)

    mode.change(
        lambda chosen: [gr.Group(visible=chosen == one) for one in (PAINT, EXPAND, VARY)],
        mode,
        [of_paint, of_expand, of_vary],
        **at_once(),
    )
    inputs = [editor, mode, class_id, crop, sides, amount, strength, *controls.inputs()]
    outputs = [before, after, line, code, controls.seed]
    run = on_gpu(handlers.edit)
    running = [redraw.click(run, inputs, outputs, **working(after))]
    settings = [mode, class_id, sides, strength]
    for button, example in zip(buttons, examples, strict=True):
        prepared = button.click(
            on_gpu(handlers.prepare(example)),
            None,
            [editor, *settings],
            **working(editor),
        )
        running.append(prepared.then(run, inputs, outputs, **working(after)))
    add_cancel(cancel, running, line)
    return EditTab(editor, class_id)
