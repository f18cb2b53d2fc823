"""A detector from a file that `focal-det export` wrote: ONNX or PyTorch's exported program. Needs no Detectron2."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from .detections import Detections
from .pictures import alike_in_size, resize_shortest_edge, to_batch

METADATA_KEY = "focal_det"
_VERSION = 1

# images (N, 3, H, W) uint8 and sizes (N, 2) int64 to boxes (N, D, 4), scores (N, D), classes (N, D), counts (N,)
_Run = Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]


class Metadata(NamedTuple):
    """What stands in an exported file beside the graph.

    class_names, category_ids: in the order of the labels; the ids are those of the annotation file.
    channels: "BGR" or "RGB", the order of the input's.
    min_size, max_size: the picture is resized until its shorter side is `min_size` and the longer at most `max_size`
        pixels; 0: not at all.
    score_thresh: detections below it do not leave the graph.
    """

    class_names: list[str]
    category_ids: list[int]
    channels: str
    min_size: int
    max_size: int
    score_thresh: float

    def to_json(self) -> str:
        """As text, for the file."""
        return json.dumps({"version": _VERSION, **self._asdict()})

    @classmethod
    def from_json(cls, text: str | None, path: Path) -> Metadata:
        """What `to_json` wrote.

        Raises:
            InputError: the file says nothing of the kind, or is of a newer version.
        """
        try:
            values = json.loads(text or "")
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise InputError(f"{path}: not written by `focal-det export`: it does not say its classes and sizes")
        if values.pop("version", None) != _VERSION:
            raise InputError(f"{path}: written by another version of focal_det; export the model again")
        return cls(**values)


class ExportedDetector:
    """Detects with an exported file; a `Detector`.

    Args:
        path: .onnx, run by onnxruntime, or .pt2, run by PyTorch.
        score_thresh: detections of at least this score, in [0, 1]; none: the file's own.
        threads: of onnxruntime; 0: as many as it finds right. PyTorch has `torch.set_num_threads`.

    Raises:
        InputError: no such file, not one of ours, a threshold below that in the file.
    """

    def __init__(self, path: str | Path, *, score_thresh: float | None = None, threads: int = 0) -> None:
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file; name one that `focal-det export` wrote")
        openers: dict[str, Callable[[Path], tuple[_Run, str | None]]]
        openers = {".onnx": partial(_open_onnx, threads=threads), ".pt2": _open_torch}
        if path.suffix not in openers:
            raise InputError(f"{path}: an exported model ends in {' or '.join(openers)}")
        self._run, text = openers[path.suffix](path)
        self.metadata = Metadata.from_json(text, path)
        self.class_names, self.category_ids = self.metadata.class_names, self.metadata.category_ids
        self.score_thresh = self.metadata.score_thresh if score_thresh is None else score_thresh
        self.path = path
        if self.score_thresh < self.metadata.score_thresh:
            raise InputError(self.too_low(self.score_thresh))

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[Detections]:
        """Detect on pictures (H, W, 3) uint8 BGR; boxes are in their pixels. Those of equal size go together."""
        resized = [self._prepared(picture) for picture in pictures]
        found: dict[int, Detections] = {}
        for batch in alike_in_size(resized, len(resized)):
            images, sizes = to_batch([resized[i] for i in batch], divisor=1)
            boxes, scores, classes, counts = self._run(images, sizes)
            for place, i in enumerate(batch):
                best = slice(int(counts[place]))
                whole = Detections(boxes[place, best], scores[place, best], classes[place, best])
                found[i] = self._kept(whole, pictures[i].shape, sizes[place])
        return [found[i] for i in range(len(pictures))]

    def too_low(self, score_thresh: float) -> str:
        """What there is to say to a threshold below the file's own."""
        return (
            f"score threshold {score_thresh:g} is below {self.metadata.score_thresh:g}, with which {self.path} was "
            "exported: export it again with a lower --score-thresh"
        )

    def _prepared(self, picture: np.ndarray) -> np.ndarray:
        meta = self.metadata
        if meta.channels == "RGB":
            picture = picture[:, :, ::-1]
        return resize_shortest_edge(picture, meta.min_size, meta.max_size) if meta.min_size else picture

    def _kept(self, found: Detections, shape: tuple[int, ...], size: np.ndarray) -> Detections:
        """Those above the threshold and not empty, in the picture's own pixels."""
        height, width = shape[:2]
        scale = np.array([width / size[1], height / size[0]] * 2, dtype=np.float32)
        boxes = np.clip(found.boxes * scale, 0, np.array([width, height] * 2, dtype=np.float32))
        keep = (found.scores >= self.score_thresh) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return Detections(boxes[keep], found.scores[keep], found.classes[keep])


def _providers(onnxruntime: Any) -> list[str]:
    """A GPU's, where onnxruntime was built for one, before the processor's."""
    available = onnxruntime.get_available_providers()
    return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]


def _open_onnx(path: Path, threads: int) -> tuple[_Run, str | None]:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"{path}: onnxruntime is needed ({error}): pip install onnxruntime") from error

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Weights in 8 bits are multiplied out once, at the start, instead of at every call.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=_providers(onnxruntime))
    except Exception as error:  # whatever it may raise on somebody's file
        raise InputError(f"{path}: onnxruntime cannot read it ({str(error).splitlines()[0]})") from error

    def run(images: np.ndarray, sizes: np.ndarray) -> Sequence[np.ndarray]:
        results: Sequence[np.ndarray] = session.run(None, {"images": images, "sizes": sizes})
        return results

    return run, session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)


def _open_torch(path: Path) -> tuple[_Run, str | None]:
    import torch
    import torchvision  # noqa: F401 - has the operator of the suppression

    extra = {METADATA_KEY: ""}
    logging.getLogger("torch.export").setLevel(logging.ERROR + 1)  # it logs a stack trace of what it raises
    try:
        # The tracer also notes that a level of a single location is laid out differently in memory, and would refuse
        # pictures of up to 128 px; the operators do not care.
        module = torch.export.load(path, extra_files=extra).module(check_guards=False)
    except Exception as error:  # whatever it may raise on somebody's file
        raise InputError(f"{path}: PyTorch cannot read it ({str(error).splitlines()[0]})") from error

    def run(images: np.ndarray, sizes: np.ndarray) -> Sequence[np.ndarray]:
        with torch.no_grad():
            return [part.numpy() for part in module(torch.from_numpy(images), torch.from_numpy(sizes))]

    return run, extra[METADATA_KEY]
