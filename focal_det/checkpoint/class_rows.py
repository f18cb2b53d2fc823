"""Keep the rows of shared classes in the class layer, where a training starts from a detector of other classes.

The last layer of the class subnet has a row for each anchor of a place and each class. Detectors of other classes share
all other weights; of this layer the rows of classes that have the same name are as good. Where each class has boxes of
its own (`ClassSpecificBoxHead`), so have those of the box layer.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode

from ..data.catalog import known_classes
from ..errors import cut
from .run_record import RunRecord

KEY = "MODEL.FOCAL_DET.WEIGHTS_CLASSES"
_LAYER = ("head.cls_score.weight", "head.cls_score.bias")
_BOXES = ("head.bbox_pred.weight", "head.bbox_pred.bias")
_LONGEST = 400  # letters of a list of names


class ClassRows(NamedTuple):
    """The names of classes by label: of the model, and of files that do not say theirs."""

    model: Sequence[str] | None  # None if nobody knows
    files: Sequence[str] | None

    @classmethod
    def of(cls, cfg: CfgNode, class_names: Sequence[str] | None) -> ClassRows:
        """Take the names that files do not say from the data set of WEIGHTS_CLASSES."""
        known = known_classes(cfg.MODEL.FOCAL_DET.WEIGHTS_CLASSES)
        return cls(class_names, known and known[0])

    def keep(self, checkpoint: Mapping[str, Any], model: Mapping[str, torch.Tensor]) -> str:
        """Put a checkpoint's rows where the model has the class, and the model's own where the file lacks it.

        Args:
            checkpoint: has "model", whose entries are replaced, and, if it is of focal_det, the names of its classes.
            model: weights by name, (A*K, C, 3, 3) and (A*K,), as they are initialised.

        Returns:
            A message; "" where all stays: without names or such a layer, where the classes are the same, and for a
            layer of other channels or, in a checkpoint of focal_det, other anchors.

        Raises:
            ValueError: the layer is not for this model's anchors and as many classes as WEIGHTS_CLASSES has.
        """
        record = RunRecord.read(checkpoint.get("run"))
        files = record.class_names if record else self.files
        weights: MutableMapping[str, Any] = checkpoint["model"]
        if self.model is None or files is None or list(files) == list(self.model):
            return ""
        if not all(name in weights and name in model for name in _LAYER):
            return ""
        labels = {name: label for label, name in enumerate(files)}
        alike = {_plain(name): label for name, label in labels.items()}
        sources = [labels.get(name, alike.get(_plain(name))) for name in self.model]
        kept = [label for label, source in enumerate(sources) if source is not None]
        anchors = len(model[_LAYER[1]]) // len(self.model)
        boxes = [name for name in _BOXES if _is_by_class(name, weights) and _is_by_class(name, model)]
        for name in (*_LAYER, *boxes):
            theirs, ours = torch.as_tensor(weights[name]), model[name].cpu()
            of_class = (len(ours) // len(model[_LAYER[1]]), *ours.shape[1:])  # 1 row of the scores, 4 of the boxes
            if record is None and len(theirs) != anchors * len(files) * of_class[0]:
                raise ValueError(
                    f"{name} has {len(theirs)} rows, not those of {anchors} anchors and {len(files)} classes: {KEY} "
                    "has to name the data set that the weights were trained on, or '' to initialise the layer anew"
                )
            if theirs.shape != (anchors * len(files) * of_class[0], *ours.shape[1:]):
                return ""
            rows = ours.clone().reshape(anchors, len(self.model), *of_class)
            rows[:, kept] = theirs.reshape(anchors, len(files), *of_class)[:, [sources[label] for label in kept]]
            weights[name] = rows.reshape(ours.shape)
        new = [name for name, source in zip(self.model, sources, strict=True) if source is None]
        return (
            f"Class layer, of {len(files)} classes in the file: kept for {_listed([self.model[i] for i in kept])}; "
            f"initialised anew, with MODEL.RETINANET.PRIOR_PROB, for {_listed(new)}"
        )


def _is_by_class(name: str, weights: Mapping[str, Any]) -> bool:
    """Tell whether a box layer has four rows for each of the class layer's: a box for each class."""
    return name in weights and len(weights[name]) == 4 * len(weights[_LAYER[1]])


def _plain(name: str) -> str:
    """Return a class name without what different files write differently: "Traffic_Light" is "traffic light"."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _listed(names: Sequence[str]) -> str:
    return cut(", ".join(names), _LONGEST) or "none"
