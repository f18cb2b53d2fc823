"""Which focal_det this is: its version, and its commit where it is a checkout."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .. import __version__

_PACKAGE = Path(__file__).parents[1]


def source_version(package: Path = _PACKAGE) -> str:
    """The version; and of a checkout of git the commit, and whether files differ from it.

    Args:
        package: the folder of focal_det's code.
    """
    # an environment inside another project's checkout is in a git folder too, but not tracked there
    if not output_of("git", "-C", str(package), "ls-files", "__init__.py"):
        return f"{__version__}, not a git checkout"
    found = commit(package)
    return f"{__version__}, commit {found.removesuffix('-dirty')}" + (", modified" if found.endswith("-dirty") else "")


def commit(folder: Path) -> str:
    """The git commit of a checkout, marked -dirty if tracked files differ from it; "unknown" outside of git."""
    return output_of("git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*") or (
        "unknown"
    )


def output_of(*command: str) -> str:
    """What a command prints, "" if there is none or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def num_cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
