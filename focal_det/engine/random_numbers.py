"""Random numbers that follow from where a training is, so that none of their state has to be kept."""

from __future__ import annotations

import random

import numpy as np
import torch

# What the numbers are for; the first part of a key, so that no two uses share numbers.
PICTURE, STEP = 0, 1


def set_random_numbers(*key: int) -> None:
    """Start the generators of Python, NumPy and PyTorch, and of this process's GPU if it is in use, from a key.

    Equal keys give equal numbers, in any process; other keys numbers that have nothing to do with them. Some 20 us.

    Args:
        key: integers >= 0, such as `PICTURE`, the run's seed, and a place.
    """
    python, pytorch, *numpy = (int(word) for word in np.random.SeedSequence(key).generate_state(6, np.uint32))
    random.seed(python)
    np.random.seed(numpy)
    torch.default_generator.manual_seed(pytorch)
    if torch.cuda.is_initialized():  # else it would be written down, with a stack trace, for when it is
        torch.cuda.manual_seed(pytorch)
