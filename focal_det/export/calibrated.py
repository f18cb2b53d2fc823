"""Convolutions computed in 8 bits: onnxruntime's static quantization of an exported file, calibrated on images."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..inference.exported import INPUTS, ExportedDetector
from ..inference.images import to_batch
from .program import save_onnx

# Their outputs are thresholded and decoded; in 8 bits they would have 255 different values. See benchmarks/NOTES.md.
_LAST_LAYERS = ("head.cls_score.weight", "head.bbox_pred.weight")


class _Batches:
    """onnxruntime's CalibrationDataReader: each image by itself, prepared as the detector prepares it."""

    def __init__(self, detector: ExportedDetector, images: Iterable[np.ndarray]) -> None:
        self._detector, self._images = detector, iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the inputs of the next image by name, or None after the last."""
        image = next(self._images, None)
        if image is None:
            return None
        return dict(zip(INPUTS, to_batch([self._detector.resized(image)], divisor=1), strict=True))


def calibrate_onnx(source: Path, images: Iterable[np.ndarray], path: Path) -> None:
    """Write an exported .onnx file with its convolutions in 8 bits, but for the last ones of the head.

    Weights have a scale for each output channel. Each activation has one scale and zero for all images, from the least
    and the largest value that it had on these.

    Args:
        source: in float32, of `export_onnx`; it stays as it is.
        images: (H, W, 3) uint8 BGR, read one by one.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    proto = onnx.load(source)
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    # Only what has a type in the file is calibrated. ONNX's shape inference does not get past GroupNormalization.
    for name in sorted({name for node in convolutions for name in (node.input[0], node.output[0])}):
        proto.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    detector = ExportedDetector(source, tile=0)
    with _without_advice(), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        quantized = Path(folder) / path.name
        quantize_static(
            proto,
            quantized,
            _Batches(detector, images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=[node.name for node in convolutions if node.input[1].endswith(_LAST_LAYERS)],
            per_channel=True,
            activation_type=QuantType.QUInt8,  # with signed ones onnxruntime keeps half of the convolutions in float32
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        save_onnx(onnx.load(quantized), detector.metadata, path)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silence onnxruntime's advice to simplify the graph first, which it does itself when it opens the file."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
