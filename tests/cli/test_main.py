"""The command focal-det: its figures, its exit codes, its messages."""

import pytest

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
        (["--alpha", "2"], "error: alpha=2.0 is outside (0, 1)"),
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
    assert f"--out {tmp_path}/file/plots: no folder that can be made" in capsys.readouterr().err


def test_a_figure_that_cannot_be_written_is_a_fault_and_named(tmp_path, capsys):
    (tmp_path / "figure5_fl_star.png").mkdir()
    assert main(["plot", "losses", "--out", str(tmp_path)]) == 1
    assert "figure5_fl_star.png" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["plot", "losses", "--star", "2"], ["plot", "curves"], [], ["plot", "losses", "x"]])
def test_a_line_that_cannot_be_read_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "focal-det" in capsys.readouterr().err
