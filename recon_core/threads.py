"""Threads that one piece of work may use."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from threadpoolctl import ThreadpoolController


@contextlib.contextmanager
def at_most_threads(count: int) -> Iterator[None]:
    """Inside, the calling thread's OpenMP loops (torch's, finufft's) use at most so many threads; other threads' do as before."""
    # Asked for the first time in a thread, torch sets this thread's number to that of the process.
    torch.get_num_threads()
    with ThreadpoolController().limit(limits=count, user_api="openmp"):
        yield


def share_out(work: Callable[[slice], None], count: int, device: torch.device) -> None:
    """Do numbers 0 to ``count`` − 1 in as many parts at a time as the calling thread may use threads, each part on one core.

    For work whose steps are small or, as a copy that turns rows into columns, run on one core only. On a GPU it is one part.

    Args:
        work: does the numbers of a slice; parts must not touch each other's results.
        count: how many numbers.
        device: where the tensors are.
    """
    threads = min(torch.get_num_threads(), count) if device.type == "cpu" else 1
    if threads <= 1:
        work(slice(0, count))
        return
    inference, gradient = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def part(number: int) -> None:
        # Modes of autograd belong to a thread.
        with torch.inference_mode(inference), torch.set_grad_enabled(gradient):
            work(slice(count * number // threads, count * (number + 1) // threads))

    for future in [_helpers(threads).submit(part, number) for number in range(threads)]:
        future.result()


@functools.cache
def _helpers(threads: int) -> ThreadPoolExecutor:
    """Resident threads of one core each: to begin threads, and to limit them, takes longer than a part of work."""
    return ThreadPoolExecutor(threads, thread_name_prefix="share", initializer=_hold_to_one)


_held = threading.local()


def _hold_to_one() -> None:
    """Limit the calling thread for as long as it lives. A team of two from here would, from then on, put all others' to sleep at once."""
    # Once nothing refers to it the limit ends.
    _held.limit = at_most_threads(1)
    _held.limit.__enter__()


os.register_at_fork(after_in_child=_helpers.cache_clear)
