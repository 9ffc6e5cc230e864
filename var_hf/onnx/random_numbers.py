"""Random numbers that every language computes alike: Philox4x32-10.

A counter-based generator turns the address of a number into the number, without a state. A token
therefore has the same number in every batch, on every device and in every order of drawing.

Source: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as
1, 2, 3", SC 2011; section 3.3 and table 2.
"""

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

LARGEST_SEED = 2**53 - 1  # the whole numbers that JavaScript counts exactly

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 2**32


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Four random words for each counter.

    Args:
        counter: ``(4, ...)``, uint32.
        key: Two words.

    Returns:
        ``(4, ...)``, uint32.
    """
    c0, c1, c2, c3 = counter.astype(np.uint32)
    k0, k1 = key
    for _ in range(_ROUNDS):
        first = c0.astype(np.uint64) * _MULTIPLIERS[0]
        second = c2.astype(np.uint64) * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            _high(second) ^ c1 ^ np.uint32(k0),
            second.astype(np.uint32),
            _high(first) ^ c3 ^ np.uint32(k1),
            first.astype(np.uint32),
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) % _WORD, (k1 + _KEY_STEPS[1]) % _WORD
    return np.stack([c0, c1, c2, c3])


def uniform(seed: int, image: int, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """One number in [0, 1) per token, ``(T,)``, with 53 random bits.

    Args:
        seed: Whole number in [0, 2^53).
        image: Number of the image among those that share the seed.
        positions: Numbers of the tokens among those of all scales, ``(T,)``.
    """
    counter = np.zeros((4, len(positions)), np.uint32)
    counter[0], counter[1] = positions, image
    words = philox4x32(counter, (seed % _WORD, seed // _WORD)).astype(np.float64)
    return (np.floor(words[0] / 2**5) * 2**26 + np.floor(words[1] / 2**6)) / 2**53


def _high(product: NDArray[np.uint64]) -> Words:
    return (product >> np.uint64(32)).astype(np.uint32)
