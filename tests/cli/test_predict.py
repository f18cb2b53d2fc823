"""focal-det predict, with a detector that needs no network: what it writes, says and returns."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from stream_server import ENOUGH_TO_OPEN, Camera, serving

from focal_det.cli import predict
from focal_det.cli.main import main
from focal_det.data.shapes import draw_image
from focal_det.inference import drawing, streams
from focal_det.inference.detections import Detections

ROOT = Path(__file__).parents[2]
TILE, LEAST = "MODEL.FOCAL_DET.TILES.SIZE", "MODEL.RETINANET.SCORE_THRESH_TEST"


class Finder:
    """Finds in each image a box of class 1 with score .8 and one of class 0 with score .3."""

    class_names = ("disk", "box")
    category_ids = (3, 7)

    def __init__(self):
        self.batches = []

    def __call__(self, images):
        self.batches.append([image.shape for image in images])
        boxes = np.array([[10, 5, 30, 25], [40, 5, 60, 35]], np.float32)
        return [Detections(boxes, np.float32([0.8, 0.3]), np.array([1, 0])) for _ in images]


@pytest.fixture
def finder(monkeypatch):
    """Takes the place of the trained model."""
    made = Finder()
    monkeypatch.setattr(predict, "_detector", lambda args: (made, []))
    return made


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Five images, of them two of the same stem and two of the same name, and one file that is none."""
    for name in ("a.jpg", "a.png", "x/a.jpg", "y/a.jpg", "z.bmp"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((64, 96, 3), 90, np.uint8))
    (tmp_path / "in" / "text.jpg").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "in"


def run(*words):
    return main(["predict", *map(str, words), "--run", "unused"])


def written(folder="out"):
    return json.loads(Path(folder, "detections.json").read_text())


def test_a_folder_gives_drawings_under_their_names_and_an_annotation_file(finder, images, capsys):
    assert run("in", "--out", "out") == 0
    files = {str(path.relative_to("out")) for path in Path("out").rglob("*.*")}
    assert files == {"a.jpg", "a.png", "x/a.jpg", "y/a.jpg", "z.bmp", "detections.json"}
    assert cv2.imread("out/x/a.jpg").shape == (320, 480, 3)  # five times, so that labels can be read
    coco = written()
    assert coco["categories"] == [{"id": 3, "name": "disk"}, {"id": 7, "name": "box"}]
    assert coco["images"][2] == {"id": 3, "file_name": "z.bmp", "width": 96, "height": 64}
    assert [image["file_name"] for image in coco["images"]] == ["a.jpg", "a.png", "z.bmp", "x/a.jpg", "y/a.jpg"]
    first = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 5, 20, 20], "area": 400, "iscrowd": 0}
    assert {**first, "score": pytest.approx(0.8)} == coco["annotations"][0]
    assert [a["id"] for a in coco["annotations"]] == [1, 2, 3, 4, 5]
    output = capsys.readouterr()
    assert f"warning: {images}/text.jpg: not an image of a known format; skipped" in output.err
    assert "5 images, 5 detections, 1 that could not be read: out" in output.out


def test_batches_are_as_large_as_asked_and_nobody_is_left(finder, images):
    assert run("in", "--no-draw", "--batch-size", "2") == 0
    assert [len(batch) for batch in finder.batches] == [2, 2, 1]
    assert os.listdir("output/predictions") == ["detections.json"]


@pytest.mark.parametrize(("thresh", "count"), [("0.31", 1), ("0.1", 2)])
def test_the_threshold_is_obeyed(finder, images, thresh, count):
    assert run("in/a.jpg", "--score-thresh", thresh, "--out", "out") == 0
    assert len(written()["annotations"]) == count


def test_nothing_found_is_said_with_the_highest_score(finder, images, capsys):
    assert run("in/a.jpg", "--score-thresh", "0.9", "--out", "out") == 0
    expected = (
        "nothing found with a score of at least 0.9: the highest score is 0.800, --score-thresh 0.8 would show it"
    )
    assert expected in capsys.readouterr().out
    assert written()["annotations"] == []


