"""focal-det data inspect: what it draws, counts and says; without Detectron2."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from focal_det.cli.main import main
from focal_det.data.dataset_spec import USES
from focal_det.inference import images, set_drawings

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
    written = ["duplicates.png", "pictures.png", "statistics.json", "statistics.png", "statistics.txt"]
    assert names == [*written, *drawn, "worst.png"]
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


@pytest.mark.parametrize(
    "name", ["statistics.txt", "statistics.json", "statistics.png", "pictures.png", "worst.png", "train_voc/a"]
)
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


@pytest.mark.parametrize("below", ["", "deeper"])
def test_nothing_is_written_among_the_images_of_a_set(voc, capsys, below):
    out = voc / "JPEGImages" / below
    assert inspect("--train-voc", voc, "--out", out) == 2
    assert f"--out {out} is among the images of a data set, in {voc / 'JPEGImages'};" in capsys.readouterr().err
    assert len(list((voc / "JPEGImages").iterdir())) == 7


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
    monkeypatch.setattr(set_drawings, "read_image", damaged)
    assert inspect("--train-voc", voc, "--out", tmp_path / "out") == 0
    assert f"warning: {path}: broken data stream; skipped" in capsys.readouterr().err
    assert len(list((tmp_path / "out" / "train_voc").iterdir())) == 5


def test_bad_images_are_left_out_up_to_the_bound_over_all_sets(voc, tmp_path, capsys):
    for name in ("p00", "p01", "p06"):  # the last of the set to evaluate on
        path = voc / "JPEGImages" / f"{name}.jpg"
        path.write_bytes(path.read_bytes()[:-20])
    words = ("--train-voc", voc, "--val-voc", voc, "--out", tmp_path / "out", "--skip-bad-images")
    assert inspect(*words, 2) == 2
    err = capsys.readouterr().err
    assert (
        "error: 3 images of all sets are bad, more than --skip-bad-images 2; replace or remove them, or raise it: "
        in err
    )
    assert err.strip().endswith("/p06.jpg")
    assert inspect(*words, 3) == 0
    assert "left out 2 images" in capsys.readouterr().out


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


@pytest.fixture
def faulty(tmp_path):
    """Flags of two sets: the second's image is the first of the first's, with another box; and boxes of all kinds."""

    def write(name, files, boxes):
        folder = tmp_path / name
        folder.mkdir()
        images, rows = [], []
        for number, (file, seed) in enumerate(files.items(), start=1):
            pixels = np.random.default_rng(seed).integers(0, 90, (80, 100, 3), np.uint8)
            cv2.imwrite(str(folder / file), pixels)
            images.append({"id": number, "file_name": file, "width": 100, "height": 80})
        for image, category, *box in boxes:
            rows.append({"id": len(rows) + 1, "image_id": image, "category_id": category, "bbox": box})
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        content = {"images": images, "annotations": rows, "categories": categories}
        (folder / "coco.json").write_text(json.dumps(content))

    boxes = [(1, 1, 10, 10, 30, 30), (1, 2, 11, 10, 30, 30), (2, 1, 50, 20, 1, 9), (3, 2, 0, 0, 100, 79)]
    write("train", {"a.png": 1, "b.png": 2, "c.png": 3}, boxes)
    write("val", {"x.png": 1}, [(1, 1, 40, 40, 30, 30)])
    of_uses = [(f"--{use}-json", tmp_path / use / "coco.json", f"--{use}-images", tmp_path / use) for use in USES]
    return [word for flags in of_uses for word in flags]


def test_what_is_probably_wrong_is_said_counted_and_drawn(faulty, tmp_path, capsys):
    out = tmp_path / "out"
    assert inspect(*faulty, "--out", out) == 0
    text = capsys.readouterr().out
    for line in (
        "boxes of at most 1 px in width or height: 1 (b.png cat [50, 20, 1, 9])",
        "boxes that cover at least 95% of their image: 1 (c.png dog [0, 0, 100, 79])",
        "pairs of boxes with IoU >= 0.9, probably of one object: 1, 1 of them of two classes (a.png cat [10, 10, 30, 3",
        "1 of the 1 images of val_json are in train_json too, by content, 1 of them with different boxes ('a.png' = 'x",
        "in train_json alone: class dog",
        "with the paper's anchors, of 32 to 813 px (--config-file: those of a configuration):",
    ):
        assert line in text, line
    found = json.loads((out / "statistics.json").read_text())
    assert [len(of_kind) for of_kind in found["train_json"]["suspects"].values()] == [1, 1, 1]
    assert found["train_json"]["suspects"]["tiny"][0]["file_name"] == "b.png"
    copies = {"sets": ["train_json", "val_json"], "file_names": ["a.png", "x.png"], "agree": False}
    assert (found["train_json"]["duplicates"], found["val_json"]["duplicates"]) == ([], [copies])
    anchors = found["val_json"]["anchors"]
    # 30 of 80 px become 300 of 800: an anchor of 256 * 2^(1/3) = 322 px is near enough
    assert (anchors["size"], anchors["rows"][0]["reached"], anchors["rows"][0]["side"]) == ("800 px", 1.0, 300.0)
    # a pair of drawings beside each other; three suspects on one row
    both, worst = (cv2.imread(str(out / name)) for name in ("duplicates.png", "worst.png"))
    assert both.shape[1] > 2 * 380
    assert worst.shape[1] > 3 * 300


def test_without_copies_and_suspects_the_sheets_say_so(write_voc, tmp_path):
    voc = write_voc({"a": [("cat", 11, 11, 40, 40)]}, train=["a"])
    assert inspect("--train-voc", voc, "--out", tmp_path / "out") == 0
    sheets = [cv2.imread(str(tmp_path / "out" / name)) for name in ("duplicates.png", "worst.png")]
    assert [len(sheet) for sheet in sheets] == [48, 48]  # a title, and nothing below
    assert all((sheet[:24] < 128).any() for sheet in sheets)


def test_sets_of_flags_need_no_detectron2(voc, tmp_path):
    code = (
        "import sys; sys.modules['detectron2'] = None\n"
        "from focal_det.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["data", "inspect", "--train-voc", str(voc), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "pictures.png").is_file()
