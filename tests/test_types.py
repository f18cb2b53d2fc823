"""Whoever writes a script with the package gets real types from mypy, and no errors of the package's own."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# PyTorch's own modules take mypy half a minute; of them only the class of tensors is needed.
CONFIG = """
[mypy]
strict = True
follow_imports = silent
[mypy-detectron2.*,fvcore.*]
ignore_missing_imports = True
[mypy-torch.*,torchvision.*,detectron2.*,onnxruntime.*,matplotlib.*,yaml.*,mlflow.*,wandb.*,cv2.*]
follow_imports = skip
[mypy-torch,torch._tensor,torch._C.*,torch.types]
follow_imports = silent
"""
SCRIPT = """
import focal_det
from focal_det.losses import focal_loss
from focal_det.tracking.trackers import Tracker

run = focal_det.train("focal_det://bccd.yaml", train="a", split_val=0.2, overrides={"SOLVER.MAX_ITER": 10})
predictor = run.predictor(score_thresh=0.5)
found = predictor("image.jpg")
"""
REVEALED = {
    "run": "focal_det.training.Run",
    "focal_det.Run('output/mine').AP": "float",
    "run.best": "pathlib.Path | None",
    "run.metrics": "typing.Mapping[str, float]",
    "run.curve('total_loss')": "tuple[list[int], list[float]]",
    "predictor": "focal_det.engine.predictor.Predictor",
    "found": "focal_det.inference.detections.Detections",
    "found.scores": "numpy.ndarray",
    "predictor(['a.jpg'])[0]": "focal_det.inference.detections.Detections",
    "focal_loss": "-> torch._tensor.Tensor",
    "Tracker.log": "(self: focal_det.tracking.trackers.Tracker, iteration: int, metrics: typing.Mapping[str, float])",
    "Tracker.finish": "end: focal_det.tracking.trackers.RunEnd",
    "focal_det.InputError('').problems": "list[str]",
}


def checked(folder, script):
    (folder / "mypy.ini").write_text(CONFIG)
    (folder / "script.py").write_text(script)
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", ".cache", "script.py"]
    env = {"MYPYPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_a_script_gets_real_types_and_its_mistake_is_found(tmp_path):
    lines = [SCRIPT, *(f"reveal_type({expression})" for expression in REVEALED)]
    code, output = checked(tmp_path, "\n".join([*lines, "run.predictor(score=0.5)"]))
    found = re.findall(r'Revealed type is "(.*)"', output)
    assert len(found) == len(REVEALED), output
    assert [text for text, part in zip(found, REVEALED.values(), strict=True) if part not in text] == [], output
    errors = [line for line in output.splitlines() if "error" in line]
    assert code == 1
    assert len(errors) == 2, output  # the second is their number
    assert 'Unexpected keyword argument "score" for "predictor" of "Run"' in errors[0]
