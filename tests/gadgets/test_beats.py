"""Heartbeats from signals and from triggers, some of them missing or spurious."""

import numpy as np
import pytest

from gadgets.binning.beats import Beats, beats, marks, peaks
from gadgets.binning.self_gating import breathing, heartbeats
from recon_core.errors import DataError
from recon_core.phantoms.physiology import Physiology

TIMES = np.arange(1.0, 18.0, 0.003)


@pytest.fixture(scope="module")
def triggers():
    """R waves of 19 s, one beat in five early and followed by a pause."""
    made = Physiology.make("physiological", 19.0, np.random.default_rng(4)).beats
    return made[(made > 0) & (made < 19)]


def agreement(found: Beats, triggers: np.ndarray) -> float:
    """Share of the times whose phase is within a tenth of a beat of the true one."""
    truth = Beats(triggers).covering(TIMES[0], TIMES[-1]).phase(TIMES)
    off = np.abs(found.covering(TIMES[0], TIMES[-1]).phase(TIMES) - truth)
    return float((np.minimum(off, 1 - off) < 0.1).mean())


def electrocardiogram(triggers: np.ndarray, spacing: float, sign: float = 1.0) -> np.ndarray:
    after = np.arange(0, 19, spacing)[:, None] - triggers
    waves = np.exp(-0.5 * (after / 0.012) ** 2) + 0.35 * np.exp(-0.5 * ((after - 0.28) / 0.04) ** 2)
    drift = 0.4 * np.sin(2 * np.pi * 0.25 * np.arange(len(waves)) * spacing)
    noise = 0.03 * np.random.default_rng(0).standard_normal(len(waves))
    return 2048 + 1000 * (sign * waves.sum(axis=1) + drift + noise)


def test_an_irregular_rhythm_is_left_as_it_is(triggers):
    lengths = np.diff(triggers)
    assert lengths.min() < 0.8 * np.median(lengths)
    found = beats(triggers[::-1])
    assert (found.spurious, found.missed) == (0, 0)
    np.testing.assert_array_equal(found.starts, triggers)


def test_phase_runs_from_zero_to_one_in_every_beat():
    found = Beats(np.array([0.0, 1.0, 1.5, 2.5]))
    np.testing.assert_allclose(found.phase(np.array([0.0, 0.25, 1.0, 1.25, 2.0, 2.4999])), [0, 0.25, 0, 0.5, 0.5, 0.9999])
    assert found.phase(np.nextafter([2.5], 0))[0] < 1
    assert found.length == 1.0


def test_beats_continue_beyond_the_triggers():
    found = Beats(np.array([2.0, 3.0, 4.0])).covering(0.4, 6.0)
    np.testing.assert_allclose(found.starts, [0, 1, 2, 3, 4, 5, 6, 7])
    np.testing.assert_allclose(found.phase(np.array([0.4, 6.0])), [0.4, 0.0])


@pytest.mark.parametrize("number", [3, 9, 15])
def test_a_missed_trigger_is_put_in(triggers, number):
    found = beats(np.delete(triggers, number))
    assert found.spurious == 0
    assert found.missed == 1
    assert agreement(found, triggers) > 0.95


@pytest.mark.parametrize("share", [0.05, 0.35, 0.5, 0.8])
@pytest.mark.parametrize("number", [4, 10])
def test_a_spurious_trigger_is_taken_out(triggers, number, share):
    extra = triggers[number] + share * (triggers[number + 1] - triggers[number])
    found = beats(np.append(triggers, extra))
    assert (found.spurious, found.missed) == (1, 0)
    # One of two triggers close together is as good as the other; the beat that was cut and its neighbour are a tenth of the scan.
    assert agreement(found, triggers) > 0.9


def test_a_trigger_in_a_long_pause_harms_that_beat_only(triggers):
    lengths = np.diff(triggers)
    number = int(lengths.argmax())
    found = beats(np.append(triggers, triggers[number] + 0.5 * lengths[number]))
    assert 0.9 < agreement(found, triggers) < 1


def test_many_faults_at_once(triggers):
    """Two in 23 triggers missed and two spurious: what is beyond repair stays local."""
    shares = []
    for seed in range(40):
        random = np.random.default_rng(seed)
        faulty = np.delete(triggers, random.choice(np.arange(1, len(triggers) - 1), 2, replace=False))
        faulty = np.append(faulty, random.uniform(triggers[0], triggers[-1], 2))
        shares.append(agreement(beats(faulty), triggers))
    assert np.median(shares) > 0.9
    assert min(shares) > 0.65


