"""The one error that means "your input is wrong": it carries every problem found, and exits with code 2."""

from __future__ import annotations

from collections.abc import Sequence


class InputError(ValueError):
    """Bad input, found before anything was started or written.

    Args:
        problems: one message, or several; each names the value, the place and the fix.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))
