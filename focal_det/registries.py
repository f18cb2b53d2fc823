"""The project's own registries: parts that a configuration may name, and the keys of plug-ins."""

from fvcore.common.registry import Registry

DENSE_HEAD_REGISTRY = Registry("DENSE_HEAD")
DENSE_HEAD_REGISTRY.__doc__ = """
Heads over feature pyramids, called as ``head(cfg, input_shape)`` with one ShapeSpec per level. ``forward``
takes the levels' features (N, C, H, W) and returns their class logits (N, A*K, H, W) and box deltas
(N, A*4, H, W), or (N, A*K*4, H, W) where its ``boxes_by_class`` is True. Named by MODEL.FOCAL_DET.HEAD_NAME.
"""

DENSE_LOSS_REGISTRY = Registry("DENSE_LOSS")
DENSE_LOSS_REGISTRY.__doc__ = """
Class losses over all anchors, called as ``loss(cfg)``. ``forward`` takes logits (R, K) and labels (R,) of one
image, with labels 0..K-1 class, K background, -1 ignored, and returns their sum. One that trains on a part of
the anchors also has ``select``, which takes logits, labels and anchors (R, 4) and returns the labels with the rest
ignored; the box loss follows it. One whose targets are how good the predicted boxes are has ``takes_quality = True``,
and ``forward`` takes the quality (R,) besides: of each assigned anchor the IoU of its box with the object's, without
gradient. ``reads`` names the configuration keys that it reads, in full; a loss without it may
read all. Named by MODEL.FOCAL_DET.LOSS.NAME.
"""

ASSIGNER_REGISTRY = Registry("ASSIGNER")
ASSIGNER_REGISTRY.__doc__ = """
Assigners of anchors to objects, called as ``assigner(cfg)``, whose result is called with the levels' anchors
(R_l, 4) each, gt_boxes (N, G, 4), gt_classes (N, G) and ``num_classes=K``, and returns an ``Assignment``: see
``focal_det.assigners.assignment``. On a processor it is called with one image at a time, in several threads. Named by
MODEL.FOCAL_DET.ASSIGNER.NAME.
"""

AUGMENTATION_REGISTRY = Registry("AUGMENTATION")
AUGMENTATION_REGISTRY.__doc__ = """
Augmentation of training images, called as ``make(cfg)``, which returns one of Detectron2's ``Augmentation`` or
``Transform``, or a list of them. They get images of the network's input, (H, W, 3) uint8 in the order of INPUT.FORMAT,
and no boxes: these follow by ``apply_coords`` of the transform. What they draw has to come from ``numpy.random`` or
``random``, which are seeded for each image. Named by MODEL.FOCAL_DET.AUGMENT.NAMES.
"""

EVENT_WRITER_REGISTRY = Registry("EVENT_WRITER")
EVENT_WRITER_REGISTRY.__doc__ = """
Where metrics go besides metrics.json and TensorBoard: Detectron2's ``EventWriter``, called as ``writer(cfg)`` in the
main process. ``write()`` is called after each line of metrics.json, and what it raises is a warning that turns the
writer off. One that may wait for others, such as a server, is a ``focal_det.tracking.trackers.Tracker``, whose methods
are called in a thread of its own, and again after a failure. Named by MODEL.FOCAL_DET.TRACKERS.
"""

CONFIG_REGISTRY = Registry("CONFIG")
CONFIG_REGISTRY.__doc__ = """
Functions that add the keys of a plug-in, called as ``add_keys(cfg)`` with Detectron2's and focal_det's keys in place.
Each sets new keys to their defaults (a text, a number, True or False, a list or a tuple, whose kind is what the key
takes) or adds a new group, ``type(cfg)()``; one that is there already is an error. Keys of a loss belong under
MODEL.FOCAL_DET.LOSS, and in its ``reads``. A plug-in is any module that registers something as it is imported: by
--plugin on a command line, or by ``import`` in Python.
"""
