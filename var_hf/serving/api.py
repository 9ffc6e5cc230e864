"""The HTTP application: checks, limits, keys, metrics, and answers in the shape of the OpenAI API.

It draws through a [`Backend`] and knows neither torch nor Ray.
"""

import asyncio
import base64
import hmac
import json
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Depends, FastAPI, Form, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client import Counter as CounterMetric
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from var_hf import __version__
from var_hf.serving.protocol import (
    ApiError,
    ClassificationAnswer,
    ClassificationRequest,
    ClassifyTask,
    ClassScore,
    EditRequest,
    ErrorAnswer,
    Facts,
    Frame,
    GenerationRequest,
    ImageData,
    ImagesAnswer,
    Limits,
    ModelEntry,
    ModelList,
    PictureOptions,
    Status,
    Task,
    edit_tasks,
    generation_tasks,
)

API_KEYS = "VAR_HF_API_KEYS"  # environment variable: keys, separated by commas
DRAINING_RETRY = 5  # seconds until another server should have taken over
LONGEST_RETRY = 600  # seconds

logger = logging.getLogger(__name__)


class Backend(Protocol):
    """Draws for the API."""

    async def facts(self) -> Facts:
        """Facts about the model; waits until it is loaded."""

    def draw(self, task: Task) -> AsyncIterator[Frame]:
        """Frames of a task, the finished one last. Closing the iterator cancels the task."""


class Metrics:
    """The metrics for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = CounterMetric(
            "var_hf_requests",
            "Answered requests.",
            ["path", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "var_hf_request_seconds",
            "Time from a request to the end of its answer.",
            ["path"],
            registry=self.registry,
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
        )
        self.pending = Gauge(
            "var_hf_pending_images",
            "Pictures accepted and not yet answered.",
            registry=self.registry,
        )
        self.images = CounterMetric("var_hf_images", "Finished pictures.", registry=self.registry)
        self.sharing = Histogram(
            "var_hf_images_per_pass",
            "Pictures that shared the last pass of a finished picture.",
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
        )


class Admission:
    """Counts the pictures under way, refuses too many, and knows how long they take.

    Args:
        limits: The limits.
        metrics: Told about the pictures.
    """

    def __init__(self, limits: Limits, metrics: Metrics):
        self.limits, self.metrics = limits, metrics
        self.pending = self.requests = 0
        self.draining = False
        self._seconds_per_picture = 1.0
        self._counted_since = time.monotonic()

    def take(self, count: int) -> None:
        """Take places for the pictures of a request, until `release`.

        Raises:
            ApiError: There are too many, or the server is about to end.
        """
        if self.draining:
            raise ApiError(
                503,
                "The server is shutting down. Send the request to another one.",
                code="shutting_down",
                retry_after=DRAINING_RETRY,
            )
        if self.pending + count > self.limits.max_pending:
            seconds = self.seconds_until_room(count)
            raise ApiError(
                429,
                f"The queue is full: {self.pending} pictures wait, and at most "
                f"{self.limits.max_pending} may. Try again in {seconds} seconds.",
                code="queue_full",
                retry_after=seconds,
            )
        if not self.pending:
            self._counted_since = time.monotonic()
        self.requests += 1
        self._change(count)

    def release(self, count: int) -> None:
        """Give the places of a request back."""
        self.requests -= 1
        self._change(-count)

    def _change(self, count: int) -> None:
        self.pending += count
        self.metrics.pending.set(self.pending)

    def finished(self, sharing: int) -> None:
        """Count a finished picture."""
        now = time.monotonic()
        self._seconds_per_picture += 0.1 * (now - self._counted_since - self._seconds_per_picture)
        self._counted_since = now
        self.metrics.images.inc()
        self.metrics.sharing.observe(sharing)

    def seconds_until_room(self, count: int) -> int:
        """Estimated seconds until so many more pictures may wait."""
        excess = self.pending + count - self.limits.max_pending
        return min(max(1, math.ceil(excess * self._seconds_per_picture)), LONGEST_RETRY)

    async def drain(self, seconds: float) -> int:
        """Accept nothing more and wait for what was accepted.

        Returns:
            Number of requests that were not finished in time.
        """
        self.draining = True
        end = time.monotonic() + seconds
        while self.requests and time.monotonic() < end:
            await asyncio.sleep(0.05)
        return self.requests


class BodyLimit:
    """ASGI middleware that refuses large requests: by their stated length, or while they arrive.

    Args:
        app: The application.
        max_body: Bytes of a request.
    """

    def __init__(self, app: ASGIApp, max_body: int):
        self.app, self.max_body = app, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length) > self.max_body:
            answer = JSONResponse(self._error().body(), 413, {"Connection": "close"})
            await answer(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body:
                error = self._error()
                raise HTTPException(error.status, error.message)
            return message

        await self.app(scope, counted, send)

    def _error(self) -> ApiError:
        return ApiError(
            413, f"A request has at most {self.max_body / 2**20:g} MiB.", code="body_too_large"
        )


class Measured:
    """ASGI middleware that counts requests and their time, by route.

    Args:
        app: The application.
        metrics: Told about the requests.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), 499  # as nginx counts clients that leave

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, seen)
        finally:
            # Only known paths: anything else would let clients fill the memory with labels.
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - start)


