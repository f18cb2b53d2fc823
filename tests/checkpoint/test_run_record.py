"""The record of a run, and what may differ when the run is resumed."""

from dataclasses import replace

import pytest
import torch

from focal_det.checkpoint.checkpointer import RunCheckpointer
from focal_det.checkpoint.compatibility import build_cpu_model
from focal_det.checkpoint.run_record import RunRecord, UsedSet, compare
from focal_det.cli.train import parse_arguments
from focal_det.errors import InputError
from focal_det.preflight.plan import check

pytestmark = pytest.mark.detectron2

SET = UsedSet("train_json", 40, "aa" * 32)


@pytest.fixture(scope="module")
def record(tiny_cfg):
    cfg = tiny_cfg("SEED", "5")
    return RunRecord.of(
        cfg, training_sets=[SET], tested_on=UsedSet("val_json", 8, "cc" * 32), class_names=["a", "b", "c"], world_size=2
    )


def with_keys(record, **keys):
    return replace(record, config={**record.config, **{key.replace("__", "."): value for key, value in keys.items()}})


def test_a_record_is_plain_data_and_comes_back(record, tmp_path):
    torch.save({"run": record.plain()}, tmp_path / "a.pth")
    again = RunRecord.read(torch.load(tmp_path / "a.pth", weights_only=True)["run"])
    assert again == record
    assert compare(again, record) == ([], [])
    assert record.config["SOLVER.STEPS"] == [60000, 80000]
    assert "MODEL.FOCAL_DET.LOSS.MARGIN" not in record.config  # which the focal loss does not read


@pytest.mark.parametrize("plain", [None, 3, {}, {"config": 1}, {"config": {}, "training_sets": [1]}])
def test_what_is_not_a_record_is_none(plain):
    assert RunRecord.read(plain) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"config": {"SEED": torch.ones(2)}},
        {"config": {"SOLVER.MAX_ITER": "x"}},
        {"training_sets": (UsedSet("a", "x", None),)},
        {"tested_on": UsedSet("a", 1, torch.ones(2))},
        {"world_size": float("inf")},
    ],
)
def test_a_record_of_what_cannot_be_compared_is_none(record, changed):
    assert RunRecord.read(replace(record, **changed).plain()) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("OUTPUT_DIR", "elsewhere"),
        ("DATALOADER.NUM_WORKERS", 0),
        ("TEST.EVAL_PERIOD", 7),
        ("DATASETS.TEST", ["other"]),
        ("DATASETS.TRAIN", ["of_another_name"]),
        ("MODEL.WEIGHTS", "other.pth"),
        ("MODEL.DEVICE", "cuda"),
        ("MODEL.FOCAL_DET.DRAW_IMAGES", 3),
        ("MODEL.FOCAL_DET.CHECKPOINTS_KEPT", 0),
        ("MODEL.RETINANET.SCORE_THRESH_TEST", 0.5),
        ("SOLVER.CHECKPOINT_PERIOD", 3),
        ("SOLVER.MAX_ITER", 100000),
        ("SOLVER.MAX_ITER", 10),
    ],
)
def test_what_changes_nothing_of_what_is_trained_is_told(record, key, value):
    found = compare(record, with_keys(record, **{key: value}))
    assert found.refused == []
    assert found.notes[0].startswith(f"{key}: {record.config[key]!r} before, {value!r} now")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.BASE_LR", 0.02),
        ("SOLVER.STEPS", [60000]),
        ("SOLVER.IMS_PER_BATCH", 8),
        ("SOLVER.AMP.ENABLED", True),
        ("SEED", 6),
        ("MODEL.RETINANET.IOU_THRESHOLDS", [0.3, 0.5]),
        ("MODEL.RETINANET.FOCAL_LOSS_GAMMA", 1.0),
        ("MODEL.FOCAL_DET.NORMALIZER", "image"),
        ("INPUT.RANDOM_FLIP", "none"),
        ("INPUT.MIN_SIZE_TRAIN", [600]),
        ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", False),
        ("TEST.PRECISE_BN.ENABLED", True),
        ("MODEL.FOCAL_DET.TILES.SIZE", 640),
        ("MODEL.FOCAL_DET.EMA.DECAY", 0.9998),
        ("MODEL.FOCAL_DET.PATIENCE", 3),
    ],
)
def test_what_makes_another_training_is_refused(record, key, value):
    assert compare(record, with_keys(record, **{key: value})) == (
        [f"{key}: {record.config[key]!r} before, {value!r} now"],
        [],
    )


def test_no_key_of_the_lists_is_a_slip(record):
    from focal_det.checkpoint.run_record import _BY_ROUNDING, _FREE

    for name in (*_FREE, *_BY_ROUNDING):
        assert any(key.startswith(name) if name[-1] in "._" else key == name for key in record.config), name


def test_the_length_of_a_schedule_that_depends_on_it_is_refused(record):
    before = with_keys(record, SOLVER__LR_SCHEDULER_NAME="WarmupCosineLR")
    found = compare(before, with_keys(before, SOLVER__MAX_ITER=10**6))
    assert found.refused == [
        "SOLVER.MAX_ITER: 90000 before, 1000000 now; WarmupCosineLR derives the lr of each iteration from it"
    ]


