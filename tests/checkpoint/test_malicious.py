"""Files that would make a file when they are read: refused, with words, and nothing is made."""

import io
import json
import os
import pickle
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from focal_det.checkpoint.restricted_pickle import load_arrays
from focal_det.checkpoint.safe_load import SafeCheckpointer
from focal_det.cli.main import main as focal_det
from focal_det.cli.train import main as train
from focal_det.config.load import load_config
from focal_det.engine.predictor import Predictor
from focal_det.errors import InputError
from focal_det.report.run_files import read_run

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).parents[2]


class Evil:
    """What unpickling it does, a stranger decides."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def evil_content(made):
    return {"model": {"weight": torch.ones(1, 1), "a": Evil(made)}, "model_state": {}, "__author__": "somebody"}


@pytest.mark.parametrize("name", ["w.pkl", "w.pth", "w.pyth", "w", ".pkl", "w.PKL", "legacy.pth"])
def test_weights_of_any_name_run_nothing(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    made, path = tmp_path / "made", tmp_path / name
    if name.lower().endswith(".pkl"):
        path.write_bytes(pickle.dumps(evil_content(made)))
    else:
        torch.save(evil_content(made), path, _use_new_zipfile_serialization=name != "legacy.pth")
    with pytest.raises(Exception, match=r"posix|system|Unsupported operand|not read"):
        SafeCheckpointer(torch.nn.Linear(1, 1)).load(str(path))
    assert not made.exists()


def through_build(made):
    """Instructions that put a program where the reader's own function stood, which then is called."""
    return b"cnumpy\ndtype\n(N}S'__code__'\ncos\nsystem\nstb(S'touch " + str(made).encode() + b"'\ntR."


