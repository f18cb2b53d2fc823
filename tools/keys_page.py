"""Write docs/detectron2_keys.md: what reads each key of Detectron2's configuration, or why it is refused.

    python tools/keys_page.py

The reasons are those of focal_det/config/read_when.py, which the program gives itself; `tests/config/test_every_key.py`
holds them, and so the page, against what runs read. Who reads a key is said here.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from detectron2.config import get_cfg

from focal_det.config.layers import leaves
from focal_det.config.read_when import NEVER, OF_ALL, OF_DENSE, stands_for
from focal_det.defaults import add_focal_det_config

PAGE = Path(__file__).parents[1] / "docs" / "detectron2_keys.md"
# Keys, of which the first that fits counts, and who reads them.
READERS = (
    (("VERSION",), "the configuration reader, which accepts 2 alone"),
    (("OUTPUT_DIR",), "everything that writes"),
    (("MODEL.DEVICE",), "the model; `cuda`, `cuda:<number>` or `cpu`, and `cpu` with a warning where there is no GPU"),
    (("MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME", "MODEL.ANCHOR_GENERATOR.NAME"), "Detectron2's registries"),
    (("MODEL.WEIGHTS",), "the checkpointer, which loads files of strangers as data"),
    (("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"), "the model"),
    (("MODEL.BACKBONE.", "MODEL.RESNETS.", "MODEL.FPN."), "Detectron2's backbone"),
    (("MODEL.ANCHOR_GENERATOR.",), "the anchor generator"),
    (("MODEL.RETINANET.FOCAL_LOSS_ALPHA",), "`FocalLoss` and `FederatedFocalLoss`; refused for other losses"),
    (("MODEL.RETINANET.FOCAL_LOSS_GAMMA",), "the focal losses, with or without alpha; refused for other losses"),
    (("MODEL.RETINANET.NUM_CLASSES",), "the head and the loss; taken from the data if nobody sets it"),
    (("MODEL.RETINANET.IOU_LABELS",), "the assignment; `FocalRetinaNet` takes the default alone"),
    (("MODEL.RETINANET.",), "the detector"),
    (("MODEL.FOCAL_DET.", "SOLVER.AMP.DTYPE"), "focal_det, see [configuration.md](configuration.md)"),
    (("INPUT.",), "Detectron2's mapper"),
    (("DATASETS.TRAIN_REPEAT_FACTOR",), "Detectron2's sampler; Detectron2's own configuration lacks the key"),
    (("DATALOADER.RANDOM_SUBSET_RATIO",), "Detectron2's sampler; Detectron2's own configuration lacks the key"),
    (("DATASETS.CLASSES", "DATASETS.MERGE_CLASSES", "DATASETS.SPLIT_VAL"), "focal_det, as it reads sets of your own"),
    (("DATASETS.TRAIN", "DATASETS.TEST"), "the loaders; names of registered sets, or places of your own"),
    (("DATALOADER.NUM_WORKERS", "DATALOADER.ASPECT_RATIO_GROUPING"), "the loader"),
    (("DATALOADER.",), "Detectron2's loader and samplers"),
    (("SOLVER.REFERENCE_WORLD_SIZE",), "the start, as `DefaultTrainer.auto_scale_workers`; not with `--scale-lr`"),
    (("SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.AMP.ENABLED"), "the trainer"),
    (
        (
            *("SOLVER.MOMENTUM", "SOLVER.NESTEROV", "SOLVER.WEIGHT_DECAY", "SOLVER.WEIGHT_DECAY_NORM"),
            *("SOLVER.WEIGHT_DECAY_BIAS", "SOLVER.BIAS_LR_FACTOR", "SOLVER.BASE_LR", "SOLVER.CLIP_GRADIENTS."),
        ),
        "Detectron2's optimizer",
    ),
    (("SOLVER.",), "Detectron2's schedule"),
    (("TEST.EXPECTED_RESULTS",), "the end of a training or an evaluation; exit code 1 if a result is not met"),
    (("TEST.AUG.",), "the evaluation with test-time augmentation, besides the plain one and at the end alone"),
    (("TEST.PRECISE_BN.",), "Detectron2's hook, before evaluations; refused if no norm uses batch statistics"),
    (("TEST.DETECTIONS_PER_IMAGE",), "the detector"),
    (("TEST.EVAL_PERIOD",), "the trainer"),
    (("SEED",), "every random number; negative: drawn, and kept in checkpoints"),
    (("CUDNN_BENCHMARK",), "the trainer, on a GPU"),
    (("FLOAT32_PRECISION",), "PyTorch's float32 products"),
    (("VIS_PERIOD",), "the drawings of detections, in files; Detectron2 draws training images into TensorBoard"),
)


def rows() -> list[tuple[str, str, str]]:
    """Return key, who reads it and with what else, and why it is refused; of the last two one may be empty.

    Keys of a group that is never read make one row.

    Raises:
        ValueError: a key that has no place in `READERS`.
    """
    cfg = get_cfg()
    add_focal_det_config(cfg)
    found: dict[str, tuple[str, str, str]] = {}
    for key, _ in leaves(cfg):
        never = next(((name, why) for names, why in NEVER for name in names if stands_for((name,), key)), None)
        if never:
            name, why = never
            found[name] = (f"{name}*" if name.endswith((".", "_")) else key, "", why)
            continue
        reader = next((who for names, who in READERS if stands_for(names, key)), None)
        if reader is None:
            raise ValueError(f"{key}: say in READERS who reads it")
        needed = [condition.needed for condition in (*OF_ALL, *OF_DENSE) if stands_for(condition.keys, key)]
        found[key] = (key, reader, f"without {' and '.join(needed)}" if needed else "")
    return list(found.values())


def page() -> str:
    """Return the page in Markdown."""
    cfg = get_cfg()
    add_focal_det_config(cfg)
    keys = [key for key, _ in leaves(cfg)]
    refused = [key for key in keys if any(stands_for(names, key) for names, _ in NEVER)]
    lines = [f"| `{key}` | {reader or '-'} | {why or '-'} |" for key, reader, why in rows()]
    about = (
        f"A configuration has {len(keys)} keys: Detectron2's, and those that focal_det adds. `FocalRetinaNet` and "
        f"Detectron2's `RetinaNet` read {len(keys) - len(refused)} of them, some only in combination with others, and "
        f"never read the other {len(refused)}. A key that is not read is refused before anything starts: on the "
        "command line whatever its value, in a file unless it has its default. Where only the value of another key "
        "leaves it unread, a file gets a warning instead. So nothing is accepted and ignored. For an architecture of "
        "your own, or another one of Detectron2's, no key of a model is refused."
    )
    head = [
        "# Detectron2's keys",
        "",
        "<!-- Written by tools/keys_page.py from focal_det/config/read_when.py: change these, and run it again. -->",
        "",
        *textwrap.wrap(about, 120, break_on_hyphens=False),
        "",
        "| key | read by | refused |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
