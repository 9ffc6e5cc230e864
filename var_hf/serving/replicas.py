"""The model and the HTTP application as deployments of Ray Serve."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from var_hf.serving.api import api_keys, build_api
from var_hf.serving.protocol import ApiError, Facts, Frame, Limits, ServeOptions, Task

logger = logging.getLogger(__name__)

MOST_TRIES = 5
MOST_CONNECTIONS = 4096  # requests that wait for a limit to be checked, or for their answer
REPLICA_LOST = (RayActorError, WorkerCrashedError, ReplicaUnavailableError)


class Model:
    """A replica: one model on one device.

    Args:
        options: What is served.
    """

    def __init__(self, options: ServeOptions):
        from var_hf.serving.model import ServedModel  # the API's process needs no torch

        self.model = ServedModel.load(
            options.model,
            options.name,
            options.dtype,
            options.device,
            options.max_batch,
            options.threads,
        )

    def facts(self) -> Facts:
        """Facts about the model."""
        return self.model.facts

    async def draw(self, task: Task) -> AsyncIterator[Frame]:
        """See [`ServedModel`]."""
        async for frame in self.model.draw(task):
            yield frame


class Replicas:
    """The backend of the API: the replicas of the model.

    A picture whose replica dies is drawn by another one. It depends on its seed alone, so that it
    is the same picture, and what was sent of it still holds.

    Args:
        handle: Handle of the model's deployment.
    """

    def __init__(self, handle: DeploymentHandle):
        self.handle = handle
        self._facts: Facts | None = None

    async def facts(self) -> Facts:
        """See [`Backend`]."""
        if self._facts is None:
            self._facts = await self.handle.facts.remote()
        return self._facts

    async def draw(self, task: Task) -> AsyncIterator[Frame]:
        """See [`Backend`]."""
        seen = -1
        for left in reversed(range(MOST_TRIES)):
            response = self.handle.options(stream=True).draw.remote(task)
            try:
                async for frame in response:
                    if frame.scale > seen:
                        seen = frame.scale
                        yield frame
                return
            except REPLICA_LOST as error:
                if not left:
                    raise ApiError(
                        503,
                        f"The picture's replica was lost {MOST_TRIES} times. Try again later.",
                        code="replica_lost",
                        retry_after=10,
                    ) from error
                logger.warning("A replica was lost; its picture is drawn again")
                await asyncio.sleep(0.2)
            except BackPressureError as error:
                raise ApiError(
                    429, "The queue is full.", code="queue_full", retry_after=10
                ) from error
            except RayTaskError as error:
                # Its text is a whole traceback; what the model raised has one sentence.
                raise error.cause from error
            finally:
                response.cancel()


class Api:
    """The HTTP application in front of the replicas.

    Args:
        model: Handle of the model's deployment.
        limits: Limits of the service.
    """

    def __init__(self, model: DeploymentHandle, limits: Limits):
        replicas = Replicas(model)
        self.asgi_app, self.admission = build_api(replicas, limits, api_keys())

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application, for Ray Serve."""
        return self.asgi_app

    async def drain(self, seconds: float) -> int:
        """See [`Admission`]."""
        return await self.admission.drain(seconds)


def build_application(options: ServeOptions) -> serve.Application:
    """The application for `ray.serve.run`, on this machine or on a cluster.

    A cluster's workers read the API keys from their own environment.
    """
    replicas: dict[str, Any] = {"num_replicas": options.min_replicas}
    if options.max_replicas > options.min_replicas:
        scaling = {
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.max_batch,
        }
        replicas = {"autoscaling_config": scaling}
    model = serve.deployment(
        Model,
        name="Model",
        # Twice as many as a batch: the next pictures are there before one ends.
        max_ongoing_requests=2 * options.max_batch,
        ray_actor_options={"num_cpus": 1, "num_gpus": options.gpus_per_replica},
        graceful_shutdown_timeout_s=options.drain_seconds,
        health_check_period_s=2,
        **replicas,
    )
    api = serve.deployment(
        serve.ingress()(Api),
        name="Api",
        num_replicas=1,  # it counts what is under way
        max_ongoing_requests=MOST_CONNECTIONS,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=options.drain_seconds,
    )
    return api.bind(model.bind(options), options.limits)
