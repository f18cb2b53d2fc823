"""Who is there: before anything long all processes or machines sign in and reach one another, or it is said who not.

PyTorch's own start would wait for half an hour and name nobody.
"""

from __future__ import annotations

import json
import queue
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from ..errors import InputError, TrainingError, some

_PATIENCE = 0.1  # seconds between two looks
_FAREWELL = 10.0  # seconds for the last to see that all have come
_NEWEST = "focal_det/newest"  # the key of the newest start's name


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
        store = opened.get(timeout=left + _PATIENCE)
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
        time.sleep(_PATIENCE)


def call_roll(store: dist.Store, caller: Caller, deadline: float) -> dist.Store:
    """Sign in, and return when all have.

    torchrun's store outlives a start, and its agents count restarts each for itself. So number 0 gives each start a
    name that it draws, the others sign in to the newest, and who finds one that is over waits for the next.

    Returns:
        The part of the store that is of this start alone.

    Raises:
        TrainingError: who has not by then, or came twice, or was started otherwise; the same on all that have come.
    """
    here = {"name": socket.gethostname(), "started": caller.started, "gpu": caller.gpu, "id": secrets.token_hex(8)}
    name = ""
    try:
        while True:
            name = _newest_start(store, caller, name, deadline)
            start = dist.PrefixStore(f"focal_det/{name}", store)
            if _signed_in(start, caller, json.dumps(here)):
                try:
                    if caller.number == 0:
                        store.set(_NEWEST, name)
                    if _all_have_come(store, start, caller, name, deadline):
                        return start
                except (KeyboardInterrupt, SystemExit):  # it may come again
                    start.delete_key(f"is/{caller.number}")
                    raise
    except RuntimeError as error:  # of PyTorch, whose store went
        raise TrainingError(
            f"{caller.what} 0 at {caller.address} ended before all had come: look at its messages"
        ) from error


def _newest_start(store: dist.Store, caller: Caller, before: str, deadline: float) -> str:
    """The name of the newest start, as soon as that is another than `before`."""
    if caller.number == 0:
        return secrets.token_hex(8)
    while not store.check([_NEWEST]) or (name := store.get(_NEWEST).decode()) == before:
        if time.monotonic() > deadline:
            raise TrainingError(caller.missing([0]))
        time.sleep(_PATIENCE)
    return name


def _signed_in(start: dist.Store, caller: Caller, here: str) -> bool:
    """Whether this one is now of that start; not of one that is over, or that has one of its number."""
    if start.check(["go"]) or start.check(["end"]):
        return False
    found = start.compare_set(f"is/{caller.number}", "", here).decode()
    if found != here and caller.what == "machine":  # a rank's number is torchrun's: the other is of an earlier start
        _end(
            start,
            f"two processes came as --machine-rank {caller.number} of {caller.count}, on {json.loads(found)['name']} "
            f"and on {json.loads(here)['name']}: give each machine a number of its own",
        )
    return found == here


def _all_have_come(store: dist.Store, start: dist.Store, caller: Caller, name: str, deadline: float) -> bool:
    """Wait for that; False as soon as there is a newer start. Number 0 looks, and says it to the others."""
    everyone = [f"is/{number}" for number in range(caller.count)]
    while not start.check(["go"]):
        _raise_if_ended(start, caller)
        if store.get(_NEWEST).decode() != name:
            if caller.number == 0:
                raise TrainingError(f"another {caller.what} 0 came to {caller.address} and took the place of this one")
            return False
        if caller.number == 0 and start.check(everyone):
            _end_if_they_do_not_fit(start, caller)
            start.set("go", "")
        elif time.monotonic() > deadline + (_FAREWELL if start.check(everyone) else 0):
            _end(start, caller.missing([n for n, key in enumerate(everyone) if not start.check([key])] or [0]))
        else:
            time.sleep(_PATIENCE)
    _raise_if_ended(start, caller)
    start.add("seen", 1)
    while caller.number == 0 and start.add("seen", 0) < caller.count:  # the store goes with this process
        _raise_if_ended(start, caller)
        if time.monotonic() > deadline + _FAREWELL:
            break
        time.sleep(_PATIENCE)
    return True


def _end_if_they_do_not_fit(start: dist.Store, caller: Caller) -> None:
    owners: dict[str, int] = {}
    for number in range(caller.count):
        other = json.loads(start.get(f"is/{number}"))
        if other["started"] != caller.started:
            _end(
                start,
                f"{caller.what} {number} was started with {other['started']}, {caller.what} {caller.number} with "
                f"{caller.started}: all must have the same",
            )
        owner = owners.setdefault(other["gpu"] or f"unknown {number}", number)
        if owner != number:
            _end(
                start,
                f"ranks {owner} and {number} have the same GPU of {other['name']}: start no more processes than GPUs, "
                "and let each process see all of its machine or one of its own",
            )


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
    what = "all ranks answer, but their GPUs" if on_gpu else "all ranks answer, but they"
    fix = "set NCCL_SOCKET_IFNAME to the network between the machines; NCCL_DEBUG=INFO says what NCCL tries"
    try:
        total = torch.ones(1, device="cuda" if on_gpu else "cpu")
        work, deadline = dist.all_reduce(total, async_op=True), time.monotonic() + seconds
        while not work.is_completed():
            if time.monotonic() > deadline:
                raise TrainingError(f"{what} did not add up a number within {seconds:g} s: {fix}")
            time.sleep(0.01)
        work.wait()
        added = total.item()
    except RuntimeError as error:
        raise TrainingError(f"{what} cannot add up a number ({first_line(error)}): {fix}") from error
    if added != dist.get_world_size():
        raise TrainingError(f"the sum of ones over {dist.get_world_size()} ranks is {added:g}")


def first_line(error: BaseException) -> str:
    """Of what PyTorch says, without its stack of C++."""
    return (str(error).splitlines() or [type(error).__name__])[0]
