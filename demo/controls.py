"""Controls that several tabs share."""

from dataclasses import dataclass

import gradio as gr

from var_hf.demo.facts import ModelFacts
from var_hf.demo.handlers import NO_CLASS, guidance_words
from var_hf.demo.queueing import at_once
from var_hf.demo.settings import GUIDANCE_SCHEDULES, LARGEST_SEED, MOST_IMAGES, SAMPLING

# The API allows more.
MOST_SLIDER_GUIDANCE = 10
MOST_SLIDER_SSG = 2
LEAST_SLIDER_TEMPERATURE, MOST_SLIDER_TEMPERATURE = 0.1, 2


def class_choices(facts: ModelFacts) -> list[tuple[str, int]]:
    """Return names and ids of all classes, sorted by name."""
    choices = [(facts.class_name(class_id), class_id) for class_id in range(facts.num_classes)]
    return sorted(choices, key=lambda choice: choice[0].casefold())


def class_choice(facts: ModelFacts, label: str, info: str, no_class: str = "") -> gr.Dropdown:
    """Build a searchable list of classes. With `no_class`, the first choice is no class."""
    choices = class_choices(facts)
    if no_class:
        choices = [(no_class, NO_CLASS), *choices]
    return gr.Dropdown(choices, value=choices[0][1], label=label, info=info, num_choices_shown=None)


@dataclass(frozen=True)
class DrawingControls:
    """The controls of the sampling settings.

    Attributes:
        num_images, fresh_seed, seed: The controls of number and seed.
        guidance_scale, top_k, top_p, sampling, temperature: The controls of sampling.
        guidance_schedule, ssg_scale: The controls of the kind of guidance.
    """

    num_images: gr.Slider
    fresh_seed: gr.Checkbox
    seed: gr.Number
    guidance_scale: gr.Slider
    top_k: gr.Number
    top_p: gr.Slider
    sampling: gr.Radio
    temperature: gr.Slider | gr.State
    guidance_schedule: gr.Radio
    ssg_scale: gr.Slider

    def inputs(self) -> list[gr.components.Component]:
        """Return the controls in the order of the handlers' arguments."""
        return [
            self.num_images,
            self.fresh_seed,
            self.seed,
            self.guidance_scale,
            self.top_k,
            self.top_p,
            self.sampling,
            self.temperature,
            self.guidance_schedule,
            self.ssg_scale,
        ]


def drawing_controls(facts: ModelFacts) -> DrawingControls:
    """Build the controls for number of images, guidance, seed and sampling, with the model's
    values.
    """
    num_images = gr.Slider(1, MOST_IMAGES, value=1, step=1, label="Images")
    guidance_scale = gr.Slider(
        1,
        MOST_SLIDER_GUIDANCE,
        value=facts.guidance_scale,
        step=0.1,
        label="Guidance",
        info=guidance_words(facts.guidance_scale),
    )
    guidance_scale.change(
        lambda value: gr.Slider(info=guidance_words(value)),
        guidance_scale,
        guidance_scale,
        **at_once(),
    )
    with gr.Row(equal_height=True):
        seed = gr.Number(
            value=0,
            precision=0,
            minimum=0,
            maximum=LARGEST_SEED - MOST_IMAGES + 1,
            label="Seed",
            info="Same seed, same image.",
            min_width=140,
        )
        fresh_seed = gr.Checkbox(value=True, label="Fresh seed each time", min_width=140)
    with gr.Accordion("Sampling", open=False):
        top_k = gr.Number(
            value=facts.top_k,
            precision=0,
            minimum=0,
            label="Top-k",
            info="Sample each token from the k likeliest codes; 0 is off.",
        )
        top_p = gr.Slider(
            0.05,
            1,
            value=facts.top_p,
            step=0.01,
            label="Top-p",
            info="Sample from the likeliest codes that together reach this probability; 1 is off.",
        )
        sampling = gr.Radio(
            list(SAMPLING),
            value=facts.sampling,
            label="Sampling",
            info="gumbel_softmax mixes codes instead of choosing one: smoother images.",
        )
        if facts.temperature is None:
            temperature = gr.State(None)  # each scale has its own: the checkpoint's
        else:
            temperature = gr.Slider(
                LEAST_SLIDER_TEMPERATURE,
                MOST_SLIDER_TEMPERATURE,
                value=facts.temperature,
                step=0.05,
                label="Temperature",
                info="Divides the logits: below 1 for more typical images, above 1 for more "
                "variety.",
            )
        guidance_schedule = gr.Radio(
            list(GUIDANCE_SCHEDULES),
            value=facts.guidance_schedule,
            label="Guidance schedule",
            info="ramp raises guidance from scale to scale; constant applies it everywhere.",
        )
        ssg_scale = gr.Slider(
            0,
            MOST_SLIDER_SSG,
            value=facts.ssg_scale,
            step=0.05,
            label="Scaled spatial guidance",
            info="Stresses the detail that each scale adds; 0 is off.",
        )
    return DrawingControls(
        num_images,
        fresh_seed,
        seed,
        guidance_scale,
        top_k,
        top_p,
        sampling,
        temperature,
        guidance_schedule,
        ssg_scale,
    )
