"""Cameras and streams: the newest frame, a connection that breaks, and addresses that are not shown."""

import time

import pytest
from stream_server import ENOUGH_TO_OPEN, Camera, serving

from focal_det.errors import InputError
from focal_det.inference import streams
from focal_det.inference.streams import Stream, find_stream, shown


@pytest.fixture
def camera():
    with serving(Camera()) as camera:
        yield camera


def opened(camera):
    stream = Stream(camera.url)
    stream.open()
    return stream


def frames(stream, *, every=1, most=None, seconds=None, is_stopped=lambda: False, say=print):
    return stream.frames(every=every, most=most, seconds=seconds, is_stopped=is_stopped, say=say)


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_frames_have_names_and_numbers_and_an_end(camera):
    found = list(frames(opened(camera), every=2, most=3))
    numbers = [frame.number for frame in found]
    assert len(numbers) == 3
    assert numbers == sorted(set(numbers))
    assert all(number % 2 == 0 for number in numbers)
    host = camera.url.partition("@")[2].partition("/")[0]
    assert [frame.name for frame in found] == [f"{host.replace(':', '_')}#{number}" for number in numbers]
    for frame in found:  # the camera's images are as bright as their number
        assert abs(int(frame.image.mean()) - frame.number % 200) <= 3


def test_who_is_slow_gets_the_newest_frame(camera):
    stream = opened(camera)
    coming = frames(stream)
    first = next(coming).number
    before = stream.dropped
    wait_for(lambda: stream.dropped >= before + 5)
    assert next(coming).number > first + 5
    coming.close()
    stream.close()
    (note,) = stream.notes()
    assert "came too fast to be looked at" in note


def test_a_camera_that_is_gone_and_back_costs_frames_alone(camera, monkeypatch):
    monkeypatch.setattr(streams, "_FIRST_WAIT", 0.01)
    camera.most, said = 5, []
    stream = opened(camera)
    camera.is_gone = True  # for the next connection
    coming = frames(stream, say=said.append)
    next(coming)
    wait_for(lambda: camera.refused >= 2)
    camera.most, camera.is_gone = None, False
    before = [frame.number for _, frame in zip(range(6), coming, strict=False)]
    assert before[-1] > 5
    assert before == sorted(set(before))
    assert stream.losses == 1
    assert "no frame after 5 frames; trying to connect for 120 s" in said[0]
    assert "back after" in said[1]
    assert not any("secret" in line for line in said)
    stream.close()


def test_a_camera_that_stays_away_ends_it(camera, monkeypatch):
    monkeypatch.setattr(streams, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(streams, "_RECONNECTING_SECONDS", 0.05)
    camera.most = 5
    stream = opened(camera)
    camera.is_gone = True
    found = list(frames(stream))
    assert found[-1].number == 4
    assert stream.is_lost


@pytest.mark.parametrize("bound", [{"seconds": 0.3}, {"is_stopped": lambda: True}])
def test_a_silent_camera_holds_nobody(camera, bound):
    camera.most, camera.hangs = ENOUGH_TO_OPEN, True
    stream = opened(camera)
    wait_for(lambda: camera.sent == ENOUGH_TO_OPEN)
    assert len(list(frames(stream, **bound))) <= ENOUGH_TO_OPEN
    assert not stream.is_lost


def test_what_cannot_be_opened_is_named_without_its_secrets(camera, capfd):
    camera.is_gone = True
    with pytest.raises(InputError) as caught:
        opened(camera)
    assert f"INPUT {shown(camera.url)}: OpenCV cannot open it" in str(caught.value)
    with pytest.raises(InputError, match="INPUT 97: OpenCV cannot open it; is it connected"):
        Stream("97").open()
    assert "secret" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("rtsp://user:secret@host:554/secret?secret", "rtsp://host:554"),
        ("rtsp://host/user=secret&x=1", "rtsp://host"),
        ("http://host?secret", "http://host"),
        ("http://user:sec/ret@host", "http://..."),
        ("http://user:secret@secret@host", "http://..."),
        ("http://host/a?secret@secret", "http://..."),
        ("0", "0"),
    ],
)
def test_of_an_address_scheme_and_host_are_shown(text, seen):
    assert shown(text) == seen
    assert "secret" not in Stream(text).file.name


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["http://user:secret@host", "a.jpg"], "INPUT http://host: a camera or stream is the only INPUT"),
        (["0", "1"], "INPUT 0: a camera or stream is the only INPUT"),
        (["ftp://user:secret@host/a"], "INPUT ftp://host: an address begins with http://, https://, "),
        (["file:///secret"], "an address begins with"),
    ],
)
def test_other_addresses_and_several_inputs_are_refused(inputs, message):
    with pytest.raises(InputError) as caught:
        find_stream(inputs)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_comes_before_a_camera_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_stream(["0"]).file.name == "camera0"
    (tmp_path / "0").mkdir()
    assert find_stream(["0"]) is None
    assert find_stream(["a.jpg", "b"]) is None
