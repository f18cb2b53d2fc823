"""Images are read and resized as Detectron2 does; the predictor gives what the model gives."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from PIL import Image

import focal_det
from focal_det.cli.main import main
from focal_det.cli.train import parse_arguments
from focal_det.config.unused_keys import without_unread_keys
from focal_det.data.shapes import make_shapes, shapes_files
from focal_det.errors import InputError
from focal_det.formats.coco import read_coco
from focal_det.inference.classes import Classes, read_classes, write_classes
from focal_det.inference.images import ImageError, read_image, resize_shortest_edge
from focal_det.preflight import plan as prepare

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(3)


def image_of(mode):
    """A small random image."""
    image = Image.fromarray(RNG.integers(0, 256, (12, 17, 3), dtype=np.uint8))
    if mode == "RGBA":
        image.putalpha(Image.fromarray(RNG.integers(0, 256, (12, 17), dtype=np.uint8)))
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *(("RGB", suffix) for suffix in ("jpg", "png", "bmp", "webp", "tif", "gif")),
        *((mode, "png") for mode in ("L", "LA", "P", "RGBA", "1")),
        ("CMYK", "tif"),
        ("CMYK", "jpg"),
    ],
)
def test_images_of_every_kind_are_read_as_detectron2_reads_them(tmp_path, mode, suffix):
    path = tmp_path / f"picture.{suffix}"
    image_of(mode).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = detection_utils.read_image(str(path), format="BGR")
    read = read_image(path)
    assert (read.dtype, read.shape) == (np.uint8, (12, 17, 3))
    assert (read == expected).all()


@pytest.mark.parametrize("orientation", range(10))  # 1 to 8 have a meaning
def test_images_are_turned_as_detectron2_turns_them(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image_of("RGB").save(tmp_path / "turned.jpg", exif=exif)
    read = read_image(tmp_path / "turned.jpg")
    assert read.shape == ((17, 12, 3) if 5 <= orientation <= 8 else (12, 17, 3))
    assert (read == detection_utils.read_image(str(tmp_path / "turned.jpg"), format="BGR")).all()


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (30, 95), (95, 30), (51, 51), (7, 200)])
@pytest.mark.parametrize("limits", [(33, 80), (80, 133), (100, 101), (0, 50)])
def test_images_are_resized_as_detectron2_resizes_them(shape, limits):
    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = ResizeShortestEdge(limits[0], limits[1], "choice").get_transform(image).apply_image(image)
    assert (resize_shortest_edge(image, *limits) == expected).all()


@pytest.fixture
def run_dir(tiny_cfg, tmp_path):
    """A training's folder, of a model that finds much: without the prior its scores are about one half."""
    cfg = tiny_cfg("INPUT.MIN_SIZE_TEST", "96", "MODEL.RETINANET.PRIOR_PROB", "0.4")
    cfg.DATASETS.TEST = cfg.DATASETS.TRAIN = ()
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        model.head.cls_score.weight.normal_(std=0.5)
    folder = tmp_path / "run"
    folder.mkdir()
    DetectionCheckpointer(model, save_dir=str(folder)).save("model_final")
    (folder / "config.yaml").write_text(without_unread_keys(cfg).dump())
    write_classes(folder, Classes(["a", "b", "c"], [2, 5, 9]))
    return folder, cfg, model


