"""tools/house.py counts files and lines by room, and sees what the processes of a run enter."""

import importlib
import json
import os
import time
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(TOOLS)
    house, house_probe, house_runs = (importlib.import_module(name) for name in ("house", "house_probe", "house_runs"))


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_files_and_lines_by_room(tmp_path, capsys):
    checkout = write(
        tmp_path / "checkout",
        {
            "toy/__init__.py": "",
            "toy/a.py": "x = 1\n\n# why\n",
            "toy/low/__init__.py": '"""Low."""\n',
            "toy/low/b.py": "y = 1\n" * 5 + "z = 1",  # 6 lines
            "toy/low/c.py": "y = 1\n",
            "toy/low/page.html": "<p>\n</p>\n",
            "toy/low/image.bin": b"\xff\0",
            "toy/high/deep/d.py": "y = 1\n",
            "toy/__pycache__/a.py": "not\ncounted\n",
            "tests/test_a.py": "assert True\n",
            "README.md": "Toy\n",
        },
    )
    words = ["--checkout", str(checkout), "--package", "toy", "--static", "--json", str(tmp_path / "found.json")]
    assert house.main(words) == 0
    found = json.loads((tmp_path / "found.json").read_text())["static"]
    names = ("modules", "python_files", "python_lines", "text_files", "text_lines")
    figures = {room: [sums[name] for name in names] for room, sums in found["rooms"].items()}
    assert figures == {"top level": [1, 2, 3, 2, 3], "high": [1, 1, 1, 1, 1], "low": [2, 3, 8, 4, 10]}
    assert [found["total"][name] for name in names] == [4, 6, 12, 7, 14]
    assert (found["largest_room"], found["largest_share"]) == (["low", 8], 0.6667)
    assert (found["longest_file"], found["fullest_folder"]) == (["low/b.py", 6], ["low", 2])
    assert {name: sums["text_lines"] for name, sums in found["beside"].items()} == {"top level": 1, "tests": 1}
    assert "| low | 2 | 8 | 66.7% | 4 | 10 |" in capsys.readouterr().out


def test_no_package_is_an_error(tmp_path, capsys):
    assert house.main(["--checkout", str(tmp_path), "--static"]) == 1
    assert "has no package focal_det" in capsys.readouterr().err


