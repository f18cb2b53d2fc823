"""The page about a made-up run: what stands in it, and what it says where something is missing."""

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from focal_det.cli.main import main
from focal_det.errors import InputError
from focal_det.evaluation import coco_arrays, diagnosis
from focal_det.report import page as report_page
from focal_det.report import set_result, write_report

ROOT = Path(__file__).parents[2]


def text_of(page):
    """What a reader sees, without tags and style."""
    text = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))


def test_the_command_writes_the_page_and_names_it(tmp_path, make_run, capsys):
    folder = make_run(tmp_path / "run")
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.split() == [str(folder / "report.html")]
    assert sorted(path.name for path in folder.iterdir() if "report" in path.name) == ["report.html"]


def test_what_a_reader_looks_for(tmp_path, make_run):
    text = text_of(write_report(make_run(tmp_path / "run")).read_text())
    for words in (
        "best AP, after 300 44.0",
        "iterations 400",
        "epochs 10.0",
        "training 3 min",  # 400 iterations of half a second
        "evaluated weights model_final.pth, after 400 iterations",
        "Of model_final.pth, after 400 iterations.",
        "best was AP 44.0 after 300 iterations.",
        "Test set made_up",
        "4 images with 12 objects of 4 classes",
        "APl is nan: the set has no large objects",
        "Each figure of absent is nan",
        "score of at least 0.4",
        "Most is lost by",
        "missed an object that no box is near 3 ",  # all of the first image
        "The best F1, 0.",
        "1.jpg : 0 found, 3 missed",
        "SOLVER.MAX_ITER 90000 400 command line",
        "focal_det 0.1.0, commit abc",
        "They come from another evaluation",  # the made-up detections have another AP than the made-up metrics
    ):
        assert words in text, words
    assert "&lt;b&gt;&amp;dog" in text
    assert "$_owl$" in text


def test_early_stopping_is_named_as_what_ended_the_run(tmp_path, make_run):
    folder = make_run(tmp_path / "run")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(
        config.replace("MAX_ITER: 400", "MAX_ITER: 900").replace("FOCAL_DET:", "FOCAL_DET:\n    PATIENCE: 1")
    )
    assert "early stopping" not in text_of(write_report(folder).read_text())  # at 400 it was going on, or was killed
    metrics = (folder / "metrics.json").read_text()
    (folder / "metrics.json").write_text(metrics.replace('"iteration": 400', '"iteration": 399'))
    reason = "by early stopping: bbox/AP was best after 300 iterations, 44, and not better in 1 evaluation since"
    text = text_of(write_report(folder).read_text())
    assert "iterations 400 of 900 " in text
    assert f"ended {reason} (MODEL.FOCAL_DET.PATIENCE) " in text


def test_it_needs_nothing_but_itself(tmp_path, make_run):
    page = write_report(make_run(tmp_path / "run")).read_text()
    sources = re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']*)", page) + re.findall(r"url\(([^)]*)\)", page)
    assert sources
    assert {source.split(":")[0] for source in sources if not source.startswith("#")} == {"data"}
    assert "<script" not in page
    assert "@import" not in page
    ids = re.findall(r"\sid=\"([^\"]+)\"", page)
    assert len(ids) == len(set(ids))


def test_score_threshold_and_number_of_images(tmp_path, make_run):
    folder = make_run(tmp_path / "run")
    assert main(["report", str(folder), "--score-thresh", "0.99", "--images", "1"]) == 0
    page = (folder / "report.html").read_text()
    assert page.count("<img") == 2  # all is missed at that threshold, so there is a worst image and no best
    assert "score of at least 0.99" in page
    assert main(["report", str(folder), "--images", "0"]) == 0
    assert "<img" not in (folder / "report.html").read_text()


def test_images_beyond_the_pages_room_are_counted(tmp_path, make_run, monkeypatch):
    monkeypatch.setattr(report_page, "IMAGE_BYTES", 300_000)
    page = write_report(make_run(tmp_path / "run", images=9)).read_text()
    assert 0 < sum(map(len, re.findall(r'<img src="([^"]*)"', page))) <= 300_000
    left_out = int(re.search(r"(\d+) more left out to keep the page below 10 MB", page)[1])
    assert page.count('<figure class="example">') + left_out == 9  # all, since both kinds have up to six