def test_a_drifting_rate_is_followed():
    lengths = np.linspace(0.6, 1.2, 40)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    assert (beats(starts).spurious, beats(starts).missed) == (0, 0)
    found = beats(np.delete(starts, 30))
    assert (found.spurious, found.missed) == (0, 1)


@pytest.mark.parametrize("given", [[], [1.0], [1.0, 2.0]])
def test_two_triggers_are_no_rhythm(given):
    with pytest.raises(DataError, match=f"{len(given)} heartbeats found"):
        beats(np.array(given))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("spacing", [0.0025, 0.005])
def test_r_waves_are_found_among_t_waves_drift_and_noise(triggers, spacing, sign):
    found = peaks(electrocardiogram(triggers, spacing, sign), spacing)
    assert len(found) == len(triggers)
    assert np.abs(found - triggers).max() <= 0.01


def test_a_flat_line_has_no_waves():
    assert len(peaks(np.full(1000, 2048.0), 0.0025)) == 0


def test_marks_are_rising_edges():
    channel = np.zeros(50)
    channel[[0, 1, 10, 30, 31, 32]] = 16384
    np.testing.assert_allclose(marks(channel, 0.01), [0.0, 0.1, 0.3])


def navigators(triggers: np.ndarray, breath: np.ndarray) -> np.ndarray:
    """Coils that see heart and breath in different shares, with noise and a jump from readout to readout."""
    random = np.random.default_rng(1)
    phase = Beats(triggers).covering(TIMES[0], TIMES[-1]).phase(TIMES)
    heart = np.exp(-0.5 * ((phase - 0.35) / 0.12) ** 2)
    shares = random.standard_normal((4, 2)) + 1j * random.standard_normal((4, 2))
    signal = 20 + shares @ np.stack([heart, 3 * breath])
    jump = 0.5 * np.cos(1.9416 * np.arange(len(TIMES)))
    return signal + jump + 0.2 * (random.standard_normal(signal.shape) + 1j * random.standard_normal(signal.shape))


def test_the_centre_of_k_space_tells_heartbeats_and_breathing(triggers):
    breath = np.sin(np.pi * 0.25 * TIMES) ** 2
    centre = navigators(triggers, breath)
    found = beats(heartbeats(centre, TIMES))
    inside = found.starts[(found.starts > 1.5) & (found.starts < 17.5)]
    expected = triggers[(triggers > 1) & (triggers < 17.5)]
    # The same point of every beat, an unknown share after its R wave.
    share = Beats(triggers).covering(0.0, 19.0).phase(inside)
    turned = np.angle(np.exp(2j * np.pi * share) / np.exp(2j * np.pi * share).mean())
    assert np.abs(len(inside) - len(expected)) <= 1
    assert np.abs(turned).max() / (2 * np.pi) < 0.12
    amplitude = breathing(centre, TIMES, TIMES)
    assert abs(np.corrcoef(amplitude, breath)[0, 1]) > 0.9


def test_self_gating_needs_readouts_through_the_centre():
    with pytest.raises(DataError, match="4 readouts pass the k-space centre"):
        heartbeats(np.ones((2, 4), dtype=np.complex64), np.arange(4.0))
    with pytest.raises(DataError, match="every 250 ms"):
        heartbeats(np.ones((2, 40), dtype=np.complex64), 0.25 * np.arange(40.0))


@pytest.mark.parametrize(("count", "early"), [(count, early) for count in range(3, 12) for early in range(count - 1)])
def test_an_early_beat_and_its_pause_stay_in_a_short_scan(count, early):
    lengths = np.full(count, 0.8)
    lengths[early], lengths[early + 1] = 0.55, 1.05
    found = beats(np.cumsum([0.4, *lengths]))
    assert (found.spurious, found.missed) == (0, 0)


def test_a_stray_trigger_far_away_is_no_row_of_missed_ones():
    with pytest.raises(DataError, match=r"49996\.8 s without a heartbeat"):
        beats(np.array([0, 0.8, 1.6, 2.4, 3.2, 50000.0]))
