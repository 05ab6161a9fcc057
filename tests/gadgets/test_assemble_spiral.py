"""Trajectories computed from a header's description."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from gadgets.assemble import assemble
from gadgets.header import parse
from gadgets.readouts import admit
from gadgets.settings import ChainSettings
from gadgets.spiral import SpiralDesign, arms, radii
from recon_core.errors import DataError

GAMMA_HZ_PER_G = 4257.747892

DESIGN = SpiralDesign(interleaves=8, dwell=4e-6, max_gradient=2.4, max_slew=12000.0, field_of_view=32.0, k_max=1.0)

DESCRIPTION = """<trajectoryDescription><identifier>HargreavesVDS2000</identifier>
<userParameterLong><name>interleaves</name><value>8</value></userParameterLong>
<userParameterLong><name>fov_coefficients</name><value>1</value></userParameterLong>
<userParameterLong><name>SamplingTime_ns</name><value>4000</value></userParameterLong>
<userParameterDouble><name>MaxGradient_G_per_cm</name><value>2.4</value></userParameterDouble>
<userParameterDouble><name>MaxSlewRate_G_per_cm_per_s</name><value>12000</value></userParameterDouble>
<userParameterDouble><name>FOVCoeff_1_cm</name><value>32</value></userParameterDouble>
<userParameterDouble><name>krmax_per_cm</name><value>1.0</value></userParameterDouble></trajectoryDescription>"""


def arm(design: SpiralDesign = DESIGN) -> np.ndarray:
    return arms(design, [0], len(radii(design, 100000)))[0][0]


def test_limits_are_kept_and_used():
    gradient = np.diff(arm(), axis=0) / DESIGN.dwell / GAMMA_HZ_PER_G
    slew = np.linalg.norm(np.diff(gradient, axis=0), axis=1) / DESIGN.dwell
    strength = np.linalg.norm(gradient, axis=1)
    amplitude = min(DESIGN.max_gradient, 1 / (DESIGN.field_of_view * DESIGN.dwell * GAMMA_HZ_PER_G))
    assert strength.max() <= 1.001 * amplitude
    assert slew.max() <= 1.02 * DESIGN.max_slew
    # The fastest design rests on one of the limits at any time.
    resting = (strength[1:] > 0.97 * amplitude) | (slew > 0.97 * DESIGN.max_slew)
    assert resting[2:].mean() > 0.95


def test_sampling_is_dense_enough():
    """Neighbouring arms lie 1/FOV apart on a ray, samples along an arm at most that."""
    k = arm()
    radius, angle = np.linalg.norm(k, axis=1), np.unwrap(np.arctan2(k[:, 1], k[:, 0])[1:])
    rise = np.polyfit(np.abs(angle - angle[0]), radius[1:], 1)[0]
    assert rise * 2 * math.pi / DESIGN.interleaves == pytest.approx(1 / DESIGN.field_of_view, rel=1e-3)
    assert np.linalg.norm(np.diff(k, axis=0), axis=1).max() <= 1.001 / DESIGN.field_of_view
    assert radius[0] == 0
    assert DESIGN.k_max - 1.1 / DESIGN.field_of_view < radius[-1] <= DESIGN.k_max


def test_a_weaker_gradient_takes_longer():
    assert len(radii(dataclasses.replace(DESIGN, max_gradient=0.8), 100000)) > 1.5 * len(radii(DESIGN, 100000))


def test_arms_turn_clockwise_and_start_along_minus_x():
    k, on_arm = arms(DESIGN, [0, 2, 8], 200)
    assert on_arm == 200
    assert k[0, 1, 0] < 0
    assert abs(k[0, 1, 1]) < 0.05 * abs(k[0, 1, 0])
    quarter = np.stack([k[0, :, 1], -k[0, :, 0]], axis=-1)
    assert k[1] == pytest.approx(quarter, abs=1e-12)
    assert k[2] == pytest.approx(k[0], abs=1e-12)


def spiral_scan(scans, samples, n=8):
    protocol = scans.Protocol(
        trajectory="spiral",
        description=DESCRIPTION,
        encoded_matrix=(64, 64, 1),
        encoded_fov=(320.0, 320.0, 8.0),
        matrix=(64, 64, 1),
    )
    readouts = [scans.acquisition(np.ones((3, samples)), kspace_encode_step_1=number) for number in range(n)]
    header = parse(protocol.xml())
    return assemble([admit(a, i, header) for i, a in enumerate(readouts)], np.arange(n) * 0.01, header, ChainSettings(readouts_per_frame=8))


def test_readouts_without_trajectory_take_the_described_one(scans):
    made = spiral_scan(scans, 300)
    wanted = arms(DESIGN, np.arange(8), 300)[0] * 32.0
    assert made.problem.trajectory.numpy() == pytest.approx(wanted, abs=1e-4)
    assert any("HargreavesVDS2000" in note for note in made.notes)


def test_samples_after_the_end_of_the_spiral_are_not_used(scans):
    length = len(radii(DESIGN, 100000))
    mask = spiral_scan(scans, length + 50).problem.mask
    assert mask[:, :length].all()
    assert not mask[:, length:].any()


@pytest.mark.parametrize(("name", "value"), [("krmax_per_cm", "0"), ("interleaves", "-4"), ("SamplingTime_ns", None)])
def test_incomplete_description(scans, name, value):
    before, after = f"<name>{name}</name>", f"<name>{name if value is not None else 'something'}</name>"
    text = DESCRIPTION.replace(before, after)
    if value is not None:
        head, tail = text.split(f"<name>{name}</name><value>")
        text = f"{head}<name>{name}</name><value>{value}{tail[tail.index('<') :]}"
    header = parse(scans.Protocol(trajectory="spiral", description=text).xml())
    readouts = [admit(scans.acquisition(np.ones((3, 20)), kspace_encode_step_1=0), 0, header)]
    with pytest.raises(DataError) as caught:
        assemble(readouts, np.zeros(1), header, ChainSettings())
    assert caught.value.field == f"trajectoryDescription.{name}"
