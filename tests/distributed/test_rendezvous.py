"""All that are there continue, and those missing are named on each of the others; over real sockets of this machine."""

import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist
from free_ports import free_port

from focal_det.distributed.rendezvous import Rendezvous
from focal_det.errors import EXIT_FAULT, InputError, TrainingError


@pytest.fixture
def port():
    return free_port()


def join(rendezvous, before=lambda: None):
    """Reach the store and sign in, as a machine's launcher does; return the message if it failed."""
    try:
        store = rendezvous.open_store(is_host=rendezvous.number == 0)
        before()
        rendezvous.call_roll(store)
    except TrainingError as error:
        return str(error)
    return None


def machine(number, port, count=2, started="--num-gpus 1", seconds=20.0):
    return Rendezvous(number, count, "machine", "127.0.0.1", port, started, seconds)


@pytest.fixture
def time_is_up(monkeypatch):
    """Return a function: --start-timeout is over once so many have signed in, however long that takes them."""

    def arrange(after):
        signed_in, sign_in = [], Rendezvous._sign_in

        def counted(self, *args):
            is_new = sign_in(self, *args)
            signed_in.append(self.number)
            return is_new

        monkeypatch.setattr(Rendezvous, "_sign_in", counted)
        monkeypatch.setattr(Rendezvous, "_left", property(lambda self: 30.0 if len(signed_in) < after else -1.0))

    return arrange


def at_once(*calls):
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(timeout=60) for future in [pool.submit(*call) for call in calls]]


def test_all_join_and_the_port_is_free_again(port):
    assert at_once(*((join, machine(number, port, 3)) for number in range(3))) == [None] * 3
    assert at_once(*((join, machine(number, port)) for number in range(2))) == [None] * 2


def test_those_missing_are_named_on_all_that_joined(port, time_is_up):
    time_is_up(after=4)
    taking_part = [Rendezvous(n, 6, "rank", "127.0.0.1", port, "6 processes", 1.0) for n in (0, 1, 2, 4)]
    messages = at_once(*((join, one) for one in taking_part))
    assert len(set(messages)) == 1
    assert messages[0].startswith(
        "ranks 3, 5 of 6 did not join within 1 s (--start-timeout): did their processes start"
    )
    assert f"tcp://127.0.0.1:{port}" in messages[0]


def test_of_many_missing_ranks_a_few_are_named():
    message = Rendezvous(0, 1000, "rank", "127.0.0.1", 1, "1000 processes", 1.0).missing_message(range(1, 1000))
    assert message.startswith("ranks 1, 2, 3, 4, 5 and 994 more of 1000 did not join within 1 s")


def test_a_missing_host_is_named(port):
    message = join(machine(1, port, seconds=0.3))
    assert message.startswith("machine 0 of 2 did not join within 0.3 s")
    assert "--machine-rank 0" in message


def test_two_of_the_same_number_are_named(port):
    messages = at_once((join, machine(0, port, 3)), (join, machine(1, port, 3)), (join, machine(1, port, 3)))
    assert all("two processes joined as --machine-rank 1 of 3" in message for message in messages)


def test_machines_started_otherwise_are_named(port):
    messages = at_once((join, machine(0, port)), (join, machine(1, port, started="--num-gpus 8")))
    assert all("--num-gpus 8" in message and "all must have the same" in message for message in messages)


@pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit])
def test_one_that_left_by_a_signal_may_join_again(port, monkeypatch, leaving):
    store = machine(0, port).open_store(is_host=True)
    wait = Rendezvous._all_join

    def wait_or_leave(self, *starts):
        if self.number == 1:
            raise leaving
        return wait(self, *starts)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(machine(0, port, 3).call_roll, store)
        with monkeypatch.context() as patch:
            patch.setattr(Rendezvous, "_all_join", wait_or_leave)
            with pytest.raises(leaving):
                machine(1, port, 3).call_roll(store)
        assert not first.done()
        second = pool.submit(machine(1, port, 3).call_roll, store)
        machine(2, port, 3).call_roll(store)
        assert all(one.result(timeout=60) for one in (first, second))


def rank(number, port, count=2, seconds=10.0):
    return Rendezvous(number, count, "rank", "127.0.0.1", port, f"{count} processes", seconds)


def join_at(store, *args):
    """Join as a rank does in torchrun's store; return the part of it that belongs to the start."""
    rendezvous = rank(*args)
    start = rendezvous.call_roll(store)
    start.set(f"here/{rendezvous.number}", "")
    return start


@pytest.mark.parametrize(("late", "count"), [(0, 2), (1, 3)])
def test_a_restart_joins_in_the_same_store(port, late, count):
    """Whichever rank is first, and with a machine more; nothing depends on a count of restarts."""
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    before = at_once(*((join_at, store, number, port) for number in range(2)))

    def join_late(number):
        time.sleep(0.5 if number == late else 0)
        return join_at(store, number, port, count)

    after = at_once(*((join_late, number) for number in range(count)))
    assert all(start.check([f"here/{number}" for number in range(count)]) for start in after)
    after[0].set("only", "here")
    assert not before[0].check(["only"])


