"""Some of a set's pictures, for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def evenly_spread(records: Sequence[T], count: int) -> list[T]:
    """At most `count` of them, the first among them, at equal distances."""
    count = min(count, len(records))
    return [records[place * len(records) // count] for place in range(count)]
