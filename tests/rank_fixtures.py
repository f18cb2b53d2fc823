"""Trainings of one or two ranks, forked from this process, which has everything imported."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from functools import partial

import pytest
import torch
import torch.distributed as dist
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils import comm
from free_ports import free_port
from time_limit import end_with_stacks
from training_fixtures import NARROW, make_shallow

from focal_det import environment
from focal_det.data.catalog import prepare_shapes
from focal_det.distributed.join import reach_all
from focal_det.distributed.watchdog import RankWatchdog
from focal_det.divergence.dump import write_divergence
from focal_det.engine.run import Job, run_job
from focal_det.errors import TrainingError

SETS = ("shapes_train_8_64px", "shapes_val_12_64px")


class Event:
    """A file, in the place of the launcher's event."""

    def __init__(self, path):
        self.path = path

    def set(self):
        self.path.touch()


class Rank:
    """A forked process, which leads a group of its own."""

    def __init__(self, pid, output):
        self.pid, self.output, self.code = pid, output, None

    def ended(self):
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def kill(self, number):
        os.kill(self.pid, number)

    @property
    def text(self):
        return self.output.read_text()

    @property
    def last_lines(self):
        return f"--- {self.output.name}, exit code {self.code} ---\n{self.text[-3000:]}"


class Run:
    """The ranks of one training."""

    def __init__(self, folder, ranks):
        self.folder, self.ranks = folder, ranks

    @property
    def last_lines(self):
        return "\n".join(rank.last_lines for rank in self.ranks)

    def given_up(self):
        """Return where each rank stands, which ends them, and what they said last."""
        return end_with_stacks(*(rank.pid for rank in self.ranks if not rank.ended())) + self.last_lines

    def wait_for(self, text, seconds=100):
        """Wait until rank 0 has printed the text."""
        deadline = time.monotonic() + seconds
        while text not in self.ranks[0].text:
            is_there = time.monotonic() < deadline and not self.ranks[0].ended()
            assert is_there, self.given_up()
            time.sleep(0.01)

    def codes(self, seconds=100):
        """Wait until all have ended; return their exit codes."""
        deadline = time.monotonic() + seconds
        while not all(rank.ended() for rank in self.ranks):
            assert time.monotonic() < deadline, self.given_up()
            time.sleep(0.01)
        return [rank.code for rank in self.ranks]

    @property
    def stopped(self):
        return (self.folder / "stopped").exists()

    def checkpoints(self):
        return sorted(path.name for path in (self.folder / "run").glob("*.pth"))


def be_rank(rank, ranks, port, job, stopped, prepare):
    torch.set_num_threads(1)
    environment.num_cores = lambda: 1  # OpenMP's threads are the tests' process's, and a fork would wait for them
    multiprocessing.process._children = set()  # a loader's worker that a test has left is no worker of this rank
    # A process that was forked from one that has looked for GPUs cannot use them, and Detectron2 would if it saw them.
    torch.cuda.is_available, torch.cuda.device_count = (lambda: False), (lambda: 0)
    for name in (*job.cfg.DATASETS.TRAIN, *job.cfg.DATASETS.TEST):
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)
    if prepare:
        prepare(rank, ranks)
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
        comm.create_local_process_group(ranks)
    try:
        with RankWatchdog(job.hang_timeout) as watchdog:
            if ranks > 1:
                reach_all(60)
            run_job(job, stopped, watchdog)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 75 if stopped.path.exists() else 0


@pytest.fixture
def start_ranks(tmp_path):
    """Start the ranks of a job; `prepare(rank, ranks)` is called in each before."""
    runs = []

    def begin(job, ranks=2, prepare=None):
        started, port = [], free_port()
        (tmp_path / "stopped").unlink(missing_ok=True)
        for rank in range(ranks):
            output = tmp_path / f"rank{rank}.txt"
            output.touch()
            pid = os.fork()
            if pid == 0:
                code = 99
                try:
                    os.setpgid(0, 0)
                    out = os.open(output, os.O_WRONLY | os.O_TRUNC)
                    os.dup2(out, 1)
                    os.dup2(out, 2)
                    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
                    code = be_rank(rank, ranks, port, job, Event(tmp_path / "stopped"), prepare)
                finally:
                    if sys.exc_info()[0]:
                        traceback.print_exc()
                    sys.stdout.flush()
                    os._exit(code)
            started.append(Rank(pid, output))
        runs.append(Run(tmp_path, started))
        return runs[-1]

    yield begin
    for run in runs:
        for rank in run.ranks:
            if not rank.ended():
                rank.kill(signal.SIGKILL)
                os.waitpid(rank.pid, 0)


@pytest.fixture
def start(tiny_cfg, tmp_path, monkeypatch, start_ranks):
    """Start a tiny training, or an evaluation, of some ranks; `prepare` as of `start_ranks`."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    make_shallow(monkeypatch)
    prepare_shapes(SETS)

    def begin(*overrides, ranks=2, prepare=None, hang_timeout=60, resume=False, steps=1000, eval_only=False):
        settings = [
            *("SOLVER.MAX_ITER", str(steps), "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.001", "SEED", "3"),
            *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0"),
            *("SOLVER.CHECKPOINT_PERIOD", "1000", "MODEL.FOCAL_DET.DRAW_IMAGES", "0"),
            *("OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "0", *NARROW),
        ]
        cfg = tiny_cfg(*settings, *overrides)
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = SETS[:1], SETS[1:]
        cfg.freeze()
        checkpoint = tmp_path / "run" / "model_final.pth" if resume else None
        return start_ranks(
            Job(cfg, (), eval_only, ranks, checkpoint=checkpoint, hang_timeout=hang_timeout), ranks, prepare
        )

    return begin


@pytest.fixture
def kept(tiny_cfg, batch_of, tmp_path):
    """Write the file of a tiny model's step; `corrupt` may change model and batch before."""
    return partial(keep_step, tiny_cfg, batch_of, tmp_path)


@pytest.fixture(scope="session")
def sound_step(tiny_cfg, batch_of, tmp_path_factory):
    """The file of a tiny model's step, made once, not to be changed."""
    return keep_step(tiny_cfg, batch_of, tmp_path_factory.mktemp("kept"))


def keep_step(tiny_cfg, batch_of, folder, corrupt=lambda model, batch: None, *overrides, ranks=1):
    cfg = tiny_cfg("OUTPUT_DIR", str(folder), *overrides)
    torch.manual_seed(0)
    model, batch = build_model(cfg), batch_of((2, 3), size=(64, 64))
    for place, image in enumerate(batch):
        image["file_name"] = f"{place}.jpg"
    corrupt(model, batch)
    losses = {"loss_cls": torch.tensor(1.0), "loss_box_reg": torch.tensor(float("inf"))}
    shares = [batch] if ranks == 1 else [[image] for image in batch]
    return write_divergence(cfg, model, shares, losses, ["head.cls_score.weight"], iteration=57, is_first=True)
