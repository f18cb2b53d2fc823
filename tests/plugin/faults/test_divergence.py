"""What is kept of a step that gave no numbers, and what is said when it is done again."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from focal_det.cli.main import main
from focal_det.engine.divergence import KEPT, CheckNumbers, write_divergence
from focal_det.engine.suspects import note_suspect, suspects


@pytest.fixture
def kept(tiny_cfg, batch_of, tmp_path):
    """Writes the file of a tiny model's step; `spoil` may change model and batch before."""

    def write(spoil=lambda model, batch: None, *overrides, ranks=1):
        cfg = tiny_cfg("OUTPUT_DIR", str(tmp_path), *overrides)
        torch.manual_seed(0)
        model, batch = build_model(cfg), batch_of((2, 3), size=(64, 64))
        for place, picture in enumerate(batch):
            picture["file_name"] = f"{place}.jpg"
        spoil(model, batch)
        losses = {"loss_cls": torch.tensor(1.0), "loss_box_reg": torch.tensor(float("inf"))}
        shares = [batch] if ranks == 1 else [[picture] for picture in batch]
        return write_divergence(cfg, model, shares, losses, ["head.cls_score.weight"], iteration=57, is_first=True)

    return write


def replayed(path, capsys):
    assert main(["replay", str(path)]) == 0
    return capsys.readouterr().out.split("verdict: ")


def test_the_file_holds_the_step_and_no_earlier_one_is_replaced(kept, tmp_path):
    first, second = kept(), kept()
    assert [path.name for path in (first, second)] == ["iteration_0000057_rank0.pth", "iteration_0000057_rank0_2.pth"]
    record = torch.load(first, weights_only=True)
    assert (record["iteration"], record["rank"], record["ranks"]) == (57, 0, 1)
    assert record["losses"] == {"loss_cls": 1.0, "loss_box_reg": float("inf")}
    assert [picture["boxes"].shape for picture in record["batch"]] == [(2, 4), (3, 4)]
    assert record["batch"][0]["image"].dtype == torch.uint8
    assert "META_ARCHITECTURE: FocalRetinaNet" in record["config"]
    assert suspects(str(tmp_path), 20) == frozenset(range(37, 58))
    assert suspects(str(tmp_path / "none"), 20) == frozenset()


def test_a_start_looks_at_each_step_where_one_before_diverged_though_nothing_could_be_kept(tmp_path):
    note_suspect(str(tmp_path), 30)
    assert suspects(str(tmp_path), 20) == frozenset(range(10, 31))


def test_where_the_folder_looks_different_from_other_ranks_that_of_rank_0_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    monkeypatch.setattr(comm, "all_gather", lambda own: [{7}, own])
    note_suspect(str(tmp_path), 30)
    assert suspects(str(tmp_path), 2) == frozenset({5, 6, 7})


def test_of_several_ranks_each_batch_is_done_again(kept, capsys):
    def spoil(model, batch):
        batch[1]["instances"].gt_boxes.tensor[2, 2] = float("inf")

    steps, verdict = replayed(kept(spoil, ranks=2), capsys)
    assert "all 1 pictures of rank 0" in steps
    assert "all 1 pictures of rank 1" in steps
    assert verdict.startswith("picture 2 of 2, 1.jpg: ")


def test_what_was_no_number_elsewhere_and_is_one_here_is_said(kept, capsys):
    steps, verdict = replayed(kept(), capsys)
    assert "picture 2: 1.jpg, 64x64, 3 boxes" in steps
    assert verdict.startswith("finite here: there it was loss_cls 1, loss_box_reg inf")


def test_a_picture_with_a_bad_box_is_named(kept, capsys):
    def spoil(model, batch):
        batch[1]["instances"].gt_boxes.tensor[2, 2] = float("inf")

    verdict = replayed(kept(spoil), capsys)[1]
    assert verdict.startswith("picture 2 of 2, 1.jpg: ")
    assert "box 2 is not finite" in verdict
    assert "0.jpg" not in verdict


def test_the_first_module_that_overflows_is_named(kept, capsys):
    def spoil(model, batch):
        model.head.bbox_pred.weight.data.fill_(3e38)

    steps, verdict = replayed(kept(spoil), capsys)
    assert "first module that is no number: head.bbox_pred" in steps
    assert [line.split(",")[0] for line in verdict.splitlines()] == ["picture 1 of 2", "picture 2 of 2"]


def test_what_only_half_precision_cannot_hold_is_said(kept, capsys):
    def spoil(model, batch):
        model.head.bbox_pred.weight.data.fill_(2e4)  # beyond 65504 when some are added

    amp = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16")
    assert "not finite in float16 only: " in replayed(kept(spoil, *amp), capsys)[1]


