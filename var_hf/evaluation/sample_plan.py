"""The images of a sample set, their order and their seeds, as a function of a few numbers.

Every process on every machine computes its own share, and a resumed run generates only the missing
images.
"""

import os
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

_INDEX_BITS = 16  # at most 2 ** 16 classes and images per class, which fit in a 32-bit seed
_SPREAD = 0x9E3779B1  # golden ratio of 2 ** 32; odd, so that no two seeds share an offset

FORMATS = ("png", "tar", "npz")


def image_seed(seed: int, class_id: int, index: int) -> int:
    """Compute the seed of one image, in [0, 2^32). Images of a set have distinct seeds.

    PyTorch's CPU generator uses 32 bits of a seed. If class and index were hashed to 32 bits, two
    of 50,000 images would share their random numbers in one set out of four.
    """
    return (seed * _SPREAD + (class_id << _INDEX_BITS) + index) % 2**32


@dataclass(frozen=True)
class SamplePlan:
    """A class-balanced set of images in a shuffled order, split into shards and micro-batches.

    Args:
        num_classes: Number of classes.
        images_per_class: Images per class. The published protocol uses 50 for each of 1,000
            classes.
        seed: Determines the images, with class and index.
        shuffle_seed: Determines the order. A set in the order of its classes lowers the Inception
            Score of evaluators that compute it in blocks.
        batch_size: Images generated at a time. Another size rounds differently and can change
            single tokens.
        shard_size: Images that are written, hashed and resumed together.
        format: ``"png"``, a folder of files; ``"tar"``, shards for the webdataset library; or
            ``"npz"``, the file format of ADM's evaluator.

    Raises:
        ValueError: A number is out of range, or the format is unknown.
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
        """Return class id and index within the class of the image at a position of the set."""
        class_id, index = divmod(int(self._order[position]), self.images_per_class)
        return class_id, index

    def seed_of(self, position: int) -> int:
        """Return the seed of the image at a position of the set."""
        return image_seed(self.seed, *self.image(position))

    @property
    def num_shards(self) -> int:
        """Number of shards; the last one may be smaller."""
        return -(-len(self) // self.shard_size)

    def positions(self, shard: int) -> range:
        """Return the positions of a shard's images."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, len(self)))

    def batches(self, shard: int) -> list[range]:
        """Return the positions of each micro-batch of a shard."""
        positions = self.positions(shard)
        return [
            positions[start : start + self.batch_size]
            for start in range(0, len(positions), self.batch_size)
        ]

    def describe(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Share:
    """This process's share of the work.

    Sampling processes do not communicate; they only share a folder.
    """

    index: int = 0
    count: int = 1
    local_index: int = 0

    @classmethod
    def from_environment(cls) -> "Share":
        """Read the variables of `accelerate launch` and `torchrun`; without them, take all work."""
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
        """Whether this process logs and writes the files of the whole set."""
        return self.index == 0

    def shards(self, plan: SamplePlan) -> range:
        """Return the shards of this process, including finished ones."""
        return range(self.index, plan.num_shards, self.count)
