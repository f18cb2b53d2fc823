"""Files are there whole or not at all, and as others may read them."""

import json
import os
import stat

import pytest

from focal_det.files import write_text_whole, written_whole


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fail():
        with written_whole(path) as partial:
            partial.write_text("half")
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        fail()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "before")]


def test_folders_are_made_and_text_is_utf_8(tmp_path):
    write_text_whole(tmp_path / "new" / "a.json", json.dumps("Zähler", ensure_ascii=False))
    assert (tmp_path / "new" / "a.json").read_bytes() == '"Zähler"'.encode()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


def test_a_colleague_may_read_it(tmp_path):
    before = os.umask(0o022)
    try:
        write_text_whole(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644


def test_a_name_as_long_as_names_may_be(tmp_path):
    path = tmp_path / f"{'n' * 251}.png"  # 255 bytes
    write_text_whole(path, "whole")
    assert path.read_text() == "whole"
