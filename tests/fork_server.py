"""The prepared process of forked.py: import what runs import, then fork a run for each request.

Only imports happen before a fork: no tensor is computed, no GPU is queried, and no thread is left.
A request is one byte with four files: a channel for this run, and its stdin, stdout and stderr. The channel brings the
arguments of `Prepared.popen` as JSON, and takes back the run's process id and, at its end, its exit code.
"""

import atexit
import contextlib
import faulthandler
import gc
import importlib
import json
import multiprocessing.process
import os
import pkgutil
import runpy
import signal
import socket
import sys
import tempfile
import types
from pathlib import Path

ROOT = Path(__file__).parents[1]
STACKS = int(sys.argv[2])  # the file of time_limit.py
# What runs import late, besides our own modules; found by comparing sys.modules before and after runs. Without
# torch.utils.cpp_extension, which queries CUDA's devices: after that no fork may use them.
LATE = ("torch.utils.tensorboard", "matplotlib.backends.backend_svg", "setuptools.dist")


def prepare():
    """Import what runs import."""
    sys.path[0] = str(ROOT)
    import focal_det

    ours = [module.name for module in pkgutil.walk_packages(focal_det.__path__, "focal_det.")]
    for name in (*ours, *LATE):
        with contextlib.suppress(ImportError):  # a package that is missing here is missing in the run, too
            importlib.import_module(name)


def silence_stderr():
    """Discard stderr from here on, at the very end: frozen objects are never freed, about which Triton complains."""
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def serve(control):
    """Fork a keeper for each request, which forks the run; return in the run, with the request and its files."""
    gc.collect()
    gc.freeze()  # else the collector in a child touches, and so copies, every page: a second at each run's end
    # Ctrl-C at the keyboard is for the tests and the runs, which get back the handler that was there.
    interrupt_handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.disable()
    signal.signal(signal.SIGABRT, signal.SIG_IGN)  # for the stacks of runs that hang (time_limit.py), as keepers report
    if (child := os.fork()) == 0:  # libraries such as OpenBLAS end their threads before a fork
        os._exit(0)
    os.waitpid(child, 0)
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        sys.exit(f"{__file__}: {threads} threads in the prepared process: its children could deadlock")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    while True:
        message, fds, _, _ = socket.recv_fds(control, 1, 4)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            channel = socket.socket(fileno=fds[0])
            request = json.load(channel.makefile("rb"))
            if (pid := os.fork()) == 0:
                signal.signal(signal.SIGINT, interrupt_handler)
                signal.signal(signal.SIGABRT, signal.SIG_DFL)
                faulthandler.enable(STACKS)
                if request["new_session"]:
                    os.setsid()
                channel.sendall(f"{os.getpid()}\n".encode())  # from here on it can be signalled
                channel.close()
                return request, fds[1:]
            keep(pid, channel, fds[1:])
        for fd in fds:
            os.close(fd)


def keep(pid, channel, fds):
    """Wait for the end of a run and report its exit code."""
    for fd in fds:
        os.close(fd)
    with contextlib.suppress(BrokenPipeError):  # the tests may have ended
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        channel.sendall(f"{code}\n".encode())
    os._exit(0)


def become(request, fds):
    """Make this process what a shell would have started, up to the first line of the program."""
    import numpy as np
    from detectron2.data import DatasetCatalog, MetadataCatalog, datasets

    os.chdir(request["cwd"])
    multiprocessing.process.ORIGINAL_DIR = os.getcwd()
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    sets_before = os.environ.get("DETECTRON2_DATASETS")
    os.environ.clear()
    os.environ.update(request["env"])
    if os.environ.get("DETECTRON2_DATASETS") != sets_before:  # Detectron2 reads it on import
        DatasetCatalog.clear()
        MetadataCatalog.clear()
        importlib.reload(datasets.builtin)
    tempfile.tempdir = None
    np.random.seed()  # else all runs would draw alike; Python reseeds itself in a fork, and PyTorch's seed is always 0
    sys.argv[1:] = request["args"]


if __name__ == "__main__":
    atexit.register(silence_stderr)
    prepare()
    request, files = serve(socket.socket(fileno=int(sys.argv[1])))
    become(request, files)
    # From here on Python itself decides what an exception or sys.exit prints and returns, and what happens at exit.
    if request["program"] == "focal-det":
        sys.argv[0], sys.path[0] = "focal-det", str(Path(sys.executable).parent)
        sys.modules["__main__"] = types.ModuleType(
            "__main__"
        )  # not this file, which processes that a run spawns would import
        sys.exit(importlib.import_module("focal_det.cli.main").main())
    program = ROOT / request["program"]
    sys.path[0] = str(program.parent)
    runpy.run_path(str(program), run_name="__main__")
