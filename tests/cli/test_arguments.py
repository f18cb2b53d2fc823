"""The command line: flags anywhere, overrides in order, --resume with and without its word."""

import pytest

from focal_det.cli.arguments import parse_arguments


def test_flags_may_come_after_overrides():
    args = parse_arguments(
        ["--config-file", "c.yaml", "SOLVER.BASE_LR", "0.1", "--eval-only", "A", "-1", "--num-gpus", "2"]
    )
    assert args.overrides == ["SOLVER.BASE_LR", "0.1", "A", "-1"]
    assert args.eval_only
    assert args.num_gpus == 2


@pytest.mark.parametrize(
    ("words", "resume", "overrides"),
    [
        ([], None, []),
        (["--resume"], "required", []),
        (["--resume", "auto"], "auto", []),
        (["--resume", "SEED", "1"], "required", ["SEED", "1"]),
        (["SEED", "1", "--resume", "auto"], "auto", ["SEED", "1"]),
        (["--resume", "--eval-only"], "required", []),
    ],
)
def test_resume_takes_no_override_for_its_word(words, resume, overrides):
    args = parse_arguments(words)
    assert args.resume == resume
    assert args.overrides == overrides


@pytest.mark.parametrize("words", [["--nonsense"], ["--num-gpus", "two"], ["--num-gpu", "2"], ["--resume=maybe"]])
def test_what_cannot_be_read_exits_with_2(words):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(words)
    assert caught.value.code == 2
