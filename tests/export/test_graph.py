"""The exported detector is the detector: for batches, for every size, in each format."""

import functools
import os
import signal

import cv2
import numpy as np
import onnx
import pytest
import torch
from export_fixtures import FINDING, finding_model, images

from focal_det.cli import export
from focal_det.cli.main import main
from focal_det.engine.predictor import Predictor
from focal_det.errors import InputError
from focal_det.export.graph import DetectorGraph
from focal_det.export.int8 import round_to_8_bits
from focal_det.export.suppress import onnx_suppression, torch_suppression
from focal_det.inference import exported
from focal_det.inference.exported import ExportedDetector

pytestmark = pytest.mark.detectron2

# Beside usual ones: smaller than the pyramid's stride, one pixel wide, one location on P7, not divisible by anything.
SIZES = [(64, 96), (128, 128), (20, 20), (1, 300), (131, 257), (33, 63)]


def as_batch(arrays):
    sizes = torch.tensor([a.shape[:2] for a in arrays])
    images = torch.full((len(arrays), 3, *sizes.amax(0).tolist()), 77, dtype=torch.uint8)  # what lies beside is ignored
    for image, array in zip(images, arrays, strict=True):
        image[:, : array.shape[0], : array.shape[1]] = torch.tensor(array.transpose(2, 0, 1))
    return images, sizes


@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize("norm", ["GN", "FrozenBN"])
def test_the_graph_finds_what_the_model_finds(tiny_cfg, kind, norm):
    detector = finding_model(tiny_cfg(*FINDING, "MODEL.RESNETS.NORM", norm))
    suppress = torch_suppression(0.5) if kind == "torch" else onnx_suppression(0.5, 3, 100)
    graph = DetectorGraph(detector, suppress)
    arrays = images(SIZES)
    for batch in (arrays[:1], arrays[1:3], arrays[3:4], arrays):
        with torch.no_grad():
            boxes, scores, classes, counts = graph(*as_batch(batch))
            expected = detector([{"image": torch.tensor(a.transpose(2, 0, 1))} for a in batch])
        for i, output in enumerate(expected):
            found = output["instances"]
            whole = ((boxes[i, :, 2:] > boxes[i, :, :2]).all(dim=1)) & (torch.arange(boxes.shape[1]) < counts[i])
            assert len(found) == whole.sum() > 0  # the model drops boxes without area, as a reader of the graph does
            torch.testing.assert_close(boxes[i, whole], found.pred_boxes.tensor, atol=2e-3, rtol=0)
            torch.testing.assert_close(scores[i, whole], found.scores, atol=1e-5, rtol=0)
            assert classes[i, whole].tolist() == found.pred_classes.tolist()
            assert (scores[i, counts[i] :] == 0).all()


