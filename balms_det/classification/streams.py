"""Random numbers that follow from a run's seed and from what they are for, and from nothing else.

So a run that is resumed goes on as if it had never stopped, without any state of a generator.
"""

from enum import IntEnum

import numpy as np
from torch import Generator


class Use(IntEnum):
    """Uses of random numbers; no two uses share a stream."""

    EPOCH = 0
    BATCH = 1
    AUGMENTATION = 2
    PICTURE = 3
    META_BATCH = 4
    META_AUGMENTATION = 5
    STEP = 6


def stream_seed(seed: int, use: Use, *place: int) -> int:
    """Return the seed of one stream.

    Args:
        seed: of the run, in [0, 2^32).
        use: of the stream.
        place: where in the run, such as the iteration; each in [0, 2^32).

    Returns:
        A number below 2^32: PyTorch's generator ignores the higher bits of a seed.
    """
    return int(np.random.SeedSequence([seed, use, *place]).generate_state(1)[0])


def stream(seed: int, use: Use, *place: int) -> Generator:
    """Return the stream of :func:`stream_seed`, on the CPU."""
    return Generator().manual_seed(stream_seed(seed, use, *place))
