"""focal-det analyze: how the loss of a trained model is spread over its examples; alpha by inverse class frequency."""

import re
from pathlib import Path

import pytest
import torch

from focal_det.cli import analyze
from focal_det.cli.common import configuration_of
from focal_det.cli.main import main
from focal_det.config.unused_keys import without_unread_keys
from focal_det.engine.trainer import Trainer
from focal_det.paper import loss_cdf

pytestmark = pytest.mark.detectron2

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@pytest.fixture
def trained(tiny_cfg, tmp_path, monkeypatch):
    """A checkpoint beside its configuration, whose test set is two generated images."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    words = ["DATASETS.TEST", "shapes_val_2_64px", "INPUT.MIN_SIZE_TEST", "64", "OUTPUT_DIR", str(tmp_path / "run")]
    cfg = tiny_cfg(*words, "DATALOADER.NUM_WORKERS", "0")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(without_unread_keys(cfg).dump())
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, tmp_path / "run" / "model_final.pth")
    return tmp_path / "run" / "model_final.pth"


def test_loss_cdf_of_a_checkpoint(trained, tmp_path, capsys):
    assert main(["analyze", "loss-cdf", str(trained), "--gamma", "0,2", "--out", str(tmp_path / "plots")]) == 0
    out = capsys.readouterr().out
    # 64 px: 8^2 + 4^2 + 2^2 + 1 + 1 locations, 9 anchors, 3 classes, 2 images; the ignored have no examples
    found = [int(number.replace(",", "")) for number in out.splitlines()[0].split() if number[0].isdigit()]
    assert 0 < found[0] < 100
    assert 0.9 * 86 * 9 * 3 * 2 < sum(found) <= 86 * 9 * 3 * 2
    assert "share of the loss that the hardest negative ones carry\n     gamma     0.1%     1.0%     5.0%" in out
    shares = out.split("share of all that easy negatives (p_t > .5) carry\n")[1].splitlines()
    assert shares[0].split() == ["gamma", "loss", "gradient"]
    at_0, at_2 = ([float(word.rstrip("%")) for word in line.split()] for line in shares[1:3])
    assert at_0[0] == 0
    assert at_0[1] > 10 > 1 > at_2[1]  # the scores are at the prior, where gamma 2 takes nearly all from the negatives
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == {f"figure4_loss_cdf_{kind}.{e}" for kind in ("positive", "negative") for e in ("png", "svg")} | {
        "figure4_loss_cdf.csv",
        "figure4_easy_negatives.csv",
    }


def test_a_folder_in_place_of_a_table_is_found_before_the_model_is_built(trained, tmp_path, capsys, monkeypatch):
    (tmp_path / "plots" / "figure4_easy_negatives.csv").mkdir(parents=True)
    monkeypatch.setattr(loss_cdf, "model_loss_cdf", None)
    assert main(["analyze", "loss-cdf", str(trained), "--out", str(tmp_path / "plots")]) == 2
    assert "figure4_easy_negatives.csv is to be a file, and is a folder there; name another" in capsys.readouterr().err
    assert not (tmp_path / "plots" / "figure4_loss_cdf.csv").exists()


def test_loss_cdf_of_tiles(trained, tmp_path, capsys):
    words = ["--pictures", "1", "MODEL.FOCAL_DET.TILES.SIZE", "48", "MODEL.FOCAL_DET.TILES.OVERLAP", "0.1"]
    assert main(["analyze", "loss-cdf", str(trained), "--out", str(tmp_path / "plots"), *words]) == 0
    found = [int(n.replace(",", "")) for n in capsys.readouterr().out.splitlines()[0].split() if n[0].isdigit()]
    # one image's four tiles and itself, each at 64 px
    assert 0.9 * 86 * 9 * 3 * 5 < sum(found) <= 86 * 9 * 3 * 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gamma=-1"], "--gamma: gamma=-1.0 is outside"),
        (["--pictures", "0"], "--pictures 0 must be at least 1"),
        (["MODEL.WEIGHTS", "x.pth"], "model_final.pth and MODEL.WEIGHTS x.pth both set MODEL.WEIGHTS; leave one"),
        (["NO.SUCH", "1"], "unknown key NO.SUCH"),
        (["--val-json", "x.json"], "--val-json is given without --val-images"),
    ],
)
def test_bad_input_to_loss_cdf_is_named_and_nothing_is_written(trained, tmp_path, capsys, words, message):
    assert main(["analyze", "loss-cdf", str(trained), "--out", str(tmp_path / "plots"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "plots").exists()


def test_a_model_without_this_projects_criterion_is_refused(trained, tiny_cfg, tmp_path, capsys):
    cfg = tiny_cfg("MODEL.META_ARCHITECTURE", "RetinaNet", "DATASETS.TEST", "shapes_val_2_64px")
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, trained)
    (trained.parent / "config.yaml").write_text(without_unread_keys(cfg).dump())
    assert main(["analyze", "loss-cdf", str(trained), "--out", str(tmp_path / "plots")]) == 2
    assert "MODEL.META_ARCHITECTURE is RetinaNet; only FocalRetinaNet can be analysed" in capsys.readouterr().err


def test_a_checkpoint_without_a_configuration_asks_for_one(tmp_path, capsys):
    assert main(["analyze", "loss-cdf", str(tmp_path / "model.pth")]) == 2
    assert f"MODEL {tmp_path}/model.pth is not a file" in capsys.readouterr().err
    (tmp_path / "model.pth").write_bytes(b"")
    assert main(["analyze", "loss-cdf", str(tmp_path / "model.pth")]) == 2
    assert "config.yaml is not there; name the model's configuration with --config-file" in capsys.readouterr().err


def test_alpha_of_a_configuration_is_printed_with_the_keys_that_set_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    small = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "DATASETS.TEST", "('shapes_val_2_64px',)"]
    words = [str(QUICKSTART), "--images", "2", "DATASETS.TRAIN", "('shapes_train_3_64px',)", *small]
    assert main(["analyze", "alpha", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = re.fullmatch(r"([\d,]+) of ([\d,]+) anchors in 2 images are assigned to objects", lines[0])
    assigned, anchors = (int(number.replace(",", "")) for number in found.groups())
    assert 0 < assigned < 200
    assert 0.9 * 2 * 86 * 9 < anchors <= 2 * 86 * 9  # 64 px: 8^2 + 4^2 + 2^2 + 1 + 1 locations
    assert lines[1] == (
        f"alpha by inverse frequency: {1 - assigned / anchors:.6f} of anchors, assigned against background;"
    )
    assert lines[2].startswith(f"{1 - assigned / anchors / 3:.6f} of the binary problems")
    assert sum(int(line.split()[1]) for line in lines[5:8]) == assigned
    assert lines[-1].endswith(f"BalancedCrossEntropyLoss MODEL.FOCAL_DET.LOSS.ALPHA {1 - assigned / anchors / 3:.6f}")


def test_alpha_counts_tiles_apart_from_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    # a tile of each corner, of which the two emptiest may show no object, and the whole image
    small = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "DATASETS.TEST", "('shapes_val_2_64px',)"]
    words = ["DATASETS.TRAIN", "('shapes_train_2_64px',)", "MODEL.FOCAL_DET.TILES.SIZE", "48", *small]
    assert main(["analyze", "alpha", str(QUICKSTART), *words]) == 0
    assert re.search(r" anchors in 2 images and [2-8] tiles are assigned to objects", capsys.readouterr().out)


def test_alpha_of_no_image_and_of_no_configuration_is_refused(capsys):
    assert main(["analyze", "alpha", "--config-file", str(QUICKSTART), "--images", "0"]) == 2
    assert "--images 0 must be at least 1" in capsys.readouterr().err
    assert main(["analyze", "alpha", "SEED", "1"]) == 2
    assert "no configuration is named; give one as CONFIG" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "files", "overrides"),
    [
        ("a.yaml", ["a.yaml"], []),
        ("a.yaml SEED 1", ["a.yaml"], ["SEED", "1"]),
        ("--images 2 a.yaml SEED 1", ["a.yaml"], ["SEED", "1"]),
        ("--config-file a.yaml --config-file b.yaml SEED 1", ["a.yaml", "b.yaml"], ["SEED", "1"]),
        ("SOLVER.BASE_LR 1 --config-file a.yaml", ["a.yaml"], ["SOLVER.BASE_LR", "1"]),
        ("SOLVER.BASE_LR 1", [], ["SOLVER.BASE_LR", "1"]),
    ],
)
def test_a_configuration_is_named_with_or_without_its_flag(monkeypatch, words, files, overrides):
    seen = []
    monkeypatch.setattr(analyze, "_alpha", lambda args: seen.append(configuration_of(args)) or 0)
    assert main(["analyze", "alpha", *words.split()]) == 0
    assert seen == [(files, overrides)]