# Each file is entered in the one way that its name says, by PROGRAM below.
PACKAGE = {
    "__init__.py": "",
    "imported.py": "def f(): return 1\nX = f()\nclass A:\n    y = [(lambda: i)() for i in [X]]\n",
    "called.py": "from __future__ import annotations\nfrom . import imported\ndef f():\n    'Say.'\n"
    "    return f.__doc__\n",
    "nested.py": "def f():\n    from . import late\n    return late.f\n",
    "late.py": "X = [0]\nf = lambda: X[0]\n",
    "method.py": "class A:\n    @property\n    def __x(self): return 3\n    y = __x\n",
    "generator.py": "def f():\n    sent = yield 1\n    yield sent\n",
    "context.py": "from contextlib import contextmanager\n@contextmanager\ndef f():\n    try:\n        yield\n"
    "    finally:\n        pass\n",
    "waiting.py": "def f(inner):\n    try:\n        inner()\n    finally:\n        pass\n",
    "handler.py": "def f(): return True\n",
    "thread.py": "def f(): pass\n",
    "forked.py": "def f(): pass\n",
    "spawned.py": "def f(): pass\n",
    "unused.py": "def f(): pass\n",
    "loaded.py": "from pathlib import Path\ndef f(load):\n    load(Path('a.pth'))\n    with open('a.pth') as file:\n"
    "        load(file)\n",
    "zipped.py": "import zipfile\ndef f():\n    with zipfile.ZipFile('a.pth', 'w') as archive:\n"
    "        archive.writestr('a', 'b')\n        archive.writestr('c', 'd')\n",
}
PROGRAM = """
import builtins, multiprocessing, os, signal, threading, time

if __name__ == "__main__":
    from toy import called, context, forked, generator, handler, method, nested, spawned, thread, waiting, zipped
    from toy import loaded, unused

    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(handler.f()))
    values = generator.f()
    print(called.f(), nested.f()(), method.A().y, next(values))
    for kind, target in (
        (threading.Thread, thread.f),
        (multiprocessing.get_context("fork").Process, forked.f),
        (multiprocessing.get_context("spawn").Process, spawned.f),
    ):
        other = kind(target=target)
        other.start()
        other.join()
    zipped.f()
    loaded.f(builtins.__house_loaded__)

    def train():
        with context.f():
            builtins.__house_step__(None)
            print(values.send("sent"), flush=True)
            while not asked:
                time.sleep(0.001)
            raise KeyError

    try:
        waiting.f(train)
    except KeyError:
        os._exit(75)
"""
AT_START = ["called", "context", "forked", "generator", "late", "method", "nested", "spawned", "thread", "waiting"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the program that a signal has stopped in its first step."""
    folder = write(tmp_path_factory.mktemp("toy"), {f"toy/{name}": text for name, text in PACKAGE.items()})
    write(folder, {"program.py": PROGRAM})
    with house_runs.Run(folder / "run", folder / "toy", [folder / "program.py"]) as run:
        run.wait_for_step(1)
        while "sent" not in (run.folder / "output").read_text() and run.process.poll() is None:
            time.sleep(0.001)
        assert run.stop() == 75, run.last_lines()
    return run


def test_a_run_does_what_it_does_without_the_probe(run):
    assert (run.folder / "output").read_text() == "Say. 0 3 1\nsent\n"


def test_a_file_is_entered_by_calls_in_any_process_and_not_by_imports(run):
    assert run.entered([0]) == {f"{name}.py" for name in [*AT_START, "loaded", "zipped"]}


def test_a_step_has_what_is_resumed_in_it(run):
    assert run.entered([1]) == {"generator.py"}


def test_a_signal_has_its_handler_and_what_is_left_but_not_what_waited(run):
    assert run.entered(None, after_signal=True) == {"handler.py", "context.py"}


def test_files_of_weights_are_seen_with_who_opened_them(run):
    path = os.path.realpath(run.folder / "a.pth")
    found = {kind: [line["by"][0] for line in run.records(kind)] for kind in ("opened", "unzipped", "loaded")}
    assert found == {
        "opened": ["zipped.py:f", "loaded.py:f"],
        "unzipped": ["zipped.py:f"],  # once, though two records were written
        "loaded": ["loaded.py:f"] * 2,
    }
    assert {line["path"] for kind in found for line in run.records(kind)} == {path}


def test_a_run_that_ends_early_is_an_error_with_its_words(tmp_path):
    write(tmp_path, {"toy/__init__.py": "", "program.py": "raise SystemExit('no data')"})
    with (
        house_runs.Run(tmp_path / "run", tmp_path / "toy", [tmp_path / "program.py"]) as run,
        pytest.raises(RuntimeError, match=r"(?s)before step 1.*no data"),
    ):
        run.wait_for_step(1)


def test_functions_of_others_are_watched_by_name(monkeypatch):
    seen = []
    monkeypatch.setattr("builtins.__house_seen__", seen.append, raising=False)
    space = {}
    source = 'class A:\n    def f(self, x):\n        """Say."""\n        return x + 1\n'
    exec(house_probe.watched(source, "a.py", "A.f", "__house_seen__", "x"), space)
    assert (space["A"]().f(2), space["A"].f.__doc__, seen) == (3, "Say.", [2])
    with pytest.raises(LookupError, match=r"a\.py has no A\.g"):
        house_probe.watched(source, "a.py", "A.g", "__house_seen__", "x")


def test_figures_of_a_resume(tmp_path):
    """A checkpoint that is opened four times is read twice; of three models the last is the trainer's."""
    path = str(tmp_path / "model.pth")
    lines = [
        *({"kind": "opened", "path": path, "by": ["a.py:check", "b.py:start"]} for _ in range(4)),
        {"kind": "unzipped", "path": path, "by": ["a.py:check"]},
        {"kind": "loaded", "path": path, "by": ["c.py:load"]},
        {"kind": "loaded", "path": str(tmp_path / "other.pth"), "by": ["c.py:load"]},
        {"kind": "loaded", "path": path, "by": ["c.py:load"], "phase": [1, 0]},  # too late
        *({"kind": "model", "by": [f"{name}.py:build"]} for name in "abc"),
    ]
    write(tmp_path, {"record": "".join(json.dumps({"phase": [0, 0], **line}) + "\n" for line in lines)})
    run = object.__new__(house_runs.Run)
    run.folder = tmp_path
    found = house_runs.readings(run, Path(path))
    assert (found["readings"], found["opened"], found["loaded"], found["unzipped"]) == (2, 4, 1, 1)
    assert found["by"]["opened"] == {"a.py:check < b.py:start": 4}
    assert house_runs.models(run)["before_the_trainers"] == 2
