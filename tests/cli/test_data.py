"""focal-det data inspect: what it draws, counts and says; without Detectron2."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from focal_det.cli.main import main
from focal_det.inference import images as images

ROOT = Path(__file__).parents[2]


@pytest.fixture
def voc(write_voc):
    objects = {f"p{i:02d}": [("cat", 11, 11, 40, 40)] for i in range(6)}
    objects["p03"].append(("dog", 50, 11, 90, 60, "<difficult>1</difficult>"))
    return write_voc({**objects, "p06": []}, train=list(objects), val=["p03", "p06"])


def inspect(*words):
    return main(["data", "inspect", *map(str, words)])


def test_draws_and_counts_every_set(voc, tmp_path, capsys):
    out = tmp_path / "out"
    assert inspect("--train-voc", voc, "--val-voc", voc, "--pictures", 3, "--out", out) == 0
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.*"))
    # 3 of 6, evenly spread, and the 2 that there are
    drawn = [*(f"train_voc/00{i}_p0{2 * i}.png" for i in range(3)), "val_voc/000_p03.png", "val_voc/001_p06.png"]
    assert names == ["pictures.png", "statistics.json", "statistics.png", "statistics.txt", *drawn]
    found = json.loads((out / "statistics.json").read_text())
    assert found["train_voc"]["source"] == f"{voc}:train"
    assert (found["train_voc"]["boxes"], found["val_voc"]["boxes"], found["val_voc"]["ignored"]) == (6, 1, 1)
    text = capsys.readouterr().out
    assert f"{voc}: took split train, 6 images" in text
    assert (out / "statistics.txt").read_text() in text
    assert str(out / "pictures.png") in text


def test_boxes_are_drawn_where_they_are(voc, tmp_path):
    assert inspect("--train-voc", voc, "--pictures", 1, "--out", tmp_path / "out") == 0
    drawing = cv2.imread(str(tmp_path / "out" / "train_voc" / "000_p00.png"))
    scale = drawing.shape[1] / 100
    changed = np.abs(drawing.astype(int) - 128).max(axis=2) > 60
    row = changed[round(25 * scale)]
    # (11..40) are the coordinates 10 to 40: an edge at each, and nothing right of them
    assert row[round(8 * scale) : round(13 * scale)].any()
    assert row[round(37 * scale) : round(43 * scale)].any()
    assert not row[round(60 * scale) :].any()


def test_only_of_sets_to_train_on_it_is_said_what_is_not_trained_on(voc, tmp_path, capsys):
    assert inspect("--train-voc", f"{voc}:val", "--val-voc", voc, "--out", tmp_path / "out") == 0
    train, val = (line for line in capsys.readouterr().out.splitlines() if "of them without objects" in line)
    assert train.startswith(val + ", which are not trained on while")


def test_only_one_class(voc, tmp_path, capsys):
    out = tmp_path / "out"
    assert inspect("--train-voc", voc, "--only-class", "dog", "--out", out) == 0
    assert [path.name for path in (out / "train_voc").iterdir()] == ["000_p03.png"]
    assert inspect("--train-voc", voc, "--only-class", "dgo", "--out", out) == 2
    assert "--only-class 'dgo' is not a class of these sets; did you mean 'dog'?" in capsys.readouterr().err


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["statistics.txt", "statistics.json", "statistics.png", "pictures.png", "train_voc/a"])
def test_nothing_is_written_over_without_asking(voc, tmp_path, capsys, name):
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert inspect("--train-voc", voc, "--out", tmp_path / "out") == 2
    there = mine if mine.suffix else mine.parent
    assert f"already has {there}; name another, or add --overwrite" in capsys.readouterr().err
    assert files_in(tmp_path / "out") == {name: b"mine"}


def test_overwrite_replaces_the_very_files_and_takes_none_away(voc, tmp_path):
    out = tmp_path / "out"
    assert inspect("--train-voc", voc, "--pictures", 6, "--out", out) == 0
    (out / "train_voc" / "009_mine.png").write_text("mine")
    (out / "train_voc" / "000_p00.png").write_text("old")
    before = files_in(out)
    assert inspect("--train-voc", voc, "--pictures", 2, "--out", out, "--overwrite") == 0
    after = files_in(out)
    assert before.keys() < after.keys()  # 2 of 6 are p00 and p03, now as 001
    assert after["train_voc/009_mine.png"] == b"mine"
    assert after["train_voc/000_p00.png"] != b"old"


@pytest.mark.parametrize("below", ["", "deeper"])
@pytest.mark.parametrize("named", [True, False])
def test_never_are_the_images_of_a_set_written_over(voc, tmp_path, capsys, below, named):
    out = tmp_path / "out"
    folder = out / "train_json" / below
    folder.mkdir(parents=True)
    (voc / "JPEGImages" / "p00.jpg").rename(folder / "000_p00.png")
    # The folder of the images is theirs, or one high above.
    file_name = "000_p00.png" if named else str((folder / "000_p00.png").relative_to(tmp_path))
    content = {
        "images": [{"id": 1, "file_name": file_name, "width": 100, "height": 80}],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    before = files_in(out)
    words = ["--train-json", tmp_path / "a.json", "--train-images", folder if named else tmp_path]
    assert inspect(*words, "--out", out, "--overwrite") == 2
    assert f"{out / 'train_json'} is or contains a file of the data sets" in capsys.readouterr().err
    assert files_in(out) == before


@pytest.mark.parametrize("out", ["y" * 300, "voc/ImageSets/Main/train.txt/out"])
def test_a_folder_that_cannot_be_made_is_named(voc, tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    assert inspect("--train-voc", voc, "--out", out) == 2
    assert "not a folder that can be made and written; name another" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


def test_never_is_the_annotation_file_written_over(voc, tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "p00.jpg", "width": 100, "height": 80}],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "statistics.json").write_text(json.dumps(content))
    words = ["--train-json", tmp_path / "statistics.json", "--train-images", voc / "JPEGImages"]
    assert inspect(*words, "--out", tmp_path, "--overwrite") == 2
    assert json.loads((tmp_path / "statistics.json").read_text()) == content


def test_an_image_that_is_damaged_behind_its_header_is_passed_over_and_named(voc, tmp_path, monkeypatch, capsys):
    path = voc / "JPEGImages" / "p00.jpg"

    def damaged(asked):
        if asked == path:
            raise images.ImageError(path, "broken data stream")
        return read_image(asked)

    read_image = images.read_image
    monkeypatch.setattr(images, "read_image", damaged)
    assert inspect("--train-voc", voc, "--out", tmp_path / "out") == 0
    assert f"warning: {path}: broken data stream; skipped" in capsys.readouterr().err
    assert len(list((tmp_path / "out" / "train_voc").iterdir())) == 5


def test_sets_that_number_their_classes_differently_are_warned_of(voc, tmp_path, capsys):
    images = [{"id": 1, "file_name": "p00.jpg", "width": 100, "height": 80}]
    for name, classes in (("a", ("cat", "dog")), ("b", ("dog", "cat"))):
        categories = [{"id": i + 1, "name": c} for i, c in enumerate(classes)]
        content = {"images": images, "annotations": [], "categories": categories}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    flags = [("--train-json", tmp_path / f"{n}.json", "--train-images", voc / "JPEGImages") for n in "ab"]
    assert inspect(*flags[0], *flags[1], "--out", tmp_path / "out") == 0
    assert "warning: train_json and train_json_2 differ in their classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no data set is named: use --train, or --config-file"),
        (["--train-voc", "voc", "--pictures", "0"], "--pictures 0 must be at least 1"),
        (["--train-voc", "voc:tset"], "no split 'tset'"),
        (["--train-voc", "nowhere"], "nowhere: no such folder"),
        (["--val-json", "a.json"], "--val-json is given without --val-images; both are needed"),
        (
            ["--val-json", "a.json", "--val-json", "b.json", "--val-images", "."],
            "--val-json is given 2 times and --val-images 1 times; each file needs the folder of its images",
        ),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(voc, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert inspect(*words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


def test_sets_of_flags_need_no_detectron2(voc, tmp_path):
    code = (
        "import sys; sys.modules['detectron2'] = None\n"
        "from focal_det.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["data", "inspect", "--train-voc", str(voc), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "pictures.png").is_file()
