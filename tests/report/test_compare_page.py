"""Two made-up runs side by side: what is said of them, and what is not compared."""

import html
import json
import re
import shutil

import pytest

from focal_det.cli.main import main
from focal_det.evaluation import coco_arrays, diagnosis
from focal_det.report import compare_page, compare_runs, write_comparison


@pytest.fixture
def runs(tmp_path, make_run):
    """Two runs on the same data: B trained longer, and finds half of what A finds."""
    first = make_run(tmp_path / "a")
    second = tmp_path / "b"
    shutil.copytree(first, second)
    place = second / "inference" / "made_up" / "coco_instances_results.json"
    place.write_text(json.dumps(json.loads(place.read_text())[::2]))
    config = second / "config.yaml"
    config.write_text(config.read_text().replace("400", "800") + "SEED: 7\nOUTPUT_DIR: elsewhere\n")
    return first, second


def page_of(runs, tmp_path, **options):
    """The page's HTML, and what a reader sees of it."""
    page = write_comparison(compare_runs(*runs, **options), tmp_path).read_text()
    text = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return page, html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text)))


def test_what_a_reader_looks_for(tmp_path, runs):
    page, text = page_of(runs, tmp_path)
    for words in (
        f"A {runs[0]} B {runs[1]}",
        "2 keys differ, so it is open which of them",
        "focal_det 0.1.0, commit abc the same",
        "SEED no such key 7 ",
        "SOLVER.MAX_ITER 90000 400 800",
        "Test set made_up",
        "Of A model_final.pth, after 400 iterations; of B the model after 400 iterations. The AP of B minus that of A",
        "in 1,000 draws of the 4 images: 95 % lie in [-",
        "With so few images that is a rough figure.",
        "A is better",
        "by A alone, 0 by B alone",
        ".jpg : A ",
        " not found, ",
    ):
        assert words in text, words
    assert "OUTPUT_DIR elsewhere" not in text
    for title in ("AP", "AP50", "total_loss", "val/total_loss", "lr"):
        assert f"<figcaption>{title}</figcaption>" in page
    assert "&lt;b&gt;&amp;dog" in page
    sources = re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']*)", page)
    assert {source.split(":")[0] for source in sources if not source.startswith("#")} == {"data"}
    ids = re.findall(r"\sid=\"([^\"]+)\"", page)
    assert len(ids) == len(set(ids))
    assert page.rstrip().endswith("</html>")


def test_the_command_prints_and_writes(tmp_path, runs, capsys):
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "out"), "--images", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"A  {runs[0]}", f"B  {runs[1]}"]
    assert lines[-1] == str(tmp_path / "out" / "compare.html")
    scores = compare_runs(*runs).sets[0][0].figures[0]
    ap = next(line.split() for line in lines if line.startswith("AP "))
    assert ap == [
        "AP",
        f"{scores.first:.1f}",
        f"{scores.second:.1f}",
        f"{scores.difference:+.1f}",
    ]
    assert any(line.split() == ["SOLVER.MAX_ITER", "90000", "400", "800"] for line in lines)
    assert (tmp_path / "out" / "compare.html").read_text().count("<img") == 6  # three where A is better, and where B is


def test_a_folder_in_place_of_the_page_is_named(tmp_path, runs, capsys):
    (tmp_path / "out" / "compare.html").mkdir(parents=True)
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "out")]) == 2
    assert "compare.html is to be a file, and is a folder there" in capsys.readouterr().err


def test_drawings_have_a_limit(tmp_path, runs, monkeypatch):
    monkeypatch.setattr(compare_page, "IMAGE_BYTES", 1000)
    page, text = page_of(runs, tmp_path)
    assert "<img" not in page
    assert re.search(r"\d more left out to keep the page below 10 MB", text)


def test_a_set_of_another_content_is_not_compared(tmp_path, runs, make_run):
    other = make_run(tmp_path / "else" / "b", images=5)
    page, text = page_of((runs[0], other), tmp_path)
    assert "Test set made_up of A: its content is another in B" in text
    assert "No test set is the same in both, so keys, losses and lr alone are compared." in text
    assert "<figcaption>total_loss</figcaption>" in page
    assert "<figcaption>AP</figcaption>" not in page
    assert "<figcaption>val/total_loss</figcaption>" not in page
    assert "of B: A was not evaluated" not in text
    assert "By class" not in text


def test_a_set_of_another_name_with_the_same_content_is(tmp_path, runs):
    place = runs[1] / "inference" / "made_up" / "dataset.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "name": "renamed"}))
    assert "Test set made_up and renamed" in page_of(runs, tmp_path)[1]


def test_runs_without_detections_or_evaluation(tmp_path, runs):
    place = runs[1] / "inference" / "made_up" / "coco_instances_results.json"
    place.write_text("[]")
    text = page_of(runs, tmp_path)[1]
    assert "How sure the difference is cannot be computed: a run has no detections" in text
    assert "nan" in text
    shutil.rmtree(runs[1] / "inference")
    (runs[1] / "config.yaml").unlink()
    text = page_of(runs, tmp_path)[1]
    assert "Test set made_up of A: B was not evaluated on it." in text
    assert "Test set made_up of B: A was not evaluated on it." in page_of(runs[::-1], tmp_path)[1]
    assert "A configuration is missing, so the keys cannot be compared." in text


def test_without_hotcoco_ap_is_compared_all_the_same(tmp_path, runs, monkeypatch):
    for module in (coco_arrays, diagnosis):
        monkeypatch.setattr(module, "hotcoco", lambda: None)
    text = page_of(runs, tmp_path)[1]
    assert "or hotcoco is missing" in text
    assert "With a score of at least 0.5 in A and 0.5 in B" in text


def test_detections_that_do_not_fit_are_named(tmp_path, runs):
    place = runs[1] / "inference" / "made_up" / "coco_instances_results.json"
    place.write_text(json.dumps([{**row, "image_id": 99} for row in json.loads(place.read_text())]))
    text = page_of(runs, tmp_path)[1]
    assert "made_up: annotations and detections do not fit together (detections of image_id 99" in text


def test_two_evaluated_sets_and_30_classes(tmp_path, make_run, monkeypatch):
    monkeypatch.setattr(diagnosis, "_BOOTSTRAPPED", 0)
    monkeypatch.setattr(diagnosis, "_FEWEST_SAMPLES", 20)
    first = make_run(tmp_path / "a", sets=("second", "made_up"), images=10, num_classes=30)
    shutil.copytree(first, tmp_path / "b")
    page, text = page_of((first, tmp_path / "b"), tmp_path)
    assert text.index("Test set second") < text.index("Test set made_up")
    assert "<figcaption>AP, second</figcaption>" in page
    assert "All 30 classes" in text
    assert "it contains 0, so this set does not tell which run is better" in text
    assert "No key differs" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "compare takes two runs, and 1 is given"),
        (["a", "b", "a"], "compare takes two runs, and 3 are given; compare more of them in pairs"),
        (["a", "./a"], "a and a are the same folder"),
        (["a", "nowhere"], "OUTPUT_DIR nowhere: no such folder"),
        (["a", "b", "--score-thresh", "2"], "--score-thresh 2.0 is outside [0, 1]"),
        (["a", "b", "--images", "-1"], "--images -1 must be at least 0"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(tmp_path, runs, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "output").exists()