@pytest.fixture
def files(tmp_path):
    """Images of two sizes, one of them lying on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = [tmp_path / "pictures" / name for name in ("a.png", "b.png", "c.jpg", "d.png")]
    paths[0].parent.mkdir()
    for path, shape in zip(paths, [(60, 90), (60, 90), (60, 90), (100, 70)], strict=True):
        image = Image.fromarray(RNG.integers(0, 256, (*shape, 3), dtype=np.uint8))
        image.save(path, exif=exif if path.suffix == ".jpg" else None)
    return paths


def through_the_mapper(cfg, model, path):
    """As the evaluation does it."""
    with torch.no_grad():
        return model([DatasetMapper(cfg, is_train=False)({"file_name": str(path)})])[0]["instances"]


@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_the_predictor_gives_what_the_evaluation_sees(run_dir, files, order):
    folder, cfg, model = run_dir
    cfg.INPUT.FORMAT = order
    predictor = focal_det.Predictor(cfg, folder / "model_final.pth")
    for path in files:
        found, expected = predictor(path), through_the_mapper(cfg, model, path)
        assert len(found.scores) > 20
        assert (found.boxes == expected.pred_boxes.tensor.numpy()).all()
        assert (found.scores == expected.scores.numpy()).all()
        assert (found.classes == expected.pred_classes.numpy()).all()
        assert found.boxes.dtype == found.scores.dtype == np.float32
        assert found.classes.dtype == np.int64
    assert found.boxes[:, 3].max() > 75  # of the image's 100 rows, not of the network's input


def test_a_file_an_array_and_an_image_are_the_same(run_dir, files):
    predictor = focal_det.Predictor.from_run(run_dir[0])
    assert (predictor.class_names, predictor.category_ids, predictor.notes) == (["a", "b", "c"], [2, 5, 9], [])
    turned = files[2]
    by_file = predictor(str(turned))
    for same in (turned, read_image(turned), Image.open(turned)):
        assert (predictor(same).boxes == by_file.boxes).all()
    assert by_file.boxes[:, 3].max() > 75  # upright: 90 rows


def test_detections_do_not_depend_on_the_others_of_the_batch(run_dir, files):
    alone = focal_det.Predictor.from_run(run_dir[0])
    together = focal_det.Predictor.from_run(run_dir[0], batch_size=3)(files)
    assert len(together) == len(files)
    for path, found in zip(files, together, strict=True):
        expected = alone(path)
        assert (found.classes == expected.classes).all()
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    assert alone([]) == []


def test_the_threshold_is_obeyed(run_dir, files):
    folder, cfg, _ = run_dir
    cfg.TEST.DETECTIONS_PER_IMAGE = 5000
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.9  # what the configuration says does not come before what is asked
    everything = focal_det.Predictor(cfg, folder / "model_final.pth", score_thresh=0.0)(files[0])
    assert cfg.MODEL.RETINANET.SCORE_THRESH_TEST == 0.9  # the caller's own
    assert everything.scores.min() < 0.2
    asked = float(everything.scores[len(everything.scores) // 2])
    found = focal_det.Predictor(cfg, folder / "model_final.pth", score_thresh=asked)(files[0])
    assert found.scores.min() == np.float32(asked)  # "at least"
    assert (found.scores == everything.scores[: len(found.scores)]).all()


def test_all_problems_are_reported_together(run_dir, files):
    folder, cfg, _ = run_dir
    with pytest.raises(InputError) as caught:
        focal_det.Predictor(cfg, folder / "gone.pth", score_thresh=1.5, batch_size=0, device="gpu")
    assert [p.split(";")[0].split(":")[0] for p in caught.value.problems] == [
        "score_thresh is 1.5",
        "batch_size is 0",
        "device is 'gpu'",
        f"weights {folder}/gone.pth",
    ]
    with pytest.raises(InputError, match=r"MODEL\.WEIGHTS is empty"):
        focal_det.Predictor(cfg)
    with pytest.raises(InputError, match=r"classes\.json has 3 classes, MODEL\.RETINANET\.NUM_CLASSES is 7"):
        focal_det.Predictor.from_run(_with_classes(folder, "NUM_CLASSES: 3", "NUM_CLASSES: 7"))
    (folder / "classes.json").unlink()
    with pytest.raises(InputError, match=r"1 weights have another shape|2 weights have another shape"):
        focal_det.Predictor.from_run(folder)
    predictor = focal_det.Predictor.from_run(_with_classes(folder, "NUM_CLASSES: 7", "NUM_CLASSES: 3"))
    with pytest.raises(ImageError, match=r"gone\.jpg: no such file"):
        predictor("gone.jpg")
    with pytest.raises(ValueError, match=r"an image is \(H, W, 3\) uint8 BGR, not \(8, 8\) float64"):
        predictor(np.zeros((8, 8)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.FORMAT", "XYZ"),
        ("MODEL.PIXEL_STD", "[0, 0, 0]"),
        ("INPUT.MIN_SIZE_TEST", "-5"),
        ("TEST.DETECTIONS_PER_IMAGE", "-1"),
        ("MODEL.FPN.OUT_CHANNELS", "-4"),
        ("MODEL.RETINANET.IN_FEATURES", "['x']"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[]]"),
        ("MODEL.FOCAL_DET.LOSS.NAME", "Nope"),
    ],
)
def test_a_configuration_of_no_detector_is_refused(run_dir, files, tmp_path, capsys, key, value):
    folder, _, _ = run_dir
    words = {"predict": [str(files[0]), "--out", str(tmp_path / "out")], "export": ["--out", str(tmp_path / "m.onnx")]}
    for command, own in words.items():
        assert main([command, *own, "--run", str(folder), key, value]) == 2
        said = capsys.readouterr().err.splitlines()
        found = [line for line in said if line.startswith("error: ")]
        in_one = "the configuration does not make a model" if key.endswith("IN_FEATURES") else f"{key} is "
        assert len(found) == 1
        assert in_one in found[0]
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("score_thresh", value) for value in ("0.5", float("nan"), [0.5])),
        *(("batch_size", value) for value in ("2", 1.5, True, None)),
        *(("device", value) for value in (5, "meta", "", "cuda:x")),
    ],
)
def test_an_option_of_another_kind_is_named(run_dir, option, value):
    with pytest.raises(InputError) as caught:
        focal_det.Predictor.from_run(run_dir[0], **{option: value})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{option} is {value!r}; it must be ")


def test_what_is_not_an_image_is_named(run_dir):
    predictor = focal_det.Predictor.from_run(run_dir[0])
    for given in (None, b"a.png", {"a": 1}, 5):
        for words in (given, [given]):
            with pytest.raises(ValueError, match=f"an image is a file name, .*, not {type(given).__name__}"):
                predictor(words)


def _with_classes(folder, old, new):
    text = (folder / "config.yaml").read_text()
    assert old in text
    (folder / "config.yaml").write_text(text.replace(old, new))
    return folder


def test_classes_without_names_are_numbered_with_a_note(run_dir):
    folder, _, _ = run_dir
    (folder / "classes.json").unlink()
    predictor = focal_det.Predictor.from_run(folder)
    assert predictor.class_names == ["class 0", "class 1", "class 2"]
    assert "no classes.json beside the weights" in predictor.notes[-1]
    (folder / "classes.json").write_text("[1]")
    with pytest.raises(InputError, match=r"classes\.json: not a list of"):
        focal_det.Predictor.from_run(folder)


def test_a_run_gives_its_best_weights_or_says_that_there_are_none(run_dir, files, tmp_path):
    folder, _, _ = run_dir
    (folder / "model_0000009.pth").write_bytes((folder / "model_final.pth").read_bytes())
    (folder / "model_best.pth").write_bytes((folder / "model_final.pth").read_bytes())
    weights = focal_det.Predictor.from_run(folder).cfg.MODEL.WEIGHTS
    assert weights.endswith("run/model_best.pth")
    state = torch.load(folder / "model_final.pth", weights_only=True)
    for ema, name in ((40.0, "model_best"), (40.5, "model_best_ema")):  # which has the higher AP
        torch.save({**state, "best": {"AP": 40.0}}, folder / "model_best.pth")
        torch.save({"model": state["model"], "best": {"AP": ema}}, folder / "model_best_ema.pth")
        assert focal_det.Predictor.from_run(folder).cfg.MODEL.WEIGHTS.endswith(f"run/{name}.pth")
    for name in ("model_best.pth", "model_best_ema.pth", "model_final.pth"):
        (folder / name).unlink()
    with pytest.raises(InputError, match=r"has neither .*; give .*model_0000009\.pth as weights"):
        focal_det.Predictor.from_run(folder)
    with pytest.raises(InputError, match="no such folder"):
        focal_det.Predictor.from_run(tmp_path / "gone")


def test_the_command_line_writes_what_the_predictor_finds(run_dir, files, tmp_path, capsys):
    folder, _, _ = run_dir
    out = tmp_path / "out"
    words = ["predict", str(files[0].parent), "--run", str(folder), "--out", str(out), "--score-thresh", "0.5"]
    assert main([*words, "MODEL.DEVICE", "cpu", "TEST.DETECTIONS_PER_IMAGE", "20"]) == 0
    assert f"weights: {folder}/model_final.pth" in capsys.readouterr().out
    coco = json.loads((out / "detections.json").read_text())
    predictor = focal_det.Predictor.from_run(folder, score_thresh=0.5)
    first = [a for a in coco["annotations"] if a["image_id"] == 1]
    expected = predictor(files[0])
    assert len(first) == min(20, len(expected.scores)) > 0
    assert first[0]["score"] == pytest.approx(float(expected.scores[0]), abs=1e-5)
    assert first[0]["category_id"] == [2, 5, 9][expected.classes[0]]
    assert len(list(out.glob("*.*"))) == 5
    checked = read_coco(out / "detections.json", files[0].parent)  # it serves as an annotation file
    assert checked.class_names == ["a", "b", "c"]
    assert len(checked.coco["annotations"]) == len(coco["annotations"])


def test_the_command_line_names_bad_weights(run_dir, files, tmp_path, capsys):
    folder, _, _ = run_dir
    words = ["predict", str(files[0]), "--out", str(tmp_path / "out"), "--weights"]
    (tmp_path / "model.pth").write_bytes(b"no checkpoint")
    assert main([*words, str(tmp_path / "gone.pth")]) == 2
    assert "gone.pth: no such file" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "model.pth")]) == 2
    assert "config.yaml is not there; name the model's configuration" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "model.pth"), "--config-file", str(folder / "config.yaml")]) == 2
    assert "model.pth cannot be read as a checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_training_starts_by_writing_its_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    make_shapes("shapes_val_2_64px", tmp_path)
    annotations, images = shapes_files("shapes_val_2_64px", tmp_path)
    coco = json.loads(annotations.read_text())
    new_ids = {category["id"]: 10 - category["id"] for category in coco["categories"]}  # the labels' order turns round
    for entry, key in [*((c, "id") for c in coco["categories"]), *((a, "category_id") for a in coco["annotations"])]:
        entry[key] = new_ids[entry[key]]
    (tmp_path / "mine.json").write_text(json.dumps(coco))
    base = [
        "MODEL.DEVICE",
        "cpu",
        "--config-file",
        str(ROOT / "configs" / "quickstart.yaml"),
        "DATASETS.TEST",
        "shapes_val_2_64px",
    ]
    data = ["--train-json", str(tmp_path / "mine.json"), "--train-images", str(images)]
    data += ["--val-json", str(tmp_path / "mine.json"), "--val-images", str(images)]
    own = {"own": data, "shapes": ["DATASETS.TRAIN", "shapes_val_2_64px"]}
    for name, words in own.items():
        prepare.write(prepare.check(parse_arguments([*base, *words, "OUTPUT_DIR", str(tmp_path / name)])))
    names = [category["name"] for category in coco["categories"]]
    assert read_classes(tmp_path / "own") == (names[::-1], [7, 8, 9])
    assert read_classes(tmp_path / "shapes") == (names, [1, 2, 3])
