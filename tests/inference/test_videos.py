"""Videos and streams side by side: a file is read as a file, whatever connects at the same time."""

import os
import threading
import time

import cv2
import numpy as np
import pytest
from stream_server import ENOUGH_TO_OPEN, Camera, serving

from focal_det.inference import videos
from focal_det.inference.images import ImageError
from focal_det.inference.videos import open_stream, open_video, usable_rate, video_property

VARIABLE = "OPENCV_FFMPEG_CAPTURE_OPTIONS"


@pytest.fixture
def camera():
    with serving(Camera()) as camera:
        yield camera


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "v.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 32))
    for _ in range(3):
        writer.write(np.zeros((32, 64, 3), np.uint8))
    writer.release()
    return path


def test_a_file_opens_while_threads_connect(camera, clip, monkeypatch):
    monkeypatch.setattr(videos, "_TIMEOUT_MS", 500)
    camera.most, camera.hangs = ENOUGH_TO_OPEN // 4, True  # too few to open it, so each connection waits for more
    threads = [threading.Thread(target=open_stream, args=(camera.url,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 30
    while not camera.sent:
        assert time.monotonic() < end
        time.sleep(0.001)
    opened = open_video(clip)
    for thread in threads:
        thread.join()
    assert opened.get(cv2.CAP_PROP_FPS) == 10
    assert video_property(clip, cv2.CAP_PROP_FPS) == 10
    assert VARIABLE not in os.environ


def test_files_come_from_files_alone_and_streams_never_do(camera, clip, monkeypatch):
    allowed, opening = [], cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda *args: (allowed.append(os.environ[VARIABLE]), opening(*args))[1])
    open_video(clip)
    open_stream(camera.url)
    file, address = (text.rpartition("protocol_whitelist;")[2].split(",") for text in allowed)
    assert file == ["file"]
    assert "http" in address
    assert "file" not in address


def test_options_that_a_user_has_set_stay(camera, clip, monkeypatch):
    monkeypatch.setenv(VARIABLE, "protocol_whitelist;http,tcp")
    assert open_stream(camera.url) is not None
    with pytest.raises(ImageError, match=videos.NOT_A_VIDEO):
        open_video(clip)
    assert os.environ[VARIABLE] == "protocol_whitelist;http,tcp"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none.mp4", "no such file"), ("folder.mp4", "not a file"), ("\udcff.mp4", "only videos whose names are UTF-8")],
)
def test_what_cannot_be_opened_is_said(clip, name, reason):
    path = clip.with_name(name)
    if reason == "not a file":
        path.mkdir()
    if "UTF-8" in reason:
        clip.rename(path)
    with pytest.raises(ImageError, match=reason):
        open_video(path)
    assert (
        usable_rate(video_property(path, cv2.CAP_PROP_FPS)) == 25
    )  # such as of a file that is gone while its frames are drawn
