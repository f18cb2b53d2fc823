"""Who is there: before anything long all processes or machines sign in and reach one another, or it is said who not.

PyTorch's own start would wait for half an hour and name nobody.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from ..errors import InputError, TrainingError

_PATIENCE = 0.1  # seconds between two looks
_FAREWELL = 10.0  # seconds for the last to see that all have come


@dataclass(frozen=True)
class Caller:
    """Who signs in.

    number, count: of this one, from 0, and of all.
    what: "machine" or "rank".
    host, port: of the store that number 0 holds.
    started: how, such as "--num-machines 2 --num-gpus 8"; the same of all.
    seconds: --start-timeout, within which all must have come.
    """

    number: int
    count: int
    what: str
    host: str
    port: int
    started: str
    seconds: float

    @property
    def address(self) -> str:
        return f"tcp://{self.host}:{self.port}"

    def missing(self, numbers: Sequence[int]) -> str:
        """What is said where these have not come."""
        who = f"{self.what}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))} of {self.count}"
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
    try:
        return dist.TCPStore(
            caller.host,
            caller.port,
            is_master=is_host,
            wait_for_workers=False,
            timeout=timedelta(seconds=max(1.0, deadline - time.monotonic())),
        )
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
        time.sleep(_PATIENCE)


def call_roll(store: dist.Store, caller: Caller, deadline: float) -> None:
    """Sign in, and return when all have.

    Raises:
        TrainingError: who has not by then, or came twice, or was started otherwise; the same on all that have come.
    """
    try:
        _sign_in(store, caller)
        try:
            _wait_for_all(store, caller, deadline)
        except KeyboardInterrupt:  # it may come again
            store.delete_key(f"is/{caller.number}")
            store.add(f"came/{caller.number}", -1)
            store.add("came", -1)
            raise
    except RuntimeError as error:  # of PyTorch, whose store went
        raise TrainingError(
            f"{caller.what} 0 at {caller.address} ended before all had come: look at its messages"
        ) from error


def _sign_in(store: dist.Store, caller: Caller) -> None:
    here = {"name": socket.gethostname(), "started": caller.started}
    if store.add(f"came/{caller.number}", 1) > 1:
        other = json.loads(store.get(f"is/{caller.number}"))["name"]
        flag = "--machine-rank" if caller.what == "machine" else "rank"
        _end(
            store,
            f"two processes came as {flag} {caller.number} of {caller.count}, on {other} and on {here['name']}: "
            f"give each {caller.what} a number of its own",
        )
    store.set(f"is/{caller.number}", json.dumps(here))
    store.add("came", 1)


def _wait_for_all(store: dist.Store, caller: Caller, deadline: float) -> None:
    while store.add("came", 0) < caller.count:
        _raise_if_ended(store, caller)
        if time.monotonic() > deadline:
            _end(store, caller.missing([n for n in range(caller.count) if not store.check([f"is/{n}"])]))
        time.sleep(_PATIENCE)
    for number in range(caller.count):
        other = json.loads(store.get(f"is/{number}"))["started"]
        if other != caller.started:
            _end(
                store,
                f"{caller.what} {number} was started with {other}, {caller.what} {caller.number} with "
                f"{caller.started}: all must have the same",
            )
    _raise_if_ended(store, caller)
    store.add("seen", 1)
    while caller.number == 0 and store.add("seen", 0) < caller.count:  # the store goes with this process
        _raise_if_ended(store, caller)
        if time.monotonic() > deadline + _FAREWELL:
            break
        time.sleep(_PATIENCE)


def _raise_if_ended(store: dist.Store, caller: Caller) -> None:
    if store.check(["end"]):
        words = store.get("end").decode()
        if caller.number == 0:  # the store goes with this process: the others read it first
            time.sleep(10 * _PATIENCE)
        raise TrainingError(words)


def _end(store: dist.Store, words: str) -> None:
    """End it for all that have come."""
    store.set("end", words)
    time.sleep(10 * _PATIENCE)
    raise TrainingError(words)


def reach_all(seconds: float = 60.0) -> None:
    """Sum a number over all ranks, on the device that they train on; at once if there is one rank.

    Raises:
        TrainingError: not done within `seconds`; names the ranks that are missing where that can be known.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    limit, on_gpu = timedelta(seconds=seconds), dist.get_backend() == "nccl"
    try:
        group = dist.new_group(backend="gloo", timeout=limit)
        assert isinstance(group, dist.ProcessGroup)  # all ranks are in it
        dist.monitored_barrier(group, timeout=limit, wait_all_ranks=True)
    except RuntimeError as error:
        raise TrainingError(
            f"not all ranks answer within {seconds:g} s: {first_line(error)}; does a firewall stand between the "
            "machines, or has one several networks? GLOO_SOCKET_IFNAME names the one to use"
        ) from error
    total = torch.ones(1, device="cuda" if on_gpu else "cpu")
    work, deadline = dist.all_reduce(total, async_op=True), time.monotonic() + seconds
    while not work.is_completed():
        if time.monotonic() > deadline:
            raise TrainingError(
                f"all ranks answer, but their GPUs did not add up a number within {seconds:g} s: set "
                "NCCL_SOCKET_IFNAME to the network between the machines; NCCL_DEBUG=INFO says what NCCL tries"
            )
        time.sleep(0.01)
    work.wait()
    if int(total.item()) != dist.get_world_size():
        raise TrainingError(f"the sum of ones over {dist.get_world_size()} ranks is {total.item():g}")


def first_line(error: BaseException) -> str:
    """Of what PyTorch says, without its stack of C++."""
    return (str(error).splitlines() or [type(error).__name__])[0]
