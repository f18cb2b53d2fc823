"""docs/trackers.md, docs/python.md and docs/training.ipynb, run as they stand, but small and short."""

import json
import os
import re
import shlex
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
from exported_formats import labelme

import focal_det
from focal_det.report.metrics import metrics_lines

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).parents[1]
SMALL = {
    **{"SOLVER.MAX_ITER": 2, "SOLVER.STEPS": (1,), "SOLVER.WARMUP_ITERS": 1, "SOLVER.IMS_PER_BATCH": 2},
    **{"INPUT.MIN_SIZE_TRAIN": (64,), "INPUT.MIN_SIZE_TEST": 64, "DATALOADER.NUM_WORKERS": 0},
    **{"MODEL.WEIGHTS": "", "MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64},
    **{"MODEL.FPN.OUT_CHANNELS": 64, "MODEL.RETINANET.NUM_CONVS": 1, "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0},
    **{"MODEL.RETINANET.TOPK_CANDIDATES_TEST": 20, "MODEL.FOCAL_DET.DRAW_IMAGES": 0},
}
SHAPES = {"DATASETS.TRAIN": ("shapes_train_8_64px",), "DATASETS.TEST": ("shapes_val_4_64px",)}


SHORTER = {  # of the notebook
    **{"train_400_64px": "train_8_64px", "val_20_64px": "val_4_64px", "(80,)": "(3,)"},
    **{'IMS_PER_BATCH\\": 8': 'IMS_PER_BATCH\\": 2', 'WARMUP_ITERS\\": 10': 'WARMUP_ITERS\\": 1'},
    **{'MAX_ITER\\": 100': 'MAX_ITER\\": 4', 'EVAL_PERIOD\\": 25': 'EVAL_PERIOD\\": 2'},
}


@pytest.fixture(autouse=True)
def _nothing_leaves(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def run_of(prepared, tmp_path, command, output):
    overrides = {**SMALL, **SHAPES, "OUTPUT_DIR": str(output)}
    words = [str(word) for pair in overrides.items() for word in pair]
    program, *given = shlex.split(command)[1:]
    done = prepared.run(*given, *words, program=ROOT / program, cwd=tmp_path)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done


def test_the_commands_of_the_page_about_trackers(prepared, tmp_path):
    (install, both), (of_own,) = (block.splitlines() for block in blocks("trackers.md", "sh"))
    extras = re.findall(r"focal_det\[(\w+)\]", install)
    assert extras == ["mlflow", "wandb"]
    assert all(f'"{extra}": [' in (ROOT / "setup.py").read_text() for extra in extras)
    run_of(prepared, tmp_path, both, tmp_path / "both")
    assert (tmp_path / "mlflow.db").is_file()
    assert len([*tmp_path.glob("both/wandb/offline-run-*/*.wandb")]) == 1

    posted = []

    class Board(BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Board)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    (plugin,) = blocks("trackers.md", "python")
    (tmp_path / "slow_board.py").write_text(plugin.replace("8123", str(server.server_port)))
    run_of(prepared, tmp_path, of_own, tmp_path / "own")
    server.shutdown()
    server.server_close()
    written = [{"run": "own", **line.values} for line in metrics_lines(tmp_path / "own" / "metrics.json")]
    assert [line["iteration"] for line in posted] == [line["iteration"] for line in written]
    assert [line.keys() for line in posted] == [line.keys() for line in written]


def test_the_code_of_the_page_about_python(tmp_path, monkeypatch, capsys):
    labelme(tmp_path / "my_export", {f"n{i}": [("cat", 4, 6, 20, 12), ("dog", 30, 10, 24, 30)] for i in range(8)})
    cv2.imwrite("image.jpg", np.full((64, 64, 3), 90, np.uint8))
    train = focal_det.train
    monkeypatch.setattr(focal_det, "train", lambda *a, **k: train(*a, **k, overrides=SMALL), raising=False)
    *of_training, _ = blocks("python.md", "python")  # that on detections is test_predict_page.py's
    code = "\n".join(of_training).replace("score_thresh=0.5", "score_thresh=0.0")
    exec(compile(code, "python.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(r"[\d.]+ output/mine/model_best.pth output/mine/report.html", line) for line in lines)
    assert re.match(r"(cat|dog) 0\.\d+ \(", lines[-1])


def is_json(path):
    """Whether a file is there, and whole."""
    try:
        return bool(json.loads(path.read_text()))
    except (OSError, ValueError):
        return False


def outputs_of(prepared, folder, cells):
    """What a notebook's kernel, forked with its imports done, puts out for the code of each cell."""
    from jupyter_client import BlockingKernelClient

    (folder / "kernel.py").write_text(
        "import matplotlib\nfrom ipykernel import kernelapp\n"
        "matplotlib.use('module://matplotlib_inline.backend_inline')\n"  # which a kernel that imports it anew takes
        "kernelapp.launch_new_instance()\n"
    )
    kernel = prepared.popen("-f", folder / "kernel.json", program=folder / "kernel.py", cwd=folder)
    client = BlockingKernelClient(connection_file=str(folder / "kernel.json"))
    try:
        until = time.monotonic() + 100
        while not (written := is_json(folder / "kernel.json")) and time.monotonic() < until:
            time.sleep(0.01)
        assert written, kernel.output()
        client.load_connection_file()
        client.start_channels()
        client.wait_for_ready(timeout=100)
        for code in cells:
            found = []
            done = client.execute_interactive(code, timeout=280, output_hook=found.append)["content"]
            assert done["status"] == "ok", (code, done, kernel.output())
            yield [one["content"] for one in found if one["msg_type"] in ("stream", "display_data", "execute_result")]
    finally:
        client.stop_channels()
        kernel.kill()


def test_the_notebook_trains_shows_and_detects(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "anywhere"))
    text = (ROOT / "docs" / "training.ipynb").read_text()
    for long, short in SHORTER.items():
        assert long in text
        text = text.replace(long, short)
    cells = json.loads(text)["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    _, shown, curves, drawn = outputs_of(prepared, tmp_path, code)
    assert re.match(r"AP [\d.na]+, best model: ", shown[0]["text"])
    assert all("image/png" in outputs[-1]["data"] for outputs in (curves, drawn))
