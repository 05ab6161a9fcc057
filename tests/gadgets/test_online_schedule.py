"""The rule of late frames, and the queue that keeps it, with a clock of the test's own."""

from __future__ import annotations

import threading

import ismrmrd
import numpy as np
import pytest

from gadgets.online.schedule import Frame, FrameQueue, Rule, plan
from gadgets.readouts import Readout

KEY, OTHER = (0, 0, 0, 0), (0, 1, 0, 0)


def readout(number: int) -> Readout:
    return Readout(number, ismrmrd.AcquisitionHeader(), np.zeros((1, 1), np.complex64), np.zeros((1, 2), np.float32))


def frame(number: int, received: float = 0.0, key=KEY, per_frame: int = 2) -> Frame:
    readouts = tuple(readout(per_frame * number + n) for n in range(per_frame))
    times = tuple(0.003 * r.number for r in readouts)
    return Frame(key, number, readouts, times, received, per_frame)


def numbers(frames) -> list[list[int]]:
    return [[r.number for r in f.readouts] for f in frames]


def test_in_time_every_frame_is_solved_alone():
    waiting = [frame(n) for n in range(4)]
    made = plan(waiting, 0.1, Rule(most=4))
    assert made.frames == tuple(waiting)
    assert made.given_up == ()


def test_too_many_are_joined_by_neighbours():
    made = plan([frame(n) for n in range(7)], 0.1, Rule("join", most=4))
    assert numbers(made.frames) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13]]
    assert [f.steps for f in made.frames] == [2, 2, 2, 1]
    assert [f.fresh for f in made.frames] == [4, 4, 4, 2]
    assert [f.number for f in made.frames] == [1, 3, 5, 6]
    assert made.given_up == ()


def test_too_many_are_skipped_evenly():
    waiting = [frame(n) for n in range(7)]
    made = plan(waiting, 0.1, Rule("skip", most=4))
    assert [f.number for f in made.frames] == [1, 3, 5, 6]
    assert [f.steps for f in made.frames] == [2, 2, 2, 1]
    assert [f.members for f in (*made.frames, *made.given_up)] == [1] * 7
    assert [f.number for f in made.given_up] == [0, 2, 4]


def test_what_cannot_be_joined_is_given_up_oldest_first():
    made = plan([frame(n) for n in range(20)], 0.1, Rule("join", most=3, most_joined=4))
    assert [f.number for f in made.frames] == [11, 15, 19]
    assert sum(f.members for f in made.given_up) == 8
    assert sum(f.fresh for f in (*made.frames, *made.given_up)) == 40


def test_the_deadline_gives_up_all_but_the_newest():
    late = [frame(n, received=0.0) for n in range(3)]
    assert [f.number for f in plan(late, 1.0, Rule("skip", deadline=0.3)).frames] == [2]
    assert [f.number for f in plan(late, 1.0, Rule("join", deadline=0.3, most_joined=2), pace=1.0).frames] == [2]
    assert plan(late, 1.0, Rule("join", deadline=0.3, most_joined=2), pace=1.0).frames[0].members == 2
    mixed = [*late, frame(3, received=0.9)]
    made = plan(mixed, 1.0, Rule(deadline=0.3))
    assert [f.number for f in made.frames] == [3]
    assert [f.number for f in made.given_up] == [0, 1, 2]


def test_a_slow_pace_makes_fewer_images():
    waiting = [frame(n) for n in range(12)]
    made = plan(waiting, 0.0, Rule("join", deadline=0.3, most=16), pace=0.029)
    assert [f.steps for f in made.frames] == [4, 4, 4]
    # One image takes longer than the deadline: still one is made.
    assert len(plan(waiting, 0.0, Rule("join", deadline=0.3), pace=9.0).frames) == 1


def test_slices_are_not_joined_with_each_other():
    waiting = [frame(n, key=KEY if n % 2 == 0 else OTHER) for n in range(8)]
    made = plan(waiting, 0.0, Rule("join", most=4))
    assert [f.key for f in made.frames] == [KEY, OTHER, KEY, OTHER]
    assert numbers(made.frames)[0] == [0, 1, 4, 5]


def test_overlapping_frames_are_joined_with_every_readout_once():
    sliding = [
        Frame(KEY, n, tuple(readout(n + k) for k in range(3)), tuple(0.003 * (n + k) for k in range(3)), 0.0, 3 if n == 0 else 1)
        for n in range(4)
    ]
    made = plan(sliding, 0.0, Rule("join", most=1)).frames[0]
    assert [r.number for r in made.readouts] == list(range(6))
    assert made.times == pytest.approx([0.003 * n for n in range(6)])
    assert made.fresh == 6


def test_waiting_takes_the_oldest_and_gives_up_nothing():
    made = plan([frame(n) for n in range(9)], 99.0, Rule("wait", most=4))
    assert [f.number for f in made.frames] == [0, 1, 2, 3]
    assert made.given_up == ()


def test_a_full_queue_gives_up_its_oldest_frame():
    queue = FrameQueue(Rule("skip", most=16, capacity=3), lambda: 0.0)
    for number in range(5):
        queue.put(frame(number))
        assert len(queue) <= 3
    made = queue.take()
    assert [f.number for f in made.frames] == [2, 3, 4]
    assert [f.number for f in made.given_up] == [0, 1]


def test_a_full_queue_holds_up_a_stored_scan():
    queue = FrameQueue(Rule("wait", most=2, capacity=2), lambda: 0.0)
    put: list[int] = []

    def fill() -> None:
        for number in range(6):
            queue.put(frame(number))
            put.append(number)
        queue.end()

    filler = threading.Thread(target=fill)
    filler.start()
    taken: list[int] = []
    while (made := queue.take()) is not None:
        taken += [f.number for f in made.frames]
        assert len(put) <= len(taken) + 3
    filler.join()
    assert taken == list(range(6))


def test_stopping_releases_both_sides():
    queue = FrameQueue(Rule("wait", capacity=1), lambda: 0.0)
    queue.put(frame(0))
    blocked = threading.Thread(target=queue.put, args=(frame(1),))
    blocked.start()
    queue.stop()
    blocked.join(5)
    assert not blocked.is_alive()
    assert queue.take() is None
    assert len(queue) == 0
