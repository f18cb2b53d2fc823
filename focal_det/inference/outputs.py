"""What a prediction writes: which files, under which names, whether they can be; and the drawings."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np

from ..errors import some
from ..files import written_whole
from .detections import Detections, Detector
from .drawing import write_image
from .inputs import Frame, InputFile
from .result_files import (
    COCO_FILE,
    CROPS_FOLDER,
    CSV_FILE,
    YOLO_FOLDER,
    CocoWriter,
    CropWriter,
    CsvWriter,
    DetectionWriter,
    YoloWriter,
    written_or_named,
)
from .videos import is_utf8, usable_rate, video_property

KINDS = ("coco", "csv", "yolo", "crops", "drawings")
_WRITABLE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")  # others become PNG


def drawing_files(inputs: Iterable[InputFile], out: Path) -> dict[InputFile, Path]:
    """Name each drawing: the image's name under `out`, with ".png" or ".mp4" appended where it becomes such a file."""
    files: dict[InputFile, Path] = {}
    taken: set[str] = set()
    for file in inputs:
        suffix = ".mp4" if file.is_video else ".png"
        writable = file.path.suffix.lower() in ((".mp4",) if file.is_video else _WRITABLE_SUFFIXES)
        name = file.name if writable else file.name + suffix
        while name in taken:  # a.gif becomes a.gif.png, which may be another image's name
            name += suffix
        taken.add(name)
        files[file] = out / name
    return files


def output_problems(
    kinds: Collection[str], drawings: dict[InputFile, Path], out: Path, *, overwrite: bool
) -> list[str]:
    """Return why the files of these kinds cannot be written: an input, or another file, has the name or a parent's.

    Args:
        drawings: of each input; only its inputs count unless drawings are of the `kinds`.
    """
    inputs = list(drawings)
    files = [out / name for kind, name in (("coco", COCO_FILE), ("csv", CSV_FILE)) if kind in kinds]
    files += drawings.values() if "drawings" in kinds else []
    own = [out / name for kind, name in (("yolo", YOLO_FOLDER), ("crops", CROPS_FOLDER)) if kind in kinds]
    # The names in these are not all known before, and an earlier prediction's must not be taken for this one's.
    if full := [folder for folder in own if os.path.lexists(folder) and not _is_empty_folder(folder)]:
        return [f"--out {out} already has {some('', full)}, which --overwrite leaves alone; remove it or name another"]
    if mixed := sorted(path for path in files if any(path.is_relative_to(folder) for folder in own)):
        return [f"--out {out}: {some('', mixed)} would be a drawing among other files; write these separately"]
    real_inputs = {os.path.realpath(file.path) for file in inputs}
    overwritten = [path for path in files if os.path.realpath(path) in real_inputs]
    if overwritten:
        return [f"--out {out}: the drawings would overwrite their images ({some('', overwritten)}); name another"]
    above = {folder for path in files for folder in path.parents if folder.is_relative_to(out)}
    blocking = sorted(path for path in above if os.path.lexists(path) and not path.is_dir())
    if blocking:
        return [f"--out {out}: {some('', blocking)} is a file where a folder of drawings must be; name another"]
    both = sorted(above.intersection(files))
    if both:
        return [f"--out {out}: {some('', both)} would be a drawing and a folder of drawings; predict them separately"]
    there = [path for path in files if os.path.lexists(path)]
    if there and not overwrite:
        return [f"--out {out} already has {some('', there)}; name another, or add --overwrite"]
    folders = [path for path in there if path.is_dir()]
    return [f"--out {out}: {some('', folders)} is a folder; name another"] if folders else []


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def make_writers(kinds: Collection[str], detector: Detector, out: Path, drawings: Drawings) -> list[DetectionWriter]:
    """Return a writer for each of the kinds."""
    names, ids = detector.class_names, detector.category_ids
    writers: dict[str, DetectionWriter] = {
        "coco": CocoWriter(out, names, ids),
        "csv": CsvWriter(out),
        "yolo": YoloWriter(out, names),
        "crops": CropWriter(out, names),
        "drawings": drawings,
    }
    return [writers[kind] for kind in KINDS if kind in kinds]


class Drawings:
    """Writes drawings, those of a video's frames as a video, which `close` finishes.

    Args:
        files: the drawing of each input.
        every: every how many frames of a video are drawn; its frame rate is divided by this.
        rate: frames per second of a stream.
    """

    def __init__(self, files: dict[InputFile, Path], every: int, rate: float | None = None) -> None:
        self.files, self.every, self.rate = files, every, rate
        self._file: InputFile | None = None
        self._video: cv2.VideoWriter | None = None
        self._partial, self._frames = Path(), 0  # of it
        self._open = ExitStack()
        self._failed: InputFile | None = None  # a video that cannot be written, which is said once

    def add(self, frame: Frame, image: np.ndarray, found: Detections) -> None:
        """Draw what was found, and write it."""
        file = frame.file
        if file == self._failed:
            return
        drawing, path = found.draw(image), self.files[file]
        if not file.is_video:
            self.close()
            with written_or_named("drawing", path):
                write_image(path, drawing)
            return
        height, width = (side // 2 * 2 for side in drawing.shape[:2])  # the format needs even sides
        if file != self._file:
            self.close()
            self._failed = file
            with written_or_named("drawing", path):
                self._start_video(file, path, (width, height))
            self._failed = None
        if self._video is not None:
            self._video.write(np.ascontiguousarray(drawing[:height, :width]))
            self._frames += 1

    def _start_video(self, file: InputFile, path: Path, size: tuple[int, int]) -> None:
        if not is_utf8(path):
            raise OSError("OpenCV writes only videos whose names are UTF-8; rename the file or --out")
        rate = max((self.rate or usable_rate(video_property(file.path, cv2.CAP_PROP_FPS))) / self.every, 1.0)
        with ExitStack() as opening:
            partial = opening.enter_context(written_whole(path))
            video = cv2.VideoWriter(str(partial), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
            if not video.isOpened():
                raise OSError("OpenCV cannot write it as a video")
            self._file, self._video, self._open = file, video, opening.pop_all()
            self._partial, self._frames = partial, 0

    def close(self) -> list[str]:
        """Finish the last video; raise an OSError, and leave none, if it is not whole, of which OpenCV says nothing."""
        if self._file is not None and self._video is not None:
            path, video = self.files[self._file], self._video
            self._file = self._video = None
            with self._open:
                video.release()
                if video_property(self._partial, cv2.CAP_PROP_FRAME_COUNT) < self._frames:
                    raise OSError(errno.EIO, "OpenCV could not write all of it; is the disk full?", str(path))
        return []