def test_weights_that_were_spoilt_before_are_told_apart(kept, capsys):
    def spoil(model, batch):
        model.head.cls_score.bias.data[0] = float("nan")

    verdict = replayed(kept(spoil), capsys)[1]
    assert verdict.startswith("the weights were no numbers before this step: 1 of ")
    assert "first head.cls_score.bias" in verdict


class Evil:
    def __reduce__(self):
        return open, ("evil", "w")


@pytest.mark.parametrize("what", ["evil", "cut", "empty", "other", "batch", "shares", "config", "model"])
def test_a_damaged_or_hostile_file_is_bad_input(kept, what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = kept()
    record = torch.load(path, weights_only=True)
    if what == "evil":
        path.write_bytes(pickle.dumps(Evil()))
    elif what in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[: 5000 if what == "cut" else 0])
    else:
        wrong = {"batch": [{"image": 3}], "shares": [1], "config": "MODEL: {NONE: 3}", "model": {"a": torch.ones(2)}}
        torch.save({**record, what: wrong[what]} if what in wrong else [1, 2], path)
    assert main(["replay", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: ")
    assert not (tmp_path / "evil").exists()


# --- where it is noticed ---------------------------------------------------------------------------------------------


class Bad(nn.Module):
    """A model whose loss, or the slope of it alone, is no number."""

    def __init__(self, of_loss):
        super().__init__()
        self.good, self.bad = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))
        self.of_loss = of_loss

    def forward(self, batch):
        # the root at zero: its value is finite, its slope times zero is not
        bad = self.good.sum() / 0 if self.of_loss else (self.bad * 0).sqrt().sum()
        return {"loss_cls": self.good.sum() + bad}


@pytest.mark.parametrize(
    ("of_loss", "words"),
    [
        (True, "Loss became infinite or NaN at iteration=7, loss_cls"),
        (False, "Gradients .*=7, the first of them of bad"),
    ],
)
def test_what_is_no_number_ends_the_training_before_the_weights_change(tiny_cfg, tmp_path, of_loss, words):
    model = Bad(of_loss)
    picture = {"image": torch.zeros(3, 4, 4, dtype=torch.uint8)}
    trainer = SimpleTrainer(model, [[picture]], torch.optim.SGD(model.parameters(), lr=1.0))
    check = CheckNumbers(tiny_cfg("OUTPUT_DIR", str(tmp_path)), lambda iteration: True)
    check.follow(model)
    trainer.register_hooks([check])
    trainer.iter = 7
    with EventStorage(7), pytest.raises(FloatingPointError, match=words):
        trainer.run_step()
    assert model.good.equal(torch.ones(2))
    assert model.bad.equal(torch.zeros(2))
    assert (tmp_path / "diverged" / "iteration_0000007_rank0.pth").is_file()


def test_only_so_many_are_kept_and_that_is_said(tiny_cfg, tmp_path):
    for number in range(KEPT):
        (tmp_path / "diverged").mkdir(exist_ok=True)
        (tmp_path / "diverged" / f"iteration_000000{number}_rank0.pth").touch()
    model = Bad(of_loss=False)
    trainer = SimpleTrainer(model, [[]], torch.optim.SGD(model.parameters(), lr=1.0))
    check = CheckNumbers(tiny_cfg("OUTPUT_DIR", str(tmp_path)), lambda iteration: True)
    check.follow(model)
    trainer.register_hooks([check])
    trainer.iter = 7
    with EventStorage(7), pytest.raises(FloatingPointError, match="nothing was kept of it: diverged/ is full with 4"):
        trainer.run_step()
    assert len(list((tmp_path / "diverged").iterdir())) == KEPT


def test_numbers_are_only_looked_at_when_due(tiny_cfg):
    model = Bad(of_loss=False)
    trainer = SimpleTrainer(model, [[]], torch.optim.SGD(model.parameters(), lr=1.0))
    check = CheckNumbers(tiny_cfg(), lambda iteration: iteration == 8)
    check.follow(model)
    trainer.register_hooks([check])
    trainer.iter = 7
    with EventStorage(7) as storage:
        trainer.run_step()
    assert "grad_norm" not in storage.latest()


def test_scaled_gradients_may_overflow(tiny_cfg):
    check = CheckNumbers(tiny_cfg(), lambda iteration: True, gradients=False)
    check.trainer = SimpleNamespace(iter=7, model=Bad(of_loss=False))
    check._step = [], {"loss_cls": torch.ones(())}
    check.trainer.model.good.grad = torch.full((2,), float("inf"))
    check.after_backward()