def test_a_video_is_drawn_as_one_with_every_nth_frame(finder, images):
    writer = cv2.VideoWriter("v.avi", cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 64))
    for _ in range(5):
        writer.write(np.full((64, 96, 3), 90, np.uint8))
    writer.release()
    assert run("v.avi", "in/a.jpg", "--every", "2", "--out", "out", "--batch-size", "2") == 0
    names = [image["file_name"] for image in written()["images"]]
    assert names == ["v.avi#0", "v.avi#2", "v.avi#4", "in/a.jpg"]
    drawn = cv2.VideoCapture("out/v.avi.mp4")
    assert (drawn.get(cv2.CAP_PROP_FRAME_COUNT), drawn.get(cv2.CAP_PROP_FPS)) == (3, 5)
    assert drawn.read()[1].shape == (320, 480, 3)
    assert sorted(path.name for path in Path("out").iterdir()) == ["detections.json", "in", "v.avi.mp4"]


def test_where_no_image_can_be_read_the_exit_code_is_1(finder, images, capsys):
    assert run("in/text.jpg", "--out", "out") == 1
    assert "no image was looked at, 1 that could not be read" in capsys.readouterr().out
    assert not Path("out/detections.json").exists()


def test_paths_come_from_standard_input(finder, images, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("in/a.jpg\nin/gone.jpg\n"))
    assert run("-", "--out", "out") == 0
    assert [image["file_name"] for image in written()["images"]] == ["a.jpg"]
    assert "in/gone.jpg: no such file; skipped" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [[], ["--no-draw"]])
def test_a_name_that_is_not_utf8_costs_no_image(finder, images, extra):
    odd = os.fsencode(images) + b"/b\xff.png"
    Path(os.fsdecode(odd)).write_bytes((images / "a.png").read_bytes())
    Path(os.fsdecode(os.fsencode(images) + b"/v\xff.avi")).write_bytes(b"")
    assert run("in", os.fsdecode(b"in/v\xff.avi"), "--out", "out", *extra) == 0
    names = [image["file_name"] for image in written()["images"]]
    assert names == ["a.jpg", "a.png", "b\udcff.png", "z.bmp", "x/a.jpg", "y/a.jpg"]
    assert os.fsencode(names[2]) == b"b\xff.png"  # the name can be had back
    assert (b"b\xff.png" in os.listdir(b"out")) == (not extra)


def test_a_folder_that_is_not_utf8_can_be_named(finder, images, tmp_path):
    folder = os.fsdecode(b"n\xfcr")
    Path(folder).mkdir()
    Path(folder, "a.png").write_bytes((images / "a.png").read_bytes())
    code = "import sys; from focal_det.cli import predict; from test_predict import Finder;" + (
        "predict._detector = lambda args: (Finder(), []); from focal_det.cli.main import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "predict", "-", "--run", "unused", "--out", "out"],
        input=b"n\xfcr\nin/a\0.png\n",
        capture_output=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT}/tests:{Path(__file__).parent}",
            "LC_ALL": "C.UTF-8",
            "PYTHONUTF8": "0",
        },
    )
    assert done.returncode == 0, done.stderr
    assert b"skipped, as no file name holds a NUL: 'in/a\\x00.png'" in done.stderr
    assert b"1 image, 1 detection: out (names relative to" in done.stdout
    assert Path("out/a.png").is_file()


def test_a_file_where_a_folder_of_drawings_is_to_be_is_named_before(finder, images, capsys):
    Path("out").mkdir()
    Path("out/x").write_text("mine")
    assert run("in", "--out", "out", "--overwrite") == 2
    assert "--out out: out/x is a file where a folder of drawings must be" in capsys.readouterr().err
    assert finder.batches == []
    assert os.listdir("out") == ["x"]
    (images / "detections.json").mkdir()
    (images / "detections.json" / "a.png").write_bytes((images / "a.png").read_bytes())
    assert run("in", "--out", "out2") == 2
    assert "out2/detections.json would be a drawing and a folder of drawings" in capsys.readouterr().err
    assert not Path("out2").exists()


def test_a_drawing_that_cannot_be_written_is_named_and_the_others_are(finder, images, capsys):
    long = "b" * 250 + ".gif"  # with .png behind it too long for a name
    (images / long).write_bytes((images / "a.png").read_bytes())
    assert run("in", "--out", "out") == 0
    output = capsys.readouterr()
    assert f"{long}.png: the drawing cannot be written (File name too long); its detections are kept" in output.err
    assert "6 images, 6 detections, 1 that could not be read, 1 drawing that could not be written" in output.out
    assert len(list(Path("out").rglob("*.*"))) == 6
    assert len(written()["images"]) == 6