def test_a_restart_after_a_start_in_which_a_rank_was_missing(port, time_is_up, monkeypatch):
    """The rank that was missing joins before rank 0 has begun the next."""
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    time_is_up(after=2)
    messages = at_once(*((raised, store, rank(number, port, 3)) for number in range(2)))
    monkeypatch.undo()
    assert all("rank 2 of 3 did not join" in message for message in messages)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(join_at, store, 2, port, 3)
        time.sleep(0.3)
        others = [pool.submit(join_at, store, number, port, 3) for number in (1, 0)]
        assert all(one.result(timeout=60) for one in (first, *others))


def raised(store, rendezvous):
    with pytest.raises(TrainingError) as caught:
        rendezvous.call_roll(store)
    return str(caught.value)


def test_a_start_whose_ranks_were_killed_while_they_joined_is_over(port, monkeypatch):
    """Rank 2's place in it is free, and its rank 0 will never say go."""
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    with monkeypatch.context() as patch:
        patch.setattr(Rendezvous, "_all_join", lambda *_: True)  # they joined, and left at once
        for number in range(2):
            rank(number, port, 3).call_roll(store)
    with ThreadPoolExecutor(3) as pool:
        ranks = []
        for number in (2, 1, 0):
            ranks.append(pool.submit(join_at, store, number, port, 3))
            time.sleep(0.3)
        assert all(one.result(timeout=60) for one in ranks)


def test_a_host_that_ends_early_is_named(port, monkeypatch):
    is_connected, newest = threading.Event(), Rendezvous._newest_start
    monkeypatch.setattr(Rendezvous, "_newest_start", lambda self, *args: (is_connected.set(), newest(self, *args))[1])

    def leave():
        assert is_connected.wait(60)
        raise TrainingError("bad input")

    messages = at_once((join, machine(0, port), leave), (join, machine(1, port)))
    assert messages[0] == "bad input"
    assert messages[1] == f"machine 0 at tcp://127.0.0.1:{port} ended before all had joined: look at its messages"


def test_two_ranks_of_one_gpu_are_named(port):
    ranks = [
        Rendezvous(n, 3, "rank", "127.0.0.1", port, "3", 10.0, gpu, gpus=2, device="cuda")
        for n, gpu in enumerate(("GPU-a", "GPU-b", "GPU-a"))
    ]
    messages = at_once(*((join, one) for one in ranks))
    assert all(message.startswith("ranks 0 and 2 have the same GPU") for message in messages)


@pytest.mark.parametrize(
    ("device", "gpus", "backend"),
    [
        ("cuda", (1, 2), "nccl"),
        ("cuda", (0, 0), "gloo"),
        ("cpu", (8, 0), "gloo"),
        ("cuda", (8, 0), "rank 1 on .* sees 0 GPUs, rank 0 on .* 8: all must train on GPUs, or all on processors"),
        ("cuda", (0, 8), "rank 1 on .* sees 8 GPUs, rank 0 on .* 0: all must"),
    ],
)
def test_number_0_chooses_the_backend_of_all_and_names_a_machine_that_does_not_fit(port, device, gpus, backend):
    stores = []  # the host's serves the other until that has read what it needs

    def call(number):
        ranks = Rendezvous(number, 2, "rank", "127.0.0.1", port, "2", 10.0, gpus=gpus[number], device=device)
        try:
            stores.append(store := ranks.open_store(is_host=number == 0))
            return ranks.call_roll(store).get("go").decode()
        except TrainingError as error:
            return str(error)

    for found in at_once((call, 0), (call, 1)):
        assert re.match(backend, found)


def test_one_rank_of_each_machine_says_why_a_start_has_ended(port, time_is_up):
    time_is_up(after=4)

    def call(number):
        one = Rendezvous(number, 5, "rank", "127.0.0.1", port, "5", 1.0, machine=str(number // 2))
        try:
            one.call_roll(one.open_store(is_host=number == 0))
        except (TrainingError, SystemExit) as error:
            return error

    ended = at_once(*((call, number) for number in range(4)))
    for machine_s in (ended[:2], ended[2:]):
        says, silent = sorted(machine_s, key=lambda error: isinstance(error, SystemExit))
        assert str(says).startswith("rank 4 of 5 did not join within 1 s")
        assert silent.code == EXIT_FAULT


def test_two_that_end_a_start_at_the_same_time_say_the_same():
    start = dist.HashStore()
    for reason in ("rank 4 of 5 did not join", "ranks 3, 4 of 5 did not join"):  # 3 has signed out between them
        with pytest.raises(TrainingError, match=r"^rank 4 of 5 did not join"):
            Rendezvous(1, 5, "rank", "127.0.0.1", 1, "5", 1.0).end(start, reason)


def test_a_port_in_use_is_bad_input():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} .* is in use .* name another"):
            machine(0, port).open_store(is_host=True)


def test_a_port_that_does_not_answer_is_not_waited_for_forever():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        began = time.monotonic()
        message = join(machine(1, silent.getsockname()[1], seconds=2.0))
        assert time.monotonic() - began < 60
    assert "something listens at tcp://127.0.0.1:" in message
    assert "does not answer as a training does" in message
