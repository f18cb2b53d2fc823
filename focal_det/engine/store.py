"""The store at which the processes or machines of a job meet; one of PyTorch's, opened in bounded time."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from ..errors import InputError, TrainingError, some

PATIENCE = 0.1  # seconds between two looks


@dataclass(frozen=True)
class Caller:
    """Who signs in.

    number, count: of this one, from 0, and of all.
    what: "machine" or "rank".
    host, port: of the store that number 0 holds.
    started: how, such as "--num-machines 2 --num-gpus 8"; the same of all.
    seconds: --start-timeout, within which all must have come.
    gpu: that it trains on, by a name that no other has; "" if that is not known.
    """

    number: int
    count: int
    what: str
    host: str
    port: int
    started: str
    seconds: float
    gpu: str = ""

    @property
    def address(self) -> str:
        return f"tcp://{self.host}:{self.port}"

    def missing(self, numbers: Sequence[int]) -> str:
        """What is said where these have not come."""
        who = f"{self.what}{'s' if len(numbers) > 1 else ''} {some('', numbers)} of {self.count}"
        asked = (
            "did their processes start, and do they reach"
            if self.what == "rank"
            else f"is the same command running there with --machine-rank {numbers[0]}, and does it reach"
        )
        return f"{who} did not come within {self.seconds:g} s (--start-timeout): {asked} {self.address}?"


def open_store(caller: Caller, deadline: float, *, is_host: bool) -> dist.TCPStore:
    """Number 0's store, opened there and reached from elsewhere.

    Args:
        deadline: of the monotonic clock.

    Raises:
        InputError: the port is in use on the host.
        TrainingError: the host was not reached by then.
    """
    if not is_host:
        _wait_for_host(caller, deadline)
    left = max(1.0, deadline - time.monotonic())
    opened: queue.Queue[dist.TCPStore | RuntimeError] = queue.Queue()

    def open_it() -> None:
        try:
            opened.put(
                dist.TCPStore(
                    caller.host,
                    caller.port,
                    is_master=is_host,
                    wait_for_workers=False,
                    timeout=timedelta(seconds=left),
                )
            )
        except RuntimeError as error:
            opened.put(error)

    # Beside this thread: for one that listens and does not answer PyTorch waits without end, and heeds no signal.
    threading.Thread(target=open_it, daemon=True).start()
    try:
        store = opened.get(timeout=left + PATIENCE)
        if isinstance(store, dist.TCPStore):
            return store
        raise store
    except queue.Empty:
        raise TrainingError(
            f"something listens at {caller.address} and does not answer as a training does: is the port taken by "
            f"another program on the machine of {caller.what} 0?"
        ) from None
    except RuntimeError as error:
        if "EADDRINUSE" in str(error):
            raise InputError(
                f"port {caller.port} of {caller.address} is in use on this machine, perhaps by another training: name "
                "another, the same for all (--dist-url; under torchrun --master-port; under SLURM MASTER_PORT)"
            ) from error
        raise TrainingError(f"{caller.address} was not reached from here: {first_line(error)}") from error


def _wait_for_host(caller: Caller, deadline: float) -> None:
    """By plain connections, which a Ctrl-C interrupts, as PyTorch's are not."""
    while True:
        try:
            socket.create_connection((caller.host, caller.port), timeout=2.0).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise TrainingError(f"{caller.missing([0])} Last: {error}") from error
        time.sleep(PATIENCE)


def first_line(error: BaseException) -> str:
    """Of what PyTorch says, without its stack of C++."""
    return (str(error).splitlines() or [type(error).__name__])[0]
