"""Who waits for whom: one thing at a time on the device, everything else at once."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from var_hf.demo.film import facts_line

DEVICE = "device"  # the name of the queue in which all work of the model waits
LONGEST_QUEUE = 64  # requests that wait; further ones are told that the queue is full


@dataclass(frozen=True)
class Waiting:
    """How the listeners of a page wait.

    Attributes:
        visibility: Whether the API shows them; it has functions of its own.
    """

    visibility: str = "private"

    def arguments(self, shown_on: gr.components.Component) -> dict[str, Any]:
        """For listeners that use the model: one at a time, the place in the queue shown on a component."""
        return {
            **self.device(),
            "api_visibility": self.visibility,
            "show_progress": "minimal",
            "show_progress_on": [shown_on],
            "trigger_mode": "once",
        }

    @staticmethod
    def device() -> dict[str, Any]:
        """For all that uses the model."""
        return {"concurrency_id": DEVICE, "concurrency_limit": 1}

    def at_once(self) -> dict[str, Any]:
        """For listeners that use no model: they wait for nobody."""
        return {"queue": False, "show_progress": "hidden", "api_visibility": self.visibility}


def add_cancel(
    button: gr.Button,
    running: list[gr.events.Dependency],
    line: gr.HTML,
    waiting: Waiting,
) -> None:
    """Let a button stop what is running or waiting; the line says so."""
    button.click(
        lambda: facts_line("Stopped", "what was drawn so far stays"),
        None,
        line,
        cancels=running,
        **waiting.at_once(),
    )
