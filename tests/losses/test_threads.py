"""Blocks computed by threads: the same bits for any number of them, and nothing changed for whoever called."""

import multiprocessing
import os
import threading

import pytest
import torch

from focal_det.losses.focal import focal_formula
from focal_det.losses.fused import batch_loss
from focal_det.losses.threads import _pool, map_in_threads


@pytest.fixture(autouse=True)
def _same_number_of_threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    _pool.cache_clear()


def loss_and_gradients(num_threads, dtype):
    """Return a batch of three images; the first level makes several blocks of each, large enough for threads."""
    torch.set_num_threads(num_threads)
    torch.manual_seed(0)
    levels = [(torch.randn(3, rows, 80) - 4).to(dtype).requires_grad_() for rows in (7001, 601, 1)]
    labels = torch.randint(-1, 81, (3, 7603))
    loss = batch_loss(levels, labels, torch.tensor([3.0, 7.0, 1.0]), focal_formula(0.25, 2.0))
    return [loss.detach(), *torch.autograd.grad(loss, levels)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_have_the_same_bits_for_any_number_of_threads(dtype):
    alone = loss_and_gradients(1, dtype)
    for num_threads in (2, 3):
        assert all(torch.equal(*pair) for pair in zip(loss_and_gradients(num_threads, dtype), alone, strict=True))


def test_each_thread_computes_alone_and_no_other_thread_is_told_to():
    torch.set_num_threads(3)
    both_at_work = threading.Barrier(3)

    def seen(_):
        both_at_work.wait(60)  # or one thread might do all
        return threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()

    idents, nums_threads, grad_enabled = zip(*map_in_threads(seen, range(3)), strict=True)
    assert len({*idents, threading.get_ident()}) == 4
    assert nums_threads == (1, 1, 1)
    assert grad_enabled == (False, False, False)
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), later) == (3, [3])


def test_no_thread_waits_for_one_that_the_system_refuses(monkeypatch):
    torch.set_num_threads(2)
    start, started = threading.Thread.start, []

    def start_one(thread):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        map_in_threads(abs, (-1, -2))
    started[0].join(60)
    waits_on = started[0].is_alive()
    assert not waits_on


def test_one_thread_is_the_callers():
    torch.set_num_threads(1)
    assert list(map_in_threads(lambda _: threading.get_ident(), range(2))) == [threading.get_ident()] * 2


@pytest.mark.parametrize("num_threads", [1, 2])
def test_results_come_in_order_until_one_that_failed(num_threads):
    torch.set_num_threads(num_threads)
    results = map_in_threads(lambda number: 6 // number, (3, 2, 1, 0))
    assert [next(results) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on, of forks beside threads
def test_a_forked_process_starts_threads_of_its_own():
    torch.set_num_threads(2)
    assert list(map_in_threads(abs, (-1, -2))) == [1, 2]
    child = multiprocessing.get_context("fork").Process(
        target=lambda: os._exit(list(map_in_threads(abs, (-3, -4))) != [3, 4])
    )
    child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
    assert child.exitcode == 0
