"""Who is there: before anything long all processes or machines sign in and reach one another, or it is said who not.

PyTorch's own start would wait for half an hour and name nobody.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from ..errors import TrainingError
from .store import PATIENCE, Caller, first_line

_FAREWELL = 10.0  # seconds for the last to see that all have come
_NEWEST = "focal_det/newest"  # the key of the newest start's name


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
        time.sleep(PATIENCE)
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
            time.sleep(PATIENCE)
    _raise_if_ended(start, caller)
    start.add("seen", 1)
    while caller.number == 0 and start.add("seen", 0) < caller.count:  # the store goes with this process
        _raise_if_ended(start, caller)
        if time.monotonic() > deadline + _FAREWELL:
            break
        time.sleep(PATIENCE)
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
            time.sleep(10 * PATIENCE)
        raise TrainingError(words)


def _end(store: dist.Store, words: str) -> None:
    """End it for all that have come."""
    store.set("end", words)
    time.sleep(10 * PATIENCE)
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
