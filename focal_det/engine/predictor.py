"""Run a trained detector on images."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from .. import plugin  # noqa: F401 - registers what a configuration may name
from ..checkpoint.compatibility import build_parts, check_weights
from ..checkpoint.integrity import best_weights
from ..checkpoint.safe_load import SafeCheckpointer
from ..config.load import UNSET_NUM_CLASSES, load_config
from ..config.ranges import is_device
from ..config.validate import detector_problems
from ..data.catalog import known_classes
from ..data.tiling import Tiles, tile_problems
from ..defaults import with_own_keys
from ..environment import choose_device
from ..errors import Findings, InputError
from ..inference.classes import Classes, numbered_classes, read_classes
from ..inference.detections import Detections
from ..inference.detector import ImageDetector, batch_size_problems
from ..output_layout import (
    BEST_CHECKPOINT,
    CHECKPOINT_PATTERN,
    CLASSES_FILE,
    CONFIG,
    FINAL_CHECKPOINT,
)
from .model_detector import ModelDetector

# The model keeps scores above its threshold, the caller those of at least theirs, and the model compares in float32.
_BELOW = 1e-4


class Predictor(ImageDetector):
    """Find objects in images; called as `ImageDetector` says.

    Args:
        config: YAML file or files, of which later ones win, or a configuration of `load_config`, which is not changed.
        weights: checkpoint; None for the configuration's MODEL.WEIGHTS.
        overrides: KEY VALUE KEY VALUE ..., applied after the files.
        score_thresh: detections have at least this score, in [0, 1]; None for more than the configuration's
            MODEL.RETINANET.SCORE_THRESH_TEST.
        batch_size: most images that go through the network together; only those of equal size after resizing do, so
            that an image's detections do not depend on the others.
        device: "cuda", "cuda:1", "cpu"; None for MODEL.DEVICE, or the processor where there is no GPU.
        tile, overlap: side in pixels of the tiles that large images are cut into, 0 for none, and the share of it by
            which they overlap; None for MODEL.FOCAL_DET.TILES. `batch_size` tiles go through the network at a time.

    Attributes:
        class_names, category_ids: of the labels 0..K-1, from `classes.json` beside the weights or the configuration,
            else from the configuration's data sets, else numbered.
        notes: what was chosen by default, a line each.

    Raises:
        InputError: every problem of the configuration, the weights, the values above.
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
        tile: int | None = None,
        overlap: float | None = None,
    ) -> None:
        cfg = config.clone() if isinstance(config, CfgNode) else load_config(config, overrides)
        cfg = with_own_keys(cfg)
        cfg.defrost()
        if is_device(device):
            cfg.MODEL.DEVICE = device
        if weights is not None:
            cfg.MODEL.WEIGHTS = str(weights)
        problems = [*_option_problems(cfg, score_thresh, batch_size, device), *tile_problems(tile, overlap)]
        problems += detector_problems(cfg)
        Findings(problems).raise_if_errors()
        tiles = cfg.MODEL.FOCAL_DET.TILES
        tiles.SIZE, tiles.OVERLAP = Tiles(tiles.SIZE, tiles.OVERLAP).replaced(tile, overlap)
        cfg, of_machine = choose_device(cfg, 1)
        if score_thresh is not None:
            cfg.MODEL.RETINANET.SCORE_THRESH_TEST = max(0.0, score_thresh - _BELOW)
        files = [config] if isinstance(config, (str, Path)) else [] if isinstance(config, CfgNode) else list(config)
        folders = [Path(path).parent for path in (cfg.MODEL.WEIGHTS, *files)]
        (self.class_names, self.category_ids), notes = _find_classes(cfg, folders)
        self.notes = of_machine.warnings + notes
        model, found = build_parts(cfg, training=False)
        if model is not None and not found.errors:
            found = check_weights(model, cfg.MODEL.WEIGHTS, needs_all=True)
        found.raise_if_errors()
        self.model = build_model(cfg).eval()
        SafeCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        cfg.freeze()
        self.cfg, self.score_thresh = cfg, score_thresh
        self.batch_size, self._model_detector = batch_size, ModelDetector(cfg, self.model, batch_size)

    @classmethod
    def from_run(
        cls,
        output_dir: str | Path,
        *,
        score_thresh: float | None = None,
        batch_size: int = 1,
        device: str | None = None,
        tile: int | None = None,
        overlap: float | None = None,
    ) -> Predictor:
        """Load the best, else the last, model of a training; see `files_of_run`."""
        files = files_of_run(Path(output_dir))
        return cls(*files, score_thresh=score_thresh, batch_size=batch_size, device=device, tile=tile, overlap=overlap)

    def _detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        with torch.inference_mode():  # not in `ModelDetector`: a training then uses what its evaluation has cached
            found = self._model_detector(images)
        return found if self.score_thresh is None else [one.above(self.score_thresh) for one in found]


def files_of_run(output_dir: Path) -> tuple[Path, Path]:
    """Return configuration and weights of a training: its best ones, else model_final.pth.

    The best ones are model_best.pth, or model_best_ema.pth if that has a higher AP.
    """
    config = output_dir / CONFIG
    weights, final = best_weights(output_dir)[0], output_dir / FINAL_CHECKPOINT
    if weights is None and final.is_file():
        weights = final
    if not output_dir.is_dir():
        raise InputError(f"{output_dir}: no such folder; name the OUTPUT_DIR of a training")
    if not config.is_file():
        raise InputError(f"{output_dir} has no {CONFIG}; name the OUTPUT_DIR of a training, or weights and config")
    if weights is None:
        others = sorted(output_dir.glob(CHECKPOINT_PATTERN))
        hint = f"give {others[-1]} as weights" if others else "the training has saved no checkpoint yet"
        raise InputError(f"{output_dir} has neither {BEST_CHECKPOINT} nor {FINAL_CHECKPOINT}; {hint}")
    return config, weights


def _option_problems(cfg: CfgNode, score_thresh: object, batch_size: object, device: object) -> list[str]:
    """Return what is wrong with the caller's values, which may be of any type."""
    problems = []
    if score_thresh is not None and not (isinstance(score_thresh, Real) and 0 <= float(score_thresh) <= 1):
        problems.append(f"score_thresh is {score_thresh!r}; it must be a number in [0, 1]")
    problems += batch_size_problems(batch_size)
    if device is not None and not is_device(device):
        problems.append(f"device is {device!r}; it must be cuda, cuda:<number> or cpu")
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        problems.append("no weights are given, and MODEL.WEIGHTS is empty: name a checkpoint")
    elif "://" not in weights and not Path(weights).is_file():
        problems.append(f"weights {weights}: no such file; give a checkpoint or an address")
    return problems


def _find_classes(cfg: CfgNode, folders: Sequence[Path]) -> tuple[Classes, list[str]]:
    """Return the classes and notes; set NUM_CLASSES if the configuration leaves it to the data."""
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    unset = num_classes == UNSET_NUM_CLASSES
    for folder in folders:
        if (classes := read_classes(folder)) is None:
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
            f"leaves MODEL.RETINANET.NUM_CLASSES out; set it, or use the {CONFIG} that the training wrote"
        )
    note = f"no {CLASSES_FILE} beside the weights and no data set known here: the classes have numbers for names"
    return numbered_classes(num_classes), [note]