HARMFUL = {
    "a class": lambda made: pickle.dumps(Evil(made)),
    "BUILD on a function": through_build,
    "BUILD on the class of arrays": lambda made: b"cnumpy\nndarray\n}S'__setstate__'\nI1\nsb.",
    "INST": lambda made: b"(S'touch " + str(made).encode() + b"'\nios\nsystem\n.",
    "an extension": lambda made: b"\x80\x02\x82\x01.",
    "a persistent id": lambda made: b"Pos.system\n.",
    "objects in an array": lambda made: pickle.dumps(np.array([None, {}], dtype=object)),
    "records": lambda made: pickle.dumps(np.zeros(2, dtype=[("a", "f4"), ("b", "O")])),
    "a dtype with fields": lambda made: (
        b"cnumpy\ndtype\n(S'S8'\ntR(I3\nS'|'\nN(S'a'\nt}S'a'\n(cnumpy\ndtype\nI0\ntsI8\nI1\nI0\ntb."
    ),
    "another codec": lambda made: b"c_codecs\nencode\n(V\nS'zlib'\ntR.",
    "a number of 9 GB": lambda made: b"\x80\x02]r\x00\x00\x00\x40.",
    "a text longer than the file": lambda made: b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"x.",
    "tuples without end": lambda made: b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.",
    "a text repeated": lambda made: (
        b"\x80\x02X"
        + (2**20).to_bytes(4, "little")
        + b"a" * 2**20
        + b"q\x000"
        + b"c_codecs\nencode\nh\x00X\6\0\0\0latin1\x86R0" * 90
        + b"N."
    ),
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_what_a_pickle_can_do_besides(tmp_path, kind):
    made = tmp_path / "made"
    start = time.process_time()
    with pytest.raises(pickle.UnpicklingError):
        load_arrays(io.BytesIO(HARMFUL[kind](made)))
    assert time.process_time() - start < 5
    assert not made.exists()


def test_compressed_checkpoints_are_refused(tmp_path):
    torch.save({"model": {"weight": torch.zeros(2**20)}}, tmp_path / "sound.pth")
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(tmp_path / "sound.pth") as sound, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for part in sound.infolist():
            packed.writestr(part.filename, sound.read(part.filename))
    assert bomb.stat().st_size < 20_000
    with pytest.raises(pickle.UnpicklingError, match="it is compressed"):
        SafeCheckpointer(torch.nn.Linear(1, 1)).load(str(bomb))


EVIL_YAML = "A: !!python/object/apply:os.system ['touch {}']\n"


def test_a_base_of_a_configuration_runs_nothing_on_any_path(tmp_path, capsys):
    """Detectron2's own reader falls back to yaml.unsafe_load for files that _BASE_ names."""
    made = tmp_path / "made"
    (tmp_path / "evil.yaml").write_text(EVIL_YAML.format(made))
    config = tmp_path / "config.yaml"
    config.write_text("_BASE_: evil.yaml\n")
    torch.save({"model": {}}, tmp_path / "model_final.pth")
    (tmp_path / "a.png").write_bytes(b"")
    for read in (load_config, Predictor, Predictor.from_run):
        with pytest.raises(InputError, match="only plain data is allowed"):
            read(*[config, "w.pth"] if read is Predictor else [tmp_path if read == Predictor.from_run else config])
    weights = str(tmp_path / "model_final.pth")
    own = ["--config-file", config]
    for command, words in [
        (train, [*own]),
        (train, [*own, "--eval-only"]),
        (focal_det, ["predict", tmp_path / "a.png", "--weights", weights, *own]),
        (focal_det, ["predict", tmp_path / "a.png", "--run", tmp_path]),
        (focal_det, ["export", "--weights", weights, *own, "--out", tmp_path / "m.onnx"]),
        (focal_det, ["analyze", "loss-cdf", weights, *own]),
        (focal_det, ["data", "inspect", *own]),
    ]:
        assert command([str(word) for word in words]) == 2
        assert f"config file {tmp_path / 'evil.yaml'}" in capsys.readouterr().err
    (tmp_path / "metrics.json").write_text("")
    config.write_text(EVIL_YAML.format(made))
    assert "config.yaml: not readable as YAML." in read_run(tmp_path).missing
    assert not made.exists()


def program(tmp_path):
    """A sound .pt2, with one free size, and so one symbol."""
    size = torch.export.Dim("n", min=2, max=10)
    made = torch.export.export(torch.nn.ReLU(), (torch.zeros(4),), dynamic_shapes=({0: size},))
    torch.export.save(made, tmp_path / "sound.pt2")
    return tmp_path / "sound.pt2"


def evil_part(name, data, how, made):
    if how == "a pickle" and "sample_inputs" in name:
        file = io.BytesIO()
        torch.save((Evil(made),), file)
        return file.getvalue()
    if how == "a symbol" and name.endswith("models/model.json"):
        text = data.decode()
        symbol = text.partition('"expr_str": "')[2].partition('"')[0]
        return text.replace(symbol, f"__import__('os').system('touch {made}')").encode()
    return data


@pytest.mark.parametrize("how", ["a pickle", "a symbol"])
def test_an_exported_program_is_not_opened_unless_it_is_trusted(tmp_path, capsys, how):
    made, model = tmp_path / "made", tmp_path / "evil.pt2"
    with zipfile.ZipFile(program(tmp_path)) as sound, zipfile.ZipFile(model, "w") as evil:
        for part in sound.infolist():
            evil.writestr(part.filename, evil_part(part.filename, sound.read(part.filename), how, made))
    (tmp_path / "a.json").write_text(json.dumps({}))
    (tmp_path / "a.png").write_bytes(b"")
    for words in (
        ["predict", tmp_path / "a.png", "--model", model],
        ["evaluate", "--model", model, "--json", tmp_path / "a.json", "--images", tmp_path],
    ):
        out = tmp_path / "out"
        assert focal_det([*map(str, words), "--out", str(out)]) == 2
        assert f"{model}: a .pt2 file can run any program when PyTorch opens it" in capsys.readouterr().err
        assert not out.exists()
    assert not made.exists()
    with suppress(Exception):  # of whatever PyTorch makes of it
        torch.export.load(model)
    assert made.exists()  # so the test's file is one that does


def test_every_command_that_reads_annotations_refuses_names_that_lead_outside(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "out.png")
    categories = [{"id": i, "name": name} for i, name in enumerate(("disk", "box", "triangle"), start=1)]
    image = {"id": 4, "file_name": str(tmp_path / "out.png"), "width": 64, "height": 48}
    box = {"id": 1, "image_id": 4, "category_id": 1, "bbox": [1, 2, 30, 20]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": [image], "annotations": [box], "categories": categories}))
    of_train = ["--train-json", path, "--train-images", tmp_path / "in"]
    of_val = ["--val-json", path, "--val-images", tmp_path / "in"]
    start = ["--config-file", ROOT / "configs/quickstart.yaml", "--preflight-only", "MODEL.WEIGHTS", ""]
    start += ["OUTPUT_DIR", tmp_path / "run"]
    of_model = ["--model", ROOT / "models/quickstart_int8.onnx", "--json", path, "--images", tmp_path / "in"]
    model = tmp_path / "model.pth"
    torch.save({}, model)
    for command, words in [
        (train, [*of_train, *of_val, *start]),
        (focal_det, ["data", "inspect", *of_train, "--out", tmp_path / "inspected"]),
        (focal_det, ["evaluate", *of_model, "--draw", 0, "--out", tmp_path / "evaluated"]),
        (focal_det, ["analyze", "loss-cdf", model, *of_val, "--config-file", start[1], "--out", tmp_path / "plots"]),
    ]:
        words = [str(word) for word in words]
        assert command(words) == 2
        said = capsys.readouterr().err
        assert f"{path}: 1 of 1 file_names lead out of the folder of images" in said
        assert "(image id=4)" in said
        if "analyze" not in words:  # whose model is none
            at = words.index("MODEL.WEIGHTS") if "MODEL.WEIGHTS" in words else len(words)
            assert command([*words[:at], "--allow-outside-images", *words[at:]]) == 0
