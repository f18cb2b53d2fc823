"""Run train_net.py and focal-det in forks of one prepared process, which has imported what they import.

A new process imports torch and Detectron2 for seconds before it does anything. A fork starts at once and is otherwise
the same: arguments, folder, environment, exit code, signals, `__main__`, what happens at exit. It differs in this:

- The variables that Python and libraries read as they start (`READ_AT_START`) are the prepared process's; a run that
  asks for other values is refused.
- All runs of one prepared process hash strings alike, and lazy imports have happened. Tests of imports, of missing
  packages and of Python's flags need a new process.
- What Python writes to stderr after its exit handlers is lost.
- Output goes to files, so that a run never waits for a reader.

The prepared process is fork_server.py. This works on Linux only: elsewhere libraries do not survive a fork.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from time_limit import STACKS

ROOT = Path(__file__).parents[1]
SERVER = Path(__file__).with_name("fork_server.py")
READ_AT_START = ("PYTHON", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_", "TORCH_", "TRITON_", "MPL", "LD_")
READ_AT_START += ("LC_", "LANG", "MALLOC_")


class Prepared:
    """The prepared process: starts with the first run, and ends with `close` or with this process.

    Args:
        env: its environment; that of this process if None.
    """

    def __init__(self, env=None):
        self.env = dict(os.environ if env is None else env)
        self._control = self._process = None

    def popen(self, *args, program="train_net.py", cwd=ROOT, env=None, stderr=None, new_session=False):
        """Start a run.

        Args:
            args: arguments of the command line.
            program: focal-det, or the path of a Python script, relative to that of train_net.py.
            env: the run's whole environment; the current one of this process if None.
            stderr: subprocess.STDOUT to write both into one file.
            new_session: whether the run leads a new session and process group.

        Raises:
            ValueError: the environment differs in variables that only a new process reads.
            RuntimeError: the prepared process has died.
        """
        env = dict(os.environ if env is None else env)
        differing = {name for name in env.keys() | self.env.keys() if env.get(name) != self.env.get(name)}
        differing.discard("PYTHONHASHSEED")  # a library may have set it since; all runs hash alike
        differing.discard("PYTHONWARNINGS")  # a command that ran in this process has set it, as each run does itself
        if fixed := sorted(name for name in differing if name.startswith(READ_AT_START)):
            raise ValueError(f"{', '.join(fixed)}: read as Python starts, so this run needs a process of its own")
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            self._start()
        args = [str(arg) for arg in args]
        request = {"args": args, "program": str(program), "cwd": str(cwd), "env": env, "new_session": new_session}
        return ForkedRun(self._control, request, merged=stderr == subprocess.STDOUT)

    def run(self, *args, **options):
        """Run to the end and return a CompletedProcess with the output as text; the options are those of `popen`."""
        run = self.popen(*args, **options)
        try:
            out, err = run.communicate()
        finally:
            run.kill()
        return subprocess.CompletedProcess(run.args, run.returncode, out, err)

    def close(self):
        """End the prepared process; its runs continue."""
        if self._process is not None:
            self._control.shutdown(socket.SHUT_RDWR)  # a loader worker that a test left has a copy, which stays open
            self._control.close()
            self._process.wait()
            self._process = None

    def _start(self):
        self._control, server_end = socket.socketpair()
        files = [server_end.fileno(), STACKS.fileno()]
        command = [sys.executable, str(SERVER), *map(str, files)]
        with server_end:
            # not to a terminal, where Python would flush each line
            self._process = subprocess.Popen(command, env=self.env, cwd=ROOT, pass_fds=files, stdout=subprocess.DEVNULL)


class ForkedRun:
    """A run, with the attributes and methods of subprocess.Popen."""

    def __init__(self, control, request, *, merged):
        self.args = [request["program"], *request["args"]]
        self.returncode = None
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the last reference, as subprocess's pipes are
        self._err = self._out if merged else tempfile.TemporaryFile()  # noqa: SIM115
        self._channel, run_end = socket.socketpair()
        with run_end, open(os.devnull) as nothing:
            files = [run_end, nothing, self._out, self._err]
            with contextlib.suppress(BrokenPipeError):
                socket.send_fds(control, [b"r"], [file.fileno() for file in files])
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._channel.sendall(json.dumps(request).encode())
            self._channel.shutdown(socket.SHUT_WR)
        self._answers = self._channel.makefile("r")
        self.pid = self._answer()

    def _answer(self):
        with contextlib.suppress(ConnectionResetError):
            if line := self._answers.readline():
                return int(line)
        raise RuntimeError("the prepared process has died; see its message on stderr")

    def poll(self):
        """Return the exit code, -N after signal N, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout=None):
        """Wait for the end and return the exit code; raise subprocess.TimeoutExpired after this many seconds."""
        if self.returncode is None:
            if not select.select([self._channel], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = self._answer()
            self._answers.close()
            self._channel.close()
        return self.returncode

    def communicate(self, timeout=None):
        """Wait for the end; return what it and its children wrote: stdout, and stderr or None where stdout has it."""
        self.wait(timeout)
        return self.output(), None if self._err is self._out else self._text(self._err)

    def output(self):
        """Return what has been written to stdout so far."""
        return self._text(self._out)

    def _text(self, file):
        text = os.pread(
            file.fileno(), os.fstat(file.fileno()).st_size, 0
        ).decode()  # the file's position belongs to the run
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def send_signal(self, number):
        """Send a signal, unless the run has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)
