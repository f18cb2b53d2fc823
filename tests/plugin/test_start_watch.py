"""Ranks that do not reach one another are named and killed; they are forked here, not launched."""

import multiprocessing
import signal
import time

from focal_det.cli.start_watch import StartWatch


def hang():
    time.sleep(60)


def hanging():
    process = multiprocessing.get_context("fork").Process(target=hang)
    process.start()
    return process


def test_ranks_that_do_not_reach_the_others_are_named_and_killed():
    watch = StartWatch(2, 3, 0.5)
    watch.begin(8)
    watch.reached[0].set()
    rank = hanging()
    rank.join(10)
    assert rank.exitcode == -signal.SIGKILL
    assert watch.words.startswith("rank 7 did not reach the others within 0.5 s")


def test_ranks_that_came_or_ended_are_left_alone():
    watches = [StartWatch(1, 0, 0.1) for _ in range(3)]
    for watch, world_size in zip(watches, (2, 2, 1), strict=True):
        watch.begin(world_size)
        if watch is watches[0]:
            watch.reached[0].set()
        if watch is watches[1]:
            watch.end()
    rank = hanging()
    rank.join(1)
    assert rank.is_alive()
    assert [watch.words for watch in watches] == ["", "", ""]
    rank.kill()
    rank.join()
