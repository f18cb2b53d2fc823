"""What differs between two runs, and what may be concluded from it."""

import json

import pytest

from focal_det.report.run_files import read_run
from focal_det.report.run_pair import Fact, Key, compare_curves, compare_facts, compare_keys, seed_words


@pytest.fixture
def run_of(tmp_path, make_run):
    """Makes a run whose configuration has these lines."""

    def make(name, config="", changes=()):
        folder = make_run(tmp_path / name / "run")
        (folder / "config.yaml").write_text("DATASETS: {TRAIN: [mine]}\n" + config)
        (folder / "config_changes.json").write_text(json.dumps(list(changes)))
        return read_run(folder)

    return make


def test_keys_that_differ_have_the_default_that_a_run_recorded(run_of):
    changed = [{"key": "SOLVER.BASE_LR", "default": 0.001, "value": 0.1, "place": "command line"}]
    first = run_of("a", "SOLVER: {BASE_LR: 0.1, STEPS: [3]}\nOUTPUT_DIR: a\nOLD: 1", changed)
    second = run_of("b", "SOLVER: {BASE_LR: 0.001, STEPS: [3]}\nOUTPUT_DIR: b")
    assert compare_keys(first, second) == [
        Key("OLD", "", "1", "no such key"),
        Key("SOLVER.BASE_LR", "0.001", "0.1", "0.001"),
    ]


def with_training_set(run, images):
    folder = run.folder / "annotations"
    folder.mkdir(exist_ok=True)
    rows = [{"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 9} for i in range(images)]
    (folder / "mine.json").write_text(json.dumps({"images": rows, "annotations": [], "categories": []}))


def test_data_and_code_come_first(run_of):
    first, second = run_of("a"), run_of("b")
    (second.folder / "environment.txt").write_text("focal_det 0.2.0\n")
    second = read_run(second.folder)
    facts = compare_facts(first, second)
    assert facts[2] == Fact("focal_det", "0.1.0, commit abc", "0.2.0")
    assert facts[0] == Fact("training data", *["mine (by its name; its content was not recorded)"] * 2)
    with_training_set(first, 2)
    with_training_set(second, 3)
    data = compare_facts(first, second)[0]
    assert data.differs
    assert data.first.startswith("mine: 2 images, content ")
    assert data.second.startswith("mine: 3 images, content ")
    with_training_set(second, 2)
    assert not compare_facts(first, second)[0].differs


def test_without_environments_the_number_of_iterations_is_not_taken_for_the_data(run_of):
    runs = [run_of("a"), run_of("b")]
    for run in runs:
        (run.folder / "environment.txt").unlink()
    facts = compare_facts(*(read_run(run.folder) for run in runs))
    facts = [fact._replace(second="2") if fact.label == "iterations" else fact for fact in facts]
    assert seed_words([], facts).startswith("No key differs")


SAME = [Fact("training data", "a", "a"), Fact("iterations", "1", "1")]


@pytest.mark.parametrize(
    ("keys", "facts", "words"),
    [
        ([], SAME, "No key differs"),
        (["SEED"], SAME, "They differ in SEED alone: the difference of AP is the noise of a training."),
        (["A"], SAME, "Each is one training"),
        (["A", "SEED"], SAME, "2 keys differ, so it is open which"),
        (["A"], [Fact("training data", "a", "b"), SAME[1]], "They were trained on different data"),
    ],
)
def test_what_may_be_concluded(keys, facts, words):
    assert seed_words([Key(key, "", "1", "2") for key in keys], facts).startswith(words)


def test_without_a_configuration_nothing_is_said_of_keys(run_of):
    assert seed_words([], SAME, are_known=False).startswith("Each is one training")
    first, second = run_of("a"), run_of("b")
    (second.folder / "config.yaml").unlink()
    assert compare_keys(first, read_run(second.folder)) == []


def test_only_what_both_logged_is_drawn(run_of):
    first, second = run_of("a"), run_of("b")
    for record in first.metrics:
        record["ema/bbox/AP"] = 1.0
    titles = [title for title, _ in compare_curves(first, second, {"made_up": ("bbox/", "bbox/")})]
    losses = ["total_loss", "val/total_loss", "loss_box_reg", "loss_cls"]
    assert titles == [*losses, "AP", "AP50", "lr"]
    for record in second.metrics:
        record["ema/bbox/AP"] = 1.0
    drawn = dict(compare_curves(first, second, {"made_up": ("bbox/", "bbox/")}))
    assert [label for *_, label in drawn["AP of the EMA"].legend] == ["A", "B"]
