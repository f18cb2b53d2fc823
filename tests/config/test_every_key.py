"""Every key of Detectron2's get_cfg() and of ours is read by a run, or refused with a reason: none is ignored.

A run is given a configuration that notes which keys are read. What a run under some configuration has not read has to
be refused when it is set on the command line of that run.
"""

import importlib.util
import json
import os
import re
import sys
import threading
import traceback
from pathlib import Path
from typing import ClassVar

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from focal_det.config.layers import COMMAND_LINE, Setting, leaves
from focal_det.config.read_when import OF_ALL, OF_DENSE
from focal_det.config.schedule import scale_to_processes
from focal_det.config.unused_keys import check_unread_keys
from focal_det.data.catalog import prepare_shapes
from focal_det.defaults import add_focal_det_config
from focal_det.distributed.watchdog import RankWatchdog
from focal_det.engine.run import Job, run_job

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("keys_page", ROOT / "tools" / "keys_page.py")
keys_page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(keys_page)

SETS = ("shapes_train_4_64px", "shapes_val_2_64px")
SMALL = [
    *("SOLVER.MAX_ITER", "4", "SOLVER.IMS_PER_BATCH", "1", "SOLVER.WARMUP_ITERS", "0", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SEED", "3", "MODEL.WEIGHTS", ""),
]
DETECTRON2S = [
    *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator"),
]
# By name, what is set for a run. Together they choose each part that reads keys of its own.
RUNS = {
    "the paper's": ["MODEL.FOCAL_DET.DRAW_IMAGES", "1"],
    "Detectron2's RetinaNet": [
        *(*DETECTRON2S, "MODEL.FOCAL_DET.DRAW_IMAGES", "0", "TEST.EVAL_PERIOD", "1"),
        *("MODEL.FOCAL_DET.EMA.DECAY", "0.9", "MODEL.FOCAL_DET.PATIENCE", "2"),
    ],
    "cosine": [
        *("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"),
        *("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"),
        *("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "INPUT.CROP.ENABLED", "True"),
        *("MODEL.FOCAL_DET.LOSS.NAME", "OHEMLoss", "MODEL.FOCAL_DET.DRAW_IMAGES", "0"),
    ],
    "fixed gamma": [
        *("SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR", "SOLVER.CLIP_GRADIENTS.ENABLED", "True"),
        *("DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler", "TEST.PRECISE_BN.ENABLED", "True"),
        *("TEST.PRECISE_BN.NUM_ITER", "1", "MODEL.RESNETS.NORM", "BN", "TEST.AUG.ENABLED", "True"),
        *("TEST.AUG.MIN_SIZES", "(64,)", "MODEL.FOCAL_DET.LOSS.NAME", "FocalLossStar"),
        *("INPUT.MIN_SIZE_TRAIN", "(128,)", "SOLVER.IMS_PER_BATCH", "2", "MODEL.FOCAL_DET.DRAW_IMAGES", "0"),
    ],
    "giou on one level": [
        *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", "['res4']"),
        *("MODEL.RETINANET.IN_FEATURES", "['res4']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[64]]"),
        *("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "giou", "DATALOADER.SAMPLER_TRAIN", "WeightedCategoryTrainingSampler"),
        *("MODEL.FOCAL_DET.LOSS.NAME", "HingeLoss", "MODEL.FOCAL_DET.DRAW_IMAGES", "0"),
        *("MODEL.FOCAL_DET.TILES.SIZE", "48", "MODEL.FOCAL_DET.ASSIGNER.NAME", "ATSSAssigner"),
    ],
}
READ_AT_LOADING = {
    *("VERSION", "MODEL.FOCAL_DET.PLUGINS"),
    *("DATASETS.CLASSES", "DATASETS.MERGE_CLASSES", "DATASETS.SPLIT_VAL"),  # before the start, and by no run
}


class Recorded(CfgNode):
    """A configuration that notes the names of the keys whose values are asked for, in `seen` of all such."""

    seen: ClassVar[set] = set()

    @classmethod
    def of(cls, cfg, prefix=""):
        node = cls()
        node.__dict__["prefix"] = prefix
        for key, value in cfg.items():
            dict.__setitem__(node, key, cls.of(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else value)
        return node

    def _noted(self, name, value):
        if name in self and not isinstance(value, CfgNode):
            self.seen.add(self.__dict__.get("prefix", "") + name)
        return value

    def __getattr__(self, name):
        return self._noted(name, super().__getattr__(name))

    def __getitem__(self, name):
        return self._noted(name, super().__getitem__(name))


def keys_read_by(cfg, folder):
    """Train and evaluate in a forked process; return the keys that were read."""
    report = folder / "read.json"
    pid = os.fork()
    if pid == 0:
        try:
            for name in SETS:
                DatasetCatalog.pop(name, None)
                MetadataCatalog.pop(name, None)
            output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
            recorded = Recorded.of(cfg)
            recorded, _ = scale_to_processes(recorded, 1)
            recorded.freeze()
            job = Job(recorded, (), eval_only=False, processes_per_machine=1)
            run_job(job, threading.Event(), RankWatchdog(0))
            report.write_text(json.dumps(sorted(Recorded.seen)))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert report.is_file(), (folder / "output.txt").read_text()[-3000:]
    return set(json.loads(report.read_text()))


def another(value):
    """A value of the same kind that is not this one."""
    if isinstance(value, bool):
        return not value
    return (
        0.5
        if value is None
        else value + (value or type(value)(("x",)))
        if isinstance(value, (list, tuple))
        else (value + "x" if isinstance(value, str) else value + 1)
    )


@pytest.fixture(scope="module")
def every_key():
    """Every key with its default."""
    cfg = get_cfg()
    add_focal_det_config(cfg)
    return dict(leaves(cfg))


@pytest.fixture(scope="module")
def runs(tiny_cfg, tmp_path_factory):
    """Of each run its configuration and the keys that it read."""
    root = tmp_path_factory.mktemp("every_key")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        prepare_shapes(SETS)
        found = {}
        for number, (name, words) in enumerate(RUNS.items()):
            folder = root / str(number)
            folder.mkdir()
            cfg = tiny_cfg(*SMALL, *words, "OUTPUT_DIR", str(folder / "run"))
            cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = SETS[:1], SETS[1:]
            found[name] = cfg, keys_read_by(cfg, folder)
        return found


def is_refused(cfg, run, key, value, every_key):
    """Whether a key is refused if it is set on the command line of a run."""
    words = RUNS[run]
    settings = [Setting(chosen, value, COMMAND_LINE, 1) for chosen, value in zip(words[::2], words[1::2], strict=True)]
    settings.append(Setting(key, True if ".SPEED." in key else value, COMMAND_LINE, 1))  # off is how it is without
    found = check_unread_keys(cfg, settings, every_key).errors
    return any(problem.startswith(f"command line: {key} is ") for problem in found)


@pytest.mark.parametrize("name", RUNS)
def test_what_a_run_does_not_read_is_refused(runs, every_key, name):
    cfg, read = runs[name]
    ignored = []
    for key, default in every_key.items():
        if key in read | READ_AT_LOADING:
            continue
        if not is_refused(cfg, name, key, another(default), every_key):
            ignored.append(key)
    assert ignored == []


# What is read and refused all the same: switches of what a dense detector has no part for, and what Detectron2 or the
# checkpointer reads and makes no use of with the keys that are set.
READ_IN_VAIN = {
    *("MODEL.MASK_ON", "MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS", "INPUT.MASK_FORMAT"),
    *("MODEL.RESNETS.STRIDE_IN_1X1", "MODEL.RESNETS.WIDTH_PER_GROUP"),
    *("MODEL.RESNETS.DEFORM_MODULATED", "MODEL.RESNETS.DEFORM_NUM_GROUPS"),
    *("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", "VIS_PERIOD", "MODEL.FOCAL_DET.SPEED.TRITON"),
    "MODEL.FOCAL_DET.WEIGHTS_CLASSES",
}


def test_what_is_refused_is_not_read(runs, every_key):
    found = {}
    for name, (cfg, read) in runs.items():
        is_ours = cfg.MODEL.META_ARCHITECTURE == "FocalRetinaNet"
        for key in read - READ_IN_VAIN:
            of_ours = key.startswith(("MODEL.FOCAL_DET.LOSS.", "MODEL.FOCAL_DET.SPEED."))  # which saving looks at
            if (is_ours or not of_ours) and is_refused(cfg, name, key, another(every_key[key]), every_key):
                found.setdefault(name, []).append(key)
    assert found == {}


def test_every_condition_is_met_in_one_run_and_not_in_another(runs):
    in_vain = [condition for condition in OF_DENSE if set(condition.keys) <= READ_IN_VAIN]
    for condition in (*OF_ALL, *(c for c in OF_DENSE if c not in in_vain)):
        assert {bool(condition.holds(cfg)) for cfg, _ in runs.values()} == {True, False}, condition.needed


def test_the_page_of_keys_is_up_to_date_and_has_every_key(every_key):
    text = (ROOT / "docs" / "detectron2_keys.md").read_text()
    assert text == keys_page.page(), "run python tools/keys_page.py"
    names = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    missing = [key for key in every_key if key not in names and not key.startswith(tuple(n[:-1] for n in names))]
    assert missing == []
    read, never = re.search(r"read\s(\d+)\sof them.* never read the other (\d+)", text, re.DOTALL).groups()
    about = (ROOT / "docs" / "detectron2.md").read_text()
    assert f"a dense detector reads {read} and never {never}" in about
