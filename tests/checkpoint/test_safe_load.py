"""Weights are data: a file that would run a program is refused, and the program is not run."""

import io
import os
import pickle

import numpy as np
import pytest
import torch

from focal_det.checkpoint.safe_load import SafeCheckpointer, load_arrays
from focal_det.cli.train import main

pytestmark = pytest.mark.detectron2


class Evil:
    """What unpickling it does, a stranger decides."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_numbers_and_texts_come_back(protocol):
    content = {
        "model": {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float64(2.5), "c": np.array(["x"])},
        "__author__": "somebody",
        "list": [1, 2.5, None, True, ("x", b"y")],
    }
    back = load_arrays(io.BytesIO(pickle.dumps(content, protocol)))
    np.testing.assert_array_equal(back["model"]["a"], content["model"]["a"])
    assert back["model"]["b"] == 2.5
    assert (back["__author__"], back["list"][:4]) == ("somebody", [1, 2.5, None, True])


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_a_program_in_a_file_of_weights_is_refused_and_not_run(tmp_path, capsys, suffix):
    weights, made = tmp_path / f"w{suffix}", tmp_path / "made"
    content = {"model": {"a": Evil(made)}, "__author__": "somebody"}
    if suffix == ".pkl":
        weights.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, weights)
    words = ["--config-file", "configs/quickstart.yaml", "--preflight-only", "OUTPUT_DIR", str(tmp_path / "run")]
    assert main([*words, "MODEL.WEIGHTS", str(weights)]) == 2
    said = capsys.readouterr().err
    assert f"{weights} cannot be read as a checkpoint" in said
    assert "Traceback" not in said
    assert not made.exists()
    if suffix == ".pkl":
        assert "posix.system" in said


def test_the_zoos_files_and_caffe2s_are_told_apart(tmp_path):
    array = np.ones(3, np.float32)
    for name, content, weights in [
        ("zoo.pkl", {"model": {"a": array, "a_momentum": array}, "__author__": "x"}, {"a", "a_momentum"}),
        ("blobs.pkl", {"blobs": {"a": array, "a_momentum": array}}, {"a"}),
        ("bare.pkl", {"a": array, "a_momentum": array}, {"a"}),
    ]:
        (tmp_path / name).write_bytes(pickle.dumps(content))
        read = SafeCheckpointer(torch.nn.Linear(1, 1))._load_file(str(tmp_path / name))
        assert set(read["model"]) == weights
        assert read.get("matching_heuristics", False) is (name != "zoo.pkl")
