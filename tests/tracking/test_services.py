"""Runs in MLflow's and Weights & Biases' own files, read back by their own clients; and a server that goes away."""

import json
import math
import os
import re
import signal
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from free_ports import free_port

from focal_det.engine import trainer
from focal_det.report.metrics import metrics_lines
from focal_det.tracking import services, trackers
from focal_det.tracking.trackers import Trackers

pytestmark = pytest.mark.detectron2
BOTH = ("MODEL.FOCAL_DET.TRACKERS", "('MLflow', 'WandB')")


@pytest.fixture(autouse=True)
def _stores(monkeypatch, tmp_path):
    """Everything lies in tmp_path, and nothing is sent anywhere."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    settings = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_DIR": str(tmp_path),
        "WANDB_PROJECT": "cells",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)  # where MLflow puts artifacts
    monkeypatch.setattr(trackers, "_LAST_SECONDS", 100)  # on a busy machine, too


def measured(folder):
    """Return the points of metrics.json, {name: {iteration: value}}."""
    points = {}
    for found in metrics_lines(folder / "metrics.json"):
        for name in found.values.keys() - {"iteration"}:
            points.setdefault(name, {})[found.iteration] = found.values[name]
    return points


def same(value, other):
    return value == other or (math.isnan(value) and math.isnan(other))


def processes_for(pids):
    """Return the processes of wandb that serve one of these."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--pid" in words and int(words[words.index(b"--pid") + 1]) in pids:
            found.append(path)
    return found


def offline_records(folder):
    """Return the records of offline runs, in the order of the starts, as W&B's own classes parse them.

    Its files are LevelDB's logs: blocks of 32 KiB, in which parts have a checksum, a length and a kind, after a head of
    7 bytes. A part of kind 1 is a whole record; 2, 3 and 4 are its beginning, middle and end.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        data, place, held = path.read_bytes(), 7, b""
        while place + 7 <= len(data):
            if 32768 - place % 32768 < 7:  # what is left of a block
                place += 32768 - place % 32768
            _, length, kind = struct.unpack_from("<IHB", data, place)
            held += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):
                yield Record.FromString(held)
                held = b""


def wandb_points(records):
    points = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            values = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
            step = values.pop("_step")
            for name, value in values.items():
                if not name.startswith("_"):
                    assert step not in points.setdefault(name, {}), (name, step)
                    points[name][step] = float(value)
    return points


def test_a_run_that_was_stopped_and_resumed_is_one_run_in_both_trackers(start, tmp_path, monkeypatch):
    import wandb  # noqa: F401 - both here, since they take seconds, and before the ranks are forked
    from mlflow import MlflowClient

    monkeypatch.setattr(trainer, "WRITE_PERIOD", 3)
    first = start(*BOTH, steps=1000)
    first.wait_for("iteration 3/1000")
    first.ranks[1].kill(signal.SIGTERM)
    assert first.codes() == [75, 75], first.last_lines
    done = json.loads((tmp_path / "run" / "metrics.json").read_text().splitlines()[-1])["iteration"] + 1
    (checkpoint,) = first.checkpoints()
    os.rename(tmp_path / "run" / checkpoint, tmp_path / "run" / "model_final.pth")  # which `start` resumes from
    steps = int(checkpoint[6:13]) + 4
    second = start(*BOTH, steps=steps, resume=True)
    assert second.codes() == [0, 0], second.last_lines
    expected = measured(tmp_path / "run")
    assert done < steps
    assert {"total_loss", "bbox/AP", "val/total_loss", "lr"} <= expected.keys()

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("focal_det").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.tags["focal_det.iteration"] == str(steps)
    assert sorted(file.path for file in client.list_artifacts(run.info.run_id)) == ["config.yaml", "report.html"]
    points = {}
    for name in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, name)
        points[name] = {point.step: point.value for point in history}
        assert len(history) == len(points[name]), name
    assert points.keys() == expected.keys()
    for name, values in expected.items():
        assert points[name].keys() == values.keys(), name
        assert all(same(points[name][step], value) for step, value in values.items()), name

    records = list(offline_records(tmp_path))
    points = wandb_points(records)
    assert points.keys() == expected.keys()
    for name, values in expected.items():
        assert points[name].keys() == values.keys(), name
        assert all(same(points[name][step], value) for step, value in values.items()), name
    runs = {(r.run.run_id, r.run.project) for r in records if r.WhichOneof("record_type") == "run"}
    assert len(runs) == 1
    assert runs.pop()[1] == "cells"
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"MLflow: run {run.info.run_id} in sqlite:///{tmp_path}/mlflow.db\n" in log
    folders = re.findall(r"Weights & Biases: offline, to be sent by: wandb sync (.*)", log)
    assert len(folders) == 2
    assert all(Path(folder).is_dir() for folder in folders)
    pids, until = {rank.pid for rank in (*first.ranks, *second.ranks)}, time.monotonic() + 100
    while processes_for(pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert processes_for(pids) == []


def test_a_line_of_a_thousand_classes_and_any_names_is_taken(tmp_path):
    from mlflow import MlflowClient

    values = {f"bbox/AP-a&b{i}": float(i) for i in range(1203)}
    odd = {"bbox/AP-with/": 1.0, "bbox/AP-a//b": 2.0, "bbox/AP-../é": 3.0, "bbox/AP-x/../y": 4.0, "bbox/AP-/": 5.0}
    (tmp_path / "metrics.json").write_text(json.dumps({**values, **odd, "iteration": 9}) + "\n")
    changes = [{"key": f"MINE.KEY{i}", "value": i} for i in range(101)]
    (tmp_path / "config_changes.json").write_text(json.dumps(changes))
    (tmp_path / "config.yaml").write_text("SEED: 1\n")
    with Trackers(SimpleNamespace(OUTPUT_DIR=str(tmp_path)), ("MLflow",)) as all_trackers:
        all_trackers.start(resumes=False)
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("focal_det").experiment_id])
    taken = dict(
        zip(("bbox_AP-with_", "bbox_AP-a__b", "bbox/AP-../é", "bbox_AP-x_.._y", "bbox_AP-_"), odd.values(), strict=True)
    )
    assert run.data.metrics == {f"bbox/AP-a_b{i}": float(i) for i in range(1203)} | taken
    assert (len(run.data.params), run.data.params["MINE.KEY100"]) == (101, "100")
    assert run.data.tags["focal_det.iteration"] == "9"


class Server:
    """MLflow's REST interface, as far as a run needs it; `gate` holds its answers back."""

    def __init__(self, port):
        self.lines, self.tags, self.gate, self.asked = [], {}, threading.Event(), threading.Event()
        self.gate.set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(self):
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
                server.asked.set()
                assert server.gate.wait(100)
                said = json.dumps(server.answer(self.path.split("?")[0].rpartition("mlflow/")[2], body)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            do_GET = do_POST = answer  # noqa: N815

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, what, body):
        info = {"run_id": "r1", "run_uuid": "r1", "experiment_id": "1", "status": "RUNNING", "artifact_uri": "x"}
        tags = [{"key": key, "value": value} for key, value in self.tags.items()]
        run = {"run": {"info": info, "data": {"tags": tags}}}
        if what == "runs/log-batch":
            self.lines += [(m["key"], int(m["step"]), m["value"]) for m in body.get("metrics", [])]
            self.tags.update({tag["key"]: tag["value"] for tag in body.get("tags", [])})
            return {}
        experiment = {"experiment": {"experiment_id": "1", "name": "focal_det"}}
        return {"experiments/get-by-name": experiment, "runs/create": run, "runs/get": run}.get(what, {})

    def close(self):
        self._http.shutdown()
        self._http.server_close()


