"""The RetinaNet of *Focal Loss for Dense Object Detection* as a Detectron2 plug-in.

``import focal_det.plugin`` registers its parts with Detectron2; ``focal_det.losses`` and the mathematics in
``focal_det.modeling`` need PyTorch alone.
"""

from .config import add_focal_det_config
from .errors import InputError

__version__ = "0.1.0"
__all__ = ["InputError", "__version__", "add_focal_det_config"]
