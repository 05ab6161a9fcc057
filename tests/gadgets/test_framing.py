"""Frames by phase-encoding order, by counters and by heartbeat, as pure functions and through the stages."""

import ismrmrd
import numpy as np
import pytest

from gadgets import stages
from gadgets.binning.beats import Beats
from gadgets.binning.by_order import by_counters, by_encoding_order
from gadgets.binning.gated import by_phase, respiratory_states
from gadgets.settings import ChainSettings
from gadgets.waveforms import ECG, PULSE, RESPIRATION, Waveforms, since_trigger
from recon_core.errors import DataError, SettingError
from recon_core.problem import ImageSeries
from recon_core.reconstruct import Reconstruction

TICK = 0.0025


class Recorder:
    """Stands in for the solver and keeps what it was given."""

    def __init__(self) -> None:
        self.problems = []

    def __call__(self, problem, settings, solver_settings, progress):
        self.problems.append(problem)
        images = np.ones((problem.n_frames, *problem.shape), dtype=np.complex64)
        import torch

        return Reconstruction(ImageSeries(torch.from_numpy(images), problem.frame_times), {})


def members(binning) -> list[list[int]]:
    return [frame.tolist() for frame in binning.frames]


@pytest.mark.parametrize(
    ("steps", "order"),
    [
        ([-3, 0, 1, 2, -4, 0, 1, -2, -1, 0, 1, 3], "rising"),
        ([3, 0, -1, -3, 2, 1, 0, -1, 1, 0, -1, -2], "falling"),
        ([0, 1, -1, 3, 0, 1, -1, -4, 0, 1, -1, 2], "outwards"),
        ([4, -1, 1, 0, -3, 1, -1, 0, 2, 1, -1, 0], "inwards"),
    ],
)
def test_a_frame_begins_where_the_order_starts_again(steps, order):
    binning = by_encoding_order(np.array(steps, dtype=float))
    sizes = [4, 4, 4] if order != "rising" else [4, 3, 5]
    assert [len(frame) for frame in binning.frames] == sizes
    assert np.concatenate(binning.frames).tolist() == list(range(12))
    assert f"phase encoding {order}: 3 frames of" in binning.note


def test_a_line_acquired_twice_in_a_row_stays_in_its_frame():
    assert members(by_encoding_order(np.array([-2.0, 0, 0, 1, -1, 0, 0, 2]))) == [[0, 1, 2, 3], [4, 5, 6, 7]]


RISING, OUTWARDS = [-3, -1, 0, 2], [0, -1, 1, -2]


@pytest.mark.parametrize(
    ("order", "volume"),
    [
        ("rising within partitions falling", [(y, z) for z in (1, 0, -1) for y in RISING]),
        ("outwards within partitions rising", [(y, z) for z in (-1, 0, 1) for y in OUTWARDS]),
        ("falling, partitions outwards within lines", [(y, z) for y in RISING[::-1] for z in (0, 1, -1)]),
        ("outwards in the plane", sorted([(y, z) for z in (-2, 0, 1) for y in RISING], key=lambda at: np.hypot(*at))),
    ],
)
def test_a_volume_is_one_frame_however_its_loops_are_nested(order, volume):
    steps, partitions = np.array([*volume, *volume, *volume], dtype=float).T
    binning = by_encoding_order(steps, partitions)
    assert [len(frame) for frame in binning.frames] == [12, 12, 12]
    assert f"phase encoding {order}: 3 frames of 12 lines" in binning.note


@pytest.mark.parametrize("volume", [False, True])
def test_shuffled_lines_are_not_taken_for_an_order(volume):
    random = np.random.default_rng(5)
    lines = [random.permutation(24) - 12.0 for _ in range(8)]
    partitions = np.concatenate([random.permutation(24) % 3 - 1.0 for _ in range(8)]) if volume else None
    with pytest.raises(DataError, match=r"in no order that framing=order knows; .*framing=counters"):
        by_encoding_order(np.concatenate(lines), partitions)


def test_three_lines_a_frame_are_an_order_and_two_are_if_all_have_them():
    assert len(by_encoding_order(np.array([-4.0, 0, 3, -3, 0, 2, -2, 0, 1])).frames) == 3
    assert len(by_encoding_order(np.array([-4.0, 0, -3, 1, -2, 0])).frames) == 3


def test_counters_sort_segments_of_several_beats_into_their_phase():
    repetitions, phases = np.zeros(8, dtype=np.int64), np.array([0, 0, 1, 1, 0, 0, 1, 1])
    binning = by_counters(repetitions, phases)
    assert members(binning) == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert binning.phases.tolist() == [0, 1]
    assert binning.repetitions.tolist() == [0, 0]
    two = by_counters(np.array([1, 1, 0, 0]), np.array([0, 2, 2, 0]))
    assert members(two) == [[3], [2], [0], [1]]
    assert (two.repetitions.tolist(), two.phases.tolist()) == ([0, 0, 1, 1], [0, 2, 0, 2])


