"""Load the model in a thread, so that the page appears before torch is imported."""

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
    """Loads a studio in the background. The facts about its model are available at once.

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
        """Start to load in a thread."""
        threading.Thread(target=self.load, name="load-model", daemon=True).start()

    def load(self) -> None:
        """Load the model and generate one image, so that no visitor waits for the warm-up."""
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
        """Return the seconds for which a request uses the model, for the response of a full
        queue.
        """
        if self._studio.done() and self._studio.exception() is None:
            return self._studio.result().seconds_per_request
        return SECONDS_TO_LOAD

    @property
    def studio(self) -> Studio:
        """The studio; waits until it is loaded.

        Raises:
            OSError: The model could not be loaded.
            ValueError: It is not a pipeline of this package, or there is no such device.
        """
        return self._studio.result()
