"""Weights are data: a file that would run a program is refused, and the program is not run."""

import io
import json
import os
import pickle
import struct
import sys

import numpy as np
import pytest
import torch

from focal_det.checkpoint.compatibility import check_weights
from focal_det.checkpoint.safe_load import NonFiniteWeightsError, SafeCheckpointer, load_arrays
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


def safetensors_file(header, content=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


FOUR = {"weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}
BAD_SAFETENSORS = {
    "cut in its tensors": safetensors_file(FOUR, b"ab"),
    "cut in its header": safetensors_file(FOUR)[:20],
    "empty": b"",
    "a header beyond the file": struct.pack("<Q", 90_000_000) + b"{}",
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "no JSON": safetensors_file(b"\x80\x04cos\nsystem\n", b"abcd"),
    "a tensor beyond the file": safetensors_file(
        {"weight": {"dtype": "F32", "shape": [2**40, 2**22], "data_offsets": [0, 2**62]}}, b"abcd"
    ),
    "offsets of another shape": safetensors_file(
        {"weight": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}, b"abcd"
    ),
    "two tensors in one place": safetensors_file({**FOUR, "bias": FOUR["weight"]}, b"abcd"),
    "bytes of no tensor": safetensors_file(FOUR, b"abcdefgh"),
}


@pytest.mark.parametrize("kind", BAD_SAFETENSORS)
def test_a_safetensors_file_that_is_cut_or_lies_is_refused(tmp_path, kind):
    path = tmp_path / "w.safetensors"
    path.write_bytes(BAD_SAFETENSORS[kind])
    (problem,) = check_weights(torch.nn.Linear(1, 1), str(path), needs_all=True).errors
    assert problem.startswith(f"{path} cannot be read as a checkpoint (SafetensorError: ")


def test_a_sound_safetensors_file_is_read(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors_file(FOUR, struct.pack("<f", 2.5)))
    model = torch.nn.Linear(1, 1, bias=False)
    assert check_weights(model, str(path), needs_all=True).errors == []
    assert model.weight.item() == 2.5


@pytest.mark.parametrize("suffix", [".pth", ".pyth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_refused_whatever_file_they_are_in(tmp_path, suffix, value):
    path = tmp_path / f"w{suffix}"
    model = torch.nn.Linear(2, 1)
    weight, bias = torch.tensor([[1.0, value]]), torch.zeros(1)
    if suffix == ".pth":
        torch.save({"model": {"weight": weight, "bias": bias}}, path)
    elif suffix == ".pyth":
        torch.save({"model_state": {"weight": weight, "bias": bias}}, path)
    elif suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": {"weight": weight.numpy(), "bias": bias.numpy()}, "__author__": "me"}))
    else:
        tensor = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
        header = {"weight": tensor, "bias": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}
        path.write_bytes(safetensors_file(header, struct.pack("<fff", 1.0, value, 0.0)))
    for needs_all in (True, False):  # of an evaluation, of a training
        (problem,) = check_weights(model, str(path), needs_all=needs_all).errors
        assert problem.startswith(f"{path}: 1 of its 2 weights are infinite or NaN, first weight: the training")
    with pytest.raises(NonFiniteWeightsError, match="1 of its 2 weights"):
        SafeCheckpointer(model).load(str(path))  # as a training does that fetches an address
    assert all(weights.isfinite().all() for weights in model.parameters())


def test_a_missing_library_is_named_with_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "w.safetensors").write_bytes(safetensors_file(FOUR, b"abcd"))
    (problem,) = check_weights(torch.nn.Linear(1, 1), str(tmp_path / "w.safetensors"), needs_all=True).errors
    assert "safetensors" in problem
    assert "install it with" in problem
