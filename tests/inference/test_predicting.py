"""Predicting many images: what is done at the same time, and what a stop leaves."""

import json
import threading

import cv2
import numpy as np
import pytest
from full_disk import room_for

from focal_det.inference import drawing
from focal_det.inference.detections import Detections
from focal_det.inference.inputs import Frame, InputFile, read_frames
from focal_det.inference.outputs import Drawings, make_writers
from focal_det.inference.predicting import StopSignals, predict_all

NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


class Stub:
    """A detector that finds nothing and counts its calls."""

    class_names, category_ids = ["a"], [1]

    def __init__(self):
        self.calls = threading.Semaphore(0)

    def __call__(self, images):
        self.calls.release()
        return [NOTHING] * len(images)


def predict(folder, detector, stop, on_image=lambda: None):
    files = []
    for name in ("0.png", "1.png", "2.png"):
        cv2.imwrite(str(folder / name), np.zeros((8, 9, 3), np.uint8))
        files.append(InputFile(folder / name, name))
    drawings = Drawings({file: folder / f"drawn_{file.name}" for file in files}, every=1)
    writers = make_writers(("coco", "drawings"), detector, folder, drawings)
    options = {"score_thresh": 0.5, "batch_size": 1, "read_ahead_of": 2, "stop": stop}
    return predict_all(detector, read_frames(files, 1), writers, **options, on_image=on_image, on_bad=print)


def test_the_next_batch_is_detected_while_one_is_drawn(tmp_path, monkeypatch):
    detector, seen = Stub(), []

    def draw(image, *_, **__):
        if not seen:  # of the first batch and, without an end to this drawing, of the second
            seen.extend(detector.calls.acquire(timeout=60) for _ in range(2))
        return image

    monkeypatch.setattr(drawing, "draw_boxes", draw)
    assert predict(tmp_path, detector, StopSignals()).images == 3
    assert seen == [True, True]


def test_after_a_stop_no_batch_is_begun_and_what_was_detected_is_written(tmp_path):
    detector, stop = Stub(), StopSignals()

    def note():
        stop.number = 2

    images = predict(tmp_path, detector, stop, on_image=note).images
    assert images in (1, 2)  # the second may have begun before
    assert len(list(tmp_path.glob("drawn_*"))) == images == detector.calls._value
    assert len(json.loads((tmp_path / "detections.json").read_text())["images"]) == images


def test_a_video_that_the_disk_has_no_room_for_is_named_and_the_one_before_stays(tmp_path):
    """OpenCV's writer says nothing of it."""
    file = InputFile(tmp_path / "v.mp4", "v.mp4")
    drawings = Drawings({file: tmp_path / "drawn.mp4"}, every=1)
    (tmp_path / "drawn.mp4").write_text("before")
    rng = np.random.default_rng(0)

    def write():
        for number in range(20):
            pixels = rng.integers(0, 256, (64, 96, 3), np.uint8)
            drawings.add(Frame(file, f"v.mp4#{number}", pixels, number), pixels, NOTHING)
        drawings.close()

    with room_for(20_000), pytest.raises(OSError, match="OpenCV could not write all of it; is the disk full") as raised:
        write()
    assert raised.value.filename == str(tmp_path / "drawn.mp4")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("drawn.mp4", "before")]
    assert drawings.close() == []
