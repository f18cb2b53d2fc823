"""Every configuration key that focal_det adds to Detectron2's, with its default, meaning, range and source.

Detectron2's own keys under MODEL.RETINANET keep their meaning.
"""

from __future__ import annotations

import functools
import logging
from numbers import Integral, Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

MIN_TILE = 32  # pixels
MOST_OVERLAP = 0.9  # beyond it each pixel would be in more than 100 tiles


def add_focal_det_config(cfg: CfgNode) -> None:
    """Add MODEL.FOCAL_DET.* and a few keys elsewhere to a configuration made by `detectron2.config.get_cfg`."""
    node = cfg.MODEL.FOCAL_DET = type(cfg)()

    # Number format with SOLVER.AMP.ENABLED: "float16" with a scaled loss, for GPUs, as in Detectron2; or "bfloat16",
    # also for processors that have instructions for it (others fall back to float32, with a warning). Losses and
    # evaluation are in float32 either way.
    cfg.SOLVER.AMP.DTYPE = "float16"

    # With DATALOADER.SAMPLER_TRAIN RandomSubsetTrainingSampler: the share of the images that is trained on, in (0, 1].
    # Which ones follows from SEED. Detectron2's sampler reads it, but its configuration does not have it.
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 1.0

    # With WeightedTrainingSampler or WeightedCategoryTrainingSampler: how often the images of a training set come, as
    # pairs of the set, written as in DATASETS.TRAIN or the flag, and a factor in [0.001, 1000], such as
    # [["mine", 2.5]]; 1 for sets that are not named. Likewise read by Detectron2's samplers alone.
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = []

    # Of the sets that are given by flag or place: classes that become one, as texts NEW=OLD,OLD,..., such as
    # ["pet=cat,dog"], and then the names of the classes to keep, of which [] keeps all. Boxes of other classes are left
    # out, and their images stay. The flags are --merge-classes and --classes.
    cfg.DATASETS.MERGE_CLASSES = []
    cfg.DATASETS.CLASSES = []

    # [SHARE, SEED], such as [0.2, 0]: so many of the images of the sets to train on that are given by flag or place, in
    # (0, 1), are evaluated on instead, in the place of DATASETS.TEST. Images that look alike stay together. The flag is
    # --split-val; [] splits nothing.
    cfg.DATASETS.SPLIT_VAL = []

    # Class of the two subnets, by its name in DENSE_HEAD_REGISTRY (section 4, figure 3): the paper's RetinaNetHead, or
    # ClassSpecificBoxHead, with a box of each class at every anchor, or SharedSubnetHead, with one subnet for both.
    node.HEAD_NAME = "RetinaNetHead"

    # Class loss, by its name in DENSE_LOSS_REGISTRY. Each of the keys below is read by the losses that it names, and
    # refused if it is set for another one. FocalLoss (section 3.2) reads Detectron2's MODEL.RETINANET.FOCAL_LOSS_ALPHA,
    # in [0, 1] or negative for no alpha, and FOCAL_LOSS_GAMMA, in [0, 1e6]; CrossEntropyLoss reads none.
    loss = node.LOSS = type(cfg)()
    loss.NAME = "FocalLoss"

    # BalancedCrossEntropyLoss: weight of a positive, in [0, 1]; the default is the paper's best (section 3.1; Table
    # 1a). VarifocalLoss: weight of a negative, in [0, 1e6], with the same default.
    loss.ALPHA = 0.75

    # FocalLossStar: steepness, in [1e-6, 1e6], and shift, in [-1e6, 1e6]; the paper's settings are (2, 1) and (4, 0)
    # (appendix A; Table 3). Of the losses by the quality of the box GAMMA is the focusing parameter: QualityFocalLoss's
    # beta, 0 or in [1, 1e6], and VarifocalLoss's gamma, in [0, 1e6], 2 in both papers.
    loss.GAMMA = 2.0
    loss.BETA = 1.0

    # HingeLoss: the p_t beyond which there is no loss, in (0, 1] (section 5.1; the paper gives no value).
    loss.MARGIN = 0.5

    # OHEMLoss, OHEMOneToThreeLoss: the number of anchors kept per image, >= 1 (the second: >= 4), and the IoU above
    # which the anchor with the lower loss is dropped, in [0, 1]; the defaults are the paper's best (section 5.1; Table
    # 1d).
    loss.BATCH_SIZE = 128
    loss.NMS_THRESH = 0.5

    # AsymmetricLoss: focusing parameters of positives and of negatives, in [0, 1e6], and the probability up to which a
    # negative has no loss, in [0, 1) (Ridnik et al. 2021, whose values for COCO's labels these are).
    loss.GAMMA_POS = 0.0
    loss.GAMMA_NEG = 4.0
    loss.PROB_SHIFT = 0.05

    # ClassBalancedFocalLoss: beta, in [0, 1), of the effective number of samples; and how many boxes of each class the
    # training set has, in the order of the labels, each >= 1 (Cui et al. 2019). [] is counted before a training starts.
    loss.CB_BETA = 0.9999
    loss.CLASS_BOXES = []

    # FederatedFocalLoss: how many classes count in an image in a step, >= 1 and fewer than there are; the power, in
    # [0, 10], of a class's number of images by which those that the image does not have are drawn; and how many images
    # of the training set have each class, likewise counted where it is [] (Zhou et al. 2021).
    loss.FED_NUM_CLASSES = 50
    loss.FED_FREQ_POWER = 0.5
    loss.CLASS_IMAGES = []

    # Anchor scales per octave, S, an integer >= 1: sizes are base * 2^(k/S) for k = 0..S-1, with one base size per
    # level from MODEL.ANCHOR_GENERATOR.SIZES, in pixels (section 4, "Anchors"; Table 1c).
    node.SCALES_PER_OCTAVE = 3

    # How anchors are assigned to objects, by a name in ASSIGNER_REGISTRY: IoUAssigner, by
    # MODEL.RETINANET.IOU_THRESHOLDS (section 4, "Anchors"); or ATSSAssigner, adaptive training sample selection (Zhang
    # et al., CVPR 2020), whose threshold follows for each object from the IoU of the anchors around it. TOPK is so many
    # anchors of each level, >= 1; the default is that paper's, for one anchor per location.
    assigner = node.ASSIGNER = type(cfg)()
    assigner.NAME = "IoUAssigner"
    assigner.TOPK = 9

    # IoUAssigner: also assign to each object the anchor that overlaps it most, whatever their IoU. So does RPN's rule,
    # from which the paper's comes (section 4, "Anchors"); the authors' code does so from an IoU of .4 on.
    node.MATCH_BEST_ANCHOR = True

    # The box loss: its factor beside the class loss, in [0, 1e6], and what shares it among the anchors of an image:
    # "none", all count alike; "iou", the IoU of the predicted box with its object; "score", the highest class score of
    # the anchor. The weights are divided by their mean over the assigned anchors of the image.
    box_loss = node.BOX_LOSS = type(cfg)()
    box_loss.FACTOR = 1.0
    box_loss.WEIGHTING = "none"

    # What the summed losses are divided by (section 4.1): "global", the number of assigned anchors in the batch on all
    # ranks; "image", each image by its own number, as in the paper's text; "ema", Detectron2's moving average.
    node.NORMALIZER = "global"

    # Gradient accumulation: into how many equal parts, >= 1, each process splits its images of a step, a share of
    # SOLVER.IMS_PER_BATCH, to pass one after the other with the memory of one. The step is that of the batch in one
    # pass, up to rounding: images, normaliser, losses and gradients are the same. Batch normalisation alone sees parts.
    # Meta-architectures other than FocalRetinaNet get the mean of the parts' losses, each normalised by itself.
    node.ACCUMULATION = 1

    # Number of images of the first test set that are drawn, ground truth beside detections, at the end of training and
    # every VIS_PERIOD iterations (0: only at the end). 0 draws none.
    node.DRAW_IMAGES = 16

    # The lowest score of detections that are drawn, in [0, 1].
    node.DRAW_SCORE_THRESH = 0.4

    # Large images in tiles, in training, in every evaluation and in `focal-det predict`: the side of square tiles in
    # pixels of the image, at least 32, or 0 for none, and the share of it by which neighbours overlap, in [0, 0.9]:
    # what is smaller than their overlap is whole in one of them. A tile is resized as an image is; larger objects are
    # in the whole image, which is trained on and detected in as well. In training, an object of which a tile shows less
    # than half is neither an object there nor background. The flags are --tile and --overlap.
    tiles = node.TILES = type(cfg)()
    tiles.SIZE = 0
    tiles.OVERLAP = 0.2

    # At every evaluation, also measure the losses on the first test set, as "val/loss_cls", "val/loss_box_reg" and
    # "val/total_loss" beside those of training: on at most 200 images, evenly spread over the set, to keep it cheap.
    node.VAL_LOSS = True

    # Experiment trackers that follow the run: MLflow, WandB (Weights & Biases), or your own, by their names in
    # EVENT_WRITER_REGISTRY. Server, project and name of the run are in the trackers' own environment variables.
    node.TRACKERS = ()

    # Exponential moving average (EMA) of the weights, which is evaluated and saved beside them: the share, in [0, 1),
    # that the average keeps at each step, such as 0.9998, or 0 for none. A warm-up leads up to it, (1 + n) / (10 + n)
    # after n steps. The training itself is not changed.
    average = node.EMA = type(cfg)()
    average.DECAY = 0.0

    # Stop early: end the training, as if it had reached its end, once so many evaluations in a row (TEST.EVAL_PERIOD)
    # were not better than the best before them; 0 never does. Then the metric to go by, as metrics.json names it, such
    # as "val/total_loss" or "ema/bbox/AP"; "" for the AP by which model_best.pth is chosen. The highest is the best; of
    # metrics with "loss" in their name the lowest.
    node.PATIENCE = 0
    node.PATIENCE_METRIC = ""

    # How many of the periodic checkpoints (SOLVER.CHECKPOINT_PERIOD) are kept, the newest ones; 0 keeps all. The best,
    # the final, and any that were there before the run are always kept.
    node.CHECKPOINTS_KEPT = 5

    # The plug-ins that a run was made with, set by --plugin alone. Those that a file names are never imported, since a
    # plug-in is a program: without --plugin for each of them, the file is refused.
    node.PLUGINS = ()

    # The registered data set that MODEL.WEIGHTS was trained on, such as coco_2017_train, for files that do not say: a
    # training then keeps the rows of the class layer of those of its classes that have the same name there. Files of
    # focal_det's own trainings have the names, which count instead. "" for none.
    node.WEIGHTS_CLASSES = ""

    # Augmentation of training images, besides INPUT.RANDOM_FLIP and INPUT.CROP; all off by default, as in the paper.
    # `focal-det data augment` draws what training will see.
    augment = node.AUGMENT = type(cfg)()

    # Large-scale jitter: the range of factors, two in [0.1, 10], such as [0.5, 2.0], by which an image is larger than
    # INPUT.MIN_SIZE_TRAIN makes it, before it is cut or padded to that size; [] for none. An object that the cut leaves
    # a part of is one of that size.
    augment.SCALE_JITTER = []

    # Turn images by up to this angle in either direction, in degrees, in [0, 20]; what turns out of the image is lost,
    # and the corners are black. The box of a turned object is the one around its turned box, which is looser: the
    # square of a round object has an IoU of .75 with its new box at 10 degrees, and of .61 at 20.
    augment.ROTATION = 0.0

    # Change of colours, each in [0, 1): brightness, contrast and saturation are multiplied by a random factor of 1 plus
    # or minus this.
    augment.BRIGHTNESS = 0.0
    augment.CONTRAST = 0.0
    augment.SATURATION = 0.0

    # AlexNet's change of the light's colour: standard deviation of the factors of the three principal components of
    # colours, in [0, 1]; AlexNet's is 0.1.
    augment.LIGHTING = 0.0

    # Augmentation of your own, by names in AUGMENTATION_REGISTRY, in this order, after all others.
    augment.NAMES = ()

    # Speed options. Each gives the same results up to rounding (BFLOAT16_INFERENCE: rounding to 8 bits).
    speed = node.SPEED = type(cfg)()

    # Keep the channels of feature maps and weights innermost, as the convolutions of processors and tensor cores
    # prefer. Ignored for a detector with GroupNorm on a processor, where PyTorch's implementation is slow on such maps.
    # A backbone or head of your own that splits feature maps with view() must use reshape() instead.
    speed.CHANNELS_LAST = True

    # Fold the backbone's frozen batch normalisation (MODEL.RESNETS.NORM FrozenBN, the default, and the parts that
    # MODEL.BACKBONE.FREEZE_AT freezes) into the preceding convolutions.
    speed.FOLD_NORMS = True

    # On GPUs, compute the class loss with a Triton kernel that reads the head's outputs in place and writes their
    # gradient in the same pass (float16: in the backward pass), for the losses of the paper's family (not OHEM). Off by
    # default: in its present form the kernel is tested in Triton's interpreter, and was not yet run on a GPU.
    speed.TRITON = False

    # Detect and evaluate with the network in bfloat16, on processors and GPUs that have instructions for it (others
    # stay in float32, with a warning); decoding is in float32. For training see SOLVER.AMP.
    speed.BFLOAT16_INFERENCE = False

    # Update all parameters in one kernel, with PyTorch's fused SGD.
    speed.FUSED_SGD = False

    # Use torch.compile for backbone, pyramid and head. The first step takes minutes, up to two more that bring another
    # image size, and the first image that is detected in; on a CPU it needs a C++ compiler.
    speed.COMPILE = False

    # On GPUs, capture the network, forward and backward, as a CUDA graph for each shape of batch that comes again, and
    # launch it at once: small batches, whose kernels are done faster than a processor launches them, gain most. To be
    # used with PAD_TO; each shape takes memory for its own inputs and outputs. Off by default: it was tested with
    # something in the place of the graphs, and was not yet run on a GPU. Not for SyncBN.
    speed.CUDA_GRAPHS = False

    # Shapes that batches are padded to, as pairs of the shorter and the longer side in pixels, such as [[800, 1088],
    # [800, 1216], [800, 1344]]; each is also used the other way round, a batch takes the smallest that holds it, and
    # what none holds stays as it is. A number alone, such as [3], in [1, 16]: so many shapes are chosen that fit
    # photographs resized to INPUT.MIN_SIZE_TRAIN and MAX_SIZE_TRAIN best, and as many for evaluation if its size is
    # another. For CUDA_GRAPHS and COMPILE, which work for each shape anew. [] pads to multiples of 32 alone, as
    # Detectron2 does.
    speed.PAD_TO = []


