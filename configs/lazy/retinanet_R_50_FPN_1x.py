"""RetinaNet R-50 on COCO, for Detectron2's own script:

    python <detectron2>/tools/lazyconfig_train_net.py --config-file configs/lazy/retinanet_R_50_FPN_1x.py --num-gpus 8

Time and expected AP: those of configs/retinanet_R_50_FPN_1x.yaml, whose settings these are; not measured.
"""

from detectron2 import model_zoo

from .retinanet_R_50_FPN import model

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x
optimizer = model_zoo.get_config("common/optim.py").SGD
train = model_zoo.get_config("common/train.py").train

dataloader.train.mapper.use_instance_mask = False
model.backbone.bottom_up.freeze_at = 2
optimizer.lr = 0.01
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.output_dir = "./output/lazy_retinanet_R_50_FPN_1x"
