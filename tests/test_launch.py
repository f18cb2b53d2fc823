"""The same training as one process, as ranks of torchrun and SLURM, and over two machines; all of them this one."""

import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils import comm
from free_ports import free_port
from time_limit import end_with_stacks
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from training_fixtures import NARROW, make_shallow

from focal_det import environment as devices
from focal_det import launch as launching
from focal_det.cli.train import main
from focal_det.distributed import watchdog as watch
from focal_det.engine.trainer import Trainer
from focal_det.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAULT, EXIT_STOPPED
from focal_det.modeling.retinanet import FocalRetinaNet
from focal_det.preflight.options import TrainOptions

pytestmark = [
    pytest.mark.detectron2,
    pytest.mark.skipif(torch.cuda.is_available(), reason="several processes on the CPU, over gloo"),
]

URL = "tcp://127.0.0.1:{}"
ROOT = Path(__file__).parents[1]
SETTINGS = [
    *("--config-file", str(ROOT / "configs/quickstart.yaml")),
    *("DATASETS.TRAIN", "shapes_train_16_64px", "DATASETS.TEST", "shapes_val_4_64px"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.IMS_PER_BATCH", "4"),
    *("MODEL.FPN.OUT_CHANNELS", "64", "MODEL.RETINANET.NUM_CONVS", "1", "MODEL.FOCAL_DET.DRAW_IMAGES", "0"),
    *("SOLVER.BASE_LR", "0.01", "SOLVER.STEPS", "(4,)", "SOLVER.WARMUP_ITERS", "2", "SOLVER.CHECKPOINT_PERIOD", "2"),
    *("SOLVER.AMP.ENABLED", "False", "DATALOADER.NUM_WORKERS", "0", "SEED", "7", *NARROW),
]


@pytest.fixture(scope="module", autouse=True)
def _datasets_and_few_layers(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        make_shallow(patch)
        patch.setenv("DETECTRON2_DATASETS", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture(autouse=True)
def _nothing_runs_on():
    yield
    for process in multiprocessing.active_children():
        if not process.daemon:  # unlike a loader's worker
            process.kill()


class Started:
    """A forked run of train_net.py, which need not import anything anew, with what it printed in a file."""

    def __init__(self, folder, arguments, environ, killed_in=None, before=lambda: None, linger=0):
        folder.mkdir(exist_ok=True)
        number = sum(1 for _ in folder.glob("*.out"))
        self._out = folder / f"{number}.out"
        self._out.touch()
        context = multiprocessing.get_context("fork")
        self.process = context.Process(
            target=self._run, args=(list(map(str, arguments)), environ, killed_in, before, linger)
        )
        self.process.start()

    def _run(self, arguments, environ, killed_in, before, linger):
        with self._out.open("w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            sys.stdout, sys.stderr = out, out
            os.environ.update(environ)
            devices.num_cores = lambda: 1  # what was forked may use no other threads
            torch.set_num_threads(1)
            before()
            step = Trainer.run_step
            Trainer.run_step = lambda self: os.kill(os.getpid(), 9) if self.iter == killed_in else step(self)
            try:
                code = main(arguments, ends_process=True)  # as train_net.py
                time.sleep(linger)  # as Python's own end takes
            except BaseException as error:
                print(repr(error))
                code = error.code if isinstance(error, SystemExit) else EXIT_FAULT
            out.flush()
        os._exit(code)

    def poll(self):
        return self.process.exitcode

    def end(self):
        self.process.join(timeout=150)
        assert not self.process.is_alive(), end_with_stacks(self.process.pid) + self.output[-3000:]
        return self.process.exitcode

    @property
    def output(self):
        return self._out.read_text()


def fork_ranks():
    """Let Detectron2 fork its ranks from this process, where it would spawn them, which takes seconds."""
    torch.multiprocessing.start_processes = partial(torch.multiprocessing.start_processes, start_method="fork")


def torchrun(rank, port, size=2):
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    elastic = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "none"}
    return {name: str(value) for name, value in {**names, **elastic}.items()}


def slurm(rank, port, size=4):
    names = {"SLURM_STEP_ID": 0, "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_STEP_NUM_TASKS": size}
    more = {"SLURM_STEP_TASKS_PER_NODE": size, "SLURM_STEP_NODELIST": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in {**names, **more}.items()}


def arguments(folder, *more, steps=5):
    return [*SETTINGS, "SOLVER.MAX_ITER", str(steps), "OUTPUT_DIR", str(folder / "run"), *map(str, more)]


def finish(started):
    codes = [one.end() for one in started]
    assert codes == [EXIT_DONE] * len(codes), "\n".join(one.output[-2000:] for one in started)


def start_all(folder, environments, *more, steps=5):
    return [Started(folder, arguments(folder, *more, steps=steps), environ) for environ in environments]


def weights(folder):
    return torch.load(folder / "run" / "model_final.pth", weights_only=True)["model"]


def evaluation_of(folder):
    return "--eval-only", "--num-gpus", "2", "MODEL.WEIGHTS", folder / "run" / "model_final.pth"


def last_metrics(folder):
    lines = [json.loads(line) for line in (folder / "run" / "metrics.json").read_text().splitlines()]
    return {name: value for line in lines for name, value in line.items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of the training in one process."""
    folder = tmp_path_factory.mktemp("alone")
    finish(start_all(folder, [{}]))
    return folder


def assert_equal_to_rounding(folder, alone):
    """The weights are apart by less than a thousandth of the way that they went after the first checkpoint.

    Sums over other parts of a batch round otherwise. Multiplying all first weights by 1 + 6e-8 r, r normal, which is
    one rounding of each, sets the runs apart by 2.6e-5 of that way, and ten times as much by 2.2e-4. Another
    normaliser, image or augmentation sets them apart by the order of the way itself.
    """
    one, other = weights(alone), weights(folder)
    first = torch.load(alone / "run" / "model_0000001.pth", weights_only=True)["model"]
    way = sum((one[name] - first[name]).square().sum() for name in one).sqrt()
    apart = sum((one[name] - other[name]).square().sum() for name in one).sqrt()
    assert 0 < apart < 1e-3 * way
    expected, found = last_metrics(alone), last_metrics(folder)
    for name in ("total_loss", "loss_cls", "loss_box_reg", "val/total_loss", "lr"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4)


@pytest.fixture(scope="module")
def in_two(tmp_path_factory):
    """The folder of the training in two ranks of torchrun."""
    folder = tmp_path_factory.mktemp("two")
    port = free_port()
    finish(start_all(folder, [torchrun(rank, port) for rank in range(2)]))
    return folder


def test_two_ranks_of_torchrun_train_the_same_as_one(alone, in_two):
    assert_equal_to_rounding(in_two, alone)


def test_four_tasks_of_slurm_train_the_same_as_one(alone, tmp_path):
    port = free_port()
    finish(start_all(tmp_path, [slurm(rank, port) for rank in range(4)]))
    assert_equal_to_rounding(tmp_path, alone)


def test_two_machines_train_the_same_as_one_by_what_the_first_decided(alone, tmp_path):
    url = URL.format(free_port())
    machines = [("--num-machines", "2", "--machine-rank", rank, "--dist-url", url) for rank in "01"]
    first, second = (arguments(tmp_path, *flags) for flags in machines)
    second[second.index("SEED") + 1] = "8"
    finish([Started(tmp_path, words, {}, before=fork_ranks) for words in (first, second)])
    assert_equal_to_rounding(tmp_path, alone)


def test_a_wrong_interface_is_named_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth77")
    assert main(arguments(tmp_path / "run", "--num-gpus", "2"), ends_process=False) == EXIT_BAD_INPUT
    assert "GLOO_SOCKET_IFNAME names the network interface eth77" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_killed_rank_and_an_elastic_restart_end_with_the_same_weights(in_two, tmp_path):
    port = free_port()
    resumable = arguments(tmp_path, "--resume", "auto")
    killed = Started(tmp_path, resumable, torchrun(0, port), killed_in=3)
    other = Started(tmp_path, resumable, torchrun(1, port))
    assert killed.end() == -signal.SIGKILL
    other.process.kill()  # as torchrun does
    other.end()
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000001.pth"
    finish(start_all(tmp_path, [torchrun(rank, port) for rank in range(2)], "--resume", "auto"))
    assert "Starting training from iteration 2" in (tmp_path / "run" / "log.txt").read_text()
    for name, value in weights(in_two).items():
        assert torch.equal(value, weights(tmp_path)[name])


def test_a_signal_to_one_rank_ends_all_with_75(tmp_path, wait_for):
    port = free_port()
    ranks = start_all(tmp_path, [torchrun(rank, port) for rank in range(2)], steps=1000)
    wait_for(tmp_path / "run" / "last_checkpoint", ranks[0])
    os.kill(ranks[1].process.pid, signal.SIGTERM)
    assert [rank.end() for rank in ranks] == [EXIT_STOPPED] * 2, ranks[0].output[-3000:]


@pytest.mark.parametrize("environment", [slurm, torchrun])
def test_srun_and_torchrun_that_signal_the_ranks_still_leaving_change_no_exit_code(tmp_path, wait_for, environment):
    port = free_port()
    ranks = [
        Started(tmp_path, arguments(tmp_path, steps=1000), environment(rank, port, 2), linger=2 * rank)
        for rank in range(2)
    ]
    wait_for(tmp_path / "run" / "last_checkpoint", ranks[0])
    os.kill(ranks[0].process.pid, signal.SIGTERM)
    assert ranks[0].end() == EXIT_STOPPED
    time.sleep(1.1)  # more than one that comes with the first
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(ranks[1].process.pid, number)
    assert ranks[1].end() == EXIT_STOPPED
    output = ranks[0].output + ranks[1].output
    assert output.count("all saved") == 1
    assert "nothing was trained" not in output


def test_bad_input_is_printed_once_and_ends_all_ranks_with_2(tmp_path):
    port = free_port()
    ranks = start_all(tmp_path, [torchrun(rank, port) for rank in range(2)], "SOLVER.BASE_LR", "-1")
    assert [rank.end() for rank in ranks] == [EXIT_BAD_INPUT] * 2
    assert "".join(rank.output for rank in ranks).count("SOLVER.BASE_LR") == 1
    assert not (tmp_path / "run").exists()


def test_preflight_of_all_ranks_writes_nothing(tmp_path):
    port = free_port()
    ranks = start_all(tmp_path, [torchrun(rank, port) for rank in range(2)], "--preflight-only")
    finish(ranks)
    assert "".join(rank.output for rank in ranks).count("ready: nothing was written") == 1
    assert not (tmp_path / "run").exists()


# --- ranks of the launcher -------------------------------------------------------------------------------------------


def in_a_group_that_never_ends():
    """Launch by forks, in a new process group; each rank prints when it detects, and never finishes."""
    os.setpgid(0, 0)
    watch.POLL_SECONDS = 0.25
    fork_ranks()

    def forward(self, batch):
        print(f"rank {comm.get_rank()} is {os.getpid()}", flush=True)
        time.sleep(60)

    FocalRetinaNet.forward = forward


def is_there(group):
    """Whether any process of it is left, except those that have ended and were not yet waited for."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = file.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended meanwhile
            continue
        if int(its_group) == group and state != "Z":
            return True
    return False


@pytest.mark.parametrize(
    ("number", "to"), [(signal.SIGTERM, "launcher"), (signal.SIGINT, "all"), (signal.SIGINT, "rank 1")]
)
def test_an_evaluation_is_left_by_its_launcher_and_all_ranks_with_the_signals_code(alone, tmp_path, number, to):
    more = (*evaluation_of(alone), "DATALOADER.NUM_WORKERS", "1" if to == "all" else "0")
    launcher = Started(tmp_path, arguments(tmp_path, *more), {}, before=in_a_group_that_never_ends)
    deadline = time.monotonic() + 100
    while len(ranks := dict(re.findall(r"rank (\d) is (\d+)", launcher.output))) < 2 and launcher.poll() is None:
        assert time.monotonic() < deadline, launcher.output
        time.sleep(0.05)
    began = time.monotonic()
    if to == "all":
        os.killpg(launcher.process.pid, number)
    else:
        os.kill(launcher.process.pid if to == "launcher" else int(ranks["1"]), number)
    assert launcher.end() == 128 + number, launcher.output
    assert time.monotonic() - began < 40  # of the 60 s that each rank would detect for
    assert launcher.output.count(f"{number.name}: stopped outside of training: nothing to save") == 1
    assert "Traceback" not in launcher.output
    assert "rank 1 was ended" not in launcher.output
    deadline = time.monotonic() + 30
    while is_there(launcher.process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- in this process -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [("--num-gpus", "2"), ("--num-machines", "2"), ("--dist-url", "tcp://a:1")])
def test_flags_beside_the_environment_are_refused(monkeypatch, capsys, tmp_path, flags):
    for name, value in torchrun(0, 29500).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(arguments(tmp_path, *flags)) == EXIT_BAD_INPUT
    assert "torchrun has started 2 processes; leave out --num-gpus" in capsys.readouterr().err


def test_a_port_in_use_is_named_and_nothing_is_written(capsys, tmp_path):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        url = URL.format(other.getsockname()[1])
        assert main(arguments(tmp_path, "--num-machines", "2", "--dist-url", url)) == EXIT_BAD_INPUT
    assert f"of {url} is in use on this machine" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))


def test_a_machine_that_does_not_join_is_named(capsys, tmp_path):
    flags = ("--num-machines", "2", "--dist-url", URL.format(free_port()), "--start-timeout", "0.5")
    assert main(arguments(tmp_path, *flags)) == EXIT_FAULT
    assert "machine 1 of 2 did not join within 0.5 s (--start-timeout)" in capsys.readouterr().err


@pytest.mark.parametrize(("device", "hidden"), [("cpu", ""), ("cuda", None)])
def test_ranks_that_train_on_the_processor_see_no_gpu_and_leave_nccls_errors_to_the_watch(
    monkeypatch, tmp_path, device, hidden
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "put back")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    seen = []
    monkeypatch.setattr(launching, "launch", lambda *_, **__: seen.append(os.environ.get("CUDA_VISIBLE_DEVICES")))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    cfg = SimpleNamespace(MODEL=SimpleNamespace(DEVICE=device))
    launching._launch(TrainOptions(num_gpus=2), SimpleNamespace(cfg=cfg))
    assert seen == [hidden]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ  # the next run in this process may use GPUs


def test_a_signal_to_one_rank_while_they_reach_each_other_stops_all(tmp_path):
    def signalled():
        reach = launching.reach_all
        launching.reach_all = lambda seconds: (os.kill(os.getpid(), signal.SIGTERM), reach(seconds))

    port, more = free_port(), ("--start-timeout", "20")
    ranks = [
        Started(tmp_path, arguments(tmp_path, *more), torchrun(rank, port), before=signalled if rank else lambda: None)
        for rank in range(2)
    ]
    assert [rank.end() for rank in ranks] == [EXIT_STOPPED] * 2, "\n".join(rank.output[-2000:] for rank in ranks)
    assert not (tmp_path / "run" / "log.txt").exists()


RAISED = ProcessRaisedException("... errno: 98, EADDRINUSE: address already in use", 0, 1)

NO_NETWORK = ProcessRaisedException("Traceback:\n  File\nRuntimeError: Unable to find address\nframe #0: C++", 1, 1)


@pytest.mark.parametrize(
    ("url", "faults", "code", "message"),
    [
        ("auto", [RAISED], EXIT_DONE, "trying another"),
        ("auto", [RAISED, RAISED], EXIT_FAULT, "was taken by another process"),
        (None, [RAISED], EXIT_FAULT, "was taken by another process"),
        ("auto", [NO_NETWORK], EXIT_FAULT, "error: rank 1 could not start (RuntimeError: Unable to find address): Is"),
        ("auto", [ProcessExitedException("", 0, 1, EXIT_FAULT)], EXIT_FAULT, ""),
    ],
)
def test_a_port_taken_in_the_meantime_is_retried_once(monkeypatch, capsys, tmp_path, url, faults, code, message):
    left, ignored = list(faults), []

    def launch(*_, **__):
        assert not ignored  # in each try a signal is forwarded to the ranks
        if left:
            raise left.pop(0)

    monkeypatch.setattr(launching, "launch", launch)
    monkeypatch.setattr(launching.signals, "ignore_signals", lambda: ignored.append(True))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(arguments(tmp_path, "--num-gpus", "2", "--dist-url", url or URL.format(free_port()))) == code
    assert ignored == [True]
    assert message in capsys.readouterr().err
    assert left == []


@pytest.mark.parametrize(
    ("of_rank", "code", "message"),
    [
        (143, 143, "SIGTERM: stopped outside of training: nothing to save"),
        (-signal.SIGINT, 130, "SIGINT: stopped outside of training: nothing to save"),
        (-signal.SIGKILL, EXIT_FAULT, "rank 1 was ended by SIGKILL: the system does that when memory runs out"),
        (EXIT_FAULT, EXIT_FAULT, ""),
    ],
)
def test_how_a_rank_of_an_evaluation_ended_is_printed(alone, monkeypatch, capsys, tmp_path, of_rank, code, message):
    def launch(*_, **__):
        raise ProcessExitedException("", 1, 2, of_rank)

    monkeypatch.setattr(launching, "launch", launch)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(arguments(tmp_path, *evaluation_of(alone))) == code
    printed = capsys.readouterr().err
    assert message in printed
    assert "--resume" not in printed
