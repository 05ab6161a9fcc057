"""How work on many images or lines goes through a core's cache, or onto a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from torch import Tensor

from recon_core.threads import share_out

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


def divisor(count: int, most: int) -> int:
    """The largest divisor of ``count`` that is at most ``most``, or 1: blocks of it are all of one size."""
    return next((number for number in range(min(count, most), 0, -1) if count % number == 0), 1)


def image_wise(work: Callable[[slice], None], like: Tensor) -> None:
    """Do the images of a tensor ``[image, …]`` in slices whose values stay in a core's cache, shared out to cores; at once on a GPU.

    A chain of sums and products then reads and writes memory once, and needs no room of that size for what lies between.
    """
    count = len(like)
    at_once = max(1, IN_CACHE // max(1, math.prod(like.shape[1:]))) if through_cache(like) else count
    if at_once >= count:
        work(slice(0, count))
        return

    def part_of(part: slice) -> None:
        for some in pieces(part, at_once):
            work(some)

    share_out(part_of, count, like.device)


def pieces(part: slice, at_once: int) -> Iterator[slice]:
    """``part`` in slices of so many, the last one of what is left."""
    for first in range(part.start, part.stop, at_once):
        yield slice(first, min(first + at_once, part.stop))
