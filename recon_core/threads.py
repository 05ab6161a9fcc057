"""Threads that one piece of work may use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from threadpoolctl import ThreadpoolController


@contextlib.contextmanager
def at_most_threads(count: int) -> Iterator[None]:
    """Inside, the calling thread's OpenMP loops (torch's, finufft's) use at most so many threads; other threads' do as before."""
    # Asked for the first time in a thread, torch sets this thread's number to that of the process.
    torch.get_num_threads()
    with ThreadpoolController().limit(limits=count, user_api="openmp"):
        yield
