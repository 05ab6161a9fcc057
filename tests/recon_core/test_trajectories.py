"""Trajectories against their definitions, in physical units."""

import math

import numpy as np
import pytest

from recon_core.errors import SettingError
from recon_core.trajectories import (
    GOLDEN_ANGLE,
    PROTON_HZ_PER_MT,
    GradientLimits,
    archimedean_arm,
    cartesian_interleaved_mask,
    cartesian_lines,
    cartesian_mask,
    golden_angle_radial,
    net_acceleration,
    resolution_limit,
    spiral_arms,
    stack_of_stars,
)


def test_the_golden_angle_is_in_radians():
    assert math.degrees(GOLDEN_ANGLE) == pytest.approx(111.24611797, abs=1e-7)
    spokes = golden_angle_radial(3, 16)
    end = spokes[:, -1]
    turned = np.degrees(np.arctan2(end[:, 1], end[:, 0]))
    np.testing.assert_allclose(turned % 360, [0, 111.246, 222.492], atol=1e-3)


def test_a_spoke_passes_the_centre_and_reaches_the_resolution_limit():
    spokes = golden_angle_radial(5, 64, oversampling=2)
    assert spokes.dtype == np.float32
    assert spokes.shape == (5, 64, 2)
    np.testing.assert_array_equal(spokes[:, 32], 0)
    radius = np.linalg.norm(spokes, axis=-1)
    np.testing.assert_allclose(radius[:, 0], 16, rtol=1e-6)
    np.testing.assert_allclose(np.diff(radius[:, 32:], axis=1), 0.5, rtol=1e-4)


def test_spokes_continue_from_a_start():
    np.testing.assert_array_equal(golden_angle_radial(6, 9)[4:], golden_angle_radial(2, 9, start=4))


def test_spokes_cover_a_circle_in_cycles_per_mm_whatever_the_field_of_view():
    matrix, fov = (40, 64), (240.0, 320.0)  # pixels of 6 and 5 mm
    spokes = golden_angle_radial(30, 128, matrix=matrix, field_of_view=fov) / np.array([320.0, 240.0])
    np.testing.assert_allclose(np.linalg.norm(spokes[:, 0], axis=-1), 1 / 10, rtol=1e-5)
    assert resolution_limit(matrix, fov) == pytest.approx(1 / 10)
    turned = np.arctan2(spokes[1, -1, 1], spokes[1, -1, 0])
    assert turned == pytest.approx(GOLDEN_ANGLE, abs=1e-5)