def api_keys() -> tuple[str, ...]:
    """The keys that the environment names; none means that no key is asked for."""
    keys = (key.strip() for key in os.environ.get(API_KEYS, "").split(","))
    return tuple(key for key in keys if key)


def build_api(
    backend: Backend, limits: Limits, keys: Sequence[str] = ()
) -> tuple[FastAPI, Admission]:
    """The application, and what drains it.

    Args:
        backend: Draws the pictures.
        limits: Limits of the service.
        keys: API keys, one of which requests must carry; none lets all in.
    """
    metrics = Metrics()
    admission = Admission(limits, metrics)
    app = FastAPI(
        title="var-hf",
        version=__version__,
        description="Images of visual autoregressive (VAR) models. https://arxiv.org/abs/2404.02905",
    )
    app.add_middleware(BodyLimit, max_body=limits.max_body)
    app.add_middleware(Measured, metrics=metrics)
    _add_error_answers(app)
    bearer = HTTPBearer(auto_error=False, description=f"A key out of {API_KEYS}, if it is set.")

    def authorize(
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    ) -> None:
        given = (credentials.credentials if credentials else "").encode()
        if keys and not any(hmac.compare_digest(given, key.encode()) for key in keys):
            raise ApiError(
                401,
                "The API key is missing or wrong. Send it as Authorization: Bearer KEY.",
                code="invalid_api_key",
            )

    failures: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer} for status in (400, 401, 404, 413, 429, 500, 503)
    }
    streamed: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/event-stream": {}}, "description": "The pictures."}
    }
    v1 = APIRouter(prefix="/v1", dependencies=[Depends(authorize)], responses=failures)

    @v1.get("/models")
    async def models() -> ModelList:
        """List the model."""
        facts = await backend.facts()
        return ModelList(data=[ModelEntry(id=facts.name)])

    @v1.post(
        "/images/generations",
        response_model=ImagesAnswer,
        responses=streamed,
    )
    async def generations(request: GenerationRequest) -> Any:
        """Draw pictures of a class."""
        facts = await backend.facts()
        tasks = generation_tasks(request, facts, limits.max_images)
        draws = [(task.seed, backend.draw(task)) for task in tasks]
        return await _answer(draws, request, facts, admission)

    @v1.post("/images/edits", response_model=ImagesAnswer, responses=streamed)
    async def edits(
        request: Annotated[EditRequest, Form(media_type="multipart/form-data")],
    ) -> Any:
        """Redraw an image: where a mask says so, or its fine scales."""
        facts = await backend.facts()
        tasks = await edit_tasks(request, facts, limits.max_images)
        draws = [(task.seed, backend.draw(task)) for task in tasks]
        return await _answer(draws, request, facts, admission)

    @v1.post("/images/classifications")
    async def classifications(
        request: Annotated[ClassificationRequest, Form(media_type="multipart/form-data")],
    ) -> ClassificationAnswer:
        """Name the likeliest classes of an image."""
        (await backend.facts()).check_model(request.model)
        task = ClassifyTask(await request.image.read(), request.top_k, request.seed)
        admission.take(1)
        try:
            *_, last = [frame async for frame in backend.draw(task)]
        except Exception as error:
            raise _as_api_error(error) from error
        finally:
            admission.release(1)
        return ClassificationAnswer(data=[ClassScore(**one) for one in last.classes])

    app.include_router(v1)

    @app.get("/healthz")
    async def health() -> Status:
        """Whether the server runs."""
        return Status(status="ok")

    @app.get("/readyz", responses={503: {"model": Status}})
    async def ready(response: Response) -> Status:
        """Whether the server accepts requests."""
        if admission.draining:
            response.status_code = 503
            return Status(status="draining")
        try:
            async with asyncio.timeout(1):
                await backend.facts()
        except TimeoutError:
            response.status_code = 503
            return Status(status="loading")
        return Status(status="ok")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Metrics for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app, admission


