"""What predicting leaves behind: drawings under the names of their pictures, and detections.json."""

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
from .detections import Detections, to_coco
from .drawing import write_picture
from .sources import Source, is_utf8, video_rate

DETECTIONS_FILE = "detections.json"

_WRITTEN_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")  # others become PNG


def drawing_files(sources: Iterable[Source], out: Path) -> dict[Source, Path]:
    """Where each drawing goes: the picture's name under `out`, with ".png" or ".mp4" behind where that is written."""
    files: dict[Source, Path] = {}
    taken: set[str] = set()
    for source in sources:
        suffix = ".mp4" if source.is_video else ".png"
        written = source.path.suffix.lower() in ((".mp4",) if source.is_video else _WRITTEN_SUFFIXES)
        name = source.name if written else source.name + suffix
        while name in taken:  # a.gif.png behind a.gif
            name += suffix
        taken.add(name)
        files[source] = out / name
    return files


def output_problems(files: Sequence[Path], sources: Iterable[Source], out: Path, *, overwrite: bool) -> list[str]:
    """What speaks against writing these files: the pictures themselves, or somebody's files, are there or above."""
    inputs = {os.path.realpath(source.path) for source in sources}
    own = [path for path in files if os.path.realpath(path) in inputs]
    if own:
        return [f"--out {out}: the drawings would take the place of their pictures ({some('', own)}); name another"]
    above = {folder for path in files for folder in path.parents if folder.is_relative_to(out)}
    blocking = sorted(path for path in above if os.path.lexists(path) and not path.is_dir())
    if blocking:
        return [f"--out {out}: {some('', blocking)} is a file, but a folder of drawings is to be there; name another"]
    both = sorted(above.intersection(files))
    if both:
        return [f"--out {out}: {some('', both)} would be a file and a folder of drawings; predict them apart"]
    there = [path for path in files if os.path.lexists(path)]
    if there and not overwrite:
        return [f"--out {out} already has {some('', there)}; name another, or add --overwrite"]
    folders = [path for path in there if path.is_dir()]
    return [f"--out {out}: {some('', folders)} is a folder; name another"] if folders else []


class Results:
    """Detections in COCO's format, with their pictures and categories, so that they serve as an annotation file.

    Args:
        out: the folder that gets `detections.json`.
        class_names, category_ids: of the labels.
    """

    def __init__(self, out: Path, class_names: Sequence[str], category_ids: Sequence[int]) -> None:
        self.path, self.category_ids = out / DETECTIONS_FILE, category_ids
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.categories = [{"id": i, "name": name} for i, name in zip(category_ids, class_names, strict=True)]

    def add(self, name: str, shape: Sequence[int], detections: Detections) -> None:
        """Note a picture of height and width `shape` and what was found in it."""
        image_id = len(self.images) + 1
        self.images.append({"id": image_id, "file_name": name, "width": int(shape[1]), "height": int(shape[0])})
        for entry in to_coco(detections, image_id, self.category_ids):
            area = entry["bbox"][2] * entry["bbox"][3]
            self.annotations.append({"id": len(self.annotations) + 1, **entry, "area": area, "iscrowd": 0})

    def write(self) -> None:
        """Write the file, whole."""
        coco = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        write_text_whole(self.path, json.dumps(coco))  # in ASCII, which has a word for names that are not UTF-8 too


class Drawings:
    """Writes drawings, those of a video's frames into one; `close` ends the last video.

    Args:
        files: of each source.
        every: the frames taken of a video, by which its rate goes down.
    """

    def __init__(self, files: dict[Source, Path], every: int) -> None:
        self.files, self.every = files, every
        self._source: Source | None = None
        self._video: cv2.VideoWriter | None = None
        self._open = ExitStack()

    def add(self, source: Source, drawing: np.ndarray) -> None:
        """Write one.

        Raises:
            OSError: it cannot be written.
        """
        if source.is_video:
            self._add_to_video(source, drawing)
            return
        self.close()
        write_picture(self.files[source], drawing)

    def _add_to_video(self, source: Source, drawing: np.ndarray) -> None:
        height, width = (side // 2 * 2 for side in drawing.shape[:2])  # the format wants even sides
        if source != self._source:
            self.close()
            self._start_video(source, (width, height))
        if self._video is not None:
            self._video.write(np.ascontiguousarray(drawing[:height, :width]))

    def _start_video(self, source: Source, size: tuple[int, int]) -> None:
        path = self.files[source]
        if not is_utf8(path):
            raise OSError("OpenCV writes videos under names in UTF-8 alone; rename the file or --out")
        rate = max(video_rate(source.path) / self.every, 1.0)
        with ExitStack() as opening:
            partial = opening.enter_context(written_whole(path))
            video = cv2.VideoWriter(str(partial), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
            if not video.isOpened():
                raise OSError("OpenCV cannot write it as a video")
            self._source, self._video, self._open = source, video, opening.pop_all()

    def close(self) -> None:
        """End the last video."""
        if self._video is not None:
            self._video.release()
            self._open.close()
        self._source = self._video = None