@pytest.mark.parametrize("limits", [GradientLimits(), GradientLimits(amplitude=12, slew_rate=60)])
def test_a_spiral_keeps_the_gradient_limits_and_uses_them(limits):
    dwell = 2e-6
    arm = archimedean_arm((96, 96), (300.0, 300.0), 12, dwell, limits)
    gradient = np.diff(arm, axis=0) / dwell / (1e-3 * PROTON_HZ_PER_MT)  # mT/m
    slew = np.diff(gradient, axis=0) / dwell / 1e3  # T/m/s
    strength = np.linalg.norm(gradient, axis=1)
    size = np.linalg.norm(slew, axis=1)
    assert strength.max() <= limits.amplitude * 1.001
    assert size.max() <= limits.slew_rate * 1.03  # explicit steps
    assert np.median(size[: len(size) // 4]) > 0.9 * limits.slew_rate
    assert np.linalg.norm(arm, axis=1)[-1] == pytest.approx(96 / 600, rel=0.02)
    assert len(arm) * dwell < 20e-3


def test_interleaves_lie_one_nyquist_distance_apart():
    interleaves, fov = 8, 250.0
    arm = archimedean_arm((64, 64), (fov, fov), interleaves)
    radius, angle = np.linalg.norm(arm, axis=1), np.unwrap(np.arctan2(arm[:, 1], arm[:, 0]))
    inside = radius > 0.2 * radius.max()
    growth = np.polyfit(angle[inside], radius[inside], 1)[0]  # cycles/mm per radian
    assert growth * 2 * math.pi / interleaves == pytest.approx(1 / fov, rel=1e-3)
    step = np.linalg.norm(np.diff(arm, axis=0), axis=1)
    assert step.max() <= 1 / fov * 1.001


def test_arms_turn_by_the_golden_or_the_uniform_angle():
    arms = spiral_arms(3, (64, 48), (256.0, 192.0), 10) / np.array([192.0, 256.0])
    at = [np.arctan2(a[-1, 1], a[-1, 0]) for a in arms]
    np.testing.assert_allclose(np.degrees(np.diff(at)) % 360, 222.492, atol=1e-2)
    uniform = spiral_arms(11, (64, 64), (256.0, 256.0), 10, golden=False)
    np.testing.assert_allclose(uniform[10], uniform[0], atol=1e-4)
    np.testing.assert_array_equal(spiral_arms(2, (32, 32), (200.0, 200.0), 6, start=5), spiral_arms(7, (32, 32), (200.0, 200.0), 6)[5:])


def test_a_stack_of_stars_repeats_each_angle_on_all_partitions():
    stack = stack_of_stars(4, 5, 12)
    assert stack.shape == (20, 12, 3)
    np.testing.assert_array_equal(stack[:5, 0, 2], [-2, -1, 0, 1, 2])
    np.testing.assert_array_equal(stack[5:10, :, :2], np.tile(golden_angle_radial(1, 12, start=1), (5, 1, 1)))


def test_cartesian_lines_lie_on_the_grid():
    k = cartesian_lines(np.array([4, 0, 7]), 12, 8, oversampling=2)
    np.testing.assert_array_equal(k[:, 6], [[0, 0], [0, -4], [0, 3]])
    np.testing.assert_allclose(np.diff(k[..., 0], axis=1), 0.5)


def test_a_cartesian_mask_counts_acceleration_outside_the_middle():
    mask = cartesian_mask(20, 97, 4.0, calibration_lines=9, seed=5)
    assert mask[:, 44:53].all()
    assert (mask.sum(1) == 9 + 22).all()
    assert len({m.tobytes() for m in mask}) > 1
    lines = np.arange(97)
    middle = (np.abs(lines - 48) < 24) & ~((lines >= 44) & (lines < 53))
    outer = np.abs(lines - 48) >= 36
    assert mask[:, middle].mean() > 2 * mask[:, outer].mean()
    np.testing.assert_array_equal(mask, cartesian_mask(20, 97, 4.0, 9, seed=5))
    assert cartesian_mask(2, 8, 3.0, calibration_lines=8).all()


@pytest.mark.parametrize(("acceleration", "lines"), [(4, 70), (8, 70), (5, 33), (1, 20)])
def test_evenly_spaced_lines_move_on_from_frame_to_frame(acceleration, lines):
    mask = cartesian_interleaved_mask(3 * acceleration, lines, acceleration, calibration_lines=8)
    middle = slice(lines // 2 - 4, lines // 2 + 4)
    assert mask[:, middle].all()
    outside = np.delete(mask, np.arange(lines)[middle], axis=1)
    # Any so many consecutive frames have every line once.
    for first in range(2 * acceleration):
        np.testing.assert_array_equal(outside[first : first + acceleration].sum(axis=0), 1)
    frame = np.delete(np.arange(lines), np.arange(lines)[middle])[outside[1]]
    assert (np.diff(frame) % acceleration == 0).all()
    assert net_acceleration(mask) == pytest.approx(mask.size / np.count_nonzero(mask))
    assert net_acceleration(mask) <= acceleration


def test_evenly_spaced_lines_need_a_whole_acceleration_that_leaves_lines():
    with pytest.raises(SettingError, match=r"2\.5 is no whole number"):
        cartesian_interleaved_mask(4, 20, 2.5)
    with pytest.raises(SettingError, match="leaves frames of 6 lines without any"):
        cartesian_interleaved_mask(8, 6, 8)


def test_bad_numbers_are_refused():
    with pytest.raises(SettingError, match="n_spokes: 0"):
        golden_angle_radial(0, 8)
    with pytest.raises(SettingError, match="acceleration"):
        cartesian_mask(1, 8, 0.5)
    with pytest.raises(SettingError, match="calibration_lines"):
        cartesian_mask(1, 8, 2, 9)
    with pytest.raises(SettingError, match="interleaves"):
        archimedean_arm((8, 8), (10.0, 10.0), 0)
