"""Frames and times."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gadgets.binning.by_count import by_count, frame_times
from gadgets.binning.clock import readout_times
from recon_core.errors import DataError, SettingError


@given(n=st.integers(1, 400), per_frame=st.integers(1, 60), stride=st.none() | st.integers(1, 80))
def test_frames_are_whole_ordered_and_lose_nothing(n, per_frame, stride):
    binning = by_count(n, per_frame, stride)
    step = per_frame if stride is None else stride
    frames = binning.frames
    for number, frame in enumerate(frames):
        assert frame.dtype == np.int64
        assert (np.diff(frame) == 1).all()
        assert frame[0] == number * step
        assert frame[-1] < n
        assert len(frame) >= min(per_frame, n)
        if number < len(frames) - 1:
            assert len(frame) == per_frame
    used = np.unique(np.concatenate(frames))
    if step <= per_frame or n < per_frame:
        assert used.tolist() == list(range(n))
        # A further whole frame would have fitted otherwise.
        assert len(frames[-1]) < per_frame + step or n < per_frame
    else:
        assert len(frames[-1]) == per_frame
    whole = n >= per_frame and len(used) == n and len(frames[-1]) == per_frame
    assert (binning.note == "") == whole


def test_left_over_readouts_join_the_last_frame_and_are_told():
    binning = by_count(2301, 115)
    assert len(binning.frames) == 20
    assert [len(f) for f in binning.frames] == [115] * 19 + [116]
    assert binning.note == "1 readout left over after the last whole frame joined it"


def test_sliding_window():
    binning = by_count(11, 4, 2)
    assert [f.tolist() for f in binning.frames] == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 9, 10]]


def test_gaps_between_frames_are_told():
    binning = by_count(11, 2, 5)
    assert [f.tolist() for f in binning.frames] == [[0, 1], [5, 6]]
    assert binning.note == "7 readouts between frames left out (frame_stride=5)"


def test_fewer_readouts_than_a_frame():
    binning = by_count(3, 5)
    assert [f.tolist() for f in binning.frames] == [[0, 1, 2]]
    assert "readouts_per_frame=5" in binning.note


@pytest.mark.parametrize(("arguments", "field"), [((4, 0), "readouts_per_frame"), ((4, 2, 0), "frame_stride")])
def test_impossible_settings(arguments, field):
    with pytest.raises(SettingError) as caught:
        by_count(*arguments)
    assert caught.value.field == field


def test_no_readouts():
    with pytest.raises(DataError, match="no imaging readout"):
        by_count(0, 2)


def test_time_of_a_frame_is_the_mean_of_its_readouts():
    frames = by_count(5, 2).frames
    assert frame_times(frames, np.array([0.0, 1.0, 4.0, 5.0, 9.0])) == pytest.approx([0.5, 6.0])


@example(n=53, spacing=1.01953125, start=0, phase=0.984375)
@given(
    n=st.integers(2, 300),
    spacing=st.floats(0.05, 60.0),
    start=st.integers(0, 2**31),
    phase=st.floats(0, 1),
)
def test_even_readouts_are_timed_finer_than_the_tick(n, spacing, start, phase):
    """Stamps of evenly spaced readouts, cut to whole ticks: spacing recovered, no two readouts at one time."""
    stamps = start + np.floor(phase + spacing * np.arange(n)).astype(np.int64)
    if stamps[-1] == stamps[0]:
        return
    clock = readout_times(stamps, 0.0025)
    assert clock.note == ""
    assert clock.times[0] == 0
    assert np.abs(clock.times / 0.0025 - spacing * np.arange(n)).max() <= 1.5
    steps = np.diff(clock.times)
    assert steps.min() > 0
    assert np.ptp(steps) < 1e-9


def test_a_tick_coarser_than_the_repetition_time():
    stamps = np.floor(1.2 * np.arange(200)).astype(int)
    times = readout_times(stamps, 0.0025).times
    assert times == pytest.approx(0.003 * np.arange(200), abs=2e-4)


def test_pauses_are_kept():
    stamps = [100, 102, 104, 400, 402, 404]
    clock = readout_times(stamps, 0.0025)
    assert clock.times == pytest.approx(0.0025 * (np.array(stamps) - 100))


@pytest.mark.parametrize(
    ("stamps", "repetition_time", "spacing", "words"),
    [
        ([7, 7, 7], 0.004, 0.004, "are all equal: readouts spaced by the header's TR, 4 ms"),
        ([7, 7, 7], None, 0.0025, "are all equal: readouts spaced by one tick, 2.5 ms"),
        ([9, 8, 10], 0.004, 0.004, "run backwards"),
    ],
)
def test_stamps_that_are_no_clock(stamps, repetition_time, spacing, words):
    clock = readout_times(stamps, 0.0025, repetition_time)
    assert clock.times == pytest.approx(spacing * np.arange(3))
    assert words in clock.note


def test_single_readout():
    assert readout_times([12345], 0.0025).times.tolist() == [0.0]