def with_own_keys(cfg: CfgNode) -> CfgNode:
    """Return a configuration that has MODEL.FOCAL_DET: this one, or a copy with its keys at their defaults.

    So a script of Detectron2's that only imports `focal_det.plugin` gets the paper's settings, and is told once how to
    set others.
    """
    if "FOCAL_DET" in cfg.MODEL:
        return cfg
    _say_once()
    cfg = cfg.clone()
    cfg.defrost()
    add_focal_det_config(cfg)
    return cfg


@functools.lru_cache(maxsize=1)
def _say_once() -> None:
    logger.warning(
        "the configuration has no MODEL.FOCAL_DET, so its keys have their defaults; to set them, call "
        "focal_det.add_focal_det_config(cfg) after get_cfg()"
    )


def check_tile(size: object) -> None:
    """Raise ValueError for what is no side of a tile."""
    if isinstance(size, bool) or not isinstance(size, Integral) or 0 != size < MIN_TILE:
        raise ValueError(f"the side of tiles must be a whole number of pixels, at least {MIN_TILE}; 0: whole images")


def check_overlap(overlap: object) -> None:
    """Raise ValueError for what leaves gaps between tiles, or hardly comes to the next one."""
    if isinstance(overlap, bool) or not isinstance(overlap, Real) or not 0 <= float(overlap) <= MOST_OVERLAP:
        raise ValueError(f"the overlap of tiles must be a share of their side, in [0, {MOST_OVERLAP}]")
