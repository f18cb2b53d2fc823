"""Reproducing a table: what it says of each training, and what a command refuses."""

import csv
import os
import re
import shutil

import pytest
from matplotlib.text import Text
from reproduce_fixtures import TINY, all_cells, cells

from focal_det.cli.main import main
from focal_det.errors import InputError
from focal_det.paper import claims, comparison, figures, sweep
from focal_det.paper import reproduce as paper_reproduce
from focal_det.paper.reproduce import describe, plan_tables, run_plans, trainings, write_files
from focal_det.paper.runs import SweepOptions
from focal_det.paper.sweep import run_all
from focal_det.paper.tables import load_tables

pytestmark = pytest.mark.detectron2


def test_the_files_of_a_table(plan_of, monkeypatch, tmp_path):
    monkeypatch.setattr(comparison, "save_figures", figures.save_figures)
    plan = plan_of()
    run_all(plan.runs, num_gpus=1, after_each=lambda _: None)
    names = ["table3.csv", "table3.md", "table3.png", "table3.svg"]
    assert sorted(path.name for path in write_files([plan], "command")) == names
    assert sorted(path.name for path in (tmp_path / "out").glob("table3.*") if path.stat().st_size) == names


@pytest.mark.parametrize("name", load_tables())
def test_a_plot_has_room_for_its_words(name, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(comparison, "save_figures", lambda plots, *_: drawn.extend(plots.values()) or [])
    write_files(plan_tables([load_tables()[name]], [], SweepOptions("mini", (1,), tmp_path)), "command")
    (figure,) = drawn
    figure.draw_without_rendering()
    places = {text.get_text(): text.get_window_extent() for text in figure.findobj(Text) if text.get_text()}
    assert places
    assert [text for text, place in places.items() if place.x0 < 0 or place.x1 > figure.bbox.x1] == []


def test_the_table_has_published_measured_difference_and_spread(plan_of):
    plan = plan_of(seeds=(1, 2))
    files, stopped = run_plans([plan], "the command")
    assert not stopped
    text = files[0].read_text()
    assert "Last command: `the command`" in text
    assert f"Overrides by hand: `{' '.join(TINY)}`" in text
    ce, fl = cells(files[0])
    # seeds 1 and 2 reach 32 and 34: mean 33, sample deviation sqrt(2); published 31.1
    assert (ce["row"], ce["AP measured"], ce["each seed"]) == ("ce", "33.0 ± 1.4", "32.0, 34.0")
    assert (ce["sets"], ce["trained"]) == ("NAME BalancedCrossEntropyLoss, ALPHA 0.75", "R-18, 64 px, 3 it")
    # a miniature is not held against COCO's AP; its rows against the first, as the paper's: 34.0 - 31.1
    assert fl["against ce: published, measured"] == "+2.9, +0.0"
    assert (fl["AP50"], fl["s per iteration"], fl["state"]) == ("50.0", "0.500", "done")
    lines = [line for line in csv.DictReader(files[1].open()) if line["seed"]]
    assert [(line["row"], line["seed"], line["AP"], line["published_AP"]) for line in lines] == [
        *(("ce", "1", "32.0", "31.1"), ("ce", "2", "34.0", "31.1")),
        *(("fl", "1", "32.0", "34.0"), ("fl", "2", "34.0", "34.0")),
    ]
    assert all(line["commit"] and line["hardware"] for line in lines)
    # no object is that large, and the stand-in leaves no weights to time
    assert (fl["APs"], fl["APm"], fl["APl"], fl["ms per image"]) == ("11.0", "22.0", "—", "—")
    assert re.fullmatch(r"\d+\.\d\d", fl["hours"])
    assert (lines[0]["APs"], lines[0]["APl"], lines[0]["ms"], lines[0]["published_APs"]) == ("11.0", "", "", "")
    assert float(lines[0]["hours"]) >= 0  # rounded


def test_a_trained_model_is_timed_and_its_time_is_in_the_table(plan_of, monkeypatch):
    timed = []
    monkeypatch.setattr(sweep, "trained_config", lambda run: timed.append(run.name) or "its configuration")
    monkeypatch.setattr(sweep, "milliseconds", lambda cfg, repeats: (cfg == "its configuration") * 1.25 * repeats)
    plan = plan_of("table1e", ("depth_50_scale_400",))
    files, _ = run_plans([plan], "command")
    assert timed == [run.name for run in plan.runs]
    (row,) = cells(files[0])
    assert row["ms per image"] == "12.5"
    assert row["published AP / AP50 / AP75 / APs / APm / APl / ms"].endswith(" / 11.2 / 33.8 / 46.1 / 64 ms")
    line = next(csv.DictReader(files[1].open()))
    assert (line["ms"], line["published_ms"], line["published_APl"]) == ("12.5", "64", "46.1")
    monkeypatch.setenv("BEHAVIOUR", "diverges")
    run_plans([plan_of("table1e", ("depth_50_scale_500",))], "command")
    assert len(timed) == 1


def test_table_2_has_the_papers_competitors(plan_of, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison, "save_figures", lambda named, _: drawn.append(named["table2"]))
    files, _ = run_plans([plan_of("table2", ("R_101",))], "command")
    text = files[0].read_text()
    assert "| Faster R-CNN with FPN | 2 | ResNet-101-FPN | 36.2 | 59.1 | 39.0 | 18.2 | 39.0 | 48.2 |" in text
    assert "| DSSD513 | 1 | ResNet-101-DSSD | 33.2 | 53.3 | 35.2 | 13.0 | 35.4 | 51.1 |" in text
    assert "| RetinaNet | 1 | R_101, published | 39.1 | 59.1 | 42.3 | 21.8 | 42.7 | 50.2 |" in text
    assert "| RetinaNet | 1 | R_101, measured (R-34, 64 px, 3 it) | 32.0 | 50.0 | 30.0 | 11.0 | 22.0 | — |" in text
    assert "X_101_32x8d, measured" not in text
    rings, dots = drawn[-1].axes[0].lines[:2]
    assert list(rings.get_xdata()) == [39.1, 40.8, 34.9, 36.2, 34.7, 36.8, 21.6, 31.2, 33.2]
    assert list(dots.get_xdata()) == [32.0]


def test_the_table_keeps_what_was_run_before(plan_of):
    run_plans([plan_of(seeds=(1, 2))], "first")
    files, _ = run_plans([plan_of(rows=("fl_star_2_1",), seeds=(3,))], "second")
    rows = {row["row"]: (row["each seed"], row["state"]) for row in all_cells(files[0])}
    assert rows == {
        "ce": ("32.0, 34.0", "done"),
        "fl": ("32.0, 34.0", "done"),
        "fl_star_2_1": ("36.0", "done"),
        "fl_star_4_0": ("—", "not run"),
    }


def test_a_row_whose_own_key_is_changed_by_hand_is_not_compared_with_the_papers(plan_of, tmp_path):
    def difference(*overrides):
        plan = plan_of(rows=("ce",), overrides=overrides, scale="full")
        (row,) = cells(run_plans([plan], "command")[0][0])
        return row["AP measured"], row["difference"]

    words = ["MODEL.WEIGHTS", "none.pth", "SOLVER.MAX_ITER", "3"]
    assert difference(*words) == ("32.0", "+0.9")
    shutil.rmtree(tmp_path / "out")
    assert difference(*words, "MODEL.FOCAL_DET.LOSS.ALPHA", "0.6") == ("32.0", "—")


def test_an_override_that_fits_only_the_rows_asked_for_is_no_error(plan_of):
    plan = plan_of("table1d", ("ohem_128_.5",), overrides=[*TINY, "MODEL.FOCAL_DET.LOSS.BATCH_SIZE", "64"])
    files, _ = run_plans([plan], "command")
    assert [row["row"] for row in cells(files[0])] == ["ohem_128_.5"]
    with pytest.raises(InputError, match=r"table1d/fl: command line: .*BATCH_SIZE is 64, but the loss is Focal"):
        plan_of("table1d", ("fl",), overrides=[*TINY, "MODEL.FOCAL_DET.LOSS.BATCH_SIZE", "64"])


@pytest.fixture
def plans_of(tmp_path):
    def make(tables):
        options = SweepOptions("mini", (1, 2), tmp_path / "out", overrides=tuple(TINY))
        return plan_tables(list(tables.values()), (), options)

    return make


def test_of_several_tables_what_the_claims_need_is_trained_first_and_each_once(plans_of, monkeypatch):
    monkeypatch.setattr(paper_reproduce, "load_claims", lambda: claims.load_claims()[1:5:3])  # which share a row
    names = ("table1a", "table1b", "table1c", "table3", "section5_1")
    plans = plans_of({name: load_tables()[name] for name in names})
    runs = trainings(plans)
    assert [run.name for run in runs[:6]] == [
        *("table1a/alpha_.75 seed 1", "table1a/alpha_.75 seed 2", "section5_1/ce seed 1", "section5_1/ce seed 2"),
        *("section5_1/ce_no_prior seed 1", "section5_1/ce_no_prior seed 2"),
    ]
    assert len(runs) == len({run.folder for run in runs})
    assert {run.folder for run in runs} == {run.folder for plan in plans for run in plan.runs}
    assert runs[-1].name == f"{[*load_tables()['section5_1'].rows.values()][-1].path} seed 2"
    lines = describe(plans).splitlines()
    # 4 rows, of which 1b shares gamma_2 with 1c, and 1a alpha .75 with 1b: counted where they come first
    counts = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("table")}
    assert {name: counts[name] for name in ("table1a", "table1b", "table1c", "table3")} == {
        **{"table1a": "14", "table1b": "12", "table1c": "12", "table3": "4"}
    }
    assert lines[-1].startswith(f"Estimate: {len(runs)} trainings, ")


