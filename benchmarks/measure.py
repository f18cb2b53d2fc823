"""Time and memory of a function, on the processor or a GPU."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Run = Callable[[], Any]


def seconds(run: Run, device: torch.device) -> float:
    """Time one call, until the device has finished it."""
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def in_turns(runs: Mapping[str, Run], device: torch.device, repeats: int) -> dict[str, dict[str, float]]:
    """Return median and spread of each competitor, taken in turns so that a slow minute of the machine slows all alike.

    The first turn warms up; its time is given apart, since it compiles what is compiled.
    """
    turns = [{name: seconds(run, device) for name, run in runs.items()} for _ in range(repeats + 1)]
    result = {}
    for name in runs:
        times = [turn[name] for turn in turns[1:]]
        result[name] = {"s": statistics.median(times), "min": min(times), "max": max(times), "first": turns[0][name]}
    return result


def extra_megabytes(run: Run, device: torch.device) -> float | None:
    """Return the peak memory of a call beyond what was in use before; None where the system does not tell."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    except OSError:
        return None
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1e6


def launches_and_waits(run: Run) -> dict[str, int]:
    """Count how often a call launches kernels or graphs on the GPU, and how often the host waits for it."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.profiler.profile() as profiled:
        run()
        torch.cuda.synchronize()
    launches = sum(event.count for event in profiled.key_averages() if "Launch" in event.key)
    return {"launches": launches, "waits": sum("synchroniz" in str(one.message) for one in waits)}


def peak_gigabytes(device: torch.device) -> float:
    """Return the peak memory of this process, or of its share of the GPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else _status("VmHWM") / 1e9


def _status(field: str) -> int:
    """Read a figure in bytes from Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
