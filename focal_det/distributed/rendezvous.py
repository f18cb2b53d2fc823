"""Bring all machines or ranks of a job together before anything long, or say which are missing.

PyTorch's own start would wait for half an hour and name nobody.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch.distributed as dist

from ..errors import EXIT_FAULT, InputError, TrainingError, counted, first_line, some

_POLL_SECONDS = 0.1
_READ_SECONDS = 1.0  # for the others to read why a start has ended, before the process ends that holds the store
_FAREWELL = 10.0  # seconds for the last to see that all have joined
_NEWEST = "focal_det/newest"  # the key of the newest start's name
T = TypeVar("T")


@dataclass(frozen=True)
class Rendezvous:
    """The meeting of all machines or ranks at the store that number 0 holds, as one of them takes part in it."""

    number: int  # of this one, from 0
    count: int  # of all
    what: str  # "machine" or "rank"
    host: str  # of the store, as is the port
    port: int
    started: str  # how, such as "--num-machines 2 --num-gpus 8"; the same for all
    seconds: float  # --start-timeout, within which all must have joined, counted from the construction
    gpu: str = ""  # that it trains on, by a name that no other has; "" if that is not known
    gpus: int = 0  # that it sees
    device: str = ""  # MODEL.DEVICE, by which number 0 chooses the backend of all
    machine: str = ""  # that it is on, one rank of which says why a start has ended; "" if it always does
    _since: float = field(default_factory=time.monotonic, init=False)

    @property
    def address(self) -> str:
        return f"tcp://{self.host}:{self.port}"

    @property
    def _left(self) -> float:
        """Seconds until all must have joined; negative beyond."""
        return self._since + self.seconds - time.monotonic()

    def missing_message(self, numbers: Sequence[int]) -> str:
        """Return the message for those that have not joined."""
        who = f"{self.what}{'s' if len(numbers) > 1 else ''} {some('', numbers)} of {self.count}"
        question = f"is the same command running there with --machine-rank {numbers[0]}, and does it reach"
        if self.what == "rank":
            question = "did their processes start, and do they reach"
        return f"{who} did not join within {self.seconds:g} s (--start-timeout): {question} {self.address}?"

    def open_store(self, *, is_host: bool) -> dist.TCPStore:
        """Open number 0's store on its host, or connect to it from elsewhere.

        Raises InputError where the port is in use on the host, TrainingError where that was not reached in time.
        """
        if not is_host:
            self._wait_for_host()
        left = max(1.0, self._left)
        place, limit = (self.host, self.port), timedelta(seconds=left)
        try:  # where something listens and does not answer, PyTorch waits for ever
            return in_time(
                lambda: dist.TCPStore(*place, is_master=is_host, wait_for_workers=False, timeout=limit),
                left + _POLL_SECONDS,
            )
        except futures.TimeoutError:
            raise TrainingError(
                f"something listens at {self.address} and does not answer as a training does: is the port taken by "
                f"another program on the machine of {self.what} 0?"
            ) from None
        except RuntimeError as error:
            if "EADDRINUSE" in str(error):
                raise InputError(
                    f"port {self.port} of {self.address} is in use on this machine, perhaps by another training: name "
                    "another, the same for all (--dist-url; under torchrun --master-port; under SLURM MASTER_PORT)"
                ) from error
            raise TrainingError(f"{self.address} was not reached from here: {first_line(error)}") from error

    def _wait_for_host(self) -> None:
        """Wait by plain connections, which a Ctrl-C interrupts, unlike PyTorch's."""
        while True:
            try:
                socket.create_connection((self.host, self.port), timeout=2.0).close()
                return
            except OSError as error:
                if self._left < 0:
                    raise TrainingError(f"{self.missing_message([0])} Last: {error}") from error
            time.sleep(_POLL_SECONDS)

    def call_roll(self, store: dist.Store) -> dist.Store:
        """Sign in, and return when all have.

        torchrun's store outlives a start, and its agents count restarts each for itself. So number 0 gives each start
        a random name, the others sign in to the newest, and one that finds it over waits for the next.

        Returns the part of the store that belongs to this start alone. Raises TrainingError, the same on all that
        joined, with who is missing in time, joined twice, or was started otherwise.
        """
        here: dict[str, Any] = {"name": socket.gethostname(), "started": self.started, "id": secrets.token_hex(8)}
        here |= {"gpu": self.gpu, "gpus": self.gpus}
        name = ""
        try:
            while True:
                name = self._newest_start(store, name)
                start = dist.PrefixStore(f"focal_det/{name}", store)
                if self._sign_in(start, json.dumps(here)):
                    try:
                        if self.number == 0:
                            store.set(_NEWEST, name)
                        if self._all_join(store, start, name):
                            return start
                    except (KeyboardInterrupt, SystemExit):  # the same one may join again
                        start.delete_key(f"is/{self.number}")
                        raise
        except RuntimeError as error:  # PyTorch's: the store is gone
            message = f"{self.what} 0 at {self.address} ended before all had joined: look at its messages"
            raise TrainingError(message) from error

    def _newest_start(self, store: dist.Store, before: str) -> str:
        """Return the name of the newest start, once it is no longer `before`."""
        if self.number == 0:
            return secrets.token_hex(8)
        while not store.check([_NEWEST]) or (name := store.get(_NEWEST).decode()) == before:
            if self._left < 0:
                raise TrainingError(self.missing_message([0]))
            time.sleep(_POLL_SECONDS)
        return name

    def _sign_in(self, start: dist.Store, here: str) -> bool:
        """Sign in to a start; return False if it is over, or has one of this number."""
        if start.check(["go"]) or start.check(["end"]):
            return False
        found = start.compare_set(f"is/{self.number}", "", here).decode()
        if found != here and self.what == "machine":  # torchrun numbers the ranks: the other is of an earlier start
            self.end(
                start,
                f"two processes joined as --machine-rank {self.number} of {self.count}, on {json.loads(found)['name']} "
                f"and on {json.loads(here)['name']}: give each machine a number of its own",
            )
        return found == here

    def _all_join(self, store: dist.Store, start: dist.Store, name: str) -> bool:
        """Wait until number 0 sees all and says so; return False as soon as there is a newer start."""
        everyone = [f"is/{number}" for number in range(self.count)]
        while not start.check(["go"]):
            self._raise_if_ended(start)
            if store.get(_NEWEST).decode() != name:
                if self.number == 0:
                    raise TrainingError(f"another {self.what} 0 joined at {self.address} and replaced this one")
                return False
            if self.number == 0 and start.check(everyone):
                self._end_if_they_do_not_fit(start)
                start.set("go", "nccl" if self.device.startswith("cuda") and self.gpus else "gloo")
            elif self._left < (-_FAREWELL if start.check(everyone) else 0):
                missing = [number for number, key in enumerate(everyone) if not start.check([key])]
                self.end(start, self.missing_message(missing or [0]))
            else:
                time.sleep(_POLL_SECONDS)
        self._raise_if_ended(start)
        start.add("seen", 1)
        while self.number == 0 and start.add("seen", 0) < self.count:  # this process takes the store with it
            self._raise_if_ended(start)
            if self._left < -_FAREWELL:
                break
            time.sleep(_POLL_SECONDS)
        return True

    def _end_if_they_do_not_fit(self, start: dist.Store) -> None:
        owners: dict[str, int] = {}
        here = json.loads(start.get(f"is/{self.number}"))
        for number in range(self.count):
            other = json.loads(start.get(f"is/{number}"))
            if other["started"] != self.started:
                self.end(
                    start,
                    f"{self.what} {number} was started with {other['started']}, {self.what} {self.number} with "
                    f"{self.started}: all must have the same",
                )
            if not self.device.startswith("cuda"):
                continue
            if bool(other["gpus"]) != bool(self.gpus):
                self.end(
                    start,
                    f"{self.what} {number} on {other['name']} sees {counted(other['gpus'], 'GPU')}, {self.what} "
                    f"{self.number} on {here['name']} {self.gpus}: all must train on GPUs, or all on processors "
                    "(MODEL.DEVICE cpu)",
                )
            owner = owners.setdefault(other["gpu"] or f"unknown {number}", number)
            if owner != number:
                self.end(
                    start,
                    f"ranks {owner} and {number} have the same GPU of {other['name']}: start no more processes than "
                    "GPUs, and let each process see all of its machine or one of its own",
                )

    def _raise_if_ended(self, start: dist.Store) -> None:
        if start.check(["end"]):
            self._leave(start, start.get("end").decode())

    def end(self, start: dist.Store, message: str) -> NoReturn:
        """End a start for all that have joined; raise TrainingError, or SystemExit where another rank says it.

        Where another has ended it just before, its message is raised: all say the same.
        """
        with suppress(RuntimeError):  # the store may be gone, with number 0
            message = start.compare_set("end", "", message).decode()
        self._leave(start, message)

    def _leave(self, start: dist.Store, message: str) -> NoReturn:
        own, says_it = str(self.number), True
        if self.machine:
            with suppress(RuntimeError):
                says_it = start.compare_set(f"says/{self.machine}", "", own).decode() == own
        if self.number == 0:  # this process may take the store with it
            time.sleep(_READ_SECONDS)
        raise TrainingError(message) if says_it else SystemExit(EXIT_FAULT)


def in_time(do: Callable[[], T], seconds: float) -> T:
    """Do something in a thread, so that a signal is handled meanwhile; it is left to itself if it takes longer.

    Raises futures.TimeoutError in that case.
    """
    result: futures.Future[T] = futures.Future()

    def work() -> None:
        try:
            result.set_result(do())
        except Exception as error:
            result.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return result.result(timeout=seconds)
