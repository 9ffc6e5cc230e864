"""Queue settings: one request at a time uses the model, and everything else runs at once."""

from typing import Any

import gradio as gr

from var_hf.demo.film import facts_line

DEVICE = "device"  # the name of the queue of all requests that use the model
LONGEST_QUEUE = 64  # waiting requests; further ones get an error
HIDDEN = "private"  # listeners are not part of the API


def on_device() -> dict[str, Any]:
    """Return queue settings for everything that uses the model: one request at a time."""
    return {"concurrency_id": DEVICE, "concurrency_limit": 1}


def working(shown_on: gr.components.Component) -> dict[str, Any]:
    """Return arguments for listeners that use the model. A component shows the queue's state."""
    return {
        **on_device(),
        "api_visibility": HIDDEN,
        "show_progress": "minimal",
        "show_progress_on": [shown_on],
        "trigger_mode": "once",
    }


def at_once() -> dict[str, Any]:
    """Return arguments for listeners that do not use the model: they do not wait."""
    return {"queue": False, "show_progress": "hidden", "api_visibility": HIDDEN}


def add_cancel(button: gr.Button, running: list[gr.events.Dependency], line: gr.HTML) -> None:
    """Let a button stop running and waiting requests, and report it in the line of facts."""
    button.click(
        lambda: facts_line("Stopped", "the images so far stay"),
        None,
        line,
        cancels=running,
        **at_once(),
    )
