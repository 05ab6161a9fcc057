"""Relaxation rates of scanner data (sources and licences: the data's READMEs)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gadgets import chain, stages
from gadgets.header import parse
from gadgets.scanfile import read_scan
from recon_core.problem import KSpaceProblem
from recon_core.reconstruct import ReconstructionSettings, reconstruct
from recon_core.signal_models import Protocol

FRAME = 0.01
"""Nominal seconds a frame of the rat series, whose frame time is not documented: rates are relative."""


ECHOES = np.array([4e-3, 9e-3, 15e-3])
COMPARTMENT = np.s_[140:158, 60:80]


def three_echoes(data_dir: Path, solver: str, **changes: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Magnitudes of the echoes and maps by name."""
    scan = read_scan(data_dir / "gre_3echo_phantom" / "gre_3echo.h5")
    own = {f"solver.{name}": value for name, value in changes.items()}
    settings = chain.load("mpqmri.xml").settings({"solver": solver, "device": "cpu", "image_type": "complex", **own})
    images = list(stages.run(settings, scan.header, scan.items()))
    assert [i.meta["EchoTime"] for i in images if i.meta["DataRole"] == "Image"] == ["4", "9", "15"]
    weighted = np.abs(np.stack([i.data[0, 0] for i in images if i.meta["DataRole"] == "Image"]))
    return weighted, {str(i.meta["ParameterName"]): i.data[0, 0] for i in images if i.data.dtype == np.float32}


def noise_and_scatter(weighted: np.ndarray) -> tuple[float, float]:
    """Noise of voxel-wise magnitudes (real part) and what it propagates to in the compartment's R2*, 1/s.

    The noise is that of the air above and below the compartment: the receiver's filter halves it towards both ends of the readout.
    """
    columns = COMPARTMENT[1]
    air = np.concatenate([weighted[:, :26, columns], weighted[:, -26:, columns]], axis=1)
    variance = 0.5 * np.square(air).mean()
    propagated = np.sqrt(variance / (weighted.mean(axis=0)[COMPARTMENT] ** 2 * np.square(ECHOES - ECHOES.mean()).sum()))
    return float(np.sqrt(variance)), float(np.sqrt(np.square(propagated).mean()))


def test_three_echoes_of_a_phantom(data_dir):
    """In a uniform compartment R2* scatters no more than the noise explains, about the slow decay of water."""
    weighted, maps = three_echoes(data_dir, "parameter_fit", negative_rates="true")
    assert {"R2star", "T2star", "off_resonance", "phase", "PD"} == set(maps)
    noise, propagated = noise_and_scatter(weighted)
    assert noise**2 == pytest.approx(0.5, rel=0.15)  # whitened samples have complex noise of unit variance
    rates = maps["R2star"]
    assert 0.9 * propagated < rates[COMPARTMENT].std() < 1.5 * propagated
    assert -5 < np.median(rates[COMPARTMENT]) < 15
    # The same as a straight line through the logarithms, in every voxel well above noise.
    bright = weighted.min(axis=0) > 10 * noise
    line = -np.polyfit(ECHOES, np.log(weighted[:, bright]), 1)[0]
    assert np.median(np.abs(rates[bright] - line)) < 1
    # The field is smooth where there is signal: no jumps by one over the echo spacing.
    assert np.abs(np.diff(maps["off_resonance"][COMPARTMENT], axis=0)).max() < 30
    # With the bound: the same where the rate is positive, zero elsewhere.
    bounded = three_echoes(data_dir, "parameter_fit")[1]["R2star"]
    positive = bright & (rates > 1)
    assert bounded.min() >= 0
    np.testing.assert_allclose(bounded[positive], rates[positive], rtol=0.01, atol=0.1)


