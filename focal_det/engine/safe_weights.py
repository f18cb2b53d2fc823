"""Weights from strangers: files are read as data, never as programs, which a pickle is.

PyTorch reads .pth files that way by itself (`weights_only`); Detectron2 unpickles the .pkl files of its model zoo.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO, Any

from detectron2.checkpoint import DetectionCheckpointer

# What NumPy's arrays and numbers are pickled by, under NumPy 1's and 2's names for its parts, and dictionaries.
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (f"numpy.{core}.{part}", name)
        for core in ("core", "_core")
        for part, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    ),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"it holds {module}.{name}, where weights are arrays alone; such a file can run any program, so it is "
                "not read"
            )
        return super().find_class(module, name)


def load_arrays(file: IO[bytes]) -> Any:
    """What a pickle holds, if that is arrays, numbers and texts in lists and dictionaries.

    Raises:
        pickle.UnpicklingError: anything else is in it; nothing of it was run.
    """
    return _ArraysOnly(file, encoding="latin1").load()


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's, which reads .pkl files by `load_arrays`.

    They are the model zoo's, a dictionary with "model" and "__author__", or Caffe2's, the weights themselves or under
    "blobs", whose names Detectron2 matches with its own.
    """

    def _load_file(self, filename: str) -> Any:
        if Path(filename).suffix != ".pkl":
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