@pytest.mark.parametrize("sort", [lambda: by_encoding_order(np.empty(0)), lambda: by_counters(np.empty(0, int), np.empty(0, int))])
def test_no_readout_is_an_error(sort):
    with pytest.raises(DataError, match="no imaging readout"):
        sort()


def test_phases_and_states_fill_frames_in_order():
    times = np.arange(0, 4, 0.05) + 0.01
    found = Beats(np.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    states = (times >= 2).astype(np.int64)
    binning = by_phase(times, found, 4, states, 2)
    assert len(binning.frames) == 8
    assert sorted(np.concatenate(binning.frames).tolist()) == list(range(80))
    for frame, readouts in enumerate(binning.frames):
        assert set(np.floor(times[readouts] % 1 * 4)) == {frame % 4}
        assert set(states[readouts]) == {frame // 4}
    assert binning.phases.tolist() == [0, 1, 2, 3] * 2
    assert binning.repetitions.tolist() == [0] * 4 + [1] * 4
    np.testing.assert_allclose(binning.frame_times, 0.125 + 0.25 * np.arange(8))
    np.testing.assert_allclose(binning.times, times % 1 + states)


def test_a_phase_without_a_readout_stays_empty():
    binning = by_phase(np.array([0.1, 0.6, 1.1, 1.6]), Beats(np.array([0.0, 1.0, 2.0])), 4)
    assert [len(frame) for frame in binning.frames] == [2, 0, 2, 0]
    assert "2 without a readout are interpolated" in binning.note
    assert (np.diff(binning.frame_times) > 0).all()


def test_respiratory_states_hold_equally_many_readouts():
    signal = np.random.default_rng(0).standard_normal(90)
    states = respiratory_states(signal, 3)
    assert np.bincount(states).tolist() == [30, 30, 30]
    assert signal[states == 0].max() <= signal[states == 1].min()
    assert signal[states == 1].max() <= signal[states == 2].min()


def records(identity: int, data: np.ndarray, first: int, spacing: float = TICK, block: int = 40) -> list[ismrmrd.Waveform]:
    """Waveform records of 40 samples, data ``[channel, sample]``."""
    starts = range(0, data.shape[1], block)
    return [
        ismrmrd.Waveform.from_array(
            np.ascontiguousarray(data[:, s : s + block], dtype=np.uint32),
            waveform_id=identity,
            time_stamp=first + round(s * spacing / TICK),
            sample_time_us=1e6 * spacing,
        )
        for s in starts
    ]


def heart_signal(triggers: np.ndarray, duration: float, spacing: float = TICK) -> np.ndarray:
    after = np.arange(0, duration, spacing)[:, None] - triggers
    return 2048 + 1000 * np.exp(-0.5 * (after / 0.015) ** 2).sum(axis=1)


TRIGGERS = 0.2 + np.cumsum([0, 0.8, 0.75, 0.85, 0.8, 0.78, 0.82, 0.8])


def test_waveforms_are_joined_and_placed_in_time():
    gathered = Waveforms()
    for record in reversed(records(ECG, heart_signal(TRIGGERS, 7)[None], first=1000)):
        gathered.add(record)
    assert len(gathered) == 70
    found = gathered.triggers(ECG, 1040, TICK)
    np.testing.assert_allclose(found, TRIGGERS - 40 * TICK, atol=TICK)
    with pytest.raises(DataError, match=r"waveforms there: ECG"):
        gathered.triggers(PULSE, 0, TICK)


def test_a_gap_between_records_moves_no_beat():
    every = records(ECG, heart_signal(TRIGGERS, 7)[None], first=0)
    gathered = Waveforms()
    for record in [*every[:21], *every[24:]]:
        gathered.add(record)
    np.testing.assert_allclose(gathered.triggers(ECG, 0, TICK), TRIGGERS, atol=TICK)


def test_a_record_of_another_time_is_told():
    gathered = Waveforms()
    for record in [*records(ECG, heart_signal(TRIGGERS, 7)[None], first=0), *records(ECG, np.full((1, 40), 2048), first=2**32 - 100)]:
        gathered.add(record)
    with pytest.raises(DataError, match=r"waveform time_stamp: records of 7\.1 s lie within 10737418 s"):
        gathered.triggers(ECG, 0, TICK)


def test_the_scanners_own_triggers_come_first():
    own = np.zeros((3, 2800))
    own[0] = heart_signal(TRIGGERS[::2], 7)
    own[2, np.round((TRIGGERS + 0.05) / TICK).astype(int)] = 16384
    gathered = Waveforms()
    for record in records(ECG, own, first=0):
        gathered.add(record)
    np.testing.assert_allclose(gathered.triggers(ECG, 0, TICK), TRIGGERS + 0.05, atol=TICK)


def test_records_that_do_not_fit_together_are_refused():
    gathered = Waveforms()
    gathered.add(records(ECG, np.ones((1, 5)), 0)[0])
    gathered.add(records(ECG, np.ones((2, 5)), 10)[0])
    with pytest.raises(DataError, match=r"1 channels every 2\.5 ms; 2 channels every 2\.5 ms"):
        gathered.signal(ECG, 0, TICK)


def test_triggers_from_the_stamps_of_readouts():
    times = np.arange(0, 6, 0.004)
    last = np.searchsorted(TRIGGERS, times, side="right") - 1
    since = np.where(last >= 0, times - TRIGGERS[last], times + 0.55)
    found = since_trigger(np.floor(since / TICK).astype(np.int64), times, TICK)
    np.testing.assert_allclose(found, np.concatenate([[-0.55], TRIGGERS[times[-1] > TRIGGERS]]), atol=TICK)
    with pytest.raises(DataError, match="0 in every readout"):
        since_trigger(np.zeros(10, dtype=np.int64), np.arange(10.0), TICK)


@pytest.fixture(scope="module")
def radial(scans):
    """6 s of spokes every 2.5 ms, and the R waves in them."""
    n = 2400
    xml, acquisitions = scans.radial_scan(scans.Protocol(matrix=(8, 8, 1), encoded_matrix=(8, 8, 1), channels=2), n=n)
    for row, acquisition in enumerate(acquisitions):
        acquisition.acquisition_time_stamp = 5000 + row
        at = row * TICK
        last = int(np.searchsorted(TRIGGERS, at, side="right")) - 1
        acquisition.physiology_time_stamp[0] = int((at - (TRIGGERS[last] if last >= 0 else TRIGGERS[0] - 0.8)) / TICK)
    return xml, acquisitions


def gated(radial, ecg: np.ndarray, late: int = 0, late_breath: int = 0, **settings):
    """Problem and images; waveforms come ``late`` and ``late_breath`` ticks after the readouts."""
    xml, acquisitions = radial
    recorder = Recorder()
    chosen = ChainSettings(framing="gated", cardiac_phases=10, coils=2, image_type="complex", **settings)
    breath = 1000 + 500 * np.sin(2 * np.pi * 0.25 * np.arange(0, 6, TICK))
    waves = [*records(ECG, ecg[None], first=5000 + late), *records(RESPIRATION, breath[None], first=5000 + late_breath)]
    images = list(stages.run(chosen, xml, [*acquisitions[:7], *waves, *acquisitions[7:]], method=recorder))
    return recorder.problems[0], images


def same_phase(problem, other) -> float:
    """Share of the readouts that lie in the same frame, or in one beside it around the beat."""
    owner = np.empty((2, problem.n_readouts))
    for row, one in enumerate((problem, other)):
        for number, frame in enumerate(one.frames):
            owner[row, frame.numpy()] = number
    off = np.abs(owner[0] - owner[1])
    return float((np.minimum(off, problem.n_frames - off) <= 1).mean())


def test_images_carry_phase_and_respiratory_state(radial):
    problem, images = gated(radial, heart_signal(TRIGGERS, 6), respiratory_phases=2)
    assert problem.n_frames == 20
    assert [image.phase for image in images] == [*range(10), *range(10)]
    assert [image.repetition for image in images] == [0] * 10 + [1] * 10
    assert [image.image_index for image in images] == list(range(1, 21))
    assert all("10 cardiac phases × 2 respiratory states from" in image.meta["ImageComments"] for image in images)
    assert sum(frame.numel() for frame in problem.frames) == problem.n_readouts
    halves = [sum(frame.numel() for frame in problem.frames[part]) for part in (slice(0, 10), slice(10, 20))]
    assert halves == [1200, 1200]


def test_a_missed_or_spurious_trigger_does_not_derail_the_scan(radial):
    clean, _ = gated(radial, heart_signal(TRIGGERS, 6))
    missed, images = gated(radial, heart_signal(np.delete(TRIGGERS, 3), 6))
    spurious, _ = gated(radial, heart_signal(np.append(TRIGGERS, TRIGGERS[2] + 0.35), 6))
    assert same_phase(clean, missed) > 0.97
    assert same_phase(clean, spurious) > 0.97
    assert "1 missed triggers mended" in images[0].meta["ImageComments"]
    assert [image.phase for image in images] == list(range(10))


@pytest.mark.parametrize("late", [1_440_000, -3600])
def test_waveforms_of_another_time_are_refused(radial, late):
    with pytest.raises(DataError, match=r"waveform of ecg: from .* the readouts from 0\.0 to 6\.0 s"):
        gated(radial, heart_signal(TRIGGERS, 6), late=late)
    with pytest.raises(DataError, match="waveform of belt: from"):
        gated(radial, heart_signal(TRIGGERS, 6), late_breath=late, respiratory_phases=2)


def test_a_signal_that_ends_a_few_beats_early_is_continued(radial):
    problem, _ = gated(radial, heart_signal(TRIGGERS[:5], 4))
    assert same_phase(gated(radial, heart_signal(TRIGGERS, 6))[0], problem) > 0.97


def test_stamps_and_waveform_agree(radial):
    assert same_phase(gated(radial, heart_signal(TRIGGERS, 6))[0], gated(radial, heart_signal(TRIGGERS, 6), gating="stamps")[0]) == 1.0


def test_gating_without_its_signal_is_told(radial):
    xml, acquisitions = radial
    with pytest.raises(DataError, match=r"waveform ECG: none in the stream \(waveforms there: none at all\)"):
        list(stages.run(ChainSettings(framing="gated"), xml, acquisitions))
    with pytest.raises(SettingError, match="order on a radial scan"):
        list(stages.run(ChainSettings(framing="order"), xml, acquisitions))


def test_waveforms_cannot_be_placed_beside_readouts_without_a_clock(scans):
    xml, acquisitions = scans.radial_scan(n=16)
    for acquisition in acquisitions:
        acquisition.acquisition_time_stamp = 3
    waves = records(ECG, heart_signal(TRIGGERS, 7)[None], first=0)
    with pytest.raises(DataError, match="no clock"):
        list(stages.run(ChainSettings(framing="gated"), xml, [*waves, *acquisitions]))


def test_interleaved_slices_are_gated_each_for_itself(radial, scans):
    """Every other readout belongs to slice 1: one clock, one ECG, two models."""
    xml, acquisitions = radial
    two = []
    for row, acquisition in enumerate(acquisitions):
        copy = scans.acquisition(
            acquisition.data * (1 + row % 2), acquisition.traj, acquisition_time_stamp=acquisition.acquisition_time_stamp, slice=row % 2
        )
        two.append(copy)
    recorder = Recorder()
    chosen = ChainSettings(framing="gated", cardiac_phases=8, coils=2)
    waves = records(ECG, heart_signal(TRIGGERS, 6)[None], first=5000)
    images = list(stages.run(chosen, xml, [*waves, *two], method=recorder))
    assert [(image.slice, image.phase) for image in images] == [(s, p) for s in range(2) for p in range(8)]
    assert len(recorder.problems) == 2
    for number, problem in enumerate(recorder.problems):
        assert problem.n_readouts == 1200
        owner = np.concatenate([np.full(frame.numel(), frame_number) for frame_number, frame in enumerate(problem.frames)])
        readouts = np.concatenate([frame.numpy() for frame in problem.frames])
        at = (2 * readouts + number) * TICK
        inside = (at > TRIGGERS[0] + 0.01) & (at < 5.5)
        phase = Beats(TRIGGERS).phase(at[inside]) * 8
        off = np.abs(owner[inside] + 0.5 - phase)
        assert np.minimum(off, 8 - off).max() < 0.6


def test_segments_by_counters_follow_each_other_evenly(scans):
    protocol = scans.Protocol(trajectory="cartesian", matrix=(16, 12, 1), encoded_matrix=(16, 12, 1))
    made = scans.cartesian(protocol)
    scan = []
    for beat in range(3):
        for phase in range(4):
            for line in made[beat * 4 : beat * 4 + 4]:
                number = len(scan)
                copy = scans.acquisition(
                    line.data,
                    kspace_encode_step_1=line.idx.kspace_encode_step_1,
                    phase=phase,
                    acquisition_time_stamp=number,
                    center_sample=8,
                )
                scan.append(copy)
    recorder = Recorder()
    images = list(stages.run(ChainSettings(framing="counters", coils=2), protocol.xml(), scan, method=recorder))
    assert [image.phase for image in images] == [0, 1, 2, 3]
    problem = recorder.problems[0]
    assert [frame.numel() for frame in problem.frames] == [12] * 4
    for frame in problem.frames:
        assert sorted(problem.trajectory[frame, 0, 1].tolist()) == list(range(-6, 6))
    assert (np.diff(problem.frame_times.numpy()) > 0).all()
