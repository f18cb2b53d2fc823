"""focal-det completion: what the shells complete."""

import shutil
import subprocess
import sys

import pytest

from focal_det.cli.main import main

pytest.importorskip("shtab")
ASK = """
source focal-det.bash
COMP_LINE="$*" COMP_POINT=${#1} COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
_shtab_focal_det focal-det "${@: -1}" "${@: -2:1}" 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def completed(tmp_path_factory):
    """Return a function that completes the last word of a command line as bash does."""
    folder = tmp_path_factory.mktemp("shell")
    with (folder / "focal-det.bash").open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        assert main(["completion", "bash"]) == 0
    (folder / "mine.onnx").touch()
    (folder / "mine").mkdir()

    def complete(*words):
        command = ["bash", "-c", ASK, "bash", "focal-det", *words]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.split()

    return complete


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["tr"], {"train"}),
        (["train", "--num-m"], {"--num-machines"}),
        (["train", "--train-v"], {"--train-voc"}),
        (["predict", "--model", "mi"], {"mine.onnx", "mine"}),
        (["report", "mi"], {"mine"}),
        (["plot", "sp"], {"speed-accuracy"}),
    ],
)
def test_commands_flags_and_files_are_completed(completed, words, found):
    assert {word.rstrip("/") for word in completed(*words)} == found


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_a_script_too(capsys, shell):
    assert main(["completion", shell]) == 0
    assert "--train-json" in capsys.readouterr().out


def test_without_shtab_one_sentence_says_what_installs_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: completions are written by shtab, which is not installed: ")
    assert said.count("\n") == 1
