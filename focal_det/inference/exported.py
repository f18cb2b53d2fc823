"""A detector from a file that `focal-det export` wrote: ONNX or PyTorch's exported program. Needs no Detectron2."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.tiling import Tiles
from ..defaults import MIN_TILE, MOST_OVERLAP
from ..errors import Findings, InputError, first_line
from .detections import Detections
from .detector import ImageDetector, batch_size_problems
from .images import alike_in_size, resize_shortest_edge, to_batch
from .tiles import detect_in_tiles

METADATA_KEY = "focal_det"
INPUTS, OUTPUTS = ["images", "sizes"], ["boxes", "scores", "classes", "counts"]
# Also in an ONNX file's metadata: the SHA-256 of the file's bytes, with zeros in place of the digest itself.
DIGEST_KEY, NO_DIGEST = "focal_det_sha256", "0" * 64
_VERSION = 1

# The protobuf key by which a tensor of an ONNX file keeps its numbers in another file: "location", of 8 bytes.
_EXTERNAL_DATA = re.compile(rb"\n(\x08|\x88\x80*\0)location")

# images (N, 3, H, W) uint8 and sizes (N, 2) int64 to boxes (N, D, 4), scores (N, D), classes (N, D), counts (N,)
_Run = Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]


class Metadata(NamedTuple):
    """What a reader of an exported file has to know besides the graph.

    class_names, category_ids: in the order of the labels; the ids are those of the annotation file.
    channels: "BGR" or "RGB", the order of the input's.
    min_size, max_size: the image is resized until its shorter side is `min_size` and the longer at most `max_size`
        pixels; 0: not at all.
    score_thresh: the graph returns no detections below it.
    tile, overlap: of the `Tiles` in which it detects; only in files of models that do so.
    """

    class_names: list[str]
    category_ids: list[int]
    channels: str
    min_size: int
    max_size: int
    score_thresh: float
    tile: int = Tiles().size
    overlap: float = Tiles().overlap

    def to_json(self) -> str:
        """Return the text for the file."""
        values = {"version": _VERSION, **self._asdict()}
        if not self.tile:  # so that versions without tiles read it
            del values["tile"], values["overlap"]
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str | None, path: Path) -> Metadata:
        """Read what `to_json` wrote; raise InputError for none, another version's, or damaged values, each named."""
        try:
            values = json.loads(text or "")
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise InputError(f"{path}: not written by `focal-det export`: it does not name its classes and sizes")
        if values.pop("version", None) != _VERSION:
            raise InputError(f"{path}: written by another version of focal_det; export the model again")
        values = {"tile": Tiles().size, "overlap": Tiles().overlap, **values}
        wrong = _wrong_values(values, cls._fields)
        if wrong:
            raise InputError(f"{path}: damaged: {'; '.join(wrong)}; export the model again")
        return cls(**values)


