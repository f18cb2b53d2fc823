"""From a model to a file with its metadata: PyTorch's exported program (.pt2), ONNX (.onnx), weights (.safetensors)."""

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

from ..extras import missing_message
from ..inference.exported import DIGEST_KEY, INPUTS, METADATA_KEY, NO_DIGEST, OUTPUTS, Metadata, digest_of
from .graph import DetectorGraph, free_size
from .int8 import store_in_8_bits
from .suppress import onnx_suppression, onnx_translations, torch_suppression

# The newest operator set that torch.onnx writes; the first with GroupNormalization over float32 sums is 21.
OPSET = 23

# The shape of a batch to trace with; the graph keeps none of its sizes.
_TRACED = (2, 3, 130, 165)


def export_torch(model: Any, metadata: Metadata, path: Path) -> None:
    """Write a `FocalRetinaNet` on the CPU as `torch.export` program, whose suppression needs torchvision."""
    program = _trace(DetectorGraph(model, torch_suppression(model.decoding["nms_thresh"]), free_size))
    torch.export.save(program, path, extra_files={METADATA_KEY: metadata.to_json()})


def export_onnx(model: Any, metadata: Metadata, path: Path, *, int8: bool) -> None:
    """Write a `FocalRetinaNet` on the CPU as an ONNX file, checked by ONNX's own checker.

    Args:
        int8: store the convolutions' weights in 8 bits; see `round_to_8_bits`, which must have rounded them.
    """
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
    save_onnx(proto, metadata, path)


def save_onnx(proto: Any, metadata: Metadata, path: Path) -> None:
    """Write an ONNX model with its metadata and its own SHA-256, once ONNX's checker finds no fault in it."""
    import onnx

    onnx.helper.set_model_props(proto, {METADATA_KEY: metadata.to_json(), DIGEST_KEY: NO_DIGEST})
    onnx.checker.check_model(proto, full_check=True)
    written: bytes = proto.SerializeToString(deterministic=True)
    path.write_bytes(written.replace(NO_DIGEST.encode(), digest_of(written, NO_DIGEST).encode(), 1))


def export_weights(model: Any, metadata: Metadata, path: Path) -> None:
    """Write the weights and buffers of a model by name as a .safetensors file, for `MODEL.WEIGHTS`."""
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError(missing_message(error)) from error
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    save_file(weights, path, {METADATA_KEY: metadata.to_json(), "format": "pt"})


def _trace(graph: DetectorGraph) -> ExportedProgram:
    shapes = (dict.fromkeys((0, 2, 3), Dim.DYNAMIC), {0: Dim.DYNAMIC})
    # Without this PyTorch would exclude levels of a single location, since a size of 1 can broadcast.
    with _quiet(), torch.no_grad(), symbolic_shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(graph.eval(), _example(), dynamic_shapes=shapes)


def _example() -> tuple[Tensor, Tensor]:
    return torch.zeros(_TRACED, dtype=torch.uint8), torch.tensor([_TRACED[2:], (120, 100)])


def _name_dimensions(proto: Any) -> None:
    """Call the free sizes batch, height and width, where the tracer has numbers for them."""
    images = proto.graph.input[0].type.tensor_type.shape.dim
    names = {images[0].dim_param: "batch", images[2].dim_param: "height", images[3].dim_param: "width"}
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


def _strip(proto: Any) -> None:
    """Remove what the tracer noted besides the graph, such as the source file and line of a node."""
    del proto.graph.value_info[:]  # their sizes have the tracer's names; a runtime infers them again
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    proto.producer_name, proto.producer_version = "focal_det", ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings of its own deprecations and passes, which a user cannot act on."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
