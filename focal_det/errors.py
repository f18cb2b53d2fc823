"""The errors that end a run with a message, what a check finds, the exit codes, and warnings that say nothing here."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

EXIT_DONE, EXIT_FAULT, EXIT_BAD_INPUT, EXIT_STOPPED, EXIT_INTERRUPTED = 0, 1, 2, 75, 130
# Of PyTorch, by their beginnings: Detectron2 uses torch.jit; and weights of 1x1 convolutions have the same layout in
# memory whatever their strides say, so that a bucket of gradients loses nothing by other ones.
_KNOWN_WARNINGS = {
    "`torch.jit.": FutureWarning,
    "Grad strides do not match bucket view strides": UserWarning,
}
# In the messages of the CUDA runtime, of cuBLAS and cuDNN, and of PyTorch's allocators.
_NO_MEMORY = ("out of memory", "alloc_failed", "allocation_failed", "can't allocate memory")
_SHOWN = 5  # examples of each kind of problem that a message lists


class InputError(ValueError):
    """Bad input, found before anything was started or written; each problem names the value, the place and the fix."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


@dataclass
class Findings:
    """What a check found; checks add theirs and pass it on."""

    errors: list[str] = field(default_factory=list)  # what must be fixed before anything starts, as in InputError
    warnings: list[str] = field(default_factory=list)  # what works and is likely not meant
    notes: list[str] = field(default_factory=list)  # lines for the summary

    def add(self, other: Findings) -> None:
        """Append what another check found."""
        self.errors += other.errors
        self.warnings += other.warnings
        self.notes += other.notes

    def raise_if_errors(self) -> None:
        """Raise InputError with all errors, each once, if there are any."""
        if self.errors:
            raise InputError(list(dict.fromkeys(self.errors)))


class TrainingError(Exception):
    """A training cannot start or continue, or one that others need has failed; the message says why and what to do."""


def cut(value: object, length: int = 80) -> str:
    """Return a value's text for a message, shortened where it is long."""
    text = str(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class's name: PyTorch's are followed by a C++ stack."""
    try:
        return (str(error).splitlines() or [type(error).__name__])[0]
    except Exception:  # of an error of somebody's whose own text fails
        return type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory was short, which CUDA's libraries only say."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY)


def visible(text: str) -> str:
    """Return the text with control characters escaped, such as \\x1b, which a terminal would obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def visible_lines(text: str) -> str:
    """Do the same, but keep line breaks."""
    return "\n".join(map(visible, text.split("\n")))


def counted(number: int, what: str) -> str:
    """Return the number with its noun, in the plural unless it is one."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def some(what: str, values: Sequence[object]) -> str:
    """The first few values, for a message that has to name many."""
    shown = ", ".join(str(v) for v in values[:_SHOWN])
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return f"{what} {shown}{more}".strip()


def some_lines(values: Sequence[str]) -> list[str]:
    """The first few, each on a line that belongs to the one before, and how many more there are."""
    more = [f"  and {len(values) - _SHOWN} more"] if len(values) > _SHOWN else []
    return [*(f"  {value}" for value in values[:_SHOWN]), *more]


def print_problems(problems: Sequence[str], kind: str = "error") -> None:
    """Print each problem to stderr, with control characters escaped."""
    if problems:
        print(visible_lines("\n".join(f"{kind}: {problem}" for problem in problems)), file=sys.stderr, flush=True)


def silence_known_warnings() -> None:
    """Silence what PyTorch warns of without need, here and in the processes that this one starts."""
    for message, category in _KNOWN_WARNINGS.items():
        warnings.filterwarnings("ignore", message=re.escape(message), category=category)
    # By the environment, since ranks import Detectron2, which warns, before anything of ours can run in them.
    ours = [f"ignore:{message}:{category.__name__}" for message, category in _KNOWN_WARNINGS.items()]
    given = os.environ.get("PYTHONWARNINGS", "").split(",")  # the last one wins
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, dict.fromkeys([*ours, *given])))
