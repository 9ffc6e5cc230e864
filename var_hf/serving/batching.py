"""Continuous batching over scales: pictures that stand at the same scale share a pass.

A new picture starts at the next pass, whatever else is under way. The pass that stands at the
coarsest scale goes first: coarse scales are cheap, so newcomers catch up with the pictures before
them and share their expensive fine scales.
"""

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from var_hf.generation import Generation, VARScaleOutput, generate, transformer_uses
from var_hf.memory import check_memory
from var_hf.modeling_vqvae import decoded_at_a_time
from var_hf.pipelines.pipeline_var import VARPipeline
from var_hf.sampling_settings import SamplingSettings
from var_hf.serving.merging import Member, MixedGuidance, MixedTokens, OneByOne, merge


@dataclass(frozen=True)
class Progress:
    """What an order hears after a scale that it asked about, and after the last one.

    Attributes:
        scale: Number of the scale, 0 is the coarsest.
        num_scales: Number of scales S.
        images: The picture so far, or the pictures of an edit.
        sharing: Number of pictures in the pass.
    """

    scale: int
    num_scales: int
    images: list[Image.Image]
    sharing: int


#: Told to an order when it is complete.
DONE = object()


@dataclass(eq=False)
class Order:
    """A piece of work.

    Attributes:
        emit: Called in the batcher's thread with results, and then with `DONE` or the exception
            that ended the order. It must neither block nor raise.
        cancelled: Set it from any thread: the order ends without a word before the next pass.
    """

    emit: Callable[[Any], None]
    cancelled: bool = field(default=False, init=False)


@dataclass(eq=False)
class Picture(Order):
    """One picture to draw. It equals `pipe(class_id, generator=...)` with a CPU generator of its
    seed.

    Attributes:
        class_id: In [0, num_classes]; `num_classes` is the null class.
        seed: Seed of the picture's own random stream.
        settings: Sampling settings.
        previews: Scales, besides the last, after which the picture so far is decoded and emitted as
            a [`Progress`].
    """

    class_id: int
    seed: int
    settings: SamplingSettings
    previews: Collection[int] = ()
    alone: bool = field(default=False, init=False)  # after an error in a shared pass
    emitted: int = field(default=-1, init=False)  # the last scale that was emitted


@dataclass(eq=False)
class Job(Order):
    """Other work with the same model, such as an edit. It takes turns with the pictures.

    Attributes:
        start: Returns the work as an iterator, whose values are emitted. One step of it is one
            turn.
    """

    start: Callable[[], Iterator[Any]]


class Group:
    """Pictures that share their passes.

    Args:
        pipe: The pipeline.
        picture: The first picture; others join with `absorb`.
        quantizer: Replaces the pipeline's quantizer, if given.
    """

    def __init__(self, pipe: VARPipeline, picture: Picture, quantizer: Any = None):
        generator = torch.Generator().manual_seed(picture.seed)
        self.generation: Generation = pipe.start([picture.class_id], picture.settings, [generator])
        self.pictures = [picture]
        self.members = [Member(picture.settings, self.generation.guidance, self.generation.choice)]
        self.generation.guidance = MixedGuidance(self.members)
        self.generation.choice = MixedTokens(self.members)
        if quantizer is not None:
            self.generation.quantizer = quantizer
        self.outputs: Iterator[VARScaleOutput] = generate(self.generation)

    @property
    def scale(self) -> int:
        """Number of the next scale."""
        return self.generation.scale

    def fits(self, other: "Group") -> bool:
        """Whether both can go on as one."""
        same_scale = self.scale == other.scale
        if self.pictures[0].alone or other.pictures[0].alone:
            return False
        return same_scale and self.members[0].shares_passes_with(other.members[0])

    def absorb(self, other: "Group") -> None:
        """Take over the pictures of another group, which is then used up."""
        merge(self.generation, other.generation)
        self.pictures += other.pictures
        self.members += other.members

    def drop_cancelled(self) -> None:
        """Go on without the pictures that were cancelled."""
        kept = [i for i, picture in enumerate(self.pictures) if not picture.cancelled]
        if len(kept) == len(self.pictures):
            return
        self.pictures = [self.pictures[i] for i in kept]
        self.members[:] = [self.members[i] for i in kept]
        if kept:
            generators = self.generation.generator
            assert isinstance(generators, list)
            self.generation.reorder(torch.tensor(kept, device=self.generation.class_ids.device))
            self.generation.generator = [generators[i] for i in kept]


