"""Runs train_net.py and focal-det in children of one prepared process, which has imported what they import.

A run of its own imports torch and Detectron2 for seconds before it does anything; a forked one starts at once and is
else the same: arguments, folder, environment, exit code, signals, `__main__`, what happens at exit. Not the same:

- What Python and the libraries read of the environment as they start (`READ_AT_START`) is the prepared process's own;
  a run that asks for something else is refused.
- All runs of one prepared process hash strings alike, and lazy imports have happened. What is about imports, missing
  packages or Python's flags needs a true process.
- What Python says on stderr after all that is done at exit is lost.
- Output goes to files, so that no reader is needed for a run to go on.

The prepared process is fork_server.py. Linux alone: elsewhere libraries do not survive a fork.
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

ROOT = Path(__file__).parents[1]
SERVER = Path(__file__).with_name("fork_server.py")
READ_AT_START = ("PYTHON", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_", "TORCH_", "TRITON_", "MPL", "LD_")
READ_AT_START += ("LC_", "LANG", "MALLOC_")


class Prepared:
    """The prepared process: starts with the first run, ends with this one or with `close`.

    Args:
        env: its environment; this process's if None.
    """

    def __init__(self, env=None):
        self.env = dict(os.environ if env is None else env)
        self._control = self._process = None

    def popen(self, *words, program="train_net.py", cwd=ROOT, env=None, stderr=None, new_session=False):
        """Start a run.

        Args:
            program: focal-det, or a script of Python's, beside train_net.py if it is no full path.
            env: all of the run's environment; this process's of now if None.
            stderr: subprocess.STDOUT, to have both in one.
            new_session: whether it is the first of a session and a process group of its own.

        Raises:
            ValueError: the environment differs in what only a true process reads.
            RuntimeError: the prepared process is gone.
        """
        env = dict(os.environ if env is None else env)
        differing = {name for name in env.keys() | self.env.keys() if env.get(name) != self.env.get(name)}
        differing.discard("PYTHONHASHSEED")  # which a library may set meanwhile; all runs hash alike
        if fixed := sorted(name for name in differing if name.startswith(READ_AT_START)):
            raise ValueError(f"{', '.join(fixed)}: read as Python starts, so this run needs a process of its own")
        if self._process is None:
            self._start()
        words = [str(word) for word in words]
        request = {"words": words, "program": str(program), "cwd": str(cwd), "env": env, "new_session": new_session}
        return ForkedRun(self._control, request, merged=stderr == subprocess.STDOUT)

    def run(self, *words, timeout=300, **options):
        """As subprocess.run with its output captured as text; the options are those of `popen`."""
        run = self.popen(*words, **options)
        try:
            out, err = run.communicate(timeout)
        finally:
            run.kill()
        return subprocess.CompletedProcess(run.args, run.returncode, out, err)

    def close(self):
        """End the prepared process; runs that have been started go on."""
        if self._process is not None:
            self._control.close()
            self._process.wait()
            self._process = None

    def _start(self):
        self._control, theirs = socket.socketpair()
        command = [sys.executable, str(SERVER), str(theirs.fileno())]
        with theirs:
            # no terminal, to which Python would write line by line
            self._process = subprocess.Popen(
                command, env=self.env, cwd=ROOT, pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL
            )


class ForkedRun:
    """What subprocess.Popen is to a process: `args`, `pid`, `returncode` and the methods of those names."""

    def __init__(self, control, request, *, merged):
        self.args = [request["program"], *request["words"]]
        self.returncode = None
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the last reference, as subprocess's pipes
        self._err = self._out if merged else tempfile.TemporaryFile()  # noqa: SIM115
        self._channel, theirs = socket.socketpair()
        with theirs, open(os.devnull) as nothing:
            files = [theirs, nothing, self._out, self._err]
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
        raise RuntimeError("the prepared process has died; what it said stands in stderr")

    def poll(self):
        """The exit code, -N of one ended by signal N; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout=None):
        """Like `poll`, after its end; raises subprocess.TimeoutExpired after so many seconds."""
        if self.returncode is None:
            if not select.select([self._channel], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = self._answer()
            self._answers.close()
            self._channel.close()
        return self.returncode

    def communicate(self, timeout=None):
        """All that it and its processes have written when it ends: stdout, and stderr or None where it is in stdout."""
        self.wait(timeout)
        return self.output(), None if self._err is self._out else self._text(self._err)

    def output(self):
        """What stands in stdout now."""
        return self._text(self._out)

    def _text(self, file):
        text = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()  # the position is the run's own
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def send_signal(self, number):
        """Send it unless the run has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)