def _wrong_values(values: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Return which values of a file's metadata are missing, unknown or impossible."""
    wrong = [f"{name} is missing" for name in names if name not in values]
    wrong += [f"{name!r} is unknown" for name in values if name not in names]
    if wrong:
        return wrong
    classes, ids = values["class_names"], values["category_ids"]
    rules = {
        "class_names": (_are_distinct(classes, str), "a list of distinct texts"),
        "category_ids": (_are_distinct(ids, int), "a list of distinct integers"),
        "channels": (values["channels"] in ("BGR", "RGB"), "BGR or RGB"),
        "min_size": (type(values["min_size"]) is int and values["min_size"] >= 0, "an integer >= 0"),
        "max_size": (type(values["max_size"]) is int and values["max_size"] >= 1, "an integer >= 1"),
        "score_thresh": (type(values["score_thresh"]) in (int, float) and 0 <= values["score_thresh"] < 1, "in [0, 1)"),
        "tile": (type(values["tile"]) is int and not 0 != values["tile"] < MIN_TILE, f"0 or an integer >= {MIN_TILE}"),
        "overlap": (
            type(values["overlap"]) in (int, float) and 0 <= values["overlap"] <= MOST_OVERLAP,
            f"in [0, {MOST_OVERLAP}]",
        ),
    }
    wrong = [f"{name} is {values[name]!r}, not {needed}" for name, (holds, needed) in rules.items() if not holds]
    if not wrong and len(classes) != len(ids):
        wrong.append(f"{len(classes)} class_names, but {len(ids)} category_ids")
    return wrong


def _are_distinct(values: Any, kind: type) -> bool:
    are_of_kind = isinstance(values, list) and all(type(value) is kind for value in values)
    return are_of_kind and 0 < len(set(values)) == len(values)


class _Opened(NamedTuple):
    """An opened file: its graph, its metadata, and the names of inputs and outputs (or how many, without names)."""

    run: _Run
    metadata: str | None
    inputs: list[str]
    outputs: list[str] | int


class ExportedDetector(ImageDetector):
    """A detector from an exported file; called as `ImageDetector` says.

    Args:
        path: .onnx, run by onnxruntime, or .pt2, run by PyTorch.
        trusted: allow a .pt2, which can run any program of its author when it is opened.
        score_thresh: detections of at least this score, in [0, 1]; None for the file's own threshold.
        threads: of onnxruntime; 0 for its default. PyTorch has `torch.set_num_threads`.
        batch_size: most images, or tiles, that go through the graph together; only those of equal size do.
        device: "cpu", or "cuda", "cuda:1" for an .onnx; None for the GPU that onnxruntime can use, else the processor.
        tile, overlap: of `Tiles` for large images; None for the file's own.

    Raises:
        InputError: no such file, not one of ours, a .pt2 that is not trusted, a threshold below that in the file,
            no such batch or device, a value that no tile can have.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        trusted: bool = False,
        score_thresh: float | None = None,
        threads: int = 0,
        batch_size: int = 4,
        device: str | None = None,
        tile: int | None = None,
        overlap: float | None = None,
    ) -> None:
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file; name one that `focal-det export` wrote")
        if path.suffix not in (".onnx", ".pt2"):
            raise InputError(f"{path}: an exported model ends in .onnx or .pt2")
        if path.suffix == ".pt2" and not trusted:
            raise InputError(
                f"{path}: a .pt2 file can run any program when PyTorch opens it; if you made it yourself, or trust "
                "whoever did, add --trust-model (trusted=True in Python), or take an .onnx, which runs none"
            )
        Findings(batch_size_problems(batch_size)).raise_if_errors()
        self.batch_size = batch_size
        providers = _providers(device, path)
        opened = _open_torch(path) if path.suffix == ".pt2" else _open_onnx(path, threads, providers)
        self._run, self.metadata = opened.run, Metadata.from_json(opened.metadata, path)
        if opened.inputs != INPUTS or opened.outputs not in (OUTPUTS, len(OUTPUTS)):
            raise InputError(
                f"{path}: takes {opened.inputs} and gives {opened.outputs}, not {INPUTS} and {OUTPUTS} as written by "
                "`focal-det export`: export the model again"
            )
        self.class_names, self.category_ids = self.metadata.class_names, self.metadata.category_ids
        self.score_thresh = self.metadata.score_thresh if score_thresh is None else score_thresh
        self.path = path
        self.tiles = Tiles(self.metadata.tile, self.metadata.overlap).replaced(tile, overlap)
        if not 0 <= self.score_thresh <= 1:
            raise InputError(f"score_thresh is {self.score_thresh}; it must be in [0, 1]")
        if self.score_thresh < self.metadata.score_thresh:
            raise InputError(self.low_threshold_message(self.score_thresh))

    def _detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        return detect_in_tiles(self._in_whole, images, self.tiles, self.batch_size)

    def _in_whole(self, images: Sequence[np.ndarray]) -> list[Detections]:
        resized = [self.resized(image) for image in images]
        found: dict[int, Detections] = {}
        for batch in alike_in_size(resized, self.batch_size):
            pixels, sizes = to_batch([resized[i] for i in batch], divisor=1)
            boxes, scores, classes, counts = self._run(pixels, sizes)
            for row, i in enumerate(batch):
                best = slice(int(counts[row]))
                every = Detections(boxes[row, best], scores[row, best], classes[row, best])
                found[i] = self._kept(every, images[i].shape, sizes[row])
        return [found[i] for i in range(len(images))]

    def resized(self, image: np.ndarray) -> np.ndarray:
        """Return (H, W, 3) uint8 BGR in the file's order of channels and in the size that its network sees."""
        ordered = image[:, :, ::-1] if self.metadata.channels == "RGB" else image
        return resize_shortest_edge(ordered, self.metadata.min_size, self.metadata.max_size)

    def low_threshold_message(self, score_thresh: float) -> str:
        """Return the message for a threshold below the file's own."""
        return (
            f"score threshold {score_thresh:g} is below {self.metadata.score_thresh:g}, with which {self.path} was "
            "exported: export it again with a lower --score-thresh"
        )

    def _kept(self, found: Detections, shape: tuple[int, ...], size: np.ndarray) -> Detections:
        """Return the detections above the threshold that are not empty, in the image's own pixels."""
        height, width = shape[:2]
        scale = np.array([width / size[1], height / size[0]] * 2, dtype=np.float32)
        boxes = np.clip(found.boxes * scale, 0, np.array([width, height] * 2, dtype=np.float32))
        keep = (found.scores >= self.score_thresh) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return replace(found, boxes=boxes)[keep]


def digest_of(model: bytes, stated: str) -> str:
    """Return the SHA-256 of an ONNX file that states the given one under `DIGEST_KEY`."""
    return hashlib.sha256(model.replace(stated.encode(), NO_DIGEST.encode(), 1)).hexdigest()


def _providers(device: str | None, path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return onnxruntime's providers for a device, best first, with their options."""
    cpu = ("CPUExecutionProvider", dict[str, str]())
    kind, _, number = (device or "cuda").partition(":")
    if (kind, number) == ("cpu", ""):
        return [cpu]
    if kind != "cuda" or not (number or "0").isdecimal():
        raise InputError(f"device is {device!r}; it must be cuda, cuda:<number> or cpu")
    if path.suffix == ".pt2" and device is not None:
        raise InputError(
            f"device is {device!r}: a .pt2 runs on the processor, for which it was exported; take an .onnx"
        )
    cuda = ("CUDAExecutionProvider", {"device_id": number or "0"})
    return [cuda, cpu] if device is None else [cuda]


def _open_onnx(path: Path, threads: int, providers: list[tuple[str, dict[str, str]]]) -> _Opened:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"{path}: onnxruntime is needed ({error}): pip install onnxruntime") from error

    model = path.read_bytes()
    if _EXTERNAL_DATA.search(model):
        raise InputError(f"{path}: its weights are in other files, which `focal-det export` never does; not read")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if b"QuantizeLinear" not in model:  # nothing but weights is in 8 bits: expanded once, and not at every call
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    available = onnxruntime.get_available_providers()
    usable = [(name, values) for name, values in providers if name in available]
    if not usable:
        needed = providers[0][0]
        raise InputError(f"{path}: onnxruntime has no {needed} here: install onnxruntime-gpu, or leave device out")
    try:
        session = onnxruntime.InferenceSession(model, options, providers=usable)
        metadata = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # whatever it may raise on somebody's file
        raise InputError(f"{path}: onnxruntime cannot read it ({first_line(error)})") from error
    stated = metadata.get(DIGEST_KEY)  # older files have none
    if stated is not None and digest_of(model, stated) != stated:
        raise InputError(f"{path}: damaged: its SHA-256 is not the one it was written with; copy or export it again")

    def run(images: np.ndarray, sizes: np.ndarray) -> Sequence[np.ndarray]:
        results: Sequence[np.ndarray] = session.run(None, {"images": images, "sizes": sizes})
        return results

    names = ([value.name for value in values] for values in (session.get_inputs(), session.get_outputs()))
    return _Opened(run, metadata.get(METADATA_KEY), *names)


def _open_torch(path: Path) -> _Opened:
    import torch
    import torchvision  # noqa: F401 - has the operator of the suppression

    extra = {METADATA_KEY: ""}
    logging.getLogger("torch.export").setLevel(logging.ERROR + 1)  # it logs a stack trace of what it raises
    try:
        # The tracer also notes that a level of a single location is laid out differently in memory, and would refuse
        # images of up to 128 px; the operators do not care.
        program = torch.export.load(path, extra_files=extra)
        module = program.module(check_guards=False)
    except Exception as error:  # whatever it may raise on somebody's file
        raise InputError(f"{path}: PyTorch cannot read it ({first_line(error)})") from error

    def run(images: np.ndarray, sizes: np.ndarray) -> Sequence[np.ndarray]:
        with torch.no_grad():
            return [part.numpy() for part in module(torch.from_numpy(images), torch.from_numpy(sizes))]

    signature = program.graph_signature  # whose outputs have the names of nodes
    return _Opened(run, extra[METADATA_KEY], [str(name) for name in signature.user_inputs], len(signature.user_outputs))