@pytest.fixture(scope="module", autouse=True)
def _a_program_is_opened_once():
    """PyTorch takes seconds to read one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exported, "_open_torch", functools.cache(exported._open_torch))
        yield


@pytest.fixture(scope="module")
def files(plain_onnx, exported_run):
    """The run exported in each format, by the command, once it is asked for."""

    class Files:
        onnx = plain_onnx

        @property
        def int8(self):
            return exported_run("m8_weights.onnx", "--weights-format", "int8")

        @property
        def pt2(self):
            return exported_run("m.pt2")

    return Files()


@pytest.mark.parametrize("name", ["onnx", "int8", "pt2"])
def test_a_file_finds_what_the_run_finds(finding_run, files, name):
    predictor, detector = Predictor.from_run(finding_run), ExportedDetector(getattr(files, name), trusted=True)
    if name == "int8":
        round_to_8_bits(predictor.model)
    assert (detector.class_names, detector.category_ids) == (["a", "b", "c"], [2, 5, 9])
    arrays = images([(300, 200), (128, 128), (40, 31), (90, 400)], seed=1)
    for ours, theirs in zip(predictor(arrays), detector(arrays[:2]) + detector(arrays[2:]), strict=True):
        assert len(ours.scores) > 0
        np.testing.assert_allclose(theirs.scores, ours.scores, atol=1e-5)
        np.testing.assert_allclose(theirs.boxes, ours.boxes, atol=0.02)
        assert theirs.classes.tolist() == ours.classes.tolist()


def test_pytorch_alone_runs_one_small_image(files):
    """PyTorch makes conditions of what it sees in the example: a batch of two, levels of several locations."""
    boxes, *_, counts = torch.export.load(files.pt2).module()(*as_batch(images([(20, 31)])))
    assert boxes.shape == (1, 100, 4)
    assert counts.shape == (1,)


def test_8_bits_make_a_quarter_of_the_file_and_are_255_levels(finding_run, files):
    assert files.int8.stat().st_size < 0.3 * files.onnx.stat().st_size
    model = Predictor.from_run(finding_run).model
    weight = model.backbone.bottom_up.res2[0].conv1.weight
    before = weight.detach().clone()
    round_to_8_bits(model)
    step = before.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    assert ((weight - before).abs() <= step * 0.501).all()
    assert (before - weight).abs().max() > 0
    torch.testing.assert_close(weight / step, (weight / step).round(), atol=1e-3, rtol=0)


def test_what_stands_in_an_onnx_file(files):
    proto = onnx.load(files.onnx)
    dims = [[d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in proto.graph.input]
    assert dims == [["batch", 3, "height", "width"], ["batch", 2]]
    assert [output.name for output in proto.graph.output] == ["boxes", "scores", "classes", "counts"]
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": 23}
    assert b"/focal_det/" not in files.onnx.read_bytes()  # no paths of the machine that wrote it


@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_the_threshold_can_be_raised_and_not_lowered(files, name):
    (array,) = images([(128, 128)])
    (every,) = ExportedDetector(getattr(files, name), trusted=True)([array])
    middle = float(np.median(every.scores))
    (some,) = ExportedDetector(getattr(files, name), trusted=True, score_thresh=middle)([array])
    assert 0 < len(some.scores) < len(every.scores)
    assert (some.scores >= middle).all()
    with pytest.raises(InputError, match=r"score threshold 0.1 is below 0.25.*export it again"):
        ExportedDetector(getattr(files, name), trusted=True, score_thresh=0.1)
    for wrong in (1.5, float("nan")):
        with pytest.raises(InputError, match=rf"score_thresh is {wrong}; it must be in \[0, 1\]"):
            ExportedDetector(getattr(files, name), trusted=True, score_thresh=wrong)


@pytest.mark.parametrize("name", ["onnx", "int8", "pt2"])
def test_a_batch_of_several_sizes_is_the_models_own_batch(finding_run, files, name):
    model = Predictor.from_run(finding_run).model
    if name == "int8":
        round_to_8_bits(model)
    tensors, sizes = as_batch(images([(64, 96), (40, 31), (90, 50)], seed=2))
    boxes, scores, classes, counts = ExportedDetector(getattr(files, name), trusted=True)._run(
        tensors.numpy(), sizes.numpy()
    )
    with torch.no_grad():
        expected = model(
            [
                {"image": image[:, :height, :width]}
                for image, (height, width) in zip(tensors, sizes.tolist(), strict=True)
            ]
        )
    for i, output in enumerate(expected):
        found = output["instances"]
        whole = np.flatnonzero(
            (boxes[i, :, 2:] > boxes[i, :, :2]).all(axis=1) & (np.arange(boxes.shape[1]) < counts[i])
        )
        np.testing.assert_allclose(boxes[i, whole], found.pred_boxes.tensor.numpy(), atol=0.01)
        np.testing.assert_allclose(scores[i, whole], found.scores.numpy(), atol=1e-5)
        assert classes[i, whole].tolist() == found.pred_classes.tolist()


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_images_with_one_detection_or_none(finding_run, tmp_path, kind):
    """Exported with a threshold that few detections reach; a traced program must not take for granted that some do."""
    arrays = images([(128, 128)] * 4)
    found = Predictor.from_run(finding_run)(arrays)
    full, empty = (choose(range(4), key=lambda i: found[i].scores[0]) for choose in (max, min))
    array, bare = arrays[full], arrays[empty]
    between = float((found[full].scores[0] + max(found[full].scores[1], found[empty].scores[0])) / 2)
    path = tmp_path / f"m.{kind}"
    cv2.imwrite(str(tmp_path / "a.png"), array)
    words = ["export", "--run", finding_run, "--out", path, "--score-thresh", between, "--check", tmp_path / "a.png"]
    assert main([str(word) for word in words]) == 0
    detector = ExportedDetector(path, trusted=True)
    assert len(detector([array])[0].scores) == 1
    assert len(detector([bare])[0].scores) == 0
    assert [len(found.scores) for found in detector([array, bare])] == [1, 0]


def test_nothing_found_is_nothing_compared(finding_run, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((64, 64, 3), np.uint8))
    words = [
        "--run",
        finding_run,
        "--out",
        tmp_path / "m.onnx",
        "--score-thresh",
        "0.999",
        "--check",
        tmp_path / "black.png",
    ]
    assert main(["export", *map(str, words)]) == 2
    assert "the model finds nothing in the 1 images to compare on" in capsys.readouterr().err
    assert not (tmp_path / "m.onnx").exists()


def test_a_difference_fails_the_export_and_leaves_no_file(finding_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(DetectorGraph, "_prepared", lambda self, images, sizes: original(self, images, sizes).flip(3))
    assert main(["export", "--run", str(finding_run), "--out", str(tmp_path / "m.pt2")]) == 1
    said = capsys.readouterr().err
    assert "detections that only one of them has, the best of them with score" in said
    assert f"the exported model differs from the model: {tmp_path / 'm.pt2'} was not written" in said
    assert list(tmp_path.iterdir()) == []


original = DetectorGraph._prepared


def test_bad_input_is_named_before_anything_is_done(finding_run, tmp_path, capsys):
    (tmp_path / "there.onnx").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.jpg").write_text("no image")
    run = ["--run", finding_run]
    for words, message in [
        ([*run, "--out", "m.tflite"], "--out m.tflite: must end in .onnx, for torch.export in .pt2"),
        ([*run, "--out", tmp_path / "there.onnx"], "already exists; name another, or add --overwrite"),
        ([*run, "--out", tmp_path / "nowhere" / "m.onnx"], "is not a folder that can be written"),
        ([*run, "--out", tmp_path / "m.pt2", "--weights-format", "int8"], "int8 is for .onnx alone"),
        ([*run, "--out", tmp_path / "m.pt2", "--activations-format", "int8"], "activations-format int8 is for .onnx"),
        (["--weights", "w.pth", "--out", tmp_path / "m.onnx", "--activations-format", "int8"], "int8 needs --run"),
        ([*run, "--out", tmp_path / "m.onnx", "--activations-format", "int8"], "has no evaluation with annotations"),
        ([*run, "--out", tmp_path / "m.onnx", "--calibrate", tmp_path], "--calibrate is for --activations-format int8"),
        ([*run, "--out", tmp_path / "m.onnx", "--max-ap-drop", "nan"], "--max-ap-drop nan must be at least 0"),
        ([*run, "--out", tmp_path / "m.safetensors", "--score-thresh", "0.5"], "has weights alone"),
        ([*run, "--out", tmp_path / "m.onnx", "--score-thresh", "1.5"], "--score-thresh 1.5 must be in [0, 1)"),
        (
            [*run, "--out", tmp_path / "m.onnx", "--score-thresh", "0.5", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.1"],
            "--score-thresh 0.5 and MODEL.RETINANET.SCORE_THRESH_TEST 0.1 both set MODEL.RETINANET.SCORE_THRESH_TEST",
        ),
        ([*run, "--out", tmp_path / "m.onnx", "--check", tmp_path / "empty"], "empty: no image in this folder"),
        (
            [*run, "--out", tmp_path / "m.onnx", "--check", tmp_path / "no.jpg"],
            "no.jpg: not an image of a",
        ),
        (["--out", tmp_path / "m.onnx"], "give one of --run OUTPUT_DIR and --weights FILE"),
        (["--run", tmp_path, "--out", tmp_path / "m.onnx"], "has no config.yaml"),
        (
            [*run, "--out", tmp_path / "m.onnx", "MODEL.META_ARCHITECTURE", "RetinaNet"],
            "set MODEL.META_ARCHITECTURE to",
        ),
    ]:
        assert main(["export", *map(str, words)]) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "no.jpg", "there.onnx"]
    assert (tmp_path / "there.onnx").read_text() == "mine"


def test_sigterm_leaves_nothing_half_made(finding_run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_write_graph", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["export", "--run", str(finding_run), "--out", str(tmp_path / "m.onnx")])
        assert ended.value.code == 143
        assert signal.getsignal(signal.SIGTERM).__name__ == "<lambda>"  # as it was
    finally:
        signal.signal(signal.SIGTERM, before)
    assert list(tmp_path.iterdir()) == []
