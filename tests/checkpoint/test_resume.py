"""Which checkpoint --resume finds, and how a training takes over its folder."""

import math

import pytest
import torch
from saved_runs import OPTIMIZER, save, save_best, saver
from torch import nn

from focal_det.checkpoint.resume import find_checkpoint, folder_taken
from focal_det.errors import InputError

pytestmark = pytest.mark.detectron2


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def test_a_damaged_newest_one_is_told_and_the_one_before_is_taken(tmp_path):
    for iteration in (9, 19, 29):
        saver(tmp_path, iteration, kept=0).save(f"model_{iteration:07d}")
    cut(tmp_path / "model_0000029.pth")
    found = find_checkpoint(tmp_path, "required")
    (warning,) = found.findings.warnings
    assert warning == (
        "--resume: model_0000029.pth is damaged (it is cut off, or never was a checkpoint); resuming from the newest "
        "intact one, model_0000019.pth, after 20 iterations"
    )
    assert (found.checkpoint.path.name, found.checkpoint.done) == ("model_0000019.pth", 20)


def test_a_newest_one_with_another_number_in_it_is_not_taken(tmp_path):
    save(tmp_path, 9)
    save(tmp_path, 19)
    newest = tmp_path / "model_0000019.pth"
    data = bytearray(newest.read_bytes())
    place = data.index(torch.full((2,), 20.0).numpy().tobytes())
    data[place] ^= 1
    newest.write_bytes(data)
    for pointed in (True, False):
        found = find_checkpoint(tmp_path, "required")
        assert found.checkpoint.done == 10
        if pointed:
            assert "is not as it was written); resuming from" in found.findings.warnings[0]
            (tmp_path / "last_checkpoint").unlink()


def test_what_the_user_points_to_is_taken_and_a_longer_run_is_newer_than_its_first_end(tmp_path):
    save(tmp_path, 9)
    save(tmp_path, 9, "model_final")
    save(tmp_path, 19)
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    found = find_checkpoint(tmp_path, "required")
    assert (found.checkpoint.done, found.findings.warnings) == (10, [])
    (tmp_path / "last_checkpoint").unlink()
    found = find_checkpoint(tmp_path, "auto")
    assert found.checkpoint.done == 20
    assert f"no last_checkpoint in {tmp_path}; resuming from the newest intact one" in found.findings.warnings[0]


def test_the_best_is_taken_where_nothing_else_is_whole(tmp_path):
    save(tmp_path, 9)
    save_best(tmp_path, 4)
    (tmp_path / "last_checkpoint").write_text("gone.pth")
    assert find_checkpoint(tmp_path, "required").checkpoint.done == 10
    cut(tmp_path / "model_0000009.pth")
    found = find_checkpoint(tmp_path, "required")
    assert found.checkpoint.done == 5
    assert (
        "names 'gone.pth', which is not a checkpoint in that folder; resuming from the only intact one, model_best"
        in (found.findings.warnings[0])
    )


def test_where_none_is_whole_each_is_listed_and_weights_alone_are_none(tmp_path):
    save(tmp_path, 9)
    cut(tmp_path / "model_0000009.pth")
    torch.save({"model": nn.Linear(2, 1).state_dict()}, tmp_path / "model_final.pth")
    for requested in ("required", "auto"):
        found = find_checkpoint(tmp_path, requested)
        assert found.checkpoint is None
        assert found.findings.errors[0].splitlines()[1:] == [
            "  model_0000009.pth: it is cut off, or never was a checkpoint",
            "  model_final.pth: it holds weights alone, no optimiser and iteration to resume from",
        ]


@pytest.mark.parametrize(
    ("trainer", "reason"),
    [
        ({"iteration": math.inf, "_trainer": {"optimizer": OPTIMIZER}}, "its iteration is inf"),
        ({"iteration": -1, "_trainer": {"optimizer": OPTIMIZER}}, "its iteration is -1"),
        ({"iteration": 19, "_trainer": {"optimizer": {}}}, "its optimiser is not as PyTorch writes it"),
        ({"iteration": 19, "_trainer": {"optimizer": [1.0]}}, "its optimiser is not as PyTorch writes it"),
        (torch.ones(3), "it holds weights alone, no optimiser and iteration to resume from"),
    ],
)
def test_one_that_can_be_read_and_not_resumed_is_passed_over(tmp_path, trainer, reason):
    save(tmp_path, 9)
    save(tmp_path, 19)
    newest = tmp_path / "model_0000019.pth"
    torch.save(torch.load(newest, weights_only=True) | {"trainer": trainer}, newest)
    found = find_checkpoint(tmp_path, "required")
    assert found.checkpoint.done == 10
    assert f"model_0000019.pth is damaged ({reason}); resuming from" in found.findings.warnings[0]


def test_a_link_to_nothing_is_passed_over(tmp_path):
    save(tmp_path, 9)
    (tmp_path / "model_0000019.pth").symlink_to(tmp_path / "gone.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000019.pth")
    assert find_checkpoint(tmp_path, "required").checkpoint.done == 10


def test_a_folder_that_changed_since_it_was_looked_at_is_left_alone(tmp_path):
    save(tmp_path, 9)
    found = find_checkpoint(tmp_path, "required")
    save(tmp_path, 19)
    partial = tmp_path / ".77-0a1b2c3d.part.pth"
    partial.touch()
    with pytest.raises(InputError, match="another training has written here"), folder_taken(tmp_path, found):
        pass
    assert partial.exists()
    with folder_taken(tmp_path, find_checkpoint(tmp_path, "required")):
        pass
    assert not partial.exists()


def test_metrics_of_a_run_without_checkpoint_are_put_aside(tmp_path):
    for number in (1, 2):
        (tmp_path / "metrics.json").write_text(f'{{"iteration": {number}}}\n')
        with folder_taken(tmp_path, find_checkpoint(tmp_path, "auto")):
            pass
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["metrics.json.before1", "metrics.json.before2"]
    assert (tmp_path / "metrics.json.before2").read_text() == '{"iteration": 2}\n'
