"""Threads that each compute alone, for work that falls into independent blocks.

PyTorch shares every operator among its threads and waits at its end for the slowest. A loss in blocks is a thousand
operators; where something else runs on the same cores, each of them waits until the system gives a core back. Threads
that take a whole block at a time wait once, at the end, and a slow one takes fewer blocks. Operators release Python's
lock.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from .memory import keep_freed_memory

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield the function of every item, in their order, without gradients; raise what the first that failed raised.

    As many threads compute as PyTorch has for the caller. Each of them computes its items alone, so that the results
    have the same bits for any number of threads. With one thread it is the caller's.
    """
    function = torch.no_grad()(function)
    num_threads = torch.get_num_threads()
    keep_freed_memory()
    return map(function, items) if num_threads == 1 else _pool(num_threads).map(function, items)


@functools.lru_cache(maxsize=1)
def _pool(num_threads: int) -> ThreadPoolExecutor:
    """Return threads in each of which PyTorch uses one thread; they end with the process, or for another number."""
    all_started = threading.Barrier(num_threads)

    def compute_alone() -> None:
        torch.get_num_threads()  # the first call in a thread overwrites what was set before it
        torch.set_num_threads(1)
        all_started.wait()

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="focal_det", initializer=compute_alone)
    try:
        list(pool.map(abs, range(num_threads)))
    except BaseException:  # such as of a thread that the system refuses: the others would wait on, at the exit too
        all_started.abort()
        raise
    torch.set_num_threads(num_threads)  # what was set last is also what threads start with that are yet to come
    return pool


# A forked process has none of its parent's threads.
os.register_at_fork(after_in_child=_pool.cache_clear)
