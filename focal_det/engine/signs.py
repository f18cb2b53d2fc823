"""What ranks say to each other through the job's store: each its sign of life, and words to all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import timedelta
from itertools import count
from typing import Any

import torch.distributed as dist

_jobs = count()  # of this process: one that came before has left its words
_WORDS = ("verdict", "stop", "lost")  # what all ranks read: empty, or what was said


class Signs:
    """The store of this job as one rank sees it; every method raises RuntimeError where it does not answer.

    Args:
        rank: of this process.
        seen: the ranks whose signs it reads.
        seconds: that a sign which is not there yet is waited for.
    """

    def __init__(self, rank: int, seen: Iterable[int], seconds: float) -> None:
        self._rank, self._seen = rank, list(seen)
        world = dist.group.WORLD
        assert world is not None
        store = world.get_group_store().clone()  # a connection of its own: none waits for the other's answer
        store.set_timeout(timedelta(seconds=seconds))  # of what `multi_get` waits for
        self._store = dist.PrefixStore(f"focal_det/watch/{next(_jobs)}", store)  # all ranks count alike
        for key in _WORDS:
            self._store.compare_set(key, "", "")  # not over what a faster rank may have said

    def give(self, sign: dict[str, Any]) -> None:
        """This rank's sign of life."""
        self._store.set(f"sign/{self._rank}", json.dumps(sign))

    def say(self, key: str, words: str) -> None:
        """Say to all ranks under "stop" the number of a signal, or anything under "lost"."""
        self._store.set(key, words)

    def read(self) -> tuple[dict[str, str], dict[int, dict[str, Any]]]:
        """What was said to all, and the signs of the ranks that this one looks at, once each has given its first."""
        values = self._store.multi_get([*_WORDS, *(f"sign/{rank}" for rank in self._seen)])
        words = [value.decode() for value in values[: len(_WORDS)]]
        signs = map(json.loads, values[len(_WORDS) :])
        return dict(zip(_WORDS, words, strict=True)), dict(zip(self._seen, signs, strict=True))

    def settle(self, words: str) -> str:
        """The words that all end with: these, if no rank was faster."""
        return str(self._store.compare_set("verdict", "", words).decode())


class Unchanged:
    """For how many looks a number has stayed the same.

    Attributes:
        looks: 0 after one at which it was another.
    """

    def __init__(self) -> None:
        self.looks = 0
        self._last = -1

    def look(self, number: int) -> None:
        """Once more, at this number."""
        self.looks = self.looks + 1 if number == self._last else 0
        self._last = number