def test_a_server_that_goes_away_holds_up_no_step_and_has_each_line_once_when_it_is_back(tmp_path, monkeypatch, lines):
    monkeypatch.setattr(trackers, "_PAUSES", (0.01, 0.01))
    monkeypatch.setattr(trackers, "_LAST_SECONDS", 0.5)
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setattr(services.MLflow, "finish", lambda self, end: None)
    (tmp_path / "config_changes.json").write_text("[]")
    cfg = SimpleNamespace(OUTPUT_DIR=str(tmp_path))

    def measure(all_trackers, *iterations):
        for iteration in iterations:
            with (tmp_path / "metrics.json").open("a") as file:
                file.write(json.dumps({"loss": iteration / 2, "iteration": iteration}) + "\n")
            all_trackers.write()

    server = Server(port)
    with Trackers(cfg, ("MLflow",)) as all_trackers:
        all_trackers.start(resumes=False)
        server.asked.wait(100)
        server.gate.clear()
        measure(all_trackers, 19, 39)  # which would not end if it waited for the answer
        server.gate.set()
        until = time.monotonic() + 100
        while len(server.lines) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        server.close()
        measure(all_trackers, 59, 79)
        while not any("takes no metrics" in text for text in lines) and time.monotonic() < until:
            time.sleep(0.01)
        measure(all_trackers, 99)
    warnings = [text for text in lines if text.startswith("MLflow ")]
    assert "MLflow takes no metrics (MlflowException: " in warnings[0]
    assert warnings[1:] == ["MLflow does not have all metrics; metrics.json has, and --resume sends what is missing"]
    assert json.loads((tmp_path / "tracker_MLflow.json").read_text()) == {"run": "r1", "iteration": 39}

    # killed before it noted what the server has taken
    (tmp_path / "tracker_MLflow.json").write_text('{"run": "r1", "iteration": 19}')
    again = Server(port)
    again.tags = server.tags
    monkeypatch.setattr(trackers, "_LAST_SECONDS", 100)
    with Trackers(cfg, ("MLflow",)) as all_trackers:
        all_trackers.start(resumes=True)
    again.close()
    assert server.lines == [("loss", 19, 9.5), ("loss", 39, 19.5)]
    assert again.lines == [("loss", 59, 29.5), ("loss", 79, 39.5), ("loss", 99, 49.5)]
