"""The commands of docs/predict.md, and its code and that of docs/python.md on detections, as they stand."""

import re
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from stream_server import Camera, serving

from focal_det.cli import predict
from focal_det.cli.main import main
from focal_det.data.shapes import draw_image

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "predict.md").read_text()
DETECTIONS = (ROOT / "docs" / "python.md").read_text().split("## Detections")[1].split("\n## ")[0]
FRAMES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the pages name: images, a video of moving shapes, an exported model."""
    folder = tmp_path_factory.mktemp("pages")
    scene = draw_image("val", 3, 128)[0]
    for name in ("image.jpg", "other.jpg", "images/a.png", "images/x/b.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), scene)
    video = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (128, 128))
    for step in range(FRAMES):
        moved = cv2.warpAffine(scene, np.float32([[1, 0, 2 * step], [0, 1, step]]), (128, 128), borderMode=1)
        video.write(moved)
    video.release()
    (folder / "output").mkdir()
    shutil.copy(ROOT / "models" / "quickstart_int8.onnx", folder / "output" / "mine.onnx")
    return folder


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands():
    lines = "".join(blocks(PAGE, "sh")).splitlines()
    return [*lines, *re.findall(r"`(focal-det data [^`]+)`", PAGE)]


def test_the_commands_run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    opened, made = predict._detector, []  # once, which takes a second
    monkeypatch.setattr(predict, "_detector", lambda args: (made or made.append(opened(args)) or made)[0])
    with serving(Camera()) as camera:
        for line in commands():
            words = shlex.split(line)[1:]
            if words[1] == "0" or "://" in words[1]:  # what is not here
                words = [*words[:1], camera.url, *words[2:]]
                words[words.index("--frames" if "--frames" in words else "--seconds") + 1] = "1"
            assert main(words) == 0, line
    found = sorted(path.name for path in (folder / "output").iterdir() if path.is_dir())
    assert found == ["camera", "files", "found", "inspect", "live", "sure"]
    table = (folder / "output" / "files" / "detections.csv").read_text()
    assert f"`{table.partition(chr(10))[0]}`" in PAGE
    assert (folder / "output" / "files" / "yolo" / "images" / "clip.mp4" / "000010.jpg").is_file()


def test_the_tracking_keeps_its_numbers(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (code,) = blocks(PAGE, "python")
    texts = []
    watched = code.replace("    return labels", "    seen.append(texts)\n    return labels")
    exec(compile(watched, "predict.md", "exec"), {"seen": texts, "__name__": "page"})
    assert len(texts) == FRAMES
    lasting = {text for text in texts[2] if all(text in later for later in texts[2:])}
    assert len(lasting) >= 2  # the triangle and the disk of the scene that are seen at once
    tracked = cv2.VideoCapture(str(folder / "output" / "tracked.mp4"))
    assert tracked.get(cv2.CAP_PROP_FRAME_COUNT) == FRAMES


def test_the_code_on_detections_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (code,) = blocks(DETECTIONS, "python")
    names = {}
    exec(compile(code, "python.md", "exec"), names)
    assert len(names["found"]) == len(names["table"]) == len(names["theirs"]) == len(names["rows"]) > 0
    assert {one.class_name for one in names["disks"]} == {"disk"}
    assert len(names["together"]) == 2
    assert f"<{len(names['found'])} detections in image.jpg: " in capsys.readouterr().out