def test_the_claims_and_the_tables_with_a_training_are_written_after_it(plans_of, stand_in, one_claim, monkeypatch):
    written = []
    monkeypatch.setattr(paper_reproduce, "write_report", lambda plan, _: written.append(plan.table.name))
    plans = plans_of(one_claim)
    files, stopped = run_plans(plans, "the command")
    assert not stopped
    assert [path.name for path in files[:2]] == ["claims.md", "table3.md"]
    text = files[0].read_text()
    assert "# The paper's claims about trainings, in miniature" in text
    assert "Last command: `the command`" in text
    assert "- Seeds: 1, 2. " in text
    # both reach 32 and 34 with seeds 1 and 2: squared errors of 1 each, two degrees of freedom, 4.303 sqrt(2)
    assert (
        "| FL* beats the hinge | text | table3/fl_star_2_1 - section5_1/hinge | — | +0.0 ± 6.1 | cannot be told |"
        in text
    )
    # both rows with both seeds first, then table 3's other three and the section's others, seed by seed; then all
    first, others = ["table3", "table3", "section5_1", "section5_1"], len(one_claim["section5_1"].rows) - 1
    assert written == first + ["table3"] * 6 + ["section5_1"] * 2 * others + ["table3", "section5_1"]


def test_a_report_trains_nothing(plan_of, one_claim, monkeypatch, capsys, tmp_path):
    run_plans([plan_of(rows=("fl_star_2_1",))], "first")
    capsys.readouterr()
    monkeypatch.setattr(paper_reproduce, "run_all", None)
    words = ["--scale", "mini", "--seeds", "1,2", "--out", str(tmp_path / "out"), "--report", *TINY]
    assert main(["reproduce", "all", *words]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == [str(tmp_path / "out" / name) for name in ("claims.md", "table3.md")]
    assert "| table3/fl_star_2_1 | 33.8 | 32.0 | 1 |" in (tmp_path / "out" / "claims.md").read_text()
    assert [row["AP measured"] for row in cells(tmp_path / "out" / "table3.md")] == ["32.0"]
    assert "Measured: nothing yet" in (tmp_path / "out" / "section5_1.md").read_text()
    assert main(["reproduce", "all", "--rows", "fl", *words]) == 2
    assert "--rows are those of one table" in capsys.readouterr().err


def test_missing_data_sets_are_named_once_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    assert main(["reproduce", "table1a", "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("instances_minival2014.json is missing; it comes from https://") == 1
    assert err.count("train2014 is missing; it comes from http://") == 1
    assert "coco_2017_train and coco_2017_val hold the same images" in err
    assert all(line.startswith("error: ") for line in err.splitlines())
    assert not (tmp_path / "out").exists()


def test_what_the_plan_sets_itself_is_refused(plan_of):
    with pytest.raises(InputError, match="SEED is set for each run; use --seeds"):
        plan_of(overrides=["SEED", "3"])
    with pytest.raises(InputError, match="OUTPUT_DIR is set for each run; use --out"):
        plan_of(overrides=["OUTPUT_DIR", "x"])


def test_a_dry_run_prints_the_commands_and_the_cost(capsys, tmp_path):
    full = ["reproduce", "table1b", "--dry-run", "--rows", "gamma_2", "--num-gpus", "8", "--out", str(tmp_path / "out")]
    assert main(full) == 0
    out, err = capsys.readouterr()
    assert "-m focal_det train --config-file focal_det://paper/table1b.yaml " in out
    assert "--num-gpus 8 MODEL.RETINANET.FOCAL_LOSS_GAMMA 2.0 MODEL.RETINANET.FOCAL_LOSS_ALPHA 0.25 SEED 1" in out
    assert "1 training, 28 GPU-hours on V100, 3.5 hours on 8," in out
    assert "put COCO's files there" in err
    assert not (tmp_path / "out").exists()


def test_what_is_left_is_estimated_by_what_is_finished(plan_of):
    plan = plan_of()
    run_plans([plan], "command")
    assert "nothing left to run" in describe([plan])
    more = plan_of(seeds=(1, 2, 3))
    assert re.search(r"Estimate: 4 trainings, 0 minutes here", describe([more]))


def test_a_report_where_nothing_can_be_written_is_bad_input(capsys, tmp_path):
    (tmp_path / "out").touch()
    assert main(["reproduce", "table3", "--scale", "mini", "--report", "--out", str(tmp_path / "out")]) == 2
    assert f"--out {tmp_path / 'out'}: {tmp_path / 'out'} cannot be written there" in capsys.readouterr().err


def test_a_report_without_a_training_names_what_there_is_and_writes_nothing(plan_of, one_claim, capsys, tmp_path):
    run_plans([plan_of(rows=("fl_star_2_1",))], "first")
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    there = f"or name a folder that focal-det reproduce has trained into, such as {tmp_path / 'out'}"

    def message(*words):
        before = sorted(tmp_path.rglob("*"))
        assert main([*words, "--scale", "mini"]) == 2
        assert sorted(tmp_path.rglob("*")) == before
        return capsys.readouterr().err

    missing, empty, out = (str(tmp_path / name) for name in ("typo", "empty", "out"))
    error = f"error: --out {missing}: no such folder; train a row, {there}\n"
    assert message("reproduce", "all", "--report", "--out", missing) == error
    err = message("reproduce", "table3", "--report", "--out", empty)
    assert f"--out {empty}: it holds no training; train a row, {there}" in err
    # trained with keys by hand, which this report lacks
    error = f"--out {out}: its trainings, table3/fl_star_2_1/seed1, are of other tables, another scale than mini, or"
    assert error in message("reproduce", "table3", "--report", "--out", out)
    figure = message("plot", "speed-accuracy", "--runs", missing, "--out", str(tmp_path / "plots"))
    assert figure == f"error: --runs {missing}: no such folder; train a row, {there}\n"


def test_a_full_disk_is_named_and_the_table_of_before_stays(plan_of, monkeypatch, capsys, tmp_path):
    plan = plan_of()
    files, _ = run_plans([plan], "command")
    before = files[0].read_text()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        run_plans([plan], "another command")
    assert files[0].read_text() == before
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == []
