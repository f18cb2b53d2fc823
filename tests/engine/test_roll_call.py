"""All that are there go on, and who is missing is named on each of the others; over real sockets of this machine."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from focal_det.engine import roll_call
from focal_det.engine.roll_call import call_roll, reach_all
from focal_det.engine.store import Caller, first_line, open_store
from focal_det.errors import InputError, TrainingError


@pytest.fixture
def port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def come(caller, before=lambda: None):
    """Reach the store and sign in, as a machine's launcher does; what was said if it failed."""
    deadline = time.monotonic() + caller.seconds
    try:
        store = open_store(caller, deadline, is_host=caller.number == 0)
        before()
        call_roll(store, caller, deadline)
    except TrainingError as error:
        return str(error)
    return None


def machine(number, port, count=2, started="--num-gpus 1", seconds=20.0):
    return Caller(number, count, "machine", "127.0.0.1", port, started, seconds)


def at_once(*calls):
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(timeout=30) for future in [pool.submit(*call) for call in calls]]


def test_all_come_and_the_port_is_free_again(port):
    assert at_once(*((come, machine(number, port, 3)) for number in range(3))) == [None] * 3
    assert at_once(*((come, machine(number, port)) for number in range(2))) == [None] * 2


def test_who_is_missing_is_named_on_all_that_came(port):
    callers = [Caller(n, 6, "rank", "127.0.0.1", port, "6 processes", 1.0) for n in (0, 1, 2, 4)]
    said = at_once(*((come, caller) for caller in callers))
    assert len(set(said)) == 1
    assert said[0].startswith("ranks 3, 5 of 6 did not come within 1 s (--start-timeout): did their processes start")
    assert f"tcp://127.0.0.1:{port}" in said[0]


def test_of_many_that_are_missing_a_few_are_named():
    words = Caller(0, 1000, "rank", "127.0.0.1", 1, "1000 processes", 1.0).missing(range(1, 1000))
    assert words.startswith("ranks 1, 2, 3, 4, 5 and 994 more of 1000 did not come within 1 s")


def test_a_missing_host_is_named(port):
    words = come(machine(1, port, seconds=0.3))
    assert words.startswith("machine 0 of 2 did not come within 0.3 s")
    assert "--machine-rank 0" in words


def test_two_of_the_same_number_are_named(port):
    said = at_once((come, machine(0, port, 3)), (come, machine(1, port, 3)), (come, machine(1, port, 3)))
    assert all("two processes came as --machine-rank 1 of 3" in words for words in said)


def test_machines_started_otherwise_are_named(port):
    said = at_once((come, machine(0, port)), (come, machine(1, port, started="--num-gpus 8")))
    assert all("--num-gpus 8" in words and "all must have the same" in words for words in said)


@pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit])
def test_who_left_by_a_signal_may_come_again(port, monkeypatch, leaving):
    store = open_store(machine(0, port), time.monotonic() + 5, is_host=True)
    wait = roll_call._all_have_come

    def wait_or_leave(store, start, caller, *more):
        if caller.number == 1:
            raise leaving
        return wait(store, start, caller, *more)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(call_roll, store, machine(0, port, 3), time.monotonic() + 10)
        with monkeypatch.context() as patch:
            patch.setattr(roll_call, "_all_have_come", wait_or_leave)
            with pytest.raises(leaving):
                call_roll(store, machine(1, port, 3), time.monotonic() + 10)
        assert not first.done()
        second = pool.submit(call_roll, store, machine(1, port, 3), time.monotonic() + 10)
        call_roll(store, machine(2, port, 3), time.monotonic() + 10)
        assert all(one.result(timeout=10) for one in (first, second))


def rank(number, port, count=2, seconds=10.0):
    return Caller(number, count, "rank", "127.0.0.1", port, f"{count} processes", seconds)


def come_to(store, caller):
    """As a rank comes to torchrun's store; where its start has a place of its own."""
    start = call_roll(store, caller, time.monotonic() + caller.seconds)
    start.set(f"here/{caller.number}", "")
    return start


