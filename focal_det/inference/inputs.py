"""What a command line names, as images: files, folders, patterns, videos, and a list on standard input."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
import numpy as np

from ..errors import Findings, counted, some
from ..formats.image_files import SUFFIXES as IMAGE_SUFFIXES
from ..formats.image_files import passed_over
from .images import ImageError, read_image
from .videos import NOT_A_VIDEO, open_video, video_property

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv")

T = TypeVar("T")


class InputFile(NamedTuple):
    """An image or a video: its absolute path, and its name relative to the folder that all inputs share, with "/".

    A camera or stream, which has no file, has a name alone.
    """

    path: Path
    name: str
    is_stream: bool = False

    @property
    def is_video(self) -> bool:
        """True for a stream, or if the name's suffix is a video's."""
        return self.is_stream or self.path.suffix.lower() in VIDEO_SUFFIXES


class Frame(NamedTuple):
    """An image to detect in, or why it cannot be read.

    name: the file's; for a video with "#" and the frame's number from 0.
    image: (H, W, 3) uint8 BGR.
    number: of a video's frame.
    """

    file: InputFile
    name: str
    image: np.ndarray | ImageError
    number: int | None = None


class Inputs(NamedTuple):
    """The files found, the folder that their names are relative to, and notes on what was skipped."""

    found: list[InputFile]
    base: Path
    notes: list[str]


def find_inputs(inputs: Sequence[str], lines: Iterable[str], leave_out: Path) -> Inputs:
    """Find every image and video.

    Args:
        inputs: each an image, a video, a folder, a pattern such as "a/**/*.jpg", or "-" for the lines. A folder means
            its images and those of its subfolders, except hidden ones and links to folders.
        lines: of standard input, each a file or folder; a missing file is kept, so that it is reported as bad.
        leave_out: a folder that is not entered: that of the drawings.

    Raises:
        InputError: every input that names nothing.
    """
    walk = _Walk(leave_out.absolute())
    for text in inputs:
        if text == "-":
            walk.add_all(*_names(lines, walk.notes))
        elif os.path.lexists(text) and text:
            walk.add(text)
        else:
            nothing = f"INPUT {text!r}: no such file or folder, and as a pattern it matches nothing"
            walk.add_all(_matches(text, walk.leave_out), nothing)
    if not walk.paths and not walk.problems:
        walk.problems.append(f"INPUT {', '.join(inputs)}: no image there")
    Findings(walk.problems).raise_if_errors()
    base = Path(os.path.commonpath(walk.roots))
    paths = list(dict.fromkeys(walk.paths))
    if len(paths) < len(walk.paths):
        walk.notes.append(f"{len(walk.paths) - len(paths)} files are named twice and taken once")
    return Inputs([InputFile(path, path.relative_to(base).as_posix()) for path in paths], base, walk.notes)


def _names(lines: Iterable[str], notes: list[str]) -> tuple[list[str], str]:
    """Return the lines that can be names of files, with a note on those that cannot; and the problem if none are."""
    names = [line for line in (line.rstrip("\r\n") for line in lines) if line]
    if addresses := [name for name in names if "://" in name]:  # not shown: they may hold passwords
        return [], f"INPUT -: addresses on {counted(len(addresses), 'line')}; a list is of files"
    impossible = [repr(name) for name in names if "\0" in name]
    if impossible:
        notes.append(some("INPUT -: skipped, as no file name holds a NUL:", impossible))
    return [name for name in names if "\0" not in name], "INPUT -: standard input names no image"


def _matches(pattern: str, leave_out: Path) -> list[str]:
    """Return what the pattern matches except drawings; a file that "**" also finds through links is taken once."""
    found = glob.glob(pattern, recursive=True) if "\0" not in pattern else []
    first: dict[str, str] = {}
    for match in sorted(found, key=lambda match: (match.count(os.sep), match)):
        real = os.path.realpath(match)
        if not Path(real).is_relative_to(os.path.realpath(leave_out)):
            first.setdefault(real, match)
    return sorted(first.values())


class _Walk:
    """Collects absolute paths, the folders in which they were asked for, and what is wrong."""

    def __init__(self, leave_out: Path) -> None:
        self.leave_out = leave_out
        self.paths: list[Path] = []
        self.roots: list[Path] = []
        self.problems: list[str] = []
        self.notes: list[str] = []

    def add_all(self, names: Sequence[str], nothing: str) -> None:
        if not names:
            self.problems.append(nothing)
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        path = Path(os.path.abspath(name))
        if not os.path.isdir(path):
            self.paths.append(path)
            self.roots.append(path.parent)
            return
        self.roots.append(path)
        before = len(self.paths)
        others: list[Path] = []
        for folder, subfolders, files in os.walk(path, onerror=lambda error: self._unreadable(path, error)):
            inside = Path(folder)
            subfolders[:] = sorted(s for s in subfolders if s[0] != "." and inside / s != self.leave_out)
            for file in sorted(file for file in files if file[0] != "."):
                (self.paths if Path(file).suffix.lower() in IMAGE_SUFFIXES else others).append(inside / file)
        self.notes += passed_over(path.relative_to(self.roots[-1]) for path in others)
        if len(self.paths) == before and not self.problems:
            self.problems.append(f"INPUT {name}: no image in this folder or its subfolders (name each video)")

    def _unreadable(self, root: Path, error: OSError) -> None:
        line = f"{error.filename}: the folder cannot be read ({error.strerror})"
        (self.problems if Path(error.filename) == root else self.notes).append(line)


def count_frames(inputs: Iterable[InputFile], every: int) -> int:
    """Count the images to come, as far as the videos state their length."""

    def length(video: Path) -> int:
        return max(int(video_property(video, cv2.CAP_PROP_FRAME_COUNT)), 0)

    return sum(-(-length(file.path) // every) if file.is_video else 1 for file in inputs)


def read_frames(inputs: Iterable[InputFile], every: int) -> Iterator[Frame]:
    """Read images and videos one after the other; of videos frames 0, every, 2 * every, ..."""
    for file in inputs:
        if file.is_video:
            yield from _video_frames(file, every)
            continue
        try:
            yield Frame(file, file.name, read_image(file.path))
        except ImageError as error:
            yield Frame(file, file.name, error)


def _video_frames(file: InputFile, every: int) -> Iterator[Frame]:
    try:
        video = open_video(file.path)
    except ImageError as error:
        yield Frame(file, file.name, error)
        return
    number = 0
    try:
        while video.grab():
            if number % every == 0:
                ok, image = video.retrieve()
                name = f"{file.name}#{number}"
                yield Frame(file, name, image if ok else ImageError(name, "the frame cannot be decoded"), number)
            number += 1
        stated = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        if number == 0:
            yield Frame(file, file.name, ImageError(file.path, NOT_A_VIDEO))
        elif number < stated:
            yield Frame(file, file.name, ImageError(file.path, f"ends after {number} of {stated} frames"))
    finally:
        video.release()


def read_ahead(items: Iterator[T], most: int) -> Iterator[T]:
    """Yield the items, which a thread fetches while the caller is busy, at most so many ahead."""
    pool, end = ThreadPoolExecutor(1), object()
    fetch = partial(pool.submit, next, items, end)
    try:
        ahead = deque(fetch() for _ in range(most))
        while (item := ahead.popleft().result()) is not end:
            ahead.append(fetch())
            yield item  # type: ignore[misc]  # not the end, so an item
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a read that hangs must not hold who interrupts
