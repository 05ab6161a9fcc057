"""Which frames are solved, which are joined and which are given up: a declared rule, and the bounded queue that keeps it.

The rule, each time the solver is free (``late_frames``):

* ``wait``: it takes the oldest frames, at most :attr:`Rule.most`. A full queue holds up the stream; nothing is given up.
* ``join`` and ``skip``: it takes all frames that wait, and makes as many images of them as it can in 0.3 of the deadline at the pace it
  had so far, at most :attr:`Rule.most`. Frames that have waited longer than the deadline are given up; if all have, the newest stays, and
  with ``join`` those that make one frame with it. Where more are left than that, neighbours of a slice are put together, two, three or
  at most :attr:`Rule.most_joined` to one: ``join`` solves their readouts as one frame, ``skip`` solves the last of them and gives up the
  others. What is still too much, or finds the queue full, is given up, oldest first.

Given up is a provisional image, never a readout: the final series is made from all of them.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence

from gadgets.readouts import Readout

Clock = Callable[[], float]
# A frame waits for half a batch on average, then for the whole next one.
_BUSY_SHARE = 0.3
Key = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """A complete frame that waits for its image.

    Attributes:
        key: its slice (see :attr:`gadgets.readouts.Readout.key`).
        number: of the frame in its slice, from 0; of joined frames the last.
        readouts: in order of acquisition.
        times: seconds from the scan's first readout, one a readout.
        received: the clock's time at its last readout.
        fresh: readouts that no earlier frame holds.
        steps: regular frames from the one solved before it to this one.
        members: regular frames that it holds.
    """

    key: Key
    number: int
    readouts: tuple[Readout, ...]
    times: tuple[float, ...]
    received: float
    fresh: int
    steps: int = 1
    members: int = 1


@dataclasses.dataclass(frozen=True)
class Rule:
    """What happens when frames come faster than they are solved.

    Attributes:
        late: ``join``, ``skip`` or ``wait``.
        deadline: longest wait of a frame, seconds.
        most: frames taken at once.
        most_joined: frames joined to one.
        capacity: frames that may wait.
    """

    late: str = "join"
    deadline: float = 0.3
    most: int = 16
    most_joined: int = 8
    capacity: int = 256


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the solver does next.

    Attributes:
        frames: to be solved, in order; joined ones are one.
        given_up: without a provisional image.
    """

    frames: tuple[Frame, ...]
    given_up: tuple[Frame, ...]


def plan(waiting: Sequence[Frame], now: float, rule: Rule, pace: float = 0.0) -> Plan:
    """Apply the rule to frames in order of arrival, at the clock's time ``now``, where an image takes ``pace`` seconds."""
    if rule.late == "wait":
        return Plan(tuple(waiting[: rule.most]), ())
    newest = waiting[-rule.most_joined :] if rule.late == "join" else waiting[-1:]
    on_time = [frame for frame in waiting if now - frame.received <= rule.deadline] or list(newest)
    kept = set(map(id, on_time))
    given_up = [frame for frame in waiting if id(frame) not in kept]
    most = min(rule.most, max(1, int(_BUSY_SHARE * rule.deadline / pace))) if pace > 0 else rule.most
    each = min(rule.most_joined, math.ceil(len(on_time) / most))
    frames: list[Frame] = []
    for group in _neighbours(on_time, each):
        if rule.late == "join":
            frames.append(joined(group))
        else:
            frames.append(dataclasses.replace(group[-1], steps=sum(frame.steps for frame in group)))
            given_up += group[:-1]
    surplus = max(0, len(frames) - most)
    return Plan(tuple(frames[surplus:]), (*given_up, *frames[:surplus]))


def _neighbours(frames: Sequence[Frame], each: int) -> list[list[Frame]]:
    """Groups of at most so many consecutive frames of one slice, in order of their last one's arrival."""
    open_groups: dict[Key, list[Frame]] = {}
    groups: list[list[Frame]] = []
    for frame in frames:
        group = open_groups.setdefault(frame.key, [])
        group.append(frame)
        if len(group) == each:
            groups.append(open_groups.pop(frame.key))
    groups.extend(open_groups.values())
    return sorted(groups, key=lambda group: group[-1].readouts[-1].number)


def joined(frames: Sequence[Frame]) -> Frame:
    """One frame with the readouts of consecutive ones, each once."""
    if len(frames) == 1:
        return frames[0]
    readouts = {readout.number: (readout, time) for frame in frames for readout, time in zip(frame.readouts, frame.times, strict=True)}
    ordered = [readouts[number] for number in sorted(readouts)]
    return dataclasses.replace(
        frames[-1],
        readouts=tuple(readout for readout, _ in ordered),
        times=tuple(time for _, time in ordered),
        fresh=sum(frame.fresh for frame in frames),
        steps=sum(frame.steps for frame in frames),
        members=sum(frame.members for frame in frames),
    )


class FrameQueue:
    """Frames between receiver and solver; bounded, kept by the rule.

    Args:
        rule: what to do when too much waits.
        clock: seconds; injected so that tests own the time.
    """

    def __init__(self, rule: Rule, clock: Clock) -> None:
        self.rule = rule
        self._clock = clock
        self._waiting: deque[Frame] = deque()
        self._dropped: list[Frame] = []
        self._changed = threading.Condition()
        self._ended = self._stopped = False
        self._pace = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, frame: Frame) -> None:
        """Append; a full queue gives up its oldest frame, or (``wait``) holds up the caller until there is room or all is stopped."""
        with self._changed:
            if self.rule.late == "wait":
                self._changed.wait_for(lambda: self._stopped or len(self._waiting) < self.rule.capacity)
            elif len(self._waiting) >= self.rule.capacity:
                self._dropped.append(self._waiting.popleft())
            if not self._stopped:
                self._waiting.append(frame)
                self._changed.notify_all()

    def take(self) -> Plan | None:
        """What to do next; waits for a frame. None after the last one, and once all is stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended or self._stopped)
            if self._stopped or not self._waiting:
                return None
            made = plan(tuple(self._waiting), self._clock(), self.rule, self._pace)
            if self.rule.late == "wait":
                for _ in made.frames:
                    self._waiting.popleft()
            else:
                self._waiting.clear()
            dropped, self._dropped = self._dropped, []
            self._changed.notify_all()
            return Plan(made.frames, (*dropped, *made.given_up))

    def took(self, seconds: float, frames: int) -> None:
        """So many frames were solved in so many of the clock's seconds: the last few batches are the pace to expect."""
        with self._changed:
            new = seconds / frames
            self._pace = new if self._pace == 0 else 0.7 * self._pace + 0.3 * new

    def end(self) -> None:
        """No further frame will be put."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Forget what waits and release everyone."""
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            self._changed.notify_all()