def test_several_sets_have_a_section_each_and_their_own_best(tmp_path, make_run):
    folder = make_run(tmp_path / "run", sets=("second", "made_up"))
    text = text_of(write_report(folder).read_text())
    assert text.index("Test set second") < text.index("Test set made_up")  # the configuration's order
    assert "AP, second" in text
    assert "AP50, made_up" in text


@pytest.mark.parametrize(("sets", "prefix"), [(("made_up",), "bbox_TTA"), (("second", "made_up"), "made_up_TTA/bbox")])
def test_scores_with_test_time_augmentation_are_shown(tmp_path, make_run, sets, prefix):
    folder = make_run(tmp_path / "run", sets=sets)
    with (folder / "metrics.json").open("a") as file:
        file.write(json.dumps({"iteration": 399, f"{prefix}/AP": 46.25, f"{prefix}/AP50": 70.0}) + "\n")
    text = text_of(write_report(folder).read_text())
    assert text.count("With test-time augmentation, after the training: AP 46.2, AP50 70.0.") == 1


def test_the_best_model_is_named_with_the_set_that_chose_it(tmp_path, make_run):
    folder = make_run(tmp_path / "run", sets=("bare", "made_up"))
    (folder / "model_best.pth").touch()
    path = tmp_path / "data" / "bare" / "truth.json"
    path.write_text(json.dumps({"images": [], "categories": []}))
    lines = (folder / "metrics.json").read_text().splitlines(keepends=True)
    (folder / "metrics.json").write_text("".join(line for line in lines if "bare/bbox" not in line))
    for name in ("bare", "made_up"):
        place = folder / "inference" / name / "dataset.json"
        place.write_text(json.dumps({**json.loads(place.read_text()), "iterations": 200}))
    text = html.unescape(text_of(write_report(folder).read_text()))
    assert text.count(OF_BEST) == 1
    assert text.index("Test set made_up") < text.index(OF_BEST)
    assert "best AP, after 300 44.0" in text  # the headline is of the set that is scored
    assert re.search(r" AP \d", text[: text.index("Test set bare")])


def test_only_the_first_scored_sets_best_is_a_file(tmp_path, make_run):
    folder = make_run(tmp_path / "run", sets=("second", "made_up"))
    (folder / "model_best.pth").touch()
    for name in ("second", "made_up"):
        place = folder / "inference" / name / "dataset.json"
        place.write_text(json.dumps({**json.loads(place.read_text()), "iterations": 200}))
    assert html.unescape(text_of(write_report(folder).read_text())).count(OF_BEST) == 1


def test_a_set_of_another_evaluation_does_not_get_the_trainings_scores(tmp_path, make_run):
    folder = make_run(tmp_path / "run")
    (folder / "inference" / "made_up").rename(folder / "inference" / "other")
    place = folder / "inference" / "other" / "dataset.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "name": "other"}))
    text = text_of(write_report(folder).read_text())
    assert "Test set other" in text
    assert "best AP" not in text
    assert "another evaluation" not in text


def change_record(folder, **changes):
    place = folder / "inference" / "made_up" / "dataset.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))


OF_BEST = "The training's best was AP 44.0 after 300 iterations: model_best.pth, which predict and export take."


@pytest.mark.parametrize(
    ("record", "name", "is_best_named"),
    [
        ({"iterations": 400}, "model_final.pth, after 400 iterations", True),
        ({"iterations": 200}, "model_0000199.pth, after 200 iterations", True),
        ({"iterations": 150}, "the model after 150 iterations", True),
        ({"iterations": 300}, "the model after 300 iterations", False),
        ({"iterations": None, "weights": "../../model_best.pth"}, "model_best.pth", False),
        ({"iterations": None, "weights": "/a/model_best.pth"}, "/a/model_best.pth", True),
        ({"iterations": None}, None, True),  # of a run that did not record it
    ],
)
def test_the_page_names_the_weights_that_were_evaluated(tmp_path, make_run, record, name, is_best_named):
    folder = make_run(tmp_path / "run")
    (folder / "model_best.pth").touch()
    change_record(folder, **record)
    text = html.unescape(text_of(write_report(folder).read_text()))
    assert (f"evaluated weights {name} " in text) == (name is not None)
    assert (f" Of {name}. " in text) == (name is not None)
    assert (OF_BEST in text) == is_best_named


