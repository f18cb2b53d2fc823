"""The command line as options: flags anywhere, overrides in order, --resume with and without its word."""

from dataclasses import FrozenInstanceError, fields

import pytest

from focal_det.cli.train import parse_arguments
from focal_det.preflight.options import SetFlags, TrainOptions, check_options


def test_flags_may_come_after_overrides():
    options = parse_arguments(
        ["--config-file", "c.yaml", "SOLVER.BASE_LR", "0.1", "--eval-only", "A", "-1", "--num-gpus", "2"]
    )
    assert options.overrides == ("SOLVER.BASE_LR", "0.1", "A", "-1")
    assert options.eval_only
    assert options.num_gpus == 2


@pytest.mark.parametrize(
    ("words", "resume", "overrides"),
    [
        ([], None, []),
        (["--resume"], "required", []),
        (["--resume", "auto"], "auto", []),
        (["--resume", "SEED", "1"], "required", ["SEED", "1"]),
        (["SEED", "1", "--resume", "auto"], "auto", ["SEED", "1"]),
        (["--resume", "--eval-only"], "required", []),
        (["--res", "SEED", "1"], "required", ["SEED", "1"]),
        (["--res", "auto", "SEED", "1"], "auto", ["SEED", "1"]),
        (["--resume", "required", "SEED", "1"], "required", ["SEED", "1"]),
        (["--resume=auto", "SEED", "1"], "auto", ["SEED", "1"]),
    ],
)
def test_resume_takes_no_override_for_its_word(words, resume, overrides):
    options = parse_arguments(words)
    assert options.resume == resume
    assert options.overrides == tuple(overrides)


def test_nothing_on_the_command_line_gives_the_defaults():
    assert parse_arguments([]) == TrainOptions()


def test_every_value_is_of_a_kind_that_cannot_be_changed():
    words = ["--config-file", "a.yaml", "--train-json", "t.json", "--val-voc", "v", "SEED", "1"]
    options = parse_arguments(words)
    assert not [field.name for field in fields(options) if isinstance(getattr(options, field.name), list)]
    with pytest.raises(FrozenInstanceError):
        options.resume = "auto"


def test_sets_of_the_user_are_kept_apart_by_use():
    flags = ["--train-json", "a.json", "--train-images", "a", "--train-json", "b.json", "--val-voc", "v:test"]
    options = parse_arguments(flags)
    assert options.own_sets("train") == SetFlags((), ("a.json", "b.json"), ("a",), ())
    assert options.own_sets("val") == SetFlags((), (), (), ("v:test",))
    assert not TrainOptions(train_images=("a",)).own_sets("train").are_given


def test_processes_are_those_of_all_machines():
    assert TrainOptions(num_gpus=4, num_machines=2).world_size == 8
    assert TrainOptions(num_gpus=0).world_size == 1


def test_flags_that_stand_for_keys_come_after_the_overrides():
    options = parse_arguments(["--batch", "4", "SEED", "1", "--classes", "a,b", "--overlap", "0.1"])
    assert options.settings == (
        *("SEED", "1", "DATASETS.CLASSES", "['a', 'b']", "MODEL.FOCAL_DET.TILES.OVERLAP", "0.1"),
        *("SOLVER.IMS_PER_BATCH", "4"),
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--batch 4 SOLVER.IMS_PER_BATCH 8",
            "--batch 4 and SOLVER.IMS_PER_BATCH 8 both set SOLVER.IMS_PER_BATCH; leave",
        ),
        ("--batch 8 SOLVER.IMS_PER_BATCH 8", "--batch 8 and SOLVER.IMS_PER_BATCH 8 both set"),
        ("--batch auto SOLVER.IMS_PER_BATCH 8", "--batch auto and SOLVER.IMS_PER_BATCH both choose the batch"),
        ("--classes a DATASETS.CLASSES ('b',)", "--classes ['a'] and DATASETS.CLASSES ('b',) both set"),
        ("--split-val .2 DATASETS.SPLIT_VAL [.1,1]", "--split-val [0.2, 0] and DATASETS.SPLIT_VAL [.1,1] both set"),
        ("--merge-classes a=b DATASETS.MERGE_CLASSES ('c=d',)", "--merge-classes ['a=b'] and DATASETS.MERGE_CLASSES"),
        ("--overlap .5 MODEL.FOCAL_DET.TILES.OVERLAP .1", "--overlap 0.5 and MODEL.FOCAL_DET.TILES.OVERLAP .1 both"),
        ("--eval-only --batch 4", "--batch 4 is for a training, and --eval-only trains nothing; leave it out"),
    ],
)
def test_two_answers_to_one_question_are_refused(words, message):
    (error,) = check_options(parse_arguments(words.split())).errors
    assert error.startswith(message)


def test_a_batch_from_python_that_is_none_is_named():
    assert check_options(TrainOptions(batch="big")).errors == [
        "batch is 'big'; it must be a number of images, or \"auto\""
    ]


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_a_time_that_is_none_is_named(seconds):
    (error,) = check_options(TrainOptions(hang_timeout=seconds)).errors
    assert error == f"--hang-timeout is {seconds:g}; it must be 0 (never) or a number of seconds"


# As Detectron2's parser takes them, which is argparse's.
def test_flags_may_be_cut_short_joined_with_their_values_and_followed_by_two_dashes():
    words = ["--config=c.yaml", "--eval", "--num-g", "2", "--dist-url=tcp://a:1", "--", "SEED", "1"]
    expected = TrainOptions(
        config_file=("c.yaml",), eval_only=True, num_gpus=2, dist_url="tcp://a:1", overrides=("SEED", "1")
    )
    assert parse_arguments(words) == expected


def test_a_flag_that_may_be_two_names_both(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(["--num", "2"])
    assert caught.value.code == 2
    assert "ambiguous option: --num could match --num-gpus, --num-machines" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--nonsense"], ["--num-gpus", "two"], ["--num-gups", "2"], ["--resume=maybe"]])
def test_what_cannot_be_read_exits_with_2(words):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(words)
    assert caught.value.code == 2
