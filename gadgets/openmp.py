"""How this process's OpenMP threads wait, set once where a process of ours starts.

torch and finufft each bring an OpenMP runtime with a pool of its own. By default a pool's threads spin while they wait, and each
runtime takes all cores for itself: the waiting threads of one hold the cores that the other computes on. Two cores shared with other
work, 64×64 pixels, 40 frames, 6 coils: CG-SENSE took 44 s with threads that spin and 0.9 s with threads that sleep, 40 steps of INMR
24 to 96 s and 4.6 s.
"""

from __future__ import annotations

import os

WAIT_POLICY = "OMP_WAIT_POLICY"
SPIN_COUNT = "GOMP_SPINCOUNT"
# A moment only: a loop that follows at once finds its threads awake, and nobody is kept from a core for long.
_SPINS = "20000"


def sleep_while_waiting() -> None:
    """Let waiting threads sleep after a moment, unless the user has set the policy; to be called before torch and finufft are loaded."""
    if WAIT_POLICY not in os.environ:
        os.environ[WAIT_POLICY] = "PASSIVE"
        os.environ.setdefault(SPIN_COUNT, _SPINS)