class Batcher:
    """The pictures and jobs of one model, and what is computed next.

    `add` may be called from any thread, `turn` from one. On a CPU every picture equals that of a
    call of its own bit for bit (docs/serving.md states where this was measured).

    Args:
        pipe: The pipeline, not compiled.
        max_pictures: Number of pictures under way at a time; further ones wait.

    Raises:
        ValueError: The memory does not suffice for so many pictures, or the pipeline is compiled.
    """

    def __init__(self, pipe: VARPipeline, max_pictures: int = 16):
        if max_pictures < 1:
            raise ValueError(f"max_pictures must be at least 1. Got {max_pictures}.")
        if pipe.is_compiled:
            raise ValueError("A compiled pipeline draws batches of one size. Load it anew.")
        self.pipe, self.max_pictures = pipe, max_pictures
        quantizer = pipe.vqvae.quantizer
        self.sizes = quantizer.token_map_sizes
        check_memory(
            transformer_uses(pipe.schedule(), len(self.sizes)),
            pipe.vqvae.config,
            pipe.device,
            max_pictures,
            guided_scales=len(self.sizes),
        )
        self.on_cpu = pipe.vqvae.device.type == "cpu"
        self.quantizer = OneByOne(quantizer) if self.on_cpu else None
        self.waiting: deque[Picture] = deque()
        self.jobs: deque[Job] = deque()
        self.groups: list[Group] = []
        self.running: tuple[Job, Iterator[Any]] | None = None
        self.turns = 0

    def add(self, order: Order) -> None:
        """Accept an order."""
        if isinstance(order, Picture):
            self.waiting.append(order)
        else:
            assert isinstance(order, Job)
            self.jobs.append(order)

    @property
    def has_work(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.groups or self.waiting or self.jobs or self.running)

    def turn(self) -> None:
        """Compute one pass of some pictures, or one step of a job; they alternate."""
        self.turns += 1
        self._drop_cancelled()
        self._start_pictures()
        self._merge()
        if (self.jobs or self.running) and (self.turns % 2 or not self.groups):
            self._step_job()
        elif self.groups:
            self._pass(min(self.groups, key=lambda group: group.scale))

    def room(self) -> int:
        """Number of pictures that may start now."""
        return self.max_pictures - sum(len(group.pictures) for group in self.groups)

    def _drop_cancelled(self) -> None:
        for group in self.groups:
            group.drop_cancelled()
        self.groups = [group for group in self.groups if group.pictures]
        if self.running and self.running[0].cancelled:
            self.running = None

    def _start_pictures(self) -> None:
        room = self.room()
        while room > 0 and self.waiting:
            picture = self.waiting.popleft()
            if picture.cancelled:
                continue
            try:
                group = Group(self.pipe, picture, self.quantizer)
            except Exception as error:
                picture.emit(error)
                continue
            self.groups.append(group)
            room -= 1

    def _merge(self) -> None:
        """Make groups one that stand at the same scale and need the same rows."""
        merged: list[Group] = []
        for group in self.groups:
            into = next((each for each in merged if each.fits(group)), None)
            if into is None or self._starts_alone(group):
                merged.append(group)
            else:
                into.absorb(group)
        self.groups = merged

    def _starts_alone(self, group: Group) -> bool:
        """Whether a picture must draw its first scale alone to be that of a call of its own.

        Without guidance and with one token, that call multiplies a single row, for which CPUs have
        another kernel.
        """
        unguided = group.generation.guidance.num_guided_scales == 0
        return self.on_cpu and unguided and group.scale == 0 and self.sizes[0] == 1

    def _pass(self, group: Group) -> None:
        try:
            output = next(group.outputs)
            self._report(group, output)
        except Exception as error:
            self.groups.remove(group)
            self._fail(group.pictures, error)
            return
        if output.scale == output.num_scales - 1:
            self.groups.remove(group)

    def _fail(self, pictures: list[Picture], error: Exception) -> None:
        """End a picture with an error, or find out whose error it was: each starts anew, alone."""
        if len(pictures) == 1:
            pictures[0].emit(error)
            return
        for picture in reversed(pictures):
            picture.alone = True
            self.waiting.appendleft(picture)

    def _report(self, group: Group, output: VARScaleOutput) -> None:
        """Decode and emit the pictures that are complete, or were asked for at this scale."""
        is_last = output.scale == output.num_scales - 1
        wanted = [
            row
            for row, picture in enumerate(group.pictures)
            if picture.emitted < output.scale and (is_last or output.scale in picture.previews)
        ]
        at_a_time = decoded_at_a_time(output.latents.device.type, self.pipe.vqvae.image_size)
        for start in range(0, len(wanted), at_a_time):
            rows = wanted[start : start + at_a_time]
            images = self.pipe.decode(output.latents[rows])
            for row, image in zip(rows, images, strict=True):
                picture = group.pictures[row]
                picture.emitted, sharing = output.scale, len(group.pictures)
                picture.emit(Progress(output.scale, output.num_scales, [image], sharing))
                if is_last:
                    picture.emit(DONE)

    def _step_job(self) -> None:
        if self.running is None:
            job = self.jobs.popleft()
            if job.cancelled:
                return
        else:
            job = self.running[0]
        try:
            if self.running is None:
                self.running = (job, job.start())
            with torch.no_grad():
                job.emit(next(self.running[1]))
        except StopIteration:
            self.running = None
            job.emit(DONE)
        except Exception as error:
            self.running = None
            job.emit(error)


class BatcherThread:
    """Runs a batcher in a thread until it is closed.

    Args:
        batcher: The batcher, which from then on belongs to the thread.
    """

    def __init__(self, batcher: Batcher):
        self.batcher = batcher
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def add(self, order: Order) -> None:
        """Accept an order from any thread."""
        with self._changed:
            self.batcher.add(order)
            self._changed.notify()

    def close(self) -> None:
        """Stop after the current turn."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self.batcher.has_work):
                    self._changed.wait()
                if self._closed:
                    return
            self.batcher.turn()
