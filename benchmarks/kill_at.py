"""train_net.py, which notes each step that it has done and kills itself, as `kill -9` would, at a point named before.

For kills.py. STEPS_FILE in the environment is where it notes; KILL_AT is "POINT N": at the N-th time, from 1, that the
run comes to a point of `POINTS`; "" is never.
"""

import os
import signal
import sys

import torch

from focal_det.cli.train import main
from focal_det.engine.trainer import Trainer

# Of a save: before its first byte, half way through its bytes, before and after the file is on the disk, before it and
# last_checkpoint get their names, before an old one goes. Of a step: between its gradients and its update. Then the
# images of an evaluation.
POINTS = ("save", "half", "fsync", "replace", "unlink", "update", "image")


def install(point, number):
    """Wrap the function that the point belongs to."""
    left, of_run = number, os.getpid()

    def arrive():
        nonlocal left
        if os.getpid() != of_run:  # a loader's worker, which clears up after itself
            return
        left -= 1
        if left == 0:
            os.kill(of_run, signal.SIGKILL)

    def before(function):
        def wrapped(*args, **kwargs):
            arrive()
            return function(*args, **kwargs)

        return wrapped

    if point in ("fsync", "replace", "unlink"):
        setattr(os, point, before(getattr(os, point)))
    elif point == "save":
        torch.save = before(torch.save)
    elif point == "half":
        torch.save = _half(torch.save, arrive)
    elif point == "update":
        torch.optim.SGD.step = before(torch.optim.SGD.step)
    elif point == "image":
        from detectron2.evaluation import COCOEvaluator

        COCOEvaluator.process = before(COCOEvaluator.process)


def _half(save, arrive):
    def save_half(state, file, *args, **kwargs):
        """Save all, then cut it, as a kill while the system writes can."""
        save(state, file, *args, **kwargs)
        if hasattr(file, "truncate"):
            size = file.tell()
            file.flush()
            os.ftruncate(file.fileno(), size // 2)
            arrive()
            file.seek(0)
            file.truncate()
            save(state, file, *args, **kwargs)

    return save_half


def note_steps(path):
    """Keep the number of steps done in a file."""
    run_step, file = Trainer.run_step, os.open(path, os.O_WRONLY | os.O_CREAT)

    def noted(self):
        run_step(self)
        os.pwrite(file, f"{self.iter + 1:9d}".encode(), 0)

    Trainer.run_step = noted


if __name__ == "__main__":
    if os.environ["KILL_AT"]:
        point, number = os.environ["KILL_AT"].split()
        install(point, int(number))
    note_steps(os.environ["STEPS_FILE"])
    sys.exit(main())
