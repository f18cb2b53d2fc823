"""From a model to files: PyTorch's exported program (.pt2) and ONNX (.onnx), each with what a reader has to know."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental._config as symbolic_shapes
from torch import Tensor
from torch.export import Dim, ExportedProgram

from ..inference.exported import DIGEST_KEY, INPUTS, METADATA_KEY, NO_DIGEST, OUTPUTS, Metadata, digest_of
from .graph import DetectorGraph
from .int8 import store_in_8_bits
from .suppress import onnx_suppression, onnx_translations, torch_suppression

# The newest operator set that torch.onnx writes; the first with GroupNormalization over float32 sums is 21.
OPSET = 23

# A batch to trace with; nothing of its sizes stays in the graph.
_TRACED = (2, 3, 130, 165)
_DIMENSIONS = ("batch", "height", "width")


def export_torch(model: Any, metadata: Metadata, path: Path) -> None:
    """Write a `torch.export` program; reading it needs PyTorch and, for its suppression, torchvision.

    Args:
        model: a `FocalRetinaNet` on the CPU.
        metadata: written into the file.
        path: to write.
    """
    program = _trace(DetectorGraph(model, torch_suppression(model.decoding["nms_thresh"])))
    torch.export.save(program, path, extra_files={METADATA_KEY: metadata.to_json()})


def export_onnx(model: Any, metadata: Metadata, path: Path, *, int8: bool) -> None:
    """Write an ONNX file, checked by ONNX's own checker.

    Args:
        model: a `FocalRetinaNet` on the CPU.
        metadata: written into the file.
        path: to write.
        int8: store the convolutions' weights in 8 bits; see `round_to_8_bits`, which must have rounded them.
    """
    import onnx

    options = model.decoding
    graph = DetectorGraph(model, onnx_suppression(options["nms_thresh"], model.num_classes, options["max_detections"]))
    with _quiet():
        made = torch.onnx.export(
            _trace(graph),
            _example(),
            dynamo=True,
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=OUTPUTS,
            custom_translation_table=onnx_translations(),
            verbose=False,
        )
    assert made is not None
    proto = made.model_proto
    _name_dimensions(proto)
    _strip(proto)
    if int8:
        store_in_8_bits(proto)
    onnx.helper.set_model_props(proto, {METADATA_KEY: metadata.to_json(), DIGEST_KEY: NO_DIGEST})
    onnx.checker.check_model(proto, full_check=True)
    written: bytes = proto.SerializeToString(deterministic=True)
    path.write_bytes(written.replace(NO_DIGEST.encode(), digest_of(written, NO_DIGEST).encode(), 1))


def _trace(graph: DetectorGraph) -> ExportedProgram:
    free = Dim.DYNAMIC
    shapes = ({0: free, 2: free, 3: free}, {0: free})
    # A level of one location is as good as any: without this PyTorch would keep it out, since 1 can broadcast.
    with _quiet(), torch.no_grad(), symbolic_shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(graph.eval(), _example(), dynamic_shapes=shapes)


def _example() -> tuple[Tensor, Tensor]:
    return torch.zeros(_TRACED, dtype=torch.uint8), torch.tensor([_TRACED[2:], (120, 100)])


def _name_dimensions(proto: Any) -> None:
    """Call the free sizes batch, height and width, where the tracer has numbers for them."""
    images = proto.graph.input[0].type.tensor_type.shape.dim
    names = dict(zip((images[0].dim_param, images[2].dim_param, images[3].dim_param), _DIMENSIONS, strict=True))
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


def _strip(proto: Any) -> None:
    """Take out what the tracer noted beside the graph, such as where in whose files a node comes from."""
    del proto.graph.value_info[:]  # their sizes have the tracer's names; a runtime infers them anew
    parts = (proto, proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.initializer)
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""
    proto.producer_name, proto.producer_version = "focal_det", ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own deprecations and passes, which nobody can act on."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
