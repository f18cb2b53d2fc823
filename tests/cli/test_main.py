"""The command focal-det: its figures, its exit codes, its messages."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from full_disk import room_for

from focal_det import __version__
from focal_det.cli import train
from focal_det.cli.main import main


def test_plots_losses_and_names_the_files(tmp_path, capsys):
    assert main(["plot", "losses", "--gamma", "0", "2", "--star", "3,-0.5", "--out", str(tmp_path)]) == 0
    files = capsys.readouterr().out.split()
    assert len(files) == 6
    assert {str(path) for path in tmp_path.iterdir()} == set(files)
    svg = (tmp_path / "figure5_fl_star.svg").read_text()
    assert svg.startswith("<?xml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gamma", "-1"], "error: gamma=-1.0 is outside [0, 1e+06]"),
        (["--alpha", "2"], "error: alpha=2.0 is outside [0, 1]"),
        (["--star", "0,1"], "error: gamma=0.0 is outside [1e-06, 1e+06]"),
    ],
)
def test_bad_constants_are_named_and_nothing_is_written(tmp_path, capsys, words, message):
    assert main(["plot", "losses", *words, "--out", str(tmp_path / "plots")]) == 2
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "plots").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["plot", "losses", "--out", str(tmp_path / "file" / "plots")]) == 2
    assert f"--out {tmp_path}/file/plots: not a folder that can be made" in capsys.readouterr().err


def test_a_folder_where_a_figure_goes_is_named_before_any_is_written(tmp_path, capsys):
    (tmp_path / "figure5_fl_star.png").mkdir()
    assert main(["plot", "losses", "--out", str(tmp_path)]) == 2
    assert "figure5_fl_star.png is to be a file, and is a folder there" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["figure5_fl_star.png"]


def test_a_figure_that_cannot_be_written_is_a_fault_and_named(tmp_path, capsys):
    with room_for(2000):
        assert main(["plot", "losses", "--out", str(tmp_path)]) == 1
    assert re.fullmatch(rf"error: .*: '{tmp_path}/figure\w+\.png'\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["plot", "losses", "--star", "2"], ["plot", "curves"], [], ["plot", "losses", "x"]])
def test_a_line_that_cannot_be_read_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "focal-det" in capsys.readouterr().err


def test_a_double_dash_before_the_command_changes_nothing(capsys):
    assert main(["--", "reproduce", "--list"]) == 0
    assert "gamma_2 " in capsys.readouterr().out


@pytest.mark.parametrize("words", [["predict", "a.jpg", "--run", "x"], ["train"]])
def test_a_flag_before_the_command_is_all_that_is_unrecognized(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--later", *words])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith("unrecognized arguments: --later\n")


def test_the_list_of_rows_needs_no_table(capsys):
    assert main(["reproduce", "--list"]) == 0
    assert "gamma_2               34.0 / 52.5 / 36.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a table; --list shows them"),
        (["table9"], "no table 'table9'; there are table1a,"),
        (["table3", "--rows", "f"], "--rows f: table3 has no such row; it has ce, fl,"),
        (["table3", "--num-gpus", "0"], "--num-gpus 0 must be at least 1"),
        (["table3", "--val-json", "x"], "--val-json is given without --val-images; both are needed"),
        (["table3", "--val-voc", "x"], "--val or the like without --train: sets to train on"),
    ],
)
def test_what_cannot_be_reproduced_is_named(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [["--seeds", "1,a"], ["--seeds", "-1"], ["--seeds", ""], ["--scale", "x"], ["--raw", "fl"]]
)
def test_words_that_no_flag_takes_are_bad_input(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main(["reproduce", "table3", *words])
    assert stop.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_names_that_would_command_the_terminal_are_shown_with_escapes(tmp_path, capsys):
    path = tmp_path / "\x1b[2J\x9b\u202e é.json"
    assert main(["data", "inspect", "--train-json", str(path), "--train-images", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "\\x1b[2J\\x9b\\u202e é.json" in said
    assert all(c.isprintable() for line in said.splitlines() for c in line)


@pytest.mark.parametrize("words", [["--version"], ["train", "--version"]])
def test_the_version_is_printed(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"focal_det {__version__}, ")


def test_train_is_train_net_under_another_name(monkeypatch, capsys):
    given = []
    monkeypatch.setattr(train, "main", lambda line, *, prog, **more: given.append((line, prog, more)) or 75)
    assert main(["train", "--resume", "auto", "SEED", "3"]) == 75
    assert given == [(["--resume", "auto", "SEED", "3"], "focal-det train", {"ends_process": False})]


def test_the_help_of_train_gives_commands_that_work_without_a_checkout(capsys):
    helps = []
    for run, words in ((main, ["train", "--help"]), (train.main, ["--help"])):
        with pytest.raises(SystemExit):
            run(words)
        helps.append(capsys.readouterr().out)
    installed, checkout = helps
    assert "configs/" not in installed
    assert "train_net.py" not in installed
    assert "torchrun --nproc-per-node 8 -m focal_det train --config-file focal_det://" in installed
    assert "torchrun --nproc-per-node 8 train_net.py --config-file configs/" in checkout
    flags = re.compile(r"^  (--[\w-]+)", re.MULTILINE)
    assert flags.findall(installed) == flags.findall(checkout)


def test_the_help_imports_no_command_and_lists_all():
    code = "import sys; from focal_det.cli.main import main\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, modules = done.stdout.rstrip().rpartition("\n")
    here = Path(train.__file__).parent
    names = {path.stem.replace("_", "-") for path in here.glob("*.py") if "def add_command(" in path.read_text()}
    assert set(re.findall(r"^    ([\w-]+)", text, re.MULTILINE)) == names | {"compare"}  # which report.py adds
    ours = {name for name in modules.split() if name.startswith("focal_det.cli.")}
    assert ours == {"focal_det.cli.main", "focal_det.cli.common"}
    assert {name.partition(".")[0] for name in modules.split()}.isdisjoint({"torch", "numpy", "PIL", "cv2", "yaml"})