@pytest.mark.parametrize(("late", "count"), [(0, 2), (1, 3)])
def test_a_restart_comes_together_in_the_same_store(port, late, count):
    """Whichever rank comes first, and with a machine more; no count of restarts is asked."""
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    before = at_once(*((come_to, store, rank(number, port)) for number in range(2)))

    def come_late(caller):
        time.sleep(0.5 if caller.number == late else 0)
        return come_to(store, caller)

    after = at_once(*((come_late, rank(number, port, count)) for number in range(count)))
    assert all(start.check([f"here/{number}" for number in range(count)]) for start in after)
    after[0].set("only", "here")
    assert not before[0].check(["only"])


def test_a_restart_after_a_start_that_did_not_come_together(port):
    """The rank that was missing comes before rank 0 has begun the next."""
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    said = at_once(*((raised, call_roll, store, rank(number, port, 3, 0.5)) for number in range(2)))
    assert all("rank 2 of 3 did not come" in words for words in said)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(come_to, store, rank(2, port, 3))
        time.sleep(0.3)
        others = [pool.submit(come_to, store, rank(number, port, 3)) for number in (1, 0)]
        assert all(one.result(timeout=10) for one in (first, *others))


def raised(call, store, caller):
    with pytest.raises(TrainingError) as caught:
        call(store, caller, time.monotonic() + caller.seconds)
    return str(caught.value)


def test_a_start_whose_ranks_were_killed_while_they_came_is_over(port, monkeypatch):
    """Rank 2's place in it is free, and its rank 0 will never say go."""
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    with monkeypatch.context() as patch:
        patch.setattr(roll_call, "_all_have_come", lambda *_: True)  # they came, and went at once
        for number in range(2):
            call_roll(store, rank(number, port, 3), time.monotonic() + 5)
    with ThreadPoolExecutor(3) as pool:
        ranks = []
        for number in (2, 1, 0):
            ranks.append(pool.submit(come_to, store, rank(number, port, 3)))
            time.sleep(0.3)
        assert all(one.result(timeout=10) for one in ranks)


def test_a_host_that_ends_early_is_named(port):
    def leave():
        time.sleep(0.5)
        raise TrainingError("bad input")

    said = at_once((come, machine(0, port), leave), (come, machine(1, port)))
    assert said[0] == "bad input"
    assert said[1] == f"machine 0 at tcp://127.0.0.1:{port} ended before all had come: look at its messages"


def test_two_ranks_of_one_gpu_are_named(port):
    ranks = [
        Caller(n, 3, "rank", "127.0.0.1", port, "3", 10.0, gpu) for n, gpu in enumerate(("GPU-a", "GPU-b", "GPU-a"))
    ]
    said = at_once(*((come, one) for one in ranks))
    assert all(words.startswith("ranks 0 and 2 have the same GPU") for words in said)


def test_a_port_in_use_is_bad_input():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} .* is in use .* name another"):
            open_store(machine(0, port), time.monotonic() + 5, is_host=True)


def test_ranks_that_do_not_answer_are_named(port, monkeypatch):
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    monkeypatch.setattr(dist, "monitored_barrier", lambda *_, **__: 1 / 0)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        reach_all()  # alone there is nobody to ask
        monkeypatch.setattr(dist, "get_world_size", lambda *_: 2)

        def barrier(*_, **__):
            raise RuntimeError("Ranks 1 failed to pass monitoredBarrier in 100 ms\nException raised from C++")

        monkeypatch.setattr(dist, "monitored_barrier", barrier)
        with pytest.raises(TrainingError, match=r"within 0.1 s: Ranks 1 failed.*GLOO_SOCKET_IFNAME") as caught:
            reach_all(0.1)
        assert "C++" not in str(caught.value)
        monkeypatch.setattr(dist, "monitored_barrier", lambda *_, **__: None)
        monkeypatch.setattr(dist, "all_reduce", barrier)
        with pytest.raises(TrainingError, match=r"cannot add up a number \(Ranks 1 failed.*NCCL_DEBUG=INFO"):
            reach_all(0.1)
    finally:
        dist.destroy_process_group()
    assert first_line(ValueError()) == "ValueError"


def test_what_listens_and_does_not_answer_is_not_waited_for_without_end():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        began = time.monotonic()
        said = come(machine(1, silent.getsockname()[1], seconds=2.0))
        assert time.monotonic() - began < 15
    assert "something listens at tcp://127.0.0.1:" in said
    assert "does not answer as a training does" in said
