"""The paper's RetinaNet as a LazyConfig model: what is left out has the paper's value."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from focal_det.modeling.retinanet import FocalRetinaNet

model = L(FocalRetinaNet)(
    backbone=model_zoo.get_config("common/models/retinanet.py").model.backbone,
    num_classes=80,
)