def test_nothing_is_written_over_unless_asked_and_inputs_never(finder, images, capsys):
    before = (images / "a.jpg").read_bytes()
    assert run("in/a.jpg", "--out", "in", "--overwrite") == 2
    assert "the drawings would overwrite their images" in capsys.readouterr().err
    assert (images / "a.jpg").read_bytes() == before
    assert run("in/a.jpg", "--out", "out") == 0
    assert run("in/a.jpg", "--out", "out") == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert run("in/a.jpg", "--out", "out", "--overwrite") == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_what_was_done(finder, images, monkeypatch, capsys, number):
    def stop_after_two(found):
        if len(finder.batches) == 2:
            os.kill(os.getpid(), number)
        return found

    found_by = Finder.__call__
    monkeypatch.setattr(Finder, "__call__", lambda self, given: stop_after_two(found_by(self, given)))
    assert run("in", "--out", "out", "--batch-size", "1") == 128 + number
    assert len(written()["images"]) == 2
    assert len(list(Path("out").rglob("*.*"))) == 3  # two drawings, and no half of one
    output = capsys.readouterr()
    assert f"stopped by {number.name}" in output.err
    assert "2 images, 2 detections" in output.out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_signal_interrupts_at_once(finder, images, monkeypatch, capsys):
    def interrupt(*_, **__):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(drawing, "draw_boxes", interrupt)
    assert run("in", "--out", "out", "--batch-size", "1") == 130
    assert len(written()["images"]) == 1
    assert "stopped by SIGINT" in capsys.readouterr().err


