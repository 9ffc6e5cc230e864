"""Loading the model beside the page: importing torch takes longer than a visitor would wait for the
first byte.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from var_hf.demo.facts import ModelFacts
from var_hf.demo.settings import Settings

if TYPE_CHECKING:
    from var_hf.demo.studio import Studio

SECONDS_TO_LOAD = 10.0


class StudioLoader:
    """A studio on its way: what is known of its model at once, and the studio when it is there.

    Args:
        facts: The model.
        dtype: As in `load_pipeline`.
        device: As in `load_pipeline`.
    """

    def __init__(self, facts: ModelFacts, dtype: str = "auto", device: str = "auto"):
        self.facts = facts
        self._dtype, self._device = dtype, device
        self._studio: Future[Studio] = Future()

    def start(self) -> None:
        """Begin to load, in a thread."""
        threading.Thread(target=self.load, name="load-model", daemon=True).start()

    def load(self) -> None:
        """Load the model, and draw one image with it, so that no visitor waits for what happens
        once.
        """
        try:
            from var_hf.demo.studio import Studio
            from var_hf.pipelines.loading import load_pipeline

            studio = Studio(load_pipeline(self.facts.source, self._dtype, self._device), self.facts)
            for _ in studio.generate(0, Settings(seed=0)):
                pass
        except BaseException as error:
            self._studio.set_exception(error)
        else:
            self._studio.set_result(studio)

    def seconds_per_request(self) -> float:
        """How long a request occupies the model, for callers who find the queue full."""
        if self._studio.done() and self._studio.exception() is None:
            return self._studio.result().seconds_per_request
        return SECONDS_TO_LOAD

    @property
    def studio(self) -> Studio:
        """The studio; waits until it is there.

        Raises:
            OSError: The model could not be loaded.
            ValueError: It is no pipeline of this package, or there is no such device.
        """
        return self._studio.result()
