"""The wheel holds what a training needs, and its core runs exported models without PyTorch and Detectron2."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILT_FROM = ("configs", "focal_det", "LICENSE", "README.md", "pyproject.toml", "setup.py")
# Of the extras; what imports one of these in the core fails.
BLOCKED = "torch torchvision fvcore iopath omegaconf yacs tensorboard detectron2 onnx onnxscript lvis shtab hydra black"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel's path: built from a copy, without an index."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    configs = folder / "source" / "configs"  # with what may lie there, and is not to be packed
    (configs / "dangling.yaml").symlink_to("/no/such")
    (configs / "secret.yaml").symlink_to(ROOT / "README.md")
    (configs / "loop").symlink_to("..")
    for stray in (".hidden.yaml", "bccd.yaml~", "model_final.pth"):
        (configs / stray).write_text("")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", ".", *options, "--wheel-dir", str(folder)]
    subprocess.run(command, cwd=folder / "source", check=True, capture_output=True)
    return next(folder.glob("focal_det-*.whl"))


@pytest.fixture(scope="module")
def unpacked(wheel):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(wheel.parent / "site")
    return wheel.parent / "site"


@pytest.fixture(scope="module")
def metadata(unpacked):
    (path,) = unpacked.glob("*.dist-info/METADATA")
    return Parser().parsestr(path.read_text(encoding="utf-8"))


def files_below(folder, *suffixes):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in suffixes}


def test_it_holds_the_package_its_configurations_and_nothing_else(unpacked):
    package, configs = ROOT / "focal_det", ROOT / "configs"
    pages = {f"report/{name}" for name in ("style.css", "template.html.j2", "compare.html.j2", "macros.html.j2")}
    data = {"py.typed", "paper/tables.yaml", "paper/claims.yaml", "paper/competitors.yaml", *pages}
    of_configs = {f"configs/{name}" for name in files_below(configs, ".yaml", ".py")}
    packed = {str(path.relative_to(unpacked / "focal_det")) for path in (unpacked / "focal_det").rglob("*.*")}
    assert packed == files_below(package, ".py") | data | of_configs
    assert {path.name.partition("-")[0] for path in unpacked.iterdir()} == {"focal_det"}
    for name in of_configs:
        assert (unpacked / "focal_det" / name).read_bytes() == (ROOT / name).read_bytes()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only a clone has commits")
def test_a_clone_has_no_links_and_nothing_that_git_is_to_ignore():
    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout

    assert [line for line in git("ls-files", "--stage").splitlines() if not line.startswith("100")] == []
    assert git("ls-files", "--cached", "--ignored", "--exclude-standard") == ""


def test_its_metadata_ask_no_index_for_detectron2_and_its_core_for_no_pytorch(metadata, unpacked):
    required = [
        re.fullmatch(r"([\w.-]+)([^;]*)(?:; extra == \"(\w+)\")?", r) for r in metadata.get_all("Requires-Dist")
    ]
    of_extra = {}
    for match in required:
        of_extra.setdefault(match[3], set()).add(match[1])
    extras = {"train", "export", "completion", "lvis", "results", "mlflow", "wandb", "openvino", "all", "dev"}
    assert set(of_extra) == {None, *extras}
    assert not any("detectron2" in names for names in of_extra.values())
    assert not of_extra[None] & set(BLOCKED.split())
    assert [name for name in of_extra[None] if name.startswith("opencv")] == ["opencv-python"]
    assert {"torch", "torchvision", "fvcore"} <= of_extra["train"] < of_extra["export"] < of_extra["all"]
    assert of_extra["completion"] | of_extra["lvis"] < of_extra["all"] < of_extra["dev"]
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert all(address.partition(", ")[2].startswith("https://") for address in metadata.get_all("Project-URL"))
    (entry_points,) = unpacked.glob("*.dist-info/entry_points.txt")
    assert "focal-det = focal_det.__main__:main" in entry_points.read_text()


CORE = """
import contextlib, io, json, sys