@pytest.mark.slow
def test_joined_rates_of_a_phantom(data_dir):
    """At the weights that held-out lines choose: few voxels at the bound, the compartment smooth, what decays faster is kept."""
    weighted, voxelwise = three_echoes(data_dir, "parameter_fit", negative_rates="true")
    noise, propagated = noise_and_scatter(weighted)
    bright = weighted.min(axis=0) > 10 * noise
    rates = three_echoes(data_dir, "lorein", strength="1", rate_strength="1")[1]["R2star"]
    assert (rates[bright] >= 0).mean() > 0.99
    assert (rates[bright] <= 0).mean() < 0.05
    assert rates[COMPARTMENT].std() < 1.5 * propagated
    # No faster decay than voxel by voxel on the whole, and the rings about the spheres still stand out.
    assert abs(np.mean(rates[bright]) - np.mean(voxelwise["R2star"][bright])) < 1.5
    assert np.percentile(rates[bright], 97) > 5 * np.median(rates[bright])


def rat_series(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    """Frame and step of every line, lines, matrix along y and the step of k = 0."""
    scan = read_scan(path)
    readouts = list(scan.items())
    encoding = parse(scan.header).encodings[0]
    limit = encoding.limits.get("kspace_encoding_step_1")
    ny = encoding.encoded.matrix[1]
    frames, steps = (np.array([getattr(a.idx, name) for a in readouts]) for name in ("repetition", "kspace_encode_step_1"))
    return frames, steps, np.stack([a.data[0].copy() for a in readouts]), ny, limit.center if limit else ny // 2


def rates(frames, steps, lines, ny: int, centre: int, keep, solver: str) -> tuple[np.ndarray, np.ndarray]:
    """R2* and amplitude maps, the amplitude in units of the noise."""
    outer = np.abs(steps - centre) > 0.42 * ny
    level = np.median(np.abs(lines[outer])) / np.sqrt(np.log(2))
    count = int(keep.sum())
    k = torch.zeros(count, lines.shape[1], 2)
    k[..., 0] = torch.arange(lines.shape[1]) - lines.shape[1] // 2
    k[..., 1] = torch.from_numpy((steps[keep] - centre).astype(np.float32))[:, None]
    number = int(frames.max()) + 1
    problem = KSpaceProblem(
        samples=torch.from_numpy(lines[keep][None] / level).to(torch.complex64),
        trajectory=k,
        frames=tuple(torch.from_numpy(np.flatnonzero(frames[keep] == t)) for t in range(number)),
        readout_times=torch.arange(count, dtype=torch.float64),
        frame_times=torch.arange(number, dtype=torch.float64),
        shape=(ny, lines.shape[1]),
        cartesian=True,
        protocol=Protocol("decay", tuple(FRAME * t for t in range(number))),
    )
    settings = {"rank": 6, "off_resonance": 2.0, "mask_share": 0.05}
    result = reconstruct(problem, ReconstructionSettings(solver=solver, device="cpu"), settings)
    maps = {m.name: m.values.numpy() for m in result.series.maps}
    return maps["R2star"], maps["PD"]


@pytest.mark.slow
def test_decay_of_a_rat_from_half_the_lines(data_dir):
    """The full series sampled again with the masks of a prospectively undersampled one: rates within 10 % in the median."""
    folder = next(data_dir.glob("*rat_kidney_t2series*"))
    full = rat_series(folder / "urea_full.h5")
    masked = rat_series(folder / "hp001_undersampled.h5")
    assert full[3] == masked[3]
    wanted = set(zip(masked[0].tolist(), masked[1].tolist(), strict=True))
    keep = np.array([pair in wanted for pair in zip(full[0].tolist(), full[1].tolist(), strict=True)])
    assert 0.45 < keep.mean() < 0.55
    reference, amplitude = rates(*full, np.ones(len(keep), dtype=bool), "parameter_fit")
    found, present = rates(*full, keep, "lrt")
    inside = (amplitude > 5) & (present > 0) & (reference > 0)
    assert inside.sum() > 1000
    assert np.median(np.abs(found[inside] / reference[inside] - 1)) < 0.1
