"""The files of a prediction: drawings under the names of their images, and detections.json."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import some
from ..files import write_text_whole, written_whole
from .detections import Detections
from .drawing import write_image
from .inputs import InputFile, is_utf8, video_rate

DETECTIONS_FILE = "detections.json"

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


def output_problems(files: Sequence[Path], inputs: Iterable[InputFile], out: Path, *, overwrite: bool) -> list[str]:
    """Return why these files cannot be written: an input, or a file of somebody else, has the name or a parent's."""
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


class Results:
    """Detections in COCO's format, with their images and categories, so that they serve as an annotation file."""

    def __init__(self, out: Path, class_names: Sequence[str], category_ids: Sequence[int]) -> None:
        self.path, self.category_ids = out / DETECTIONS_FILE, category_ids
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.categories = [{"id": i, "name": name} for i, name in zip(category_ids, class_names, strict=True)]

    def add(self, name: str, shape: Sequence[int], detections: Detections) -> None:
        """Add an image of height and width `shape` and what was found in it."""
        image_id = len(self.images) + 1
        self.images.append({"id": image_id, "file_name": name, "width": int(shape[1]), "height": int(shape[0])})
        for entry in detections.to_coco(image_id, self.category_ids):
            area = entry["bbox"][2] * entry["bbox"][3]
            self.annotations.append({"id": len(self.annotations) + 1, **entry, "area": area, "iscrowd": 0})

    def write(self) -> None:
        """Write the file, whole or not at all."""
        coco = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        write_text_whole(self.path, json.dumps(coco))  # in ASCII, whose escapes also hold names that are not UTF-8


class Drawings:
    """Writes drawings, those of a video's frames as a video, which `close` finishes.

    Args:
        files: the drawing of each input.
        every: every how many frames of a video are drawn; its frame rate is divided by this.
    """

    def __init__(self, files: dict[InputFile, Path], every: int) -> None:
        self.files, self.every = files, every
        self._file: InputFile | None = None
        self._video: cv2.VideoWriter | None = None
        self._open = ExitStack()

    def add(self, file: InputFile, drawing: np.ndarray) -> None:
        """Write a drawing, or raise OSError."""
        if not file.is_video:
            self.close()
            write_image(self.files[file], drawing)
            return
        height, width = (side // 2 * 2 for side in drawing.shape[:2])  # the format needs even sides
        if file != self._file:
            self.close()
            self._start_video(file, (width, height))
        if self._video is not None:
            self._video.write(np.ascontiguousarray(drawing[:height, :width]))

    def _start_video(self, file: InputFile, size: tuple[int, int]) -> None:
        path = self.files[file]
        if not is_utf8(path):
            raise OSError("OpenCV writes only videos whose names are UTF-8; rename the file or --out")
        rate = max(video_rate(file.path) / self.every, 1.0)
        with ExitStack() as opening:
            partial = opening.enter_context(written_whole(path))
            video = cv2.VideoWriter(str(partial), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
            if not video.isOpened():
                raise OSError("OpenCV cannot write it as a video")
            self._file, self._video, self._open = file, video, opening.pop_all()

    def close(self) -> None:
        """Finish the last video."""
        if self._video is not None:
            self._video.release()
            self._open.close()
        self._file = self._video = None