def test_the_average_of_the_weights_has_its_curve_and_is_named_where_it_is_the_best(tmp_path, make_run):
    folder = make_run(tmp_path / "run")
    (folder / "model_best_ema.pth").touch()
    assert "of the EMA" not in write_report(folder).read_text()
    for ap, best in (
        (43.0, "was AP 44.0 after 300 iterations."),
        (45.0, "was AP 45.0 after 200 iterations, of the EMA"),
    ):
        with (folder / "metrics.json").open("a") as file:
            file.write(json.dumps({"iteration": 199, "ema/bbox/AP": ap, "ema/val/total_loss": 1.4}) + "\n")
        text = html.unescape(text_of(write_report(folder).read_text()))
        assert f"The training's best {best}" in text
    assert "of the EMA of the weights: model_best_ema.pth, which predict and export take." in text
    assert re.search(r"</i>AP of the EMA</li>", write_report(folder).read_text())
    assert "ema/val/total_loss" in text
    change_record(folder, iterations=None, weights="../../model_best_ema.pth")
    assert "The training's best" not in html.unescape(text_of(write_report(folder).read_text()))


def test_the_annotation_file_is_named_as_it_was_given(tmp_path, make_run):
    folder = make_run(tmp_path / "run")
    for given_as, shown in (("/a/mine.json", "/a/mine.json"), ("../../mine.json", "mine.json")):
        change_record(folder, given_as=given_as)
        assert f"From {shown}." in text_of(write_report(folder).read_text())


def test_a_moved_run_has_its_report(tmp_path, make_run):
    folder = make_run(tmp_path / "run")
    os.rename(tmp_path / "data", folder / "data")
    at = "../../data/made_up"
    change_record(folder, annotations=f"{at}/truth.json", images=f"{at}/images")
    os.rename(folder, tmp_path / "moved")
    page = write_report(tmp_path / "moved").read_text()
    assert "4 images with 12 objects" in text_of(page)
    assert "<img" in page


def test_without_hotcoco_the_page_says_what_is_not_there(tmp_path, make_run, monkeypatch):
    for module in (coco_arrays, diagnosis, set_result):
        monkeypatch.setattr(module, "hotcoco", lambda: None)
    text = text_of(write_report(make_run(tmp_path / "run")).read_text())
    assert "What costs AP and what scores are worth is not shown: hotcoco" in text
    assert "The best F1" not in text
    assert "Precision and recall" in text


def test_scores_that_are_no_shares_have_no_calibration(tmp_path, make_run):
    folder = make_run(tmp_path / "run")
    place = folder / "inference" / "made_up" / "coco_instances_results.json"
    place.write_text(json.dumps([{**row, "score": 3.0} for row in json.loads(place.read_text())]))
    text = text_of(write_report(folder).read_text())
    assert "Most is lost by" in text
    assert "What a score is worth" not in text


def test_80_classes(tmp_path, make_run):
    page = write_report(make_run(tmp_path / "run", images=60, num_classes=80)).read_text()
    assert "other classes" in page
    assert "All 80 classes" in page
    assert "the 12 classes with the lowest" in page
    assert len(page) < 10_000_000


def damage_detections(folder):
    (folder / "inference" / "made_up" / "coco_instances_results.json").write_text("[{")


def damage_metrics(folder):
    with (folder / "metrics.json").open("a") as file:
        file.write('{"iteration": 4')


