"""The prepared process of forked.py: imports all that a run imports, then forks a run for each request.

Nothing but imports happens before a fork: no tensor is computed, no GPU is asked for, and no thread outlives it.
A request comes as one byte with four files: a channel of its own, and the run's stdin, stdout and stderr. Through the
channel come the words of `Prepared.popen`; back go the run's process id and, at its end, its exit code.
"""

import atexit
import contextlib
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
# What runs import late, beside all modules of ours; found by comparing sys.modules before and after runs. Not
# torch.utils.cpp_extension, which asks CUDA for its devices: after that no fork may use them.
LATE = ("torch.utils.tensorboard", "matplotlib.backends.backend_svg", "setuptools.dist")


def prepare():
    """Import all that runs import."""
    sys.path[0] = str(ROOT)
    import focal_det

    ours = [module.name for module in pkgutil.walk_packages(focal_det.__path__, "focal_det.")]
    for name in (*ours, *LATE):
        with contextlib.suppress(ImportError):  # a package that is missing here is missing in a run as well
            importlib.import_module(name)


def silence_the_last():
    """Called as the last thing at exit: what is frozen is never freed, of which Triton would complain at length."""
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def serve(control):
    """Fork a keeper for each request; returns in the run that the keeper forks, with the request and its files."""
    gc.collect()
    gc.freeze()  # so that no collector in a child touches, and copies, all pages: a second of each run's end
    # A keyboard's Ctrl-C is for the tests and the runs, which take it as this process would have.
    of_keyboard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (child := os.fork()) == 0:  # libraries that know how, such as OpenBLAS, end their threads before a fork
        os._exit(0)
    os.waitpid(child, 0)
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        sys.exit(f"{__file__}: {threads} threads in the prepared process, so no child of it would be sound")
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
                signal.signal(signal.SIGINT, of_keyboard)
                if request["new_session"]:
                    os.setsid()
                channel.sendall(f"{os.getpid()}\n".encode())  # from here on it can be signalled
                channel.close()
                return request, fds[1:]
            keep(pid, channel, fds[1:])
        for fd in fds:
            os.close(fd)


def keep(pid, channel, fds):
    """Wait for a run's end and report its code."""
    for fd in fds:
        os.close(fd)
    with contextlib.suppress(BrokenPipeError):  # the tests may have gone
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        channel.sendall(f"{code}\n".encode())
    os._exit(0)


def become(request, fds):
    """Make this process what the shell would have started, as far as that is before the program's first line."""
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
    if os.environ.get("DETECTRON2_DATASETS") != sets_before:  # where Detectron2 expects its sets is settled on import
        DatasetCatalog.clear()
        MetadataCatalog.clear()
        importlib.reload(datasets.builtin)
    tempfile.tempdir = None
    np.random.seed()  # else all runs would draw alike; Python's own is seeded anew by itself, PyTorch's is always 0
    sys.argv[1:] = request["words"]


if __name__ == "__main__":
    atexit.register(silence_the_last)
    prepare()
    wish, files = serve(socket.socket(fileno=int(sys.argv[1])))
    become(wish, files)
    # From here all is Python's own: what an exception or sys.exit prints and returns, what is done at exit.
    if wish["program"] == "focal-det":
        sys.argv[0], sys.path[0] = "focal-det", str(Path(sys.executable).parent)
        sys.modules["__main__"] = types.ModuleType("__main__")  # not this file, for processes that a run spawns
        sys.exit(importlib.import_module("focal_det.cli.main").main())
    program = ROOT / wish["program"]
    sys.path[0] = str(program.parent)
    runpy.run_path(str(program), run_name="__main__")
