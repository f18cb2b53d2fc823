"""A trained detector as a function of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image

from .. import plugin  # noqa: F401 - registers what a configuration may name
from ..data.catalog import known_classes
from ..errors import InputError
from ..inference.classes import CLASSES_FILE, Classes, numbered_classes, read_classes
from ..inference.detections import Detections
from ..inference.pictures import alike_in_size, read_picture, resize_shortest_edge, to_bgr
from .config_file import UNSET_NUM_CLASSES, load_config
from .detector_checks import detector_problems, is_device
from .devices import choose_device
from .model_checks import model_problems, weights_problems
from .safe_weights import SafeCheckpointer

Picture = str | Path | np.ndarray | Image.Image

# The model keeps what is above its threshold, the caller what is at least theirs; and it compares in float32.
_BELOW = 1e-4


class Predictor:
    """Finds objects in pictures; fulfils `focal_det.inference.detections.Detector`.

    Args:
        config: YAML file or files, of which the later win, or a configuration of `load_config`, which stays as it is.
        weights: checkpoint; None for the configuration's MODEL.WEIGHTS.
        overrides: KEY VALUE KEY VALUE ..., on top of the files.
        score_thresh: detections have at least this score, in [0, 1]; None for more than the configuration's
            MODEL.RETINANET.SCORE_THRESH_TEST.
        batch_size: pictures, at most, that go through the network together; only those of equal size after resizing
            do, so that a picture's detections do not depend on the others'.
        device: "cuda", "cuda:1", "cpu"; None for MODEL.DEVICE, or the processor where there is no GPU.

    Attributes:
        class_names, category_ids: of the labels 0..K-1, from `classes.json` beside the weights or the configuration,
            else from the configuration's data sets, else numbered.
        notes: what was chosen for want of another: a line each.

    Raises:
        InputError: every problem of the configuration, the weights, the threshold.
    """

    def __init__(
        self,
        config: str | Path | Sequence[str | Path] | CfgNode,
        weights: str | Path | None = None,
        *,
        overrides: Sequence[str] = (),
        score_thresh: float | None = None,
        batch_size: int = 1,
        device: str | None = None,
    ) -> None:
        cfg = config.clone() if isinstance(config, CfgNode) else load_config(config, overrides)
        cfg.defrost()
        if "FOCAL_DET" not in cfg.MODEL:
            raise InputError("config has no MODEL.FOCAL_DET: give a file, or call focal_det.add_focal_det_config on it")
        if is_device(device):
            cfg.MODEL.DEVICE = device
        if weights is not None:
            cfg.MODEL.WEIGHTS = str(weights)
        problems = [*_option_problems(cfg, score_thresh, batch_size, device), *detector_problems(cfg)]
        if problems:
            raise InputError(problems)
        self.notes, problems = choose_device(cfg, 1)
        if score_thresh is not None:
            cfg.MODEL.RETINANET.SCORE_THRESH_TEST = max(0.0, score_thresh - _BELOW)
        files = [config] if isinstance(config, (str, Path)) else [] if isinstance(config, CfgNode) else list(config)
        classes, notes = _find_classes(cfg, [Path(path).parent for path in (cfg.MODEL.WEIGHTS, *files)])
        self.class_names, self.category_ids = classes
        self.notes += notes
        problems = problems or model_problems(cfg) or weights_problems(cfg, cfg.MODEL.WEIGHTS, whole=True)
        if problems:
            raise InputError(problems)
        self.model = build_model(cfg).eval()
        SafeCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        cfg.freeze()
        self.cfg, self.score_thresh, self.batch_size = cfg, score_thresh, batch_size

    @classmethod
    def from_run(
        cls,
        output_dir: str | Path,
        *,
        score_thresh: float | None = None,
        batch_size: int = 1,
        device: str | None = None,
    ) -> Predictor:
        """The best, else the last, model of a training: see `files_of_run`."""
        config, weights = files_of_run(Path(output_dir))
        return cls(config, weights, score_thresh=score_thresh, batch_size=batch_size, device=device)

    @overload
    def __call__(self, pictures: Picture) -> Detections: ...  # type: ignore[overload-overlap]  # a str is a Sequence too

    @overload
    def __call__(self, pictures: Sequence[Picture]) -> list[Detections]: ...

    def __call__(self, pictures: Picture | Sequence[Picture]) -> Detections | list[Detections]:
        """Detections in one picture, or in each of several, in pixels of the picture as read.

        Args:
            pictures: a file, which is read upright, a PIL image, likewise, or an array (H, W, 3) uint8 BGR; or a
                sequence of these, and then a list is returned.

        Raises:
            PictureError: a file that is no picture.
            ValueError: an array of another kind, or none of these.
        """
        if isinstance(pictures, (str, Path, np.ndarray, Image.Image)):
            return self([pictures])[0]
        if not isinstance(pictures, Sequence) or isinstance(pictures, (bytes, bytearray)):
            raise ValueError(_no_picture(pictures))
        arrays = [_as_array(picture) for picture in pictures]
        resized = [self._resized(array) for array in arrays]
        found: dict[int, Detections] = {}
        for batch in alike_in_size(resized, self.batch_size):
            with torch.inference_mode():
                outputs = self.model(
                    [_model_input(resized[i], height=arrays[i].shape[0], width=arrays[i].shape[1]) for i in batch]
                )
            found.update(zip(batch, (self._kept(output["instances"]) for output in outputs), strict=True))
        return [found[i] for i in range(len(arrays))]

    def _resized(self, array: np.ndarray) -> np.ndarray:
        ordered = array[:, :, ::-1] if self.cfg.INPUT.FORMAT == "RGB" else array
        return resize_shortest_edge(ordered, self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)

    def _kept(self, instances: Instances) -> Detections:
        instances = instances.to("cpu")
        found = Detections(
            instances.pred_boxes.tensor.float().numpy(),
            instances.scores.float().numpy(),
            instances.pred_classes.long().numpy(),
        )
        return found if self.score_thresh is None else found.above(self.score_thresh)


def files_of_run(output_dir: Path) -> tuple[Path, Path]:
    """Configuration and weights of a training: its model_best.pth, else its model_final.pth.

    Raises:
        InputError: one of them is not there.
    """
    config = output_dir / "config.yaml"
    weights = next((w for w in (output_dir / "model_best.pth", output_dir / "model_final.pth") if w.is_file()), None)
    if not output_dir.is_dir():
        raise InputError(f"{output_dir}: no such folder; name the OUTPUT_DIR of a training")
    if not config.is_file():
        raise InputError(f"{output_dir} has no config.yaml; name the OUTPUT_DIR of a training, or weights and config")
    if weights is None:
        others = sorted(output_dir.glob("model_*.pth"))
        hint = f"give {others[-1]} as weights" if others else "the training has saved no checkpoint yet"
        raise InputError(f"{output_dir} has neither model_best.pth nor model_final.pth; {hint}")
    return config, weights


def _option_problems(cfg: CfgNode, score_thresh: object, batch_size: object, device: object) -> list[str]:
    """Of what the caller gave, which may be of any type."""
    problems = []
    if score_thresh is not None and not (isinstance(score_thresh, Real) and 0 <= float(score_thresh) <= 1):
        problems.append(f"score_thresh is {score_thresh!r}; it must be a number in [0, 1]")
    if isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1:
        problems.append(f"batch_size is {batch_size!r}; it must be a whole number, at least 1")
    if device is not None and not is_device(device):
        problems.append(f"device is {device!r}; it must be cuda, cuda:<number> or cpu")
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        problems.append("no weights are given, and MODEL.WEIGHTS is empty: name a checkpoint")
    elif "://" not in weights and not Path(weights).is_file():
        problems.append(f"weights {weights}: no such file; give a checkpoint or an address")
    return problems


def _find_classes(cfg: CfgNode, folders: Sequence[Path]) -> tuple[Classes, list[str]]:
    """The classes, and notes. Settles NUM_CLASSES if the configuration leaves it to the data.

    Raises:
        InputError: classes.json contradicts NUM_CLASSES, or nothing says how many classes there are.
    """
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    unset = num_classes == UNSET_NUM_CLASSES
    for folder in folders:
        classes = read_classes(folder)
        if classes is None:
            continue
        if not unset and len(classes.names) != num_classes:
            raise InputError(
                f"{folder / CLASSES_FILE} has {len(classes.names)} classes, MODEL.RETINANET.NUM_CLASSES is "
                f"{num_classes}: use the configuration that the weights were trained with"
            )
        cfg.MODEL.RETINANET.NUM_CLASSES = len(classes.names)
        return classes, []
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        known = known_classes(name)
        if known is not None and (unset or len(known[0]) == num_classes):
            cfg.MODEL.RETINANET.NUM_CLASSES = len(known[0])
            return Classes(*known), []
    if unset:
        raise InputError(
            f"nothing says how many classes there are: no {CLASSES_FILE} beside the weights, and the configuration "
            "leaves MODEL.RETINANET.NUM_CLASSES out; set it, or use the config.yaml that the training wrote"
        )
    note = f"no {CLASSES_FILE} beside the weights and no data set known here: the classes have numbers for names"
    return numbered_classes(num_classes), [note]


def _as_array(picture: Picture) -> np.ndarray:
    """(H, W, 3) uint8 BGR."""
    if isinstance(picture, (str, Path)):
        return read_picture(picture)
    if isinstance(picture, Image.Image):
        return to_bgr(picture)
    if not isinstance(picture, np.ndarray):
        raise ValueError(_no_picture(picture))
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(f"a picture is (H, W, 3) uint8 BGR, not {picture.shape} {picture.dtype}")
    return picture


def _no_picture(given: object) -> str:
    return f"a picture is a file's name, a PIL image or an array (H, W, 3) uint8 BGR, not {type(given).__name__}"


def _model_input(picture: np.ndarray, *, height: int, width: int) -> dict[str, object]:
    image = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
    return {"image": image, "height": height, "width": width}
