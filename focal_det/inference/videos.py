"""Videos, cameras and network streams as OpenCV opens them, one at a time.

What FFmpeg may fetch is a variable of the whole process, and so is how much OpenCV prints: while a thread connects to a
stream, another that opens a file has to wait, or its file would be refused.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2

from .images import ImageError

NOT_A_VIDEO = "not a video that OpenCV can read"

# Read by OpenCV when it opens its first video: a message of ours names a bad video, so FFmpeg prints nothing.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

_VARIABLE = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
# A "video" may be a list of addresses, which FFmpeg would fetch.
_FILES_ALONE = "protocol_whitelist;file"
# What a stream may fetch from: never this machine's files, which a list of addresses might name.
_ADDRESSES_ALONE = "rtsp_transport;tcp|protocol_whitelist;crypto,http,https,rtmp,rtmps,rtp,tcp,tls,udp"
_TIMEOUT_MS = 10_000  # for a connection, and for a frame
_one_at_a_time = threading.Lock()


def open_video(path: Path) -> cv2.VideoCapture:
    """Open a file.

    Raises:
        ImageError: it is missing, or OpenCV cannot read it.
    """
    if not path.is_file():
        raise ImageError(path, "not a file" if path.exists() else "no such file")
    if not is_utf8(path):
        raise ImageError(path, "OpenCV reads only videos whose names are UTF-8")
    with _may_read(_FILES_ALONE):
        video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise ImageError(path, NOT_A_VIDEO)
    return video


def open_stream(source: str) -> cv2.VideoCapture | None:
    """Connect to a camera, by its number, or to an address; return None if OpenCV cannot. Neither is printed."""
    timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _TIMEOUT_MS]
    with _may_read(_ADDRESSES_ALONE):
        level = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            if source.isdecimal():
                video = cv2.VideoCapture(int(source))
            else:
                video = cv2.VideoCapture(source, cv2.CAP_FFMPEG, timeouts)
        except (cv2.error, ValueError):  # whose message may hold the address
            return None
        finally:
            cv2.utils.logging.setLogLevel(level)
    return video if video.isOpened() else None


def video_property(path: Path, which: int) -> float:
    """Return what a file says of itself, one of OpenCV's CAP_PROP_...; 0 if it cannot be read."""
    try:
        value: float = open_video(path).get(which)
    except ImageError:  # which is said where its frames are read
        return 0.0
    return value


def usable_rate(rate: float) -> float:
    """Return the frames per second that a video states; 25 where that cannot be."""
    return rate if 0 < rate < 1000 else 25.0


def is_utf8(path: Path) -> bool:
    """Tell whether OpenCV can be given the name; any other would abort the process."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _may_read(options: str) -> Iterator[None]:
    """Let FFmpeg read what the options allow, alone in the process; options that a user has set stay."""
    with _one_at_a_time:
        is_users = _VARIABLE in os.environ
        if not is_users:
            os.environ[_VARIABLE] = options
        try:
            yield
        finally:
            if not is_users:
                os.environ.pop(_VARIABLE, None)