MISSING = {
    "no images": (lambda f: os.rename(f.parent / "data/made_up/images", f.parent / "x"), "4 images cannot be read"),
    "no annotations": (lambda f: (f.parent / "data/made_up/truth.json").unlink(), "The annotations are not readable"),
    "no dataset.json": (lambda f: (f / "inference/made_up/dataset.json").unlink(), "evaluating again (--eval-only)"),
    "no config": (lambda f: (f / "config.yaml").unlink(), "config.yaml: not there"),
    "damaged config": (lambda f: (f / "config.yaml").write_text("a: [b"), "config.yaml: not readable as YAML"),
    "no changes": (lambda f: (f / "config_changes.json").unlink(), "This run did not record what differs"),
    "damaged changes": (lambda f: (f / "config_changes.json").write_text("3"), "config_changes.json: not readable"),
    "no environment": (lambda f: (f / "environment.txt").unlink(), "environment.txt: not there"),
    "no metrics": (lambda f: (f / "metrics.json").unlink(), "metrics.json: not there"),
    "damaged metrics": (damage_metrics, "metrics.json: 1 damaged line skipped"),
    "damaged detections": (damage_detections, "coco_instances_results.json: not readable"),
    "not evaluated": (lambda f: os.rename(f / "inference", f / "x"), "nothing has been evaluated yet"),
    "absurd metrics": (
        lambda f: (
            (f / "metrics.json").open("a").write('{"iteration": 1e999}\n{"iteration": 3, "lr": 1' + 400 * "0" + "}\n")
        ),
        "metrics.json: 1 damaged line skipped",
    ),
    "nested metrics": (lambda f: (f / "metrics.json").write_text(20000 * "["), "1 damaged line skipped"),
    "config of another kind": (lambda f: (f / "config.yaml").write_text("DATASETS: {TEST: 5}"), "Configuration"),
    "config with no such day": (lambda f: (f / "config.yaml").write_text("x: 2001-99-99"), "not readable as YAML"),
    "other annotations": (
        lambda f: (f.parent / "data/made_up/truth.json").write_text('{"images":[],"annotations":[],"categories":[]}'),
        "do not fit together (ValueError: detections of image_id 2, 3, 4",
    ),
    "annotations without boxes": (
        lambda f: (f.parent / "data/made_up/truth.json").write_text('{"images": [], "categories": []}'),
        "has no public annotations",
    ),
}


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_named_and_the_page_is_made(tmp_path, make_run, what):
    folder = make_run(tmp_path / "run")
    change, words = MISSING[what]
    change(folder)
    page = write_report(folder, images=2 if what != "no images" else 6).read_text()
    assert words in text_of(page)
    assert page.rstrip().endswith("</html>")


def test_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "metrics.json").write_text("")
    text = text_of(write_report(tmp_path).read_text())
    assert "nothing has been evaluated yet" in text
    assert "Training" not in text


def test_no_detections_at_all(tmp_path, make_run):
    folder = make_run(tmp_path / "run")
    (folder / "inference" / "made_up" / "coco_instances_results.json").write_text("[]")
    text = text_of(write_report(folder).read_text())
    assert "there are no detections at all, of 12 objects" in text
    assert "What costs AP" not in text
    assert "AP nan" in text


def test_a_moved_run_is_read_where_it_is(tmp_path, make_run):
    folder = make_run(tmp_path / "run").rename(tmp_path / "elsewhere")
    assert write_report(folder) == folder / "report.html"


def test_a_fault_leaves_the_page_that_was_there(tmp_path, make_run, monkeypatch):
    folder = make_run(tmp_path / "run")
    before = write_report(folder).read_text()

    def full_disk(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)  # a part has been written by then
    assert main(["report", str(folder)]) == 1
    monkeypatch.undo()
    assert (folder / "report.html").read_text() == before
    assert [path.name for path in folder.glob(".*.part*")] == []


def test_a_folder_in_place_of_the_page_is_named(tmp_path, make_run, capsys):
    folder = make_run(tmp_path / "run")
    (folder / "report.html").mkdir()
    assert main(["report", str(folder)]) == 2
    assert f"OUTPUT_DIR {folder}: report.html is to be a file, and is a folder there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "OUTPUT_DIR nowhere: no such folder"),
        (["."], "OUTPUT_DIR .: holds no run: neither metrics.json"),
        ([".", "--score-thresh", "1.5"], "--score-thresh 1.5 is outside [0, 1]"),
        ([".", "--score-thresh", "nan"], "--score-thresh nan is outside [0, 1]"),
        ([".", "--images", "-1"], "--images -1 must be at least 0"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_both_problems_are_reported_at_once(tmp_path):
    with pytest.raises(InputError) as caught:
        write_report(tmp_path, score_threshold=2, images=-2)
    assert len(caught.value.problems) == 2


def test_it_needs_no_detectron2(tmp_path, make_run):
    folder = make_run(tmp_path / "run")
    code = (
        "import sys; sys.modules['detectron2'] = None; from focal_det.cli.main import main; "
        f"sys.exit(main(['report', {str(folder)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_the_commands_of_the_docs(tmp_path, make_run, monkeypatch, capsys):
    page = (ROOT / "docs" / "report.md").read_text()
    lines = re.search(r"```sh\n(.*?)```", page, re.DOTALL)[1].splitlines()
    for name in ("mine", "other"):
        make_run(tmp_path / name / "output" / name)
    (tmp_path / "other" / "output" / "other").rename(tmp_path / "mine" / "output" / "other")
    monkeypatch.chdir(tmp_path / "mine")
    for line in lines:
        program, *words = line.split()
        assert program == "focal-det"
        assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "output/compare/compare.html"
    assert Path("output/mine/report.html").is_file()
    assert len(lines) == 2