class Blocker:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
sys.path.insert(0, {site!r})
from focal_det.__main__ import main

answers = {{}}
for line in {lines!r}:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(line.split())
        except SystemExit as left:
            code = left.code
    answers[line] = [code, out.getvalue(), err.getvalue()]
try:
    import focal_det.losses
except ImportError as error:
    answers["losses"] = str(error)
print(json.dumps(answers))
"""
COMMANDS = (
    "train",
    "lr-find",
    "doctor",
    "data",
    "predict",
    "export",
    "evaluate",
    "report",
    "compare",
    "replay",
    "reproduce",
    "plot",
    "analyze",
    "completion",
)
RUNS = {
    "predict images --model quickstart.onnx --out found": "8 images, ",
    "evaluate --model quickstart.onnx --json val.json --images images": "AP75 ",
    "data inspect --val-json val.json --val-images images": "statistics.png",
    "report run": "run/report.html",
    "reproduce --list": "gamma_2               34.0 / 52.5 / 36.5",
    "--version": "focal_det 0.",
}
NEEDS_MORE = {
    "train --config-file focal_det://bccd.yaml": "focal_det trains and detects through PyTorch and Detectron2",
    "predict images --run run": "focal_det trains and detects through PyTorch and Detectron2",
    "export --run run --out a.onnx": "focal_det trains and detects through PyTorch and Detectron2",
    "plot losses": "No module named 'torch', which this needs; install it with: ",
    "completion bash": "completions are written by shtab, which is not installed",
}


@pytest.fixture(scope="module")
def core(unpacked):
    """What each command line said in one process of the unpacked wheel, in which what the extras hold is missing."""
    from focal_det.data.shapes import make_shapes, shapes_files

    folder = unpacked.parent / "work"
    folder.mkdir()
    make_shapes("shapes_val_8_64px", unpacked.parent)
    annotations, images = shapes_files("shapes_val_8_64px", unpacked.parent)
    shutil.copy(annotations, folder / "val.json")
    shutil.copytree(images, folder / "images")
    shutil.copy(ROOT / "models" / "quickstart_int8.onnx", folder / "quickstart.onnx")
    with tarfile.open(ROOT / "tests" / "data" / "run_of_0.1.0.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    lines = [*(f"{name} --help" for name in COMMANDS), "--help", *RUNS, *NEEDS_MORE, "doctor --json"]
    code = CORE.format(blocked=BLOCKED.split(), site=str(unpacked), lines=lines)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_core_shows_the_help_of_every_command(core):
    for line in (f"{name} --help" for name in COMMANDS):
        assert (core[line][0], core[line][2]) == (0, ""), line
    listed = re.findall(r"^    ([\w-]+)", core["--help"][1], re.MULTILINE)
    assert listed == list(COMMANDS)


@pytest.mark.parametrize("line", RUNS)
def test_the_core_runs_exported_models_and_what_needs_none(core, line):
    code, out, err = core[line]
    assert (code, RUNS[line] in out) == (0, True), out + err


@pytest.mark.parametrize("line", NEEDS_MORE)
def test_what_needs_more_than_the_core_says_which_command_installs_it(core, line):
    code, _, err = core[line]
    assert code == 2
    assert err.startswith(f"error: {NEEDS_MORE[line]}")
    assert err.count("\n") == 1
    assert "pip install 'focal_det[" in err


def test_the_losses_say_it_too(core):
    assert core["losses"].endswith("`pip install 'focal_det[train]'`")


def test_the_doctor_calls_the_core_of_a_wheel_what_it_is(core):
    code, out, _ = core["doctor --json"]
    found = json.loads(out)
    assert (code, found["training_works"], found["exported_models_work"]) == (1, False, True)
    by_name = {finding["name"]: finding for finding in found["findings"]}
    assert by_name["installation"]["value"] == "a wheel's"
    assert "site/focal_det/configs, such as focal_det://" in by_name["configurations"]["value"]
    assert "pip install --no-deps --no-build-isolation 'detectron2 @ git+https" in by_name["detectron2"]["fix"]
