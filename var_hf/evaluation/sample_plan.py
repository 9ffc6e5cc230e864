"""Which images make up a sample set, in which order, and from which seeds: a function of a few numbers.

Nothing is handed out at run time, so every process of every machine knows its share, and a set that was cut off goes
on with what is missing.
"""

import os
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

_INDEX_BITS = (
    16  # images of one class, and classes, number at most 2 ** 16: together a seed of 32 bits
)
_SPREAD = 0x9E3779B1  # odd, so that no two seeds share an offset; the golden ratio of 2 ** 32

FORMATS = ("png", "tar", "npz")


def image_seed(seed: int, class_id: int, index: int) -> int:
    """Seed of one image, in [0, 2^32): no two images of a set share one.

    PyTorch's CPU generator takes 32 bits of a seed. Hashing class and index down to these would give two of 50,000
    images the same random numbers in one set out of four.
    """
    return (seed * _SPREAD + (class_id << _INDEX_BITS) + index) % 2**32


@dataclass(frozen=True)
class SamplePlan:
    """A class-balanced set of images in a shuffled order, cut into shards and these into micro-batches.

    Args:
        num_classes: Classes to draw.
        images_per_class: Images of each. The published protocol takes 50 of 1,000 classes.
        seed: Decides the images, together with class and index.
        shuffle_seed: Decides the order. A set in the order of its classes breaks the Inception Score of evaluators
            that compute it in blocks.
        batch_size: Images drawn at a time. Another one rounds differently, and here and there a token changes.
        shard_size: Images that are written, digested and resumed together.
        format: ``"png"``, a folder of files; ``"tar"``, shards as the webdataset library reads them; ``"npz"``, the
            one file that the evaluator of ADM reads.

    Raises:
        ValueError: A number is out of range, or there is no such format.
    """

    num_classes: int
    images_per_class: int = 50
    seed: int = 0
    shuffle_seed: int = 0
    batch_size: int = 32
    shard_size: int = 256
    format: str = "png"

    def __post_init__(self) -> None:
        for name in ("num_classes", "images_per_class"):
            if not 1 <= getattr(self, name) <= 2**_INDEX_BITS:
                raise ValueError(
                    f"{name} must lie in [1, {2**_INDEX_BITS}]. Got {getattr(self, name)}."
                )
        for name in ("batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1. Got {getattr(self, name)}.")
        for name in ("seed", "shuffle_seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0. Got {getattr(self, name)}.")
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}. Got {self.format!r}.")

    def __len__(self) -> int:
        return self.num_classes * self.images_per_class

    @cached_property
    def _order(self) -> np.ndarray:
        return np.random.default_rng(self.shuffle_seed).permutation(len(self))

    def image(self, position: int) -> tuple[int, int]:
        """Class id and index within the class of the image at a position of the set."""
        class_id, index = divmod(int(self._order[position]), self.images_per_class)
        return class_id, index

    def seed_of(self, position: int) -> int:
        """Seed of the image at a position of the set."""
        return image_seed(self.seed, *self.image(position))

    @property
    def num_shards(self) -> int:
        """Number of shards; the last one may be smaller than the others."""
        return -(-len(self) // self.shard_size)

    def positions(self, shard: int) -> range:
        """The positions of a shard's images."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, len(self)))

    def batches(self, shard: int) -> list[range]:
        """The positions of a shard's micro-batches."""
        positions = self.positions(shard)
        return [
            positions[start : start + self.batch_size]
            for start in range(0, len(positions), self.batch_size)
        ]

    def describe(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Share:
    """Which part of the work is this process's.

    Sampling needs no talk between processes: they share nothing but a folder.
    """

    index: int = 0
    count: int = 1
    local_index: int = 0

    @classmethod
    def from_environment(cls) -> "Share":
        """What `accelerate launch` and `torchrun` tell a process; alone if they did not start it."""
        number = {
            name: int(os.environ.get(variable, default))
            for name, variable, default in (
                ("index", "RANK", "0"),
                ("count", "WORLD_SIZE", "1"),
                ("local_index", "LOCAL_RANK", "0"),
            )
        }
        return cls(**number)

    @property
    def is_first(self) -> bool:
        """Whether this process talks and writes what there is one of."""
        return self.index == 0

    def shards(self, plan: SamplePlan) -> range:
        """The shards of this process, finished ones included."""
        return range(self.index, plan.num_shards, self.count)
