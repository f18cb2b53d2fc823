"""The page at the end of a training, and no fault of it; that a training writes it, test_training.py holds."""

import logging

from focal_det.engine import last_page


def test_a_fault_is_logged_with_what_to_run(monkeypatch, caplog):
    def fail(output_dir):
        raise RuntimeError("no room")

    monkeypatch.setattr(last_page, "write_report", fail)
    monkeypatch.setattr(logging.getLogger("focal_det"), "propagate", True)
    assert last_page.write_last_page("output/mine") is None
    assert "RuntimeError: no room" in caplog.text
    assert "focal-det report output/mine" in caplog.text


def test_other_processes_write_none(tmp_path, monkeypatch):
    monkeypatch.setattr(last_page.comm, "is_main_process", lambda: False)
    (tmp_path / "metrics.json").touch()
    assert last_page.write_last_page(str(tmp_path)) is None
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
