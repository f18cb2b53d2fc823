"""Cameras and network streams: the newest frame at any time, and a lost connection made again.

An address may hold a password, and its path or query a key: no more than scheme and host is ever shown or written.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from ..errors import InputError, counted
from .inputs import Frame, InputFile
from .videos import open_stream, usable_rate

_SCHEMES = ("http", "https", "rtmp", "rtmps", "rtsp", "rtsps", "udp")
_RECONNECTING_SECONDS = 120.0  # in which a camera can start anew
_FIRST_WAIT, _LONGEST_WAIT, _POLL_SECONDS = 0.5, 5.0, 0.2
_LOSSES_SAID = 3  # of a connection that breaks again and again


def find_stream(inputs: Sequence[str]) -> Stream | None:
    """Return the camera or stream that the inputs name, None for files.

    Raises:
        InputError: more inputs beside it, or an address of another kind.
    """
    found = [text for text in inputs if _is_camera(text) or "://" in text]
    if not found:
        return None
    if len(inputs) > 1:
        raise InputError(f"INPUT {shown(found[0])}: a camera or stream is the only INPUT; run a command for each")
    if not _is_camera(found[0]) and found[0].partition("://")[0].lower() not in _SCHEMES:
        raise InputError(f"INPUT {shown(found[0])}: an address begins with {', '.join(s + '://' for s in _SCHEMES)}")
    return Stream(found[0])


def _is_camera(text: str) -> bool:
    return re.fullmatch("[0-9]{1,2}", text) is not None and not os.path.lexists(text)


def shown(text: str) -> str:
    """Return what may be shown of a camera's number or an address: its scheme and host, if it is clear what these are.

    A password that holds "/" or "@" unescaped looks like a host.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text
    host, *others = re.split(r"[/?#\\]", rest, maxsplit=1)
    is_clear = host.count("@") <= 1 and not any("@" in other for other in others)
    return f"{scheme}://{host.rpartition('@')[2] if is_clear else '...'}"


class Stream:
    """A camera by its number, or an address; a thread reads it and keeps the newest frame alone.

    Attributes:
        file: that its frames belong to; named after the camera or the host.
        dropped: frames that came while the one before was still waiting.
        losses: how often the connection broke.
        is_lost: whether it did not come back.
    """

    def __init__(self, text: str) -> None:
        self._source, self.shown = text, shown(text)
        name = f"camera{text}" if text.isdecimal() else re.sub(r"[^\w.-]", "_", self.shown.partition("://")[2])
        name = name.strip(".") or "stream"
        self.file = InputFile(Path(name), name, is_stream=True)
        self.dropped = self.losses = 0
        self.is_lost = False
        self._video: cv2.VideoCapture | None = None
        self._changed = threading.Condition()
        self._newest: tuple[int, np.ndarray] | None = None
        self._closed = threading.Event()

    def open(self) -> None:
        """Connect.

        Raises:
            InputError: OpenCV cannot, or it is a video that has an end.
        """
        self._video = open_stream(self._source)
        if self._video is None:
            is_camera = self._source.isdecimal()
            fix = (
                "is it connected, and may you read it?" if is_camera else "is the address right, and the server there?"
            )
            raise InputError(f"INPUT {self.shown}: OpenCV cannot open it; {fix}")
        if (count := self._video.get(cv2.CAP_PROP_FRAME_COUNT)) > 0:
            raise InputError(f"INPUT {self.shown}: a video of {count:.0f} frames; download it, and name the file")

    @property
    def rate(self) -> float:
        """Frames per second, as the stream says; 25 where it does not."""
        return usable_rate(self._video.get(cv2.CAP_PROP_FPS) if self._video is not None else 0.0)

    def frames(
        self,
        *,
        every: int,
        most: int | None,
        seconds: float | None,
        is_stopped: Callable[[], bool],
        say: Callable[[str], object],
    ) -> Iterator[Frame]:
        """Yield the newest frame whenever one is asked for, until one of the bounds.

        Args:
            every: take frames 0, every, 2 * every, ... of those that arrive.
            most, seconds: frames to yield, and time from now; None for no bound.
            is_stopped: asked several times a second.
            say: called with a line when the connection breaks and when it is back.
        """
        threading.Thread(target=self._read, args=(every, say), daemon=True).start()
        end = None if seconds is None else time.monotonic() + seconds
        given = 0
        while not is_stopped() and given != most and (end is None or time.monotonic() < end):
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self.is_lost, _POLL_SECONDS)
                newest, self._newest = self._newest, None
                is_over = newest is None and self.is_lost
            if newest is not None:
                given += 1
                yield Frame(self.file, f"{self.file.name}#{newest[0]}", newest[1], newest[0])
            elif is_over:
                break
        self.close()

    def close(self) -> None:
        """End the thread, once it has its next frame."""
        self._closed.set()

    def notes(self) -> list[str]:
        """Return what is to be said at the end."""
        dropped = f"{self.shown}: {counted(self.dropped, 'frame')} came too fast to be looked at"
        broken = f"{self.shown}: the connection broke {counted(self.losses, 'time')}"
        return [dropped] * bool(self.dropped) + [broken] * (self.losses > _LOSSES_SAID)

    def _read(self, every: int, say: Callable[[str], object]) -> None:
        """Read until closed or lost, which it is by any error, too; the thread's own."""
        number = 0
        try:
            while not self._closed.is_set():
                if self._video is None or not self._video.grab():
                    self._video = None if self._closed.is_set() else self._reconnected(number, say)
                    if self._video is None:
                        break
                if number % every == 0:
                    is_sound, image = self._video.retrieve()
                    if is_sound:
                        self._put(number, image)
                number += 1
        finally:
            with self._changed:
                self.is_lost = not self._closed.is_set()
                self._changed.notify_all()
            if self._video is not None:
                self._video.release()

    def _put(self, number: int, image: np.ndarray) -> None:
        with self._changed:
            self.dropped += self._newest is not None
            self._newest = number, image
            self._changed.notify_all()

    def _reconnected(self, number: int, say: Callable[[str], object]) -> cv2.VideoCapture | None:
        """Connect again, and grab a frame; None when closed or where that fails for too long."""
        self.losses += 1
        if is_said := self.losses <= _LOSSES_SAID:
            limit = f"trying to connect for {_RECONNECTING_SECONDS:g} s"
            say(f"{self.shown}: no frame after {counted(number, 'frame')}; {limit}")
        start, wait = time.monotonic(), _FIRST_WAIT
        if self._video is not None:
            self._video.release()
        while not self._closed.wait(wait) and time.monotonic() < start + _RECONNECTING_SECONDS:
            video = open_stream(self._source)
            if video is not None and video.grab():
                if is_said:
                    say(f"{self.shown}: back after {time.monotonic() - start:.0f} s")
                return video
            wait = min(2 * wait, _LONGEST_WAIT)
        return None
