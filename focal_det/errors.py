"""The one error that means "your input is wrong", which carries every problem found; and the exit codes."""

from __future__ import annotations

from collections.abc import Sequence

EXIT_DONE, EXIT_FAULT, EXIT_BAD_INPUT, EXIT_STOPPED, EXIT_INTERRUPTED = 0, 1, 2, 75, 130

_SHOWN = 5  # examples of each kind of problem that a message lists


class InputError(ValueError):
    """Bad input, found before anything was started or written.

    Args:
        problems: one message, or several; each names the value, the place and the fix.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class TrainingError(Exception):
    """A training cannot start or go on, or one that others need has failed; the message says why and what to do."""


def cut(value: object, length: int = 80) -> str:
    """A value's text for a message, shortened where it is long."""
    text = str(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def visible(text: str) -> str:
    """A text of somebody's file for a terminal, which obeys control characters: with escapes such as \\x1b for them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def visible_lines(text: str) -> str:
    """Likewise of a message, whose own line breaks stay."""
    return "\n".join(map(visible, text.split("\n")))


def some(what: str, values: Sequence[object]) -> str:
    """The first few values, for a message that has to name many."""
    shown = ", ".join(str(v) for v in values[:_SHOWN])
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return f"{what} {shown}{more}".strip()


def some_lines(values: Sequence[str]) -> list[str]:
    """The first few, each on a line that belongs to the one before, and how many more there are."""
    more = [f"  and {len(values) - _SHOWN} more"] if len(values) > _SHOWN else []
    return [*(f"  {value}" for value in values[:_SHOWN]), *more]
