"""Plug-ins: their parts and keys count as the project's own do; the run remembers them, and imports none by itself."""

import hashlib
import importlib
import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from focal_det import launch
from focal_det.cli.train import main, parse_arguments
from focal_det.config.load import load_config, read_config
from focal_det.config.plugins import load_plugins, register_config, source_hashes
from focal_det.distributed.signals import EndedBySignal
from focal_det.engine.predictor import Predictor
from focal_det.errors import InputError, cut
from focal_det.preflight.plan import check

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs" / "losses.md").read_text().split("## A loss of your own\n")[1]
CODE, COMMAND = (re.search(rf"```{kind}\n(.*?)```", SECTION, re.DOTALL)[1] for kind in ("python", "sh"))
LOSS = "MODEL.FOCAL_DET.LOSS."
REST = "add that flag, after reading the file that it names, for a plug-in is a program (in Python: import it first)\n"
CHOSEN = ["MODEL.META_ARCHITECTURE", "FocalRetinaNet", LOSS + "NAME", "TemperedLoss"]
QUICK = ["--config-file", str(ROOT / "configs" / "quickstart.yaml")]
SMALL = [
    *("MODEL.FPN.OUT_CHANNELS", "64", "MODEL.RETINANET.NUM_CONVS", "1", "SOLVER.IMS_PER_BATCH", "2"),
    *("DATASETS.TRAIN", "('shapes_train_8_64px',)", "DATASETS.TEST", "('shapes_val_5_64px',)"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0"),
    *("DATALOADER.ASPECT_RATIO_GROUPING", "False", "MODEL.FOCAL_DET.DRAW_IMAGES", "0"),
    *("SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "0", "MODEL.DEVICE", "cpu"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return the current folder, with my_loss.py of the docs in it."""
    (tmp_path / "my_loss.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problem_of(*names):
    with pytest.raises(InputError) as caught:
        load_plugins(names)
    (problem,) = caught.value.problems
    return problem


def test_the_page_s_loss_trains_resumes_and_detects_by_the_page_s_command(train_net, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "my_loss.py").write_text(CODE)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    program, script, *words = shlex.split(COMMAND.replace("\\\n", ""))
    assert (program, script) == ("python", "train_net.py")
    run = tmp_path / words[words.index("OUTPUT_DIR") + 1]

    done = train_net(*words, *SMALL, "SOLVER.MAX_ITER", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    saved = (run / "config.yaml").read_text()
    assert "PLUGINS:\n    - my_loss.py\n" in saved
    assert "LOSS:\n      NAME: TemperedLoss\n      TEMPERATURE: 3.0\n" in saved
    changes = {row.pop("key"): row for row in json.loads((run / "config_changes.json").read_text())}
    assert changes[LOSS + "TEMPERATURE"] == {"default": 2.0, "value": 3.0, "place": "command line"}

    again = ["--config-file", run / "config.yaml", "--resume", "SOLVER.MAX_ITER", 3]
    at = words.index("--plugin")
    refused = train_net(*words[:at], *words[at + 2 :], *SMALL, "--resume", cwd=tmp_path)
    assert refused.returncode == 2
    place = "--resume: output/tempered/model_final.pth: was trained with --plugin my_loss.py"
    assert refused.stderr.endswith(f"error: {place}: {REST}")
    refused = train_net(*again, LOSS + "TEMPERATURE", 4, "--plugin", "my_loss", cwd=tmp_path)  # as a module
    assert refused.returncode == 2
    assert refused.stderr.endswith(f"with what it is now:\n  {LOSS}TEMPERATURE: 3.0 before, 4.0 now\n")
    done = train_net(*again, "--plugin", "my_loss.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Starting training from iteration 2" in done.stdout

    images = tmp_path / "images"
    images.mkdir()
    cv2.imwrite(str(images / "a.png"), np.full((64, 64, 3), 128, np.uint8))
    predict = ["predict", images, "--run", run, "--out", tmp_path / "found"]
    refused = train_net(*predict, program="focal-det", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.endswith(f"error: {run}/config.yaml: was trained with --plugin my_loss.py: {REST}")
    done = train_net(*predict, "--plugin", "my_loss.py", program="focal-det", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:", "--plugin bad.py: SyntaxError: invalid syntax ({}, line 1)"),
        ("import my_loss\n1 / 0", "--plugin bad.py: ZeroDivisionError: division by zero ({}, line 2)"),
        ("def f():\n  int('x')\nf()", "--plugin bad.py: invalid literal for int() with base 10: 'x' ({}, line 2)"),
        ("import no_such", "--plugin bad.py: ModuleNotFoundError: No module named 'no_such' ({}, line 1)"),
        ("class Odd(Exception):\n  def __str__(self): 1 / 0\nraise Odd", "--plugin bad.py: Odd: Odd ({}, line 3)"),
        (
            "raise SystemExit(0)",
            "--plugin bad.py: it ends the program as it is imported, which belongs under if __name__",
        ),
        (
            "from focal_det.registries import *\n@DENSE_LOSS_REGISTRY.register()\nclass FocalLoss: pass",
            "--plugin bad.py: An object named 'FocalLoss' was already registered in 'DENSE_LOSS' registry! (",
        ),
    ],
)
def test_a_plug_in_that_fails_is_named_with_the_place(folder, text, message):
    (folder / "bad.py").write_text(text)
    assert problem_of("bad.py").startswith(message.format(folder / "bad.py"))
    assert "bad" not in sys.modules


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cfg.MODEL.FOCAL_DET.LOSS.GAMMA = 2.0", "it sets MODEL.FOCAL_DET.LOSS.GAMMA, a key that is there already"),
        ("cfg.MODEL.RETINANET = type(cfg)()", "it sets MODEL.RETINANET, a key that is there already"),
        ("cfg.SEED = 3", "it sets SEED, a key that is there already"),
        ("cfg.merge_from_list(['SEED', 3])", "it sets SEED, a key that is there already"),
        ("cfg.update(SEED=3)", "it sets SEED, a key that is there already"),
        ("cfg.MODEL.setdefault('MINE', [object()])", "MODEL.MINE has the default [<object object"),
        ("cfg.MINE = 10**5000", "MINE has the default of int, but has to be a text"),
        ("cfg.MINE = float('nan')", "MINE has the default nan, but has to be a text"),
        ("cfg[3] = 1", "it adds the key 3; a name is letters, digits and _"),
        ("cfg.MODEL['a.b'] = 1", "it adds the key MODEL.'a.b'; a name is"),
        ("cfg.MINE = cfg", "it adds a group of keys that contains itself"),
        ("raise SystemExit(4)", "it ends the program"),
        ("cfg.MINE = None", "MINE has the default None, but has to be a text, a number"),
        ("cfg.MINE = object()", "Invalid type <class 'object'> for key MINE"),
        ("cfg.pop('MODEL')", "it removes MODEL."),
        ("cfg.NO.SUCH = 1", "AttributeError: NO"),
    ],
)
def test_keys_that_are_there_are_not_set_again(folder, line, message):
    register = "from focal_det.registries import CONFIG_REGISTRY\n@CONFIG_REGISTRY.register()\n"
    (folder / "bad.py").write_text(f"{register}def add_mine(cfg):\n    {line}\n")
    problem = problem_of("bad.py")
    assert problem.startswith(f"plug-in bad.py, add_mine: {message}")
    seen_afterwards = ("MINE has", "removes", "it adds", "cfg.update")
    assert f"({folder}/bad.py, line 4)" in problem or any(words in problem + line for words in seen_afterwards)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_los.py", "no such file; did you mean --plugin my_loss.py?"),
        ("my_los", "no such module; did you mean --plugin my_loss.py?"),
        ("inner.part", "no such module; did you mean --plugin inner/part.py?"),
        ("inner/part", "a plug-in is a module or a file that ends in .py; did you mean --plugin inner/part.py?"),
        ("far/away.py", "no such file"),
        ("x" * 300 + ".py", "no such file"),  # longer than a file's name can be
        ("", "a plug-in is a module or a file that ends in .py"),
        ("random.py", "another module has the name random ("),
        ("inner/my_loss.py", "another module has the name my_loss ("),
    ],
)
def test_a_plug_in_that_is_not_found_is_named(folder, name, message):
    (folder / "inner").mkdir()
    for file in ("random.py", "inner/my_loss.py", "inner/part.py"):
        (folder / file).write_text("")
    (folder / "inner" / "part.py").write_text("import my_loss")
    if name == "inner.part":
        (folder / "inner" / "__init__.py").write_text("raise ModuleNotFoundError(name='inner.part')")
    load_plugins(["my_loss.py"])
    assert problem_of(name).startswith(f"--plugin {cut(name, 250)}: {message}")


def test_keys_of_a_plug_in_are_checked_as_others_are(folder):
    load_plugins(["my_loss.py", str(folder / "my_loss.py"), "my_loss.py"])
    assert load_config("", [*CHOSEN, LOSS + "TEMPERATURE", "3"]).MODEL.FOCAL_DET.LOSS.TEMPERATURE == 3.0
    words = [LOSS + "TEMPERATUR", "3", LOSS + "TEMPERATURE", "hot", "MODEL.FOCAL_DET.PLUGINS", "x"]
    assert read_config("", [*CHOSEN, *words]).findings.errors == [
        f"command line: unknown key {LOSS}TEMPERATUR; did you mean {LOSS}TEMPERATURE?",
        f"command line: {LOSS}TEMPERATURE is 'hot', but takes a number such as 2.0",
        "command line: MODEL.FOCAL_DET.PLUGINS is 'x', but is set by --plugin alone: add that flag instead",
    ]
    (problem,) = read_config("", [*CHOSEN[:2], LOSS + "TEMPERATURE", "3"]).findings.errors
    assert problem.endswith(f"remove it, or set {LOSS}NAME to TemperedLoss")


def test_a_stranger_s_plug_in_names_are_quoted_in_the_line_to_paste(folder):
    (folder / "run.yaml").write_text('MODEL: {FOCAL_DET: {PLUGINS: ["x; rm a", "y\\nz"]}}')
    with pytest.raises(InputError, match=re.escape(r"with --plugin 'x; rm a' --plugin 'y\nz': add those flags")):
        load_config("run.yaml")


@pytest.mark.parametrize(
    "text", ["raise EndedBySignal(75)", "@CONFIG_REGISTRY.register()\ndef add(cfg): raise EndedBySignal(75)"]
)
def test_a_signal_that_comes_while_a_plug_in_is_imported_is_not_taken_for_its_fault(folder, text):
    imports = "from focal_det.distributed.signals import EndedBySignal\nfrom focal_det.registries import *\n"
    (folder / "slow.py").write_text(imports + text)
    with pytest.raises(EndedBySignal):
        load_plugins(["slow.py"])


def test_a_file_s_plug_ins_are_compared_and_never_imported(folder):
    (folder / "c.yaml").write_text("MODEL: {FOCAL_DET: {PLUGINS: [my_loss.py, other.part], LOSS: {TEMPERATURE: 3}}}\n")
    for read in (load_config, Predictor):
        with pytest.raises(InputError) as caught:
            read("c.yaml")
        (problem,) = caught.value.problems  # not that its key is unknown
        flags = "--plugin my_loss.py --plugin other.part"
        assert problem.startswith(f"c.yaml: was trained with {flags}: add those flags, after reading the files")
    assert "my_loss" not in sys.modules
    (folder / "c.yaml").write_text("MODEL: {FOCAL_DET: {PLUGINS: [my_loss.py]}}\n")
    sys.path.append(str(folder))
    importlib.import_module("my_loss")
    assert load_config("c.yaml").MODEL.FOCAL_DET.PLUGINS == ("my_loss.py",)


def test_a_plug_in_is_known_by_the_content_of_its_file(folder):
    load_plugins(["my_loss.py"])
    assert source_hashes() == {"my_loss.py": hashlib.sha256(CODE.encode()).hexdigest()}
    (folder / "my_loss.py").write_text(CODE + "# changed")
    assert source_hashes() == {"my_loss.py": hashlib.sha256(f"{CODE}# changed".encode()).hexdigest()}


def test_main_takes_a_function_that_adds_keys_more_than_once(folder, capsys):
    def add_mine(cfg):
        cfg.MODEL.MINE = 1

    words = [*QUICK, "--preflight-only", "OUTPUT_DIR", str(folder / "o")]
    for _ in range(2):
        assert main([*words, "MODEL.MINE", "2"], add_config=add_mine) == 0
    assert main([*words, "MODEL.MINE", "two"], add_config=add_mine) == 2
    assert "MODEL.MINE is 'two', but takes an integer such as 1" in capsys.readouterr().err
    (recorded,) = load_config("").MODEL.FOCAL_DET.PLUGINS
    assert "test_plugins" in recorded

    def other(cfg): ...

    other.__name__ = "add_mine"
    with pytest.raises(InputError, match=r"plug-in .*test_plugins.*, add_mine: .* already registered"):
        register_config(other)


def test_a_rank_imports_them_before_anything_else(folder):
    load_plugins(["my_loss.py"])
    job = check(parse_arguments([*QUICK, "--plugin", "my_loss.py", *CHOSEN, "OUTPUT_DIR", str(folder / "o")])).job
    assert job.plugins == (str(folder / "my_loss.py"),)
    (folder / "bad.py").write_text("1 / 0")
    with pytest.raises(InputError, match=r"bad\.py: ZeroDivisionError"):
        launch._run_rank(replace(job, plugins=(str(folder / "bad.py"),)), None, [None], None, 60)
