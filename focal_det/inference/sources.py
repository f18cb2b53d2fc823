"""From the words of a command line to pictures: files, folders, patterns, videos."""

from __future__ import annotations

import glob
import os
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
import numpy as np

from ..errors import InputError, some
from .pictures import PictureError, read_picture

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2", ".avif")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv")

# Read by OpenCV when it opens its first video: what is wrong with one is said here, in a line, and not by FFmpeg.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
# A "video" may be a list of addresses, which FFmpeg would fetch.
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "protocol_whitelist;file")

T = TypeVar("T")


class Source(NamedTuple):
    """A picture or a video.

    path: of the file, absolute.
    name: relative to the folder that all sources share, with "/".
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """By the name's ending."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


class Frame(NamedTuple):
    """A picture that is to be looked at, or why it cannot be.

    name: the source's; of a video with "#" and the frame's number from 0.
    picture: (H, W, 3) uint8 BGR.
    """

    source: Source
    name: str
    picture: np.ndarray | PictureError


class Sources(NamedTuple):
    """What an input names. base: the folder that the names are relative to. notes: what was passed over."""

    found: list[Source]
    base: Path
    notes: list[str]


def find_sources(inputs: Sequence[str], lines: Iterable[str], leave_out: Path) -> Sources:
    """Find every picture and video.

    Args:
        inputs: each a picture, a video, a folder, a pattern such as "a/**/*.jpg", or "-" for the lines. A folder stands
            for its pictures and its subfolders', but for hidden ones and links to folders.
        lines: of standard input, each a file or folder; one that is not there is found too, to be named as bad.
        leave_out: a folder that is not entered: that of the drawings.

    Raises:
        InputError: every input that names nothing.
    """
    walk = _Walk(leave_out.absolute())
    for text in inputs:
        if text == "-":
            words, no_names = _words(lines)
            if no_names:
                walk.notes.append(f"{some('INPUT -: passed over, as no file name holds a NUL:', no_names)}")
            if not words:
                walk.problems.append("INPUT -: standard input names no picture")
            for word in words:
                walk.add(word)
        elif os.path.lexists(text) and text:
            walk.add(text)
        else:
            matches = _matches(text, walk.leave_out)
            if not matches:
                walk.problems.append(f"INPUT {text!r}: no such file or folder, and as a pattern it matches nothing")
            for match in matches:
                walk.add(match)
    if not walk.paths and not walk.problems:
        walk.problems.append(f"INPUT {', '.join(inputs)}: no picture there")
    if walk.problems:
        raise InputError(walk.problems)
    base = Path(os.path.commonpath(walk.roots))
    paths = list(dict.fromkeys(walk.paths))
    if len(paths) < len(walk.paths):
        walk.notes.append(f"{len(walk.paths) - len(paths)} files are named twice and taken once")
    return Sources([Source(path, path.relative_to(base).as_posix()) for path in paths], base, walk.notes)


def _words(lines: Iterable[str]) -> tuple[list[str], list[str]]:
    """The lines that can be names, and as they are typed those that cannot."""
    words = [line for line in (line.rstrip("\r\n") for line in lines) if line]
    return [word for word in words if "\0" not in word], [repr(word) for word in words if "\0" in word]


def _matches(pattern: str, leave_out: Path) -> list[str]:
    """What the pattern matches, but for drawings; a file that "**" finds through links too is taken once."""
    found = glob.glob(pattern, recursive=True) if "\0" not in pattern else []
    first: dict[str, str] = {}
    for match in sorted(found, key=lambda match: (match.count(os.sep), match)):
        real = os.path.realpath(match)
        if not Path(real).is_relative_to(leave_out.resolve()):
            first.setdefault(real, match)
    return sorted(first.values())


