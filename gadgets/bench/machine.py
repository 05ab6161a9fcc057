"""What a figure was measured on, and how much memory a process took."""

from __future__ import annotations

import datetime as dt
import os
import platform
import resource
import sys
import weakref
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_STATUS = Path("/proc/self/status")


def describe() -> dict[str, Any]:
    """Processor, cores, memory, device and versions."""
    return {
        "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in ("gadgetron-inr", "torch", "finufft", "ducc0", "numpy")},
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


class PeakMemory:
    """Largest resident memory of this process from here on, against what it holds here.

    Linux tells (and forgets on demand) the high-water mark of a process' own memory. Elsewhere getrusage's mark since the process
    began stands for it.
    """

    def __init__(self) -> None:
        clear = Path("/proc/self/clear_refs")
        if clear.exists():
            clear.write_text("5", encoding="ascii")
        self.before = _status("VmRSS") or _ever()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def read(self) -> dict[str, int]:
        """Bytes: ``peak``, ``above`` what was held at the start, ``device`` where a GPU is used."""
        peak = _status("VmHWM") or _ever()
        device = {"device": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {}
        return {"peak": peak, "above": max(0, peak - self.before), **device}


class TensorBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations within this context make, as long as they live.

    The same number on every machine, without what libraries and allocators hold beside. Every operation passes Python, which costs time.

    Attributes:
        now: bytes that live.
        peak: the most that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._live: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it made."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return

        def gone(_: Any) -> None:
            del self._live[key]
            self.now -= size

        self._live[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _status(field: str) -> int:
    if not _STATUS.exists():
        return 0
    found = [line.split()[1] for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(field + ":")]
    return 1024 * int(found[0]) if found else 0


def _ever() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
