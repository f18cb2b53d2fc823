"""What a command line names, and where its drawings go."""

import os
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from focal_det.errors import InputError
from focal_det.inference.images import ImageError
from focal_det.inference.inputs import InputFile, count_frames, find_inputs, read_ahead, read_frames
from focal_det.inference.outputs import drawing_files, output_problems

NOWHERE = Path("/nowhere")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Images under images/, by name only, and what is none."""
    for name in ("b.jpg", "a.PNG", "sub/a.png", "sub/.hidden.png", ".git/c.png", "notes.txt", "out/a.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "images" / "sub" / "again").symlink_to(tmp_path / "images")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(inputs, lines=(), leave_out=NOWHERE):
    return [file.name for file in find_inputs(inputs, lines, leave_out).found]


def test_a_folder_is_its_images_and_its_subfolders_without_links_and_drawings(tree):
    assert names(["images"], leave_out=Path("images/out")) == ["a.PNG", "b.jpg", "sub/a.png"]


def test_images_that_are_not_read_are_named_and_jfif_is_read(tree):
    for name in ("c.jfif", "d.HEIC", "sub/e.heic", "f.dng"):
        (tree / "images" / name).write_bytes(b"")
    inputs = find_inputs(["images"], (), Path("images/out"))
    assert [file.name for file in inputs.found] == ["a.PNG", "b.jpg", "c.jfif", "sub/a.png"]
    assert inputs.notes == [
        "2 files are HEIC and were passed over; convert them to JPEG: d.HEIC, sub/e.heic",
        "1 files are a camera's raw data and were passed over; convert them to JPEG: f.dng",
    ]


def test_names_are_relative_to_what_all_inputs_share(tree):
    assert names(["images/sub/a.png"]) == ["a.png"]
    assert names(["images/sub/a.png", "images/out/a.png"]) == ["sub/a.png", "out/a.png"]
    assert names(["images/sub", "images/out"]) == ["sub/a.png", "out/a.png"]
    assert find_inputs(["images/sub"], (), NOWHERE).base == tree / "images/sub"


def test_patterns_lists_and_repetitions(tree):
    assert names(["images/**/a.png"]) == ["out/a.png", "sub/a.png"]  # and not again and again through the link
    assert names(["images/**/a.png"], leave_out=Path("images/out")) == ["a.png"]
    assert names(["-"], ["images/b.jpg\n", "\n", "images/gone.jpg\r\n"]) == ["b.jpg", "gone.jpg"]
    found = find_inputs(["images/b.jpg", "images/*.jpg"], (), NOWHERE)
    assert [file.name for file in found.found] == ["b.jpg"]
    assert found.notes == ["1 files are named twice and taken once"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(tree):
    Path("images/x[1].jpg").write_bytes(b"")
    assert names(["images/x[1].jpg"]) == ["x[1].jpg"]


def test_all_that_names_nothing_is_said(tree):
    with pytest.raises(InputError) as caught:
        find_inputs(["empty", "gone.jpg", "*.gif", "", "-"], [], NOWHERE)
    problems = caught.value.problems
    assert problems[0] == "INPUT empty: no image in this folder or its subfolders (name each video)"
    assert [problem.split(":")[0] for problem in problems[1:]] == [
        "INPUT 'gone.jpg'",
        "INPUT '*.gif'",
        "INPUT ''",
        "INPUT -",
    ]


def test_a_folder_that_cannot_be_read_is_said(tree, monkeypatch):
    def walk(path, onerror):
        onerror(PermissionError(13, "Permission denied", str(path)))
        return iter(())

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(InputError, match=r"images: the folder cannot be read \(Permission denied"):
        find_inputs(["images"], (), NOWHERE)


def file(name):
    return InputFile(Path("/in") / name, name)


def test_drawings_keep_their_names_apart():
    inputs = [file(name) for name in ("a.jpg", "a.png", "x/a.jpg", "a.gif", "a.gif.png", "c.avi", "c.mp4")]
    files = [str(path) for path in drawing_files(inputs, Path("o")).values()]
    assert files[:4] == ["o/a.jpg", "o/a.png", "o/x/a.jpg", "o/a.gif.png"]
    assert files[5:] == ["o/c.avi.mp4", "o/c.mp4"]
    assert len(set(files)) == 7  # a.gif.png has to give way


def test_inputs_are_never_written_over_and_others_files_only_when_asked(tree):
    (image,) = find_inputs(["images/b.jpg"], (), NOWHERE).found

    def problems(drawing, out, overwrite):
        return output_problems(("drawings",), {image: drawing}, Path(out), overwrite=overwrite)

    for overwrite in (False, True):
        over_itself = drawing_files([image], Path("images"))[image]
        assert "overwrite their images" in problems(over_itself, "images", overwrite)[0]
    theirs = Path("images/notes.txt")
    assert "add --overwrite" in problems(theirs, "images", False)[0]
    assert problems(theirs, "images", True) == []
    assert "is a folder" in problems(Path("empty"), ".", True)[0]
    assert output_problems(("coco",), {image: theirs}, Path("images"), overwrite=False) == []  # no drawing is written


def test_every_nth_frame_of_a_video(tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "v.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 32))
    for value in range(7):
        writer.write(np.full((32, 64, 3), 30 * value, np.uint8))
    writer.release()
    inputs = find_inputs([str(tmp_path / "v.mp4")], (), NOWHERE).found
    frames = list(read_frames(inputs, 3))
    assert [frame.name for frame in frames] == ["v.mp4#0", "v.mp4#3", "v.mp4#6"]
    assert [abs(frame.image.mean() - value) < 8 for frame, value in zip(frames, (0, 90, 180), strict=True)] == [
        True
    ] * 3
    assert count_frames(inputs, 3) == 3


def test_what_is_no_video_is_said_in_one_line(tmp_path, capfd):
    (tmp_path / "v.mp4").write_bytes(b"no video")
    (frame,) = read_frames(find_inputs([str(tmp_path / "v.mp4")], (), NOWHERE).found, 1)
    assert isinstance(frame.image, ImageError)
    assert str(frame.image) == f"{tmp_path}/v.mp4: not a video that OpenCV can read"
    assert capfd.readouterr().err == ""


def test_reading_ahead_is_bounded_keeps_the_order_and_hands_errors_on():
    fetched = []

    def items():
        for i in range(50):
            fetched.append(i)
            yield i
        raise OSError("the disk is gone")

    ahead = read_ahead(items(), 3)
    assert next(ahead) == 0
    assert len(fetched) <= 6  # one given, three ready, one in hand
    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(ahead)
    assert len(fetched) == 50


def test_who_stops_reading_does_not_wait_for_a_read_that_hangs():
    begun, release = threading.Event(), threading.Event()
    items = iter([lambda: 0, lambda: begun.set() or release.wait(60) or release.set()])
    ahead = read_ahead((read() for read in items), 2)
    try:
        assert next(ahead) == 0
        assert begun.wait(60)  # else it would be cancelled before
        ahead.close()
        assert not release.is_set()
    finally:
        release.set()


def test_the_reading_thread_ends_with_its_reader():
    before = set(threading.enumerate())
    ahead = read_ahead(iter(range(1000)), 2)
    next(ahead)
    (reader,) = set(threading.enumerate()) - before
    ahead.close()
    reader.join(60)
    assert not reader.is_alive()
