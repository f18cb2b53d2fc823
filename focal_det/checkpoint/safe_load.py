"""Load weights from strangers: files are read as data, never as the programs that pickles are."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from ..extras import missing_message
from .class_rows import ClassRows
from .integrity import load_plain
from .restricted_pickle import load_arrays

SAFETENSORS = ".safetensors"


class NonFiniteWeightsError(ValueError):
    """Weights of a file are infinite or NaN."""


def nonfinite_weights(weights: Mapping[str, Any]) -> list[str]:
    """Return the names of the tensors and arrays that are not finite throughout."""
    return [name for name, value in weights.items() if not torch.as_tensor(value).isfinite().all()]


def check_finite(weights: Mapping[str, Any], whose: str = "its") -> None:
    """Raise NonFiniteWeightsError if there are any such."""
    if bad := nonfinite_weights(weights):
        raise NonFiniteWeightsError(
            f"{len(bad)} of {whose} {len(weights)} weights are infinite or NaN, first {bad[0]}: the training that they "
            "come from had diverged; use an earlier checkpoint of it, or other weights"
        )


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's, which reads .pkl files by `load_arrays`, .safetensors by their library, others by `load_tensors`.

    Weights that are infinite or NaN are an error, whatever file they come from: no detector works with them. A .pkl
    file is of the model zoo, a dictionary with "model" and "__author__", or of Caffe2, the weights themselves or under
    "blobs", whose names Detectron2 matches with its own.

    Args:
        model, save_dir, checkpointables: Detectron2's.
        class_rows: how rows of the class layer are kept where the file is for other classes; None keeps none.
    """

    def __init__(
        self, model: Any, save_dir: str = "", *, class_rows: ClassRows | None = None, **checkpointables: Any
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.class_rows = class_rows
        self.kept_rows = ""  # what to say of them

    def _load_file(self, filename: str) -> Any:
        if filename.endswith(".pyth"):  # pycls'
            state = load_tensors(filename)["model_state"]
            weights = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
            return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
        if filename.endswith(SAFETENSORS):
            return {"model": load_safetensors(filename)}
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        with self.path_manager.open(filename, "rb") as file:
            content = load_arrays(file)
        if not isinstance(content, dict):
            raise pickle.UnpicklingError(f"it holds a {type(content).__name__}, not weights by name")
        if "model" in content and "__author__" in content:
            return content
        weights = content.get("blobs", content)
        trained = {name: value for name, value in weights.items() if not name.endswith("_momentum")}
        return {"model": trained, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, f: str) -> Any:
        return load_tensors(f)

    def _load_model(self, checkpoint: Any) -> Any:
        """Keep what did not match as `report`, and rows of the class layer as `class_rows` says.

        Raises NonFiniteWeightsError.
        """
        check_finite(checkpoint["model"])
        self.kept_rows = self.class_rows.keep(checkpoint, self.model.state_dict()) if self.class_rows else ""
        self.report = super()._load_model(checkpoint)
        return self.report


def load_tensors(path: str | Path) -> Any:
    """Return what `torch.save` wrote, of tensors, numbers and texts alone, on the CPU.

    Raises:
        pickle.UnpicklingError: anything else is in it, and nothing of it was run; or it is compressed, which
            `torch.save` never does, and which lets a small file fill the memory.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise pickle.UnpicklingError("it is compressed, which no checkpoint of PyTorch is, so it is not read")
    return load_plain(path)


def load_safetensors(path: str | Path) -> dict[str, Any]:
    """Return the tensors by name of a .safetensors file, on the CPU.

    Its header is JSON of at most 100 MB, and its tensors have to cover the rest of the file exactly; both are the
    library's rules, which raises `SafetensorError` where a file breaks them. Raises ImportError where it is missing.
    """
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(missing_message(error)) from error
    tensors: dict[str, Any] = load_file(path)
    return tensors
