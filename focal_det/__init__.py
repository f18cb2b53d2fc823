"""The RetinaNet of *Focal Loss for Dense Object Detection* as a Detectron2 plug-in.

``import focal_det.plugin`` registers its parts with Detectron2; ``focal_det.losses``, ``focal_det.heirs`` and the
mathematics in ``focal_det.modeling`` need PyTorch and torchvision alone. ``focal_det.train``, ``Run`` and ``Predictor``
are loaded, with Detectron2, when they are first used.
"""

from typing import TYPE_CHECKING, Any

from .defaults import add_focal_det_config
from .errors import InputError, TrainingError

if TYPE_CHECKING:
    from .distributed.graceful_stop import TrainingStopped
    from .engine.predictor import Predictor
    from .inference.detections import Detections
    from .training import Run, train

__version__ = "0.1.0"
__all__ = [
    "Detections",
    "InputError",
    "Predictor",
    "Run",
    "TrainingError",
    "TrainingStopped",
    "__version__",
    "add_focal_det_config",
    "train",
]
_LAZY = {
    "Detections": "inference.detections",
    "Predictor": "engine.predictor",
    "Run": "training",
    "TrainingStopped": "distributed.graceful_stop",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name != "Detections":
        from . import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
