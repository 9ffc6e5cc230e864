"""Who waits for whom: one thing at a time on the device, everything else at once."""

from typing import Any

import gradio as gr

from var_hf.demo.film import facts_line

DEVICE = "device"  # the name of the queue in which all work of the model waits
LONGEST_QUEUE = 64  # requests that wait; further ones are told that the queue is full
HIDDEN = "private"  # the API has functions of its own


def on_device() -> dict[str, Any]:
    """How all that uses the model waits: one at a time, whatever it is."""
    return {"concurrency_id": DEVICE, "concurrency_limit": 1}


def working(shown_on: gr.components.Component) -> dict[str, Any]:
    """Arguments for listeners that use the model: a component shows the place in the queue."""
    return {
        **on_device(),
        "api_visibility": HIDDEN,
        "show_progress": "minimal",
        "show_progress_on": [shown_on],
        "trigger_mode": "once",
    }


def at_once() -> dict[str, Any]:
    """For listeners of the page that use no model: they wait for nobody."""
    return {"queue": False, "show_progress": "hidden", "api_visibility": HIDDEN}


def add_cancel(button: gr.Button, running: list[gr.events.Dependency], line: gr.HTML) -> None:
    """Let a button stop what is running or waiting; the line says so."""
    button.click(
        lambda: facts_line("Stopped", "what was drawn so far stays"),
        None,
        line,
        cancels=running,
        **at_once(),
    )
