"""Threads that one piece of work may use."""

from __future__ import annotations

import threading

import torch

from recon_core.threads import at_most_threads


def test_threads_of_one_thread_only() -> None:
    """A limit holds where it was set, and ends; threads that begin meanwhile have all cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    seen = {}
    try:
        with at_most_threads(1):
            seen["inside"] = torch.get_num_threads()
            other = threading.Thread(target=lambda: seen.update(other=torch.get_num_threads()))
            other.start()
            other.join()
        seen["after"] = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert seen == {"inside": 1, "other": 3, "after": 3}
