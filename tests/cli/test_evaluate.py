"""focal-det evaluate on the exported model that comes with the project; nothing here needs Detectron2."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from focal_det.cli.main import main
from focal_det.data.dataset_spec import data_source, read_sources
from focal_det.data.shapes import CLASSES, draw_image, make_shapes, shapes_files
from focal_det.data.split import split_sets

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "quickstart_int8.onnx"
SET = "shapes_val_12_128px"

WITHOUT_DETECTRON2 = """
import sys
sys.modules["detectron2"] = None
from focal_det.cli.main import main
sys.exit(main())
"""


@pytest.fixture
def shapes(tmp_path):
    make_shapes(SET, tmp_path / "datasets")
    return shapes_files(SET, tmp_path / "datasets")


def test_the_model_of_the_project_is_small_and_finds_shapes_without_detectron2(tmp_path, shapes):
    assert MODEL.stat().st_size <= 15e6
    words = ["evaluate", "--model", MODEL, "--json", shapes[0], "--images", shapes[1], "--out", tmp_path / "out"]
    command = [sys.executable, "-c", WITHOUT_DETECTRON2, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "out" / "scores.json").read_text(), parse_constant=pytest.fail)  # no NaN in JSON
    assert scores["APl"] is None
    assert scores["AP50"] > 80  # 96 on 200 images
    assert [c["name"] for c in scores["classes"]] == ["disk", "box", "triangle"]
    assert "APl is nan: the set has no large objects" in done.stdout
    assert [cause["name"] for cause in scores["causes"]][:2] == ["wrong class", "loose box"]
    assert f"AP50 gained without: wrong class {scores['causes'][0]['gain']:.1f}, loose box" in done.stdout
    assert f"best F1 {scores['best_threshold']['f1']:.2f} at a least score of" in done.stdout
    assert scores["best_threshold"]["f1"] > 0.8
    detections = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {"image_id", "category_id", "bbox", "score"} == set(detections[0])
    assert cv2.imread(str(tmp_path / "out" / "detections.png")) is not None


def mosaic(folder):
    """One image of 3x3 scenes, whose objects are a third as large in the network's input as in each scene."""
    image, rows = np.zeros((384, 384, 3), np.uint8), []
    for number in range(9):
        x, y = 128 * (number % 3), 128 * (number // 3)
        image[y : y + 128, x : x + 128], boxes, labels = draw_image("val", 500 + number, 128)
        for (x0, y0, x1, y1), label in zip(boxes.tolist(), labels.tolist(), strict=True):
            box = {"bbox": [x + x0, y + y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            rows.append({"id": len(rows) + 1, "image_id": 1, "category_id": label + 1, **box})
    cv2.imwrite(str(folder / "mosaic.png"), image)
    image = {"id": 1, "file_name": "mosaic.png", "width": 384, "height": 384}
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    (folder / "mosaic.json").write_text(json.dumps({"images": [image], "annotations": rows, "categories": categories}))
    return ["--json", folder / "mosaic.json", "--images", folder]


def test_tiles_find_the_small_objects_of_a_large_image(tmp_path):
    data, scores = mosaic(tmp_path), {}
    for tile in (0, 128, 384):
        out = tmp_path / str(tile)
        words = ["--model", MODEL, *data, "--out", out, "--tile", tile, "--draw", 0]
        assert main(["evaluate", *map(str, words)]) == 0
        scores[tile] = json.loads((out / "scores.json").read_text())
    assert scores[0]["AP50"] < 30 < 75 < scores[128]["AP50"]
    assert scores[0]["AR"] < 30 < 60 < scores[128]["AR"]
    whole, one_tile = ((tmp_path / tile / "detections.json").read_bytes() for tile in ("0", "384"))
    assert one_tile == whole


def test_tiles_that_cannot_be_are_refused_before_anything_is_written(tmp_path, capsys):
    words = ["--model", MODEL, "--shapes", SET, "--out", tmp_path / "out"]
    assert main(["evaluate", *map(str, words), "--tile", "16", "--overlap", "1"]) == 2
    errors = capsys.readouterr().err
    assert "--tile is 16: the side of tiles must be" in errors
    assert "--overlap is 1.0: the overlap of tiles must be" in errors
    assert main(["evaluate", *map(str, words), "--overlap", "0.3"]) == 2
    assert "overlap is 0.3, but there are no tiles" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_classes_are_found_by_name_whatever_their_ids(tmp_path, shapes):
    coco = json.loads(shapes[0].read_text())
    new_ids = {1: 30, 2: 20, 3: 10}
    for row in coco["categories"]:
        row["id"] = new_ids[row["id"]]
    for row in coco["annotations"]:
        row["category_id"] = new_ids[row["category_id"]]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(coco))
    found = []
    for annotations in (shapes[0], other):
        out = tmp_path / annotations.stem
        words = ["evaluate", "--model", MODEL, "--json", annotations, "--images", shapes[1], "--out", out, "--draw", 0]
        assert main([str(word) for word in words]) == 0
        found.append(json.loads((out / "scores.json").read_text())["AP"])
        assert not (out / "detections.png").exists()
    assert found[0] == pytest.approx(found[1])


def test_a_part_set_aside_is_that_of_the_training(tmp_path, shapes):
    place = f"{shapes[0]}:{shapes[1]}"
    whole, _ = read_sources({"train_data": data_source("train", place)})
    parts, _ = split_sets(whole, 0.25, 1)
    words = ["--model", MODEL, "--train", place, "--split-val", "0.25:1", "--draw", 0, "--out", tmp_path / "out"]
    assert main(["evaluate", *map(str, words)]) == 0
    found = {row["image_id"] for row in json.loads((tmp_path / "out" / "detections.json").read_text())}
    assert found == {image["id"] for image in parts["train_data"]["val"].file.coco["images"]}
    assert len(found) == 3  # of 12


def test_classes_are_merged_as_in_a_training(tmp_path, shapes, capsys):
    coco = json.loads(shapes[0].read_text())
    coco["categories"] = [{"id": i, "name": name} for i, name in enumerate(("ball", "box", "triangle", "circle"), 1)]
    for row in coco["annotations"][::2]:
        row["category_id"] = 4 if row["category_id"] == 1 else row["category_id"]
    (tmp_path / "other.json").write_text(json.dumps(coco))
    found = []
    for name, words in {
        "a": ["--json", shapes[0], "--images", shapes[1]],
        "b": ["--val", f"{tmp_path}/other.json:{shapes[1]}", "--merge-classes", "disk=ball,circle"],
    }.items():
        words = ["--model", MODEL, *words, "--draw", 0, "--out", tmp_path / name]
        assert main(["evaluate", *map(str, words)]) == 0
        found.append(json.loads((tmp_path / name / "scores.json").read_text())["AP"])
    assert found[0] == found[1]
    assert "ball became disk" in capsys.readouterr().out


def test_pascal_voc_gives_the_same_scores(tmp_path, shapes):
    """Corners of VOC's are whole pixels, as those of shapes are."""
    coco = json.loads(shapes[0].read_text())
    voc = tmp_path / "voc"
    (voc / "Annotations").mkdir(parents=True)
    shutil.copytree(shapes[1], voc / "JPEGImages")
    names = {c["id"]: c["name"] for c in coco["categories"]}
    for image in coco["images"]:
        rows = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        objects = "".join(
            f"<object><name>{names[a['category_id']]}</name><bndbox><xmin>{a['bbox'][0] + 1}</xmin>"
            f"<ymin>{a['bbox'][1] + 1}</ymin><xmax>{a['bbox'][0] + a['bbox'][2]}</xmax>"
            f"<ymax>{a['bbox'][1] + a['bbox'][3]}</ymax></bndbox></object>"
            for a in rows
        )
        size = f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"
        path = voc / "Annotations" / Path(image["file_name"]).with_suffix(".xml")
        path.write_text(f"<annotation>{size}{objects}</annotation>")
    scores = []
    for name, data in (("a", ["--voc", voc]), ("b", ["--json", shapes[0], "--images", shapes[1]])):
        words = ["evaluate", "--model", MODEL, *data, "--out", tmp_path / name, "--draw", 0]
        assert main([str(word) for word in words]) == 0
        scores.append(json.loads((tmp_path / name / "scores.json").read_text()))
    by_name = [{c["name"]: c["AP"] for c in found["classes"]} for found in scores]
    assert by_name[0] == pytest.approx(by_name[1])


def write_evaluated(run, name, shapes):
    """Write what a run leaves of an evaluation that is read here."""
    folder = run / "inference" / name
    folder.mkdir(parents=True)
    (folder / "coco_instances_results.json").write_text("[]")
    (folder / "dataset.json").write_text(
        json.dumps({"name": name, "annotations": str(shapes[0]), "images": str(shapes[1])})
    )


def test_the_set_of_a_run_is_evaluated_on(tmp_path, shapes, capsys):
    run, scores = tmp_path / "run", []
    write_evaluated(run, "val_data", shapes)
    for name, data in (("a", ["--run", run]), ("b", ["--json", shapes[0], "--images", shapes[1]])):
        words = ["evaluate", "--model", MODEL, *data, "--out", tmp_path / name, "--draw", 0]
        assert main([str(word) for word in words]) == 0
        scores.append(json.loads((tmp_path / name / "scores.json").read_text()))
    assert scores[0] == scores[1]
    write_evaluated(run, "more", shapes)
    assert main(["evaluate", "--model", str(MODEL), "--run", str(run), "--out", str(tmp_path / "c")]) == 2
    said = f"was evaluated on 2 sets; name one of them: --json {shapes[0]} --images {shapes[1]}; --json"
    assert said in capsys.readouterr().err
    for folder in (run / "inference").iterdir():
        (folder / "dataset.json").unlink()
    assert main(["evaluate", "--model", str(MODEL), "--run", str(run), "--out", str(tmp_path / "c")]) == 2
    assert "has no evaluation with annotations and images; name them, where" in capsys.readouterr().err


def test_a_run_whose_data_were_moved_asks_for_their_new_place(tmp_path, shapes, capsys):
    run, (file, images) = tmp_path / "run", shapes
    write_evaluated(run, "val_data", shapes)
    command = ["evaluate", "--model", str(MODEL), "--out", str(tmp_path / "out"), "--run", str(run)]
    images.rename(tmp_path / "moved")
    assert main(command) == 2
    fix = f"its images were in {images}, which is not there; name the folder where they are now: --json {file} --images"
    assert fix in capsys.readouterr().err
    file.rename(tmp_path / "moved.json")
    assert main(command) == 2
    err = capsys.readouterr().err
    assert "name them, where they are now, by --json FILE --images DIR" in err
    assert f"val_data: The annotations are not readable at {file}" in err


def test_an_earlier_evaluation_is_not_written_over(tmp_path, shapes, capsys):
    (tmp_path / "scores.json").write_text("mine")
    words = ["evaluate", "--model", MODEL, "--json", shapes[0], "--images", shapes[1], "--out", tmp_path, "--draw", 0]
    assert main([str(word) for word in words]) == 2
    assert "holds scores.json already; name another, or add --overwrite" in capsys.readouterr().err
    assert (tmp_path / "scores.json").read_text() == "mine"
    assert main([*map(str, words), "--overwrite"]) == 0


def test_generated_shapes_are_drawn_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    words = ["evaluate", "--model", str(MODEL), "--shapes", "shapes_val_3_64px", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "AP50" in capsys.readouterr().out


def test_bad_input_is_named(tmp_path, shapes, capsys):
    (tmp_path / "no.onnx").write_text("no model")
    (tmp_path / "no.pt2").write_text("no model")
    coco = json.loads(shapes[0].read_text())
    coco["categories"][0]["name"] = "circle"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(coco))
    data = ["--json", shapes[0], "--images", shapes[1]]
    for words, message in [
        (["--model", MODEL], "no sets to evaluate on are named; give one, by one of --run DIR, --val PATH, --train"),
        (["--model", MODEL, *data, "--voc", tmp_path], "2 sets to evaluate on are named; give one"),
        (["--model", MODEL, "--train", shapes[0]], "no sets to evaluate on are named, since that of --train has no"),
        (["--model", MODEL, *data, "--split-val", "0.2"], "--split-val, is set, and sets to evaluate on are given"),
        (["--model", MODEL, "--shapes", SET, "--classes", "disk"], "and no set of your own is given"),
        (["--model", MODEL, "--shapes", SET, "--split-val", "0.2"], "--split-val sets images of a set to train on asi"),
        (["--model", MODEL, *data, "--train", shapes[0]], "and another set is named; leave one of them out"),
        (["--model", MODEL, "--json", shapes[0]], "--json and --images go together"),
        (["--model", MODEL, "--shapes", "coco"], "--shapes"),
        (["--model", MODEL, *data, "--batch-size", 0], "--batch-size 0 must be at least 1"),
        (["--model", MODEL, *data, "--draw-score-thresh", 2], "--draw-score-thresh 2.0 must be in [0, 1]"),
        (["--model", tmp_path / "none.onnx", *data], "none.onnx: no such file"),
        (["--model", shapes[0], *data], "an exported model ends in .onnx or .pt2"),
        (["--model", tmp_path / "no.onnx", *data], "no.onnx: onnxruntime cannot read it"),
        (["--model", tmp_path / "no.pt2", *data], "no.pt2: a .pt2 file can run any program when PyTorch opens it"),
        (["--model", tmp_path / "no.pt2", "--trust-model", *data], "no.pt2: PyTorch cannot read it"),
        (["--model", MODEL, "--json", other, "--images", shapes[1]], "unlike circle, disk"),
    ]:
        out = tmp_path / "out"
        assert main(["evaluate", *map(str, words), "--out", str(out)]) == 2, words
        captured = capsys.readouterr()
        assert message in captured.err
        assert "Traceback" not in captured.err
