"""The RetinaNet of *Focal Loss for Dense Object Detection* as a Detectron2 plug-in.

``import focal_det.plugin`` registers its parts with Detectron2; ``focal_det.losses`` and the mathematics in
``focal_det.modeling`` need PyTorch alone. ``focal_det.Predictor`` is loaded, with Detectron2, when it is first used.
"""

from typing import TYPE_CHECKING, Any

from .defaults import add_focal_det_config
from .errors import InputError

if TYPE_CHECKING:
    from .engine.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["InputError", "Predictor", "__version__", "add_focal_det_config"]


def __getattr__(name: str) -> Any:
    if name != "Predictor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
    from .engine.predictor import Predictor

    return Predictor