@pytest.mark.parametrize(
    ("now", "refused"),
    [
        (replace(SET, name="elsewhere"), False),
        (replace(SET, fingerprint=None), False),  # nothing is known against it
        (replace(SET, fingerprint="bb" * 32, images=39), True),
        (replace(SET, fingerprint=None, name="other"), True),
    ],
)
def test_data_are_compared_by_content_and_by_name_where_that_is_not_known(record, now, refused):
    found = compare(record, replace(record, training_sets=(now,)))
    assert bool(found.refused) == refused
    assert found.notes == []


def test_classes_processes_and_versions(record):
    assert len(compare(record, replace(record, training_sets=(SET, SET))).refused) == 1
    assert len(compare(record, replace(record, class_names=("a", "c", "b"))).refused) == 1
    (line,) = compare(record, replace(record, world_size=1)).refused
    assert line.startswith("processes: 2 before, 1 now; each groups its own images by their shape")
    apart = replace(record, config={**record.config, "DATALOADER.ASPECT_RATIO_GROUPING": False})
    assert compare(apart, replace(apart, world_size=1)) == ([], ["processes: 2 before, 1 now, the same up to rounding"])
    found = compare(record, replace(record, torch="9", focal_det="8"))
    assert (found.refused, len(found.notes)) == ([], 2)
    older = replace(record, config={key: value for key, value in record.config.items() if key != "SOLVER.GAMMA"})
    assert compare(older, record) == ([], ["SOLVER.GAMMA: 0.1 now, a key that the other does not have"])


def test_a_plug_in_whose_file_has_changed_is_reported(record):
    before, now = (replace(record, plugins={"a.py": digit * 64, "b.py": "0" * 64}) for digit in "12")
    assert compare(before, now) == ([], ["plug-in a.py: its file has changed (11111111 before, 22222222 now)"])
    assert RunRecord.read(before.plain()) == before
    older = {key: value for key, value in record.plain().items() if key != "plugins"}
    assert compare(RunRecord.read(older), now) == ([], [])


# --- through the command line ----------------------------------------------------------------------------------------

WORDS = [
    *("--config-file", "configs/quickstart.yaml", "DATASETS.TRAIN", "shapes_train_8_64px", "SOLVER.IMS_PER_BATCH", "2"),
    *("DATASETS.TEST", "shapes_val_4_64px", "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.RETINANET.NUM_CONVS", "0"),
]


class Steps:
    def state_dict(self):
        return {"iteration": 9, "_trainer": {"optimizer": {"state": {}, "param_groups": []}}}


def job_of(folder, *words):
    return check(parse_arguments([*WORDS, "OUTPUT_DIR", str(folder), *words])).job


def start(folder, *words, records=True):
    """As a run that was stopped after ten iterations leaves the folder."""
    job = job_of(folder, *words)
    folder.mkdir()
    model = build_cpu_model(job.cfg)
    record = job.record if records else None
    RunCheckpointer(model, str(folder), record=record, trainer=Steps()).save("model_0000009", iteration=9)
    return job


def test_a_run_is_resumed_as_it_was_and_with_changes_only_if_they_are_allowed(tmp_path, capsys):
    folder = tmp_path / "run"
    first = start(folder, "SEED", "-1")
    assert first.cfg.SEED >= 0
    assert f"SEED is -1: drew {first.cfg.SEED}, which config.yaml will hold" in capsys.readouterr().err
    job = job_of(folder, "SEED", "-1", "--resume", "SOLVER.MAX_ITER", "2000", "TEST.EVAL_PERIOD", "50")
    assert job.checkpoint == folder / "model_0000009.pth"
    assert job.cfg.SEED == job.record.config["SEED"] == first.cfg.SEED
    told = "\n".join(job.notes)
    assert f"SEED is -1: resuming with the run's, {first.cfg.SEED}" in told
    assert "SOLVER.MAX_ITER: 1000 before, 2000 now, so the run lasts longer" in told
    assert "TEST.EVAL_PERIOD: 0 before, 50 now" in told
    changes = ("--resume", "SOLVER.BASE_LR", "0.01", "SEED", "3")
    with pytest.raises(InputError) as refused:
        job_of(folder, *changes)
    (problem,) = refused.value.problems
    assert "add --allow-changes to continue with what it is now" in problem
    assert problem.splitlines()[1:] == [
        f"  SEED: {first.cfg.SEED} before, 3 now",
        "  SOLVER.BASE_LR: 0.05 before, 0.01 now",
    ]
    job = job_of(folder, *changes, "--allow-changes")
    assert "--allow-changes: from iteration 10 on SOLVER.BASE_LR: 0.05 before, 0.01 now" in "\n".join(job.notes)
    assert (job.record.config["SEED"], job.record.config["SOLVER.BASE_LR"]) == (3, 0.01)


def test_a_checkpoint_older_than_records_is_resumed_with_a_warning(tmp_path):
    folder = tmp_path / "run"
    start(folder, records=False)
    job = job_of(folder, "--resume", "SOLVER.BASE_LR", "0.01")
    assert "model_0000009.pth does not say what it was trained with" in "\n".join(job.notes)


def test_changes_are_allowed_to_a_resumed_run_alone(tmp_path):
    with pytest.raises(InputError, match="--allow-changes is for a run that is resumed; add --resume"):
        job_of(tmp_path / "run", "--allow-changes")