def test_a_fault_leaves_what_was_done_and_says_why(finder, images, monkeypatch, capsys):
    found_by = Finder.__call__

    def fail_at_the_third(self, given):
        if len(self.batches) == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return found_by(self, given)

    monkeypatch.setattr(Finder, "__call__", fail_at_the_third)
    assert run("in", "--out", "out", "--batch-size", "1") == 1
    assert len(written()["images"]) == 2
    assert "error: out of memory; give a lower --batch-size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["in/a.jpg"], "no detector is named; give one of --run DIR, --weights FILE, --model FILE"),
        (["in/a.jpg", "--run", "a", "--model", "b"], "--run and --model exclude each other"),
        (["in/a.jpg", "--run", "a", "--config-file", "b"], "--config-file belongs to --weights"),
        (["in/a.jpg", "--model", "gone.onnx"], "--model gone.onnx: no such file"),
        (["in/a.jpg", "MODEL.DEVICE", "cpu", "--model", "in/a.jpg"], "MODEL.DEVICE: an exported model has no config"),
        (["in/a.jpg", "--run", "a", "--score-thresh", "1.5"], "--score-thresh 1.5 must be in [0, 1]"),
        (["in/a.jpg", "--run", "a", "--score-thresh", "nan"], "--score-thresh nan must be in [0, 1]"),
        (["in/a.jpg", "--run", "a", "--batch-size", "0"], "--batch-size 0 must be at least 1"),
        (["in/a.jpg", "--run", "a", "--every", "0"], "--every 0 must be at least 1"),
        (["in/a.jpg", "--run", "a", "--tile", "64", TILE, "32"], f"--tile 64 and {TILE} 32 both set {TILE}; leave one"),
        (["in/a.jpg", "--run", "a", LEAST, ".1"], f"--score-thresh 0.4 and {LEAST} .1 both set {LEAST}; leave one"),
        (["in/a.jpg", "--run", "a", "MODEL.WEIGHTS", "b"], "--run 'a' and MODEL.WEIGHTS b both set MODEL.WEIGHTS"),
        (["in/a.jpg", "--run", "a", "--frames", "0"], "--frames 0 must be at least 1"),
        (["in/a.jpg", "--run", "a", "--seconds", "nan"], "--seconds nan must be a number above 0"),
        (["in/a.jpg", "--run", "a", "--frames", "5"], "--frames and --seconds are for a camera or a stream"),
        (["in/a.jpg", "--run", "a", "--no-draw", "--write", "csv"], "--write and --no-draw exclude each other"),
        (["gone.jpg", "--run", "a"], "INPUT 'gone.jpg': no such file or folder, and as a pattern it matches nothing"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(images, capsys, words, message):
    assert main(["predict", *words, "--out", "out"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_keys_are_told_from_inputs_by_their_form(images, monkeypatch):
    seen = []
    monkeypatch.setattr(predict, "_detector", lambda args: seen.append(args.overrides) or (Finder(), []))
    assert run("in/a.jpg", "in/a.png", "MODEL.DEVICE", "cpu", "--out", "o1") == 0
    assert main(["predict", "in/a.jpg", "--run", "r", "--out", "o2", "in/a.png", "INPUT.MIN_SIZE_TEST", "64"]) == 0
    assert run("in/a.jpg", "OWNLOSS.GAMMA", "3", "--out", "o3") == 0  # a plug-in's
    assert seen == [["MODEL.DEVICE", "cpu"], ["INPUT.MIN_SIZE_TEST", "64"], ["OWNLOSS.GAMMA", "3"]]
    assert len(written("o1")["images"]) == len(written("o2")["images"]) == 2


def test_a_missing_file_that_looks_like_a_key_is_an_input(images, monkeypatch, capsys):
    monkeypatch.setattr(predict, "_detector", lambda args: (Finder(), []))
    assert run("in/a.jpg", "DSC1.JPG", "CLIP.MP4", "--out", "o") == 2
    assert "DSC1.JPG" in capsys.readouterr().err


def test_an_exported_model_is_asked_for_without_detectron2(images, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    code = (
        "import sys; sys.modules['detectron2'] = None\n"
        "from focal_det.cli.main import main\n"
        "code = main(['predict', 'in/a.jpg', '--model', 'model.onnx', '--out', 'out'])\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2, done.stderr
    assert "Detectron2" not in done.stderr
    assert "Traceback" not in done.stderr


def test_tiles_of_an_exported_model_are_found_in_and_bad_ones_refused(tmp_path, capsys):
    scenes = [draw_image("val", 500 + number, 128)[0] for number in range(4)]
    cv2.imwrite(str(tmp_path / "a.png"), np.vstack([np.hstack(scenes[:2]), np.hstack(scenes[2:])]))
    words = ["predict", str(tmp_path / "a.png"), "--model", str(ROOT / "models" / "quickstart_int8.onnx"), "--no-draw"]
    counts = {}
    for tile in ("0", "128", "256"):
        out = tmp_path / tile
        assert main([*words, "--out", str(out), "--tile", tile]) == 0
        counts[tile] = json.loads((out / "detections.json").read_text())["annotations"]
    assert counts["0"] == counts["256"]  # a tile as large as the image
    assert len(counts["128"]) > len(counts["0"]) + 5
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "bad"), "--tile", "640", "--overlap", "-0.2"]) == 2
    assert "--overlap is -0.2: the overlap of tiles must be" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


def test_each_kind_of_output_is_written_alone_or_with_others(finder, images, capsys):
    assert run("in", "--out", "out", "--write", "csv,yolo,crops") == 0
    assert sorted(os.listdir("out")) == ["crops", "detections.csv", "yolo"]
    crops = {str(path.relative_to("out/crops")) for path in Path("out").rglob("*_001_*.jpg")}
    assert crops == {f"box/{name}_001_0.80.jpg" for name in ("a.jpg", "a.png", "z.bmp", "x/a.jpg", "y/a.jpg")}
    assert sorted(os.listdir("out/yolo/images")) == ["a.jpg", "a_.png", "x", "y", "z.bmp"]
    for number, source in enumerate(("out/yolo", "out/detections.csv:in")):  # both are data sets to this project
        assert main(["data", "inspect", "--train", source, "--out", f"seen/{number}"]) == 0, source
        assert "5 images" in capsys.readouterr().out


def test_an_unknown_kind_of_output_is_named_beside_the_known(images, capsys):
    with pytest.raises(SystemExit):
        main(["predict", "in/a.jpg", "--run", "a", "--write", "csv,foo"])
    assert "--write: 'foo' is none of the kinds of output, coco, csv, yolo, " in capsys.readouterr().err


def test_a_folder_of_an_earlier_prediction_is_never_mixed_with(finder, images, capsys):
    assert run("in/a.jpg", "--out", "out", "--write", "crops,yolo") == 0
    before = sorted(Path("out").rglob("*"))
    assert run("in", "--out", "out", "--write", "crops,yolo", "--overwrite") == 2
    assert "--out out already has out/yolo, out/crops, which --overwrite leaves alone" in capsys.readouterr().err
    assert sorted(Path("out").rglob("*")) == before
    assert run("in", "--out", "out", "--write", "csv") == 0
    assert run("in", "--out", "out", "--write", "csv") == 2
    assert "--out out already has out/detections.csv; name another, or add --overwrite" in capsys.readouterr().err
    assert run("in", "--out", "out", "--write", "csv", "--overwrite") == 0


def test_a_drawing_among_other_files_is_refused(finder, images, capsys):
    (images / "yolo").mkdir()
    (images / "yolo" / "a.png").write_bytes((images / "a.png").read_bytes())
    assert run("in", "--out", "out", "--write", "yolo,drawings") == 2
    assert "out/yolo/a.png would be a drawing among other files" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.fixture
def camera(monkeypatch):
    monkeypatch.setattr(streams, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(streams, "_RECONNECTING_SECONDS", 0.05)
    with serving(Camera()) as camera:
        yield camera


def texts_below(folder):
    return "".join(f"{path} {path.read_bytes()!r}" for path in Path(folder).rglob("*") if path.is_file())


def test_a_stream_ends_after_its_frames_and_keeps_its_password(finder, images, camera, capfd):
    assert run(camera.url, "--out", "out", "--frames", "3", "--write", "coco,csv,yolo,crops,drawings") == 0
    names = [image["file_name"] for image in written()["images"]]
    host = camera.url.partition("@")[2].partition("/")[0].replace(":", "_")
    assert [name.partition("#")[0] for name in names] == [host] * 3
    assert cv2.VideoCapture(f"out/{host}.mp4").get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert len(list(Path("out/yolo/images").rglob("*.jpg"))) == len(list(Path("out/crops/box").rglob("*.jpg"))) == 3
    output = "".join(capfd.readouterr())
    assert "3 images, 3 detections" in output
    assert "secret" not in output + texts_below("out")
    assert {len(batch) for batch in finder.batches} == {1}


def test_ctrl_c_ends_a_stream_that_is_silent(finder, images, camera, monkeypatch, capsys):
    camera.most, camera.hangs = ENOUGH_TO_OPEN, True

    def interrupt(self, *given, **options):
        coming = frames(self, *given, **options)
        yield next(coming)
        os.kill(os.getpid(), signal.SIGINT)
        yield from coming

    frames = streams.Stream.frames
    monkeypatch.setattr(streams.Stream, "frames", interrupt)
    assert run(camera.url, "--out", "out") == 130
    assert 1 <= len(written()["images"]) <= ENOUGH_TO_OPEN
    assert "stopped by SIGINT" in capsys.readouterr().err


def test_a_stream_that_stays_away_is_a_fault_and_what_was_found_is_written(finder, images, camera, capsys):
    camera.most = 4
    found_by = Finder.__call__

    def go_away(self, given):
        camera.is_gone = True
        return found_by(self, given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Finder, "__call__", go_away)
        assert run(camera.url, "--out", "out", "--no-draw") == 1
    assert written()["images"]
    assert "the connection is lost; what was found until then is written" in capsys.readouterr().err


def test_a_stream_that_cannot_be_opened_is_bad_input(finder, images, camera, capfd):
    camera.is_gone = True
    assert run(camera.url, "--out", "out") == 2
    error = capfd.readouterr().err
    assert "OpenCV cannot open it; is the address right" in error
    assert "secret" not in error
    assert not Path("out").exists()


def test_addresses_in_a_list_are_refused_unseen(finder, images, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("in/a.jpg\nrtsp://user:secret@host\n"))
    assert run("-", "--out", "out") == 2
    error = capsys.readouterr().err
    assert error == "error: INPUT -: addresses on 1 line; a list is of files\n"