Draws = Sequence[tuple[int, AsyncIterator[Frame]]]


async def _answer(
    draws: Draws, options: PictureOptions, facts: Facts, admission: Admission
) -> Response | ImagesAnswer:
    """Wait for pictures, or send their scales as they come."""
    count = len(draws)
    admission.take(count)
    if options.stream:
        events = _events(draws, options, facts, admission)
        return _EventStream(events, lambda: admission.release(count))
    try:
        async with asyncio.TaskGroup() as group:
            frames = [group.create_task(_last(draw, admission)) for _, draw in draws]
    except ExceptionGroup as errors:
        raise _as_api_error(errors.exceptions[0]) from errors
    finally:
        admission.release(count)
    data = [
        ImageData(**_image_data(frame.result().files[0], options.response_format), seed=seed)
        for (seed, _), frame in zip(draws, frames, strict=True)
    ]
    return ImagesAnswer(created=int(time.time()), data=data, size=facts.size)


async def _last(draw: AsyncIterator[Frame], admission: Admission) -> Frame:
    """The finished picture."""
    *_, last = [frame async for frame in draw]
    admission.finished(last.sharing)
    return last


class _EventStream(StreamingResponse):
    """Server-sent events.

    Args:
        events: The events.
        closed: Called once when the answer has ended, in whatever way.
    """

    def __init__(self, events: AsyncIterator[str], closed: Callable[[], None]):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.closed()


async def _events(
    draws: Draws, options: PictureOptions, facts: Facts, admission: Admission
) -> AsyncIterator[str]:
    """Events of all pictures, each after its scale, in the order in which they come."""
    frames: asyncio.Queue[tuple[int, Frame | Exception]] = asyncio.Queue()

    async def pump(index: int, draw: AsyncIterator[Frame]) -> None:
        try:
            async for frame in draw:
                await frames.put((index, frame))
        except Exception as error:
            await frames.put((index, error))

    pumps = [asyncio.create_task(pump(i, draw)) for i, (_, draw) in enumerate(draws)]
    unfinished = len(draws)
    try:
        while unfinished:
            index, frame = await frames.get()
            if isinstance(frame, Exception):
                yield _event("error", _as_api_error(frame).body())
                return
            finished = frame.scale == frame.num_scales - 1
            unfinished -= finished
            kind = f"image_generation.{'completed' if finished else 'partial_image'}"
            event = {
                "type": kind,
                **_image_data(frame.files[0], options.response_format),
                "created_at": int(time.time()),
                "size": facts.size,
                "output_format": "png",
                "index": index,
                "seed": draws[index][0],
                "scale": frame.scale,
                "num_scales": frame.num_scales,
            }
            if finished:
                admission.finished(frame.sharing)
            else:
                event["partial_image_index"] = frame.scale
            yield _event(kind, event)
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _image_data(file: bytes, response_format: str) -> dict[str, str]:
    """A picture in the form of the answer."""
    text = base64.b64encode(file).decode()
    if response_format == "url":
        return {"url": f"data:image/png;base64,{text}"}
    return {"b64_json": text}


def _as_api_error(error: BaseException) -> ApiError:
    """The answer to an error while drawing. A `ValueError` is about the request."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValueError):
        return ApiError(400, str(error))
    return _internal_error(error)


def _internal_error(error: BaseException) -> ApiError:
    logger.error("A request could not be answered", exc_info=error)
    return ApiError(500, "The request could not be answered. The server's log says why.")


def _add_error_answers(app: FastAPI) -> None:
    """Answer all errors in the shape of the OpenAI API."""

    def answer(error: ApiError) -> JSONResponse:
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(error.body(), error.status, headers)

    @app.exception_handler(ApiError)
    async def of_api(request: Request, error: ApiError) -> Response:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def of_validation(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if first["type"] != "json_invalid"]
        param = place[1] if len(place) > 1 else None
        message = f"{'.'.join(place[1:]) or 'The body'}: {first['msg']}."
        return answer(ApiError(400, message, param=param, code=first["type"]))

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        code = "body_too_large" if error.status_code == 413 else None
        response = answer(ApiError(error.status_code, f"{error.detail}", code=code))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def of_anything(request: Request, error: Exception) -> Response:
        return answer(_internal_error(error))
