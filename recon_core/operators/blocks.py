"""How work on many images or lines goes through a core's cache, or onto a GPU."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

IN_CACHE = 100_000
"""Complex values of a doubled grid that, with what they are turned into, stay in a core's cache."""
_BLOCKS = 16
"""What goes through a core's cache comes in at least so many blocks, to be shared out to as many threads …"""
_WORTH_A_BLOCK = 20_000
"""… unless they held fewer complex values than this, when calls take longer than what they do."""
_AT_ONCE = 1 << 25
"""Complex values of the doubled grid at once on a GPU."""


def through_cache(tensor: Tensor) -> bool:
    """Whether work goes piece by piece through a core's cache, as on a CPU, or as much at once as memory allows, as on a GPU."""
    return tensor.device.type == "cpu"


def blocks_of(count: int, values: int, like: Tensor) -> tuple[int, list[slice]]:
    """How many of ``count`` things of so many complex values each go at once, and all of them as slices.

    Rounding depends on what is transformed together, hence not on the number of threads.
    """
    several = min(IN_CACHE, max(_WORTH_A_BLOCK, count * values // _BLOCKS)) if through_cache(like) else _AT_ONCE
    at_once = max(1, min(several // values, count))
    return at_once, list(pieces(slice(0, count), at_once))


def pieces(part: slice, at_once: int) -> Iterator[slice]:
    """``part`` in slices of so many, the last one of what is left."""
    for first in range(part.start, part.stop, at_once):
        yield slice(first, min(first + at_once, part.stop))
