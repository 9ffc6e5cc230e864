"""Which samples make up which step: a function of seed and step alone.

Nothing is remembered between steps, so a run goes on exactly where it was killed, and every process
finds its share without asking the others.
"""

from collections.abc import Iterator

import numpy as np

from var_hf.image_shards import Blocks


class StepSampler:
    """Batches of one process as lists of ``(epoch, index)``, one list per step.

    The samples are shuffled anew in every epoch; a batch may reach over the end of one into the
    next.

    Args:
        num_samples: Size of the data set.
        global_batch_size: Samples of one step, over all processes.
        first_step: Step to begin with, from 0.
        last_step: Step to end before.
        seed: Seeds the shuffling, together with the epoch.
        process_index: Which share of every step is ours.
        num_processes: Into how many equal, contiguous shares a step is cut.
        blocks: Samples that are read together: an epoch then takes random blocks, a few at a time,
            and shuffles the samples of these.

    Raises:
        ValueError: The batch does not divide evenly between the processes.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch_size: int,
        first_step: int,
        last_step: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
        blocks: Blocks | None = None,
    ):
        if global_batch_size % num_processes:
            raise ValueError(
                f"The global batch of {global_batch_size} images cannot be shared evenly by "
                f"{num_processes} processes. Choose a multiple of {num_processes}."
            )
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.steps = range(first_step, last_step)
        self.seed = seed
        share = global_batch_size // num_processes
        self.share = range(process_index * share, (process_index + 1) * share)
        self.blocks = blocks
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            first = step * self.global_batch_size
            yield [self._locate(first + offset) for offset in self.share]

    def _locate(self, position: int) -> tuple[int, int]:
        epoch, rank = divmod(position, self.num_samples)
        if epoch != self._epoch:
            self._epoch = epoch
            random = np.random.default_rng([self.seed, epoch])
            if self.blocks is None:
                self._order = random.permutation(self.num_samples)
            else:
                self._order = self.blocks.shuffle(random)
        return epoch, int(self._order[rank])
