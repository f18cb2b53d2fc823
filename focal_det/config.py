"""Every configuration key that focal_det adds to Detectron2's, with its default, meaning and source.

Detectron2's own keys under MODEL.RETINANET keep their meaning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def add_focal_det_config(cfg: CfgNode) -> None:
    """Add SOLVER.AMP.DTYPE and MODEL.FOCAL_DET.* to a configuration made by `detectron2.config.get_cfg`."""
    node = cfg.MODEL.FOCAL_DET = type(cfg)()

    # Number format of SOLVER.AMP.ENABLED: "float16" with a scaled loss, on GPUs, as Detectron2 has it; "bfloat16",
    # also on processors with instructions for it (others fall back to float32 and say so). Losses, and evaluation, are
    # in float32 either way.
    cfg.SOLVER.AMP.DTYPE = "float16"

    # Class of the two subnets, by its name in DENSE_HEAD_REGISTRY (section 4, figure 3).
    node.HEAD_NAME = "RetinaNetHead"

    # Class loss, by its name in DENSE_LOSS_REGISTRY. Each of the keys below is read by the losses that it names, and
    # `load_config` refuses one that is set for another loss. FocalLoss (section 3.2) reads Detectron2's
    # MODEL.RETINANET.FOCAL_LOSS_ALPHA, in (0, 1) or negative for no alpha, and FOCAL_LOSS_GAMMA, in [0, 1e6];
    # CrossEntropyLoss reads none.
    loss = node.LOSS = type(cfg)()
    loss.NAME = "FocalLoss"

    # BalancedCrossEntropyLoss: weight of a positive, in (0, 1); the paper's best (section 3.1; Table 1a).
    loss.ALPHA = 0.75

    # FocalLossStar: steepness, in [1e-6, 1e6], and shift, in [-1e6, 1e6]; the paper's settings are (2, 1) and (4, 0)
    # (appendix A; Table 3).
    loss.GAMMA = 2.0
    loss.BETA = 1.0

    # HingeLoss: the p_t from which on there is no loss, in (0, 1] (section 5.1; the paper gives none).
    loss.MARGIN = 0.5

    # OHEMLoss, OHEMOneToThreeLoss: anchors of an image that are kept, >= 1 (the second: >= 4), and the IoU above which
    # the anchor with the lower loss is dropped, in [0, 1]; the paper's best (section 5.1; Table 1d).
    loss.BATCH_SIZE = 128
    loss.NMS_THRESH = 0.5

    # Anchor scales per octave, an integer >= 1: sizes base * 2^(k/S), k = 0..S-1, with the base sizes from
    # MODEL.ANCHOR_GENERATOR.SIZES, in pixels, one per level (section 4, "Anchors"; Table 1c).
    node.SCALES_PER_OCTAVE = 3

    # Also assign to an object the anchor that overlaps it most, whatever their IoU. The authors' code does;
    # the paper's text (section 4, "Anchors") does not say so.
    node.MATCH_BEST_ANCHOR = True

    # What the summed losses are divided by (section 4.1): "global", the assigned anchors of the batch on all
    # ranks; "image", each image by its own, the paper's text; "ema", Detectron2's moving average.
    node.NORMALIZER = "global"

    # Pictures of the first test set that are drawn, ground truth beside detections, at the end of training and
    # every VIS_PERIOD iterations (0: only at the end); 0 draws none.
    node.DRAW_IMAGES = 16

    # Detections with a score of at least this are drawn, in [0, 1].
    node.DRAW_SCORE_THRESH = 0.4

    # At every evaluation also the losses over the first test set, as "val/loss_cls", "val/loss_box_reg" and
    # "val/total_loss" beside the training's: over at most 200 of its pictures, evenly spread, so that it costs little.
    node.VAL_LOSS = True

    # How many of the checkpoints that SOLVER.CHECKPOINT_PERIOD makes stay, the newest; 0 keeps all. The best, the final
    # and what was there before the run stay in any case.
    node.CHECKPOINTS_KEPT = 5

    # What makes it faster, each with the same results up to rounding (BFLOAT16_INFERENCE: of 8 bits).
    speed = node.SPEED = type(cfg)()

    # Feature maps and weights with the channels innermost, as convolutions of processors and tensor cores want them.
    # Not for a detector with GroupNorm on a processor, where PyTorch's is slow on them. A backbone or head of your own
    # that takes feature maps apart with view() needs reshape().
    speed.CHANNELS_LAST = True

    # Fold the backbone's frozen batch normalisation (MODEL.RESNETS.NORM FrozenBN, the default, and the parts that
    # MODEL.BACKBONE.FREEZE_AT freezes) into the convolutions before it.
    speed.FOLD_NORMS = True

    # On GPUs: the class loss by Triton kernels over the head's outputs in place, for the losses of the paper's family
    # (not OHEM). Off by default: the kernels are tested in Triton's interpreter, and were not yet run on a GPU.
    speed.TRITON = False

    # Detect and evaluate with the network in bfloat16, on processors and GPUs with instructions for it (others stay in
    # float32 and say so); from the head's outputs on in float32. Training has SOLVER.AMP.
    speed.BFLOAT16_INFERENCE = False

    # The optimizer's update of all parameters in one kernel, PyTorch's fused SGD.
    speed.FUSED_SGD = False

    # torch.compile for backbone, pyramid and head. The first steps take minutes, those of the second picture size as
    # well, and on the CPU a C++ compiler.
    speed.COMPILE = False
