"""Timing that survives a busy machine: candidates interleaved, CPU time of one thread, medians, paired ratios."""

from __future__ import annotations

import ctypes
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

Work = Callable[[], object]
Times = dict[str, list[float]]


def interleaved(candidates: Mapping[str, Work], *, rounds: int = 9, device: str = "cpu") -> Times:
    """Run every candidate once per round and return its milliseconds per round.

    On the CPU this is the process's CPU time with torch held to one thread; on a GPU it is wall time between
    two synchronisations. The first two rounds warm up and do not count.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: Times = {name: [] for name in candidates}
    for turn in range(rounds + 2):
        for name, work in candidates.items():
            elapsed = _milliseconds(work, device)
            if turn >= 2:
                times[name].append(elapsed)
    torch.set_num_threads(threads)
    return times


def _milliseconds(work: Work, device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        work()
        return 1e3 * (time.process_time() - start)
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def median(times: Times, name: str) -> float:
    """Return a candidate's median in milliseconds."""
    return statistics.median(times[name])


def ratio(times: Times, name: str, reference: str) -> float:
    """Return the median over the rounds of `name / reference`."""
    return statistics.median(a / b for a, b in zip(times[name], times[reference], strict=True))


def peak_memory(work: Work) -> float:
    """Return by how many MiB the resident memory rises at most while `work` runs, in a forked child (Linux).

    Call it before anything has run on more than one thread: a forked child cannot use the parent's thread pool.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def measure() -> None:
        torch.set_num_threads(1)
        ctypes.CDLL(None).malloc_trim(0)  # what the parent freed must not be used again unseen
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = _resident("VmRSS")
        work()
        sender.send(_resident("VmHWM") - before)

    child = context.Process(target=measure)
    child.start()
    rise = float(receiver.recv()) if receiver.poll(120) else float("nan")
    child.join()
    return rise


def _resident(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024