class _Walk:
    """Gathers absolute paths, the folders they were asked for in, and what is wrong."""

    def __init__(self, leave_out: Path) -> None:
        self.leave_out = leave_out
        self.paths: list[Path] = []
        self.roots: list[Path] = []
        self.problems: list[str] = []
        self.notes: list[str] = []

    def add(self, word: str) -> None:
        path = Path(os.path.abspath(word))
        if not os.path.isdir(path):
            self.paths.append(path)
            self.roots.append(path.parent)
            return
        self.roots.append(path)
        before = len(self.paths)
        for folder, subfolders, files in os.walk(path, onerror=lambda error: self._unreadable(path, error)):
            inside = Path(folder)
            subfolders[:] = sorted(s for s in subfolders if s[0] != "." and inside / s != self.leave_out)
            names = sorted(name for name in files if name[0] != "." and Path(name).suffix.lower() in PICTURE_SUFFIXES)
            self.paths += [inside / name for name in names]
        if len(self.paths) == before and not self.problems:
            self.problems.append(f"INPUT {word}: no picture in this folder or those in it (name videos singly)")

    def _unreadable(self, root: Path, error: OSError) -> None:
        line = f"{error.filename}: the folder cannot be read ({error.strerror})"
        (self.problems if Path(error.filename) == root else self.notes).append(line)


def count_frames(sources: Iterable[Source], every: int) -> int:
    """Pictures to come, as far as the videos say."""
    return sum(-(-max(_video_length(s.path), 0) // every) if s.is_video else 1 for s in sources)


def read_frames(sources: Iterable[Source], every: int) -> Iterator[Frame]:
    """Read pictures and videos one after the other.

    Args:
        every: of videos, take frames 0, every, 2 * every, ...
    """
    for source in sources:
        if source.is_video:
            yield from _video_frames(source, every)
            continue
        try:
            yield Frame(source, source.name, read_picture(source.path))
        except PictureError as error:
            yield Frame(source, source.name, error)


def is_utf8(path: Path) -> bool:
    """Whether OpenCV can be given the name; others end the process."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def video_rate(path: Path) -> float:
    """Frames a second; 25 where the file does not say."""
    video = cv2.VideoCapture(str(path))
    rate = video.get(cv2.CAP_PROP_FPS)
    video.release()
    return rate if 0 < rate < 1000 else 25.0


def _video_length(path: Path) -> int:
    video = cv2.VideoCapture(str(path)) if path.is_file() and is_utf8(path) else None
    return int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video is not None and video.isOpened() else 0


def _video_frames(source: Source, every: int) -> Iterator[Frame]:
    if not source.path.is_file():
        yield Frame(source, source.name, PictureError(source.path, "no such file"))
        return
    if not is_utf8(source.path):
        yield Frame(source, source.name, PictureError(source.path, "OpenCV reads videos of names in UTF-8 alone"))
        return
    video = cv2.VideoCapture(str(source.path))
    number = 0
    try:
        while video.isOpened() and video.grab():
            if number % every == 0:
                ok, picture = video.retrieve()
                name = f"{source.name}#{number}"
                yield Frame(source, name, picture if ok else PictureError(name, "the frame cannot be decoded"))
            number += 1
        said = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        if number == 0:
            yield Frame(source, source.name, PictureError(source.path, "no video that OpenCV can read"))
        elif number < said:
            yield Frame(source, source.name, PictureError(source.path, f"ends after {number} of {said} frames"))
    finally:
        video.release()


def read_ahead(items: Iterator[T], most: int) -> Iterator[T]:
    """The items, fetched by a thread, which is at most so many ahead."""
    ready: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(most)
    stop = threading.Event()

    def put(entry: tuple[bool, T | BaseException | None]) -> None:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return
            except queue.Full:
                continue

    def fetch() -> None:
        try:
            for item in items:
                put((True, item))
                if stop.is_set():
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    threading.Thread(target=fetch, daemon=True).start()
    try:
        while True:
            more, entry = ready.get()
            if not more:
                if entry is not None:
                    raise entry  # type: ignore[misc]  # what comes last is an exception
                return
            yield entry  # type: ignore[misc]  # else it is an item
    finally:
        stop.set()
