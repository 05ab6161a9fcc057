"""Random initial weights that depend on their seed alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

# torch's layers draw from one generator of the process; slices may be fitted side by side in threads.
_GENERATOR = threading.RLock()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's global CPU generator starts from ``seed``, for the calling thread alone; then it goes on as before."""
    with _GENERATOR, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
