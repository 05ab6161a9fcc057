"""Signal models against an independent Bloch simulation; projections and energies against dense sums."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from recon_core.calibration.signal_subspace import signal_subspace
from recon_core.errors import DataError, SettingError
from recon_core.parameter_fit import fit_parameters
from recon_core.phantoms.relaxometry import paper_protocol
from recon_core.signal_models import MODELS, ParameterMap, Protocol, draw_tissues, signal_model

SPOILED = Protocol("spoiled", (2.15e-3, 8.25e-3, 20.45e-3), 46e-3, tuple(math.radians(a) for a in (5, 20, 40)))
PREPARED = Protocol("t2_inversion", (4.5e-3, 24.6e-3), 30e-3, (math.radians(10),), (25e-3, 50e-3, 90e-3), 17)
DECAY = Protocol("decay", (4e-3, 9e-3, 15e-3, 30e-3))
EVERY = {p.model: p for p in (SPOILED, PREPARED, DECAY)}
TISSUES = [(0.4, 0.06, 0.03, 12.0), (0.85, 0.07, 0.048, -31.0), (1.45, 0.095, 0.055, 0.0), (4.0, 1.5, 0.18, 44.0)]


def rotation_x(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, s], [0, -s, c]])


def relaxed(m: np.ndarray, time: float, t1: float, t2: float, offset: float = 0.0) -> np.ndarray:
    """Free precession of (Mx, My, Mz) with M0 = 1."""
    e1, e2, turn = math.exp(-time / t1), math.exp(-time / t2), 2 * math.pi * offset * time
    transverse = (m[0] + 1j * m[1]) * e2 * np.exp(1j * turn)
    return np.array([transverse.real, transverse.imag, 1 + (m[2] - 1) * e1])


def bloch_excitation(m: np.ndarray, angle: float, protocol: Protocol, t1: float, t2star: float, offset: float):
    """One spoiled repetition: signals at the echo times and the magnetisation before the next pulse."""
    tipped = rotation_x(angle) @ m
    # The pulse turns z towards +y: the signal's phase is that axis'.
    signals = [(s[0] + 1j * s[1]) / 1j for s in (relaxed(tipped, te, t1, t2star, offset) for te in protocol.echo_times)]
    after = relaxed(tipped, protocol.repetition_time, t1, t2star, offset)
    return signals, np.array([0.0, 0.0, after[2]])


def steady_state(angle: float, protocol: Protocol, t1: float, t2star: float) -> np.ndarray:
    m = np.array([0.0, 0.0, 1.0])
    for _ in range(900):
        _, m = bloch_excitation(m, angle, protocol, t1, t2star, 0.0)
    return m


def bloch_prepared(m: np.ndarray, tau: float, t1: float, t2: float) -> np.ndarray:
    """90x, τ/2, 180y, τ/2, 90x: an ideal T2 preparation that ends inverted; then crushed. T1 during τ is left out, as in the model."""
    transverse = rotation_x(math.pi / 2) @ m
    half = np.array([transverse[0] * math.exp(-tau / 2 / t2), transverse[1] * math.exp(-tau / 2 / t2), transverse[2]])
    refocused = np.diag([-1.0, 1.0, -1.0]) @ half
    again = np.array([refocused[0] * math.exp(-tau / 2 / t2), refocused[1] * math.exp(-tau / 2 / t2), refocused[2]])
    return np.array([0.0, 0.0, (rotation_x(math.pi / 2) @ again)[2]])


@pytest.mark.parametrize(("t1", "t2", "t2star", "offset"), TISSUES)
def test_spoiled_gradient_echo_is_blochs(t1, t2, t2star, offset):
    wanted = [
        bloch_excitation(steady_state(angle, SPOILED, t1, t2star), angle, SPOILED, t1, t2star, offset)[0] for angle in SPOILED.flip_angles
    ]
    values = {"T1": t1, "T2star": t2star, "off_resonance": offset}
    found = signal_model(SPOILED).signal({k: torch.tensor([v], dtype=torch.float64) for k, v in values.items()})[:, 0].numpy()
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(found, np.array(wanted).ravel(), atol=1e-3 * scale, rtol=0)


@pytest.mark.parametrize(("t1", "t2", "t2star", "offset"), TISSUES)
def test_prepared_inversion_is_blochs_from_the_spoiled_steady_state(t1, t2, t2star, offset):
    (angle,) = PREPARED.flip_angles
    start = steady_state(angle, PREPARED, t1, t2star)
    wanted = []
    for tau in PREPARED.preparations:
        m = bloch_prepared(start, tau, t1, t2)
        assert m[2] < 0
        for _ in range(PREPARED.recoveries):
            signals, m = bloch_excitation(m, angle, PREPARED, t1, t2star, offset)
            wanted += signals
    values = {"T1": t1, "T2": t2, "T2star": t2star, "B": -1.0, "off_resonance": offset}
    found = signal_model(PREPARED).signal({k: torch.tensor([v], dtype=torch.float64) for k, v in values.items()})[:, 0].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-3 * np.abs(wanted).max(), rtol=0)


def periodic_signals(t1: float, t2: float, t2star: float) -> np.ndarray:
    """The paper's second protocol played on without a pause, once its magnetisation repeats itself."""
    protocol = paper_protocol("set2")
    (angle,) = protocol.flip_angles
    m = np.array([0.0, 0.0, 1.0])
    for _ in range(6):
        signals = []
        for tau in protocol.preparations:
            m = bloch_prepared(m, tau, t1, t2)
            for _ in range(protocol.recoveries):
                each, m = bloch_excitation(m, angle, protocol, t1, t2star, 0.0)
                signals += each
    return np.array(signals)


def test_bias_of_a_periodic_train_is_as_tabulated():
    """Fitted with the model, which assumes the steady state before every preparation: what the page of the fit tells."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "methods" / "parameter_fit.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| ([+−][\d.]+) % \| ([+−][\d.]+) % \|$", page, flags=re.MULTILINE)
    told = {(float(a) / 1e3, float(b) / 1e3): [float(x.replace("−", "-")) for x in rest] for a, b, *rest in rows}
    tissues = {(t1, t2): t2star for t1, t2, t2star in ((0.4, 0.06, 0.03), (0.85, 0.07, 0.048), (1.45, 0.095, 0.055), (4.0, 1.5, 0.18))}
    model = signal_model(paper_protocol("set2"))
    series = np.stack([periodic_signals(*pair, t2star) for pair, t2star in tissues.items()], axis=1)
    basis = signal_subspace(model.protocol, 15).basis
    fit = fit_parameters(model, basis.conj().T @ torch.from_numpy(series).to(torch.complex64), basis, 30)
    found = {
        pair: [100 * (float(fit.values[name][n]) / true - 1) for name, true in zip(("T1", "T2"), pair, strict=True)]
        for n, pair in enumerate(tissues)
    }
    assert set(told) == set(tissues)
    for pair, bias in found.items():
        assert bias == pytest.approx(told[pair], abs=0.1), pair


def test_decay_by_hand():
    values = {"R2star": torch.tensor([25.0, -4.0]), "off_resonance": torch.tensor([10.0, 0.0])}
    found = signal_model(DECAY).signal(values)
    t = np.array(DECAY.echo_times)
    np.testing.assert_allclose(found[:, 0], np.exp(-25 * t + 2j * np.pi * 10 * t), rtol=1e-5)
    np.testing.assert_allclose(found[:, 1], np.exp(4 * t), rtol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_projection_and_energy_are_the_dense_sums(name):
    protocol = EVERY[name]
    model = signal_model(protocol)
    values = draw_tissues(model.parameters, 37, 40.0, 3)
    dense = model.signal(values)
    assert dense.shape == (protocol.contrasts, 37)
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(protocol.contrasts, 4, generator=generator, dtype=torch.complex128))[0]
    torch.testing.assert_close(model.project(values, basis), basis.conj().T @ dense)
    torch.testing.assert_close(model.energy(values), dense.abs().square().sum(0))
    echoes = len(protocol.echo_times)
    phasors = torch.polar(torch.ones(37, echoes).double(), torch.rand(37, echoes, generator=generator).double())
    other = model.signal(values, phasors)
    turn = torch.exp(2j * math.pi * values["off_resonance"][:, None] * torch.tensor(protocol.echo_times).double())
    shape = (*protocol.shape, 37)
    torch.testing.assert_close(other.reshape(shape) / phasors.T, dense.reshape(shape) / turn.T, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", EVERY)
def test_models_are_differentiable(name):
    model = signal_model(EVERY[name])
    values = {k: v.requires_grad_(True) for k, v in draw_tissues(model.parameters, 3, 40.0, 5).items()}
    basis = torch.eye(EVERY[name].contrasts, dtype=torch.complex128)[:, ::3]

    def real(*inputs: torch.Tensor) -> torch.Tensor:
        # Rates and times of very different sizes: compare relative changes.
        named = dict(zip(values, inputs, strict=True))
        return torch.view_as_real(model.project(named, basis))

    # The protocol's times are float32 constants; the numerical derivative sees them all the same.
    assert torch.autograd.gradcheck(real, tuple(values.values()), eps=1e-7, atol=1e-4, rtol=1e-3)


def test_contrasts_are_numbered_by_preparation_recovery_and_echo():
    assert PREPARED.shape == (3, 17, 2)
    assert [PREPARED.place(PREPARED.contrast(p, r, e)) for p, r, e in ((0, 0, 0), (2, 16, 1), (1, 3, 0))] == [
        (0, 0, 0),
        (2, 16, 1),
        (1, 3, 0),
    ]
    values = draw_tissues(signal_model(PREPARED).parameters, 1, 0.0, 0)
    signal = signal_model(PREPARED).signal(values)[:, 0].real
    early, late = signal[PREPARED.contrast(0, 0, 0)], signal[PREPARED.contrast(0, 16, 0)]
    assert early < late
    assert abs(signal[PREPARED.contrast(0, 16, 1)]) < abs(late)


def test_subspace_holds_what_it_says():
    subspace = signal_subspace(PREPARED, 6, 30.0)
    basis = subspace.basis
    torch.testing.assert_close(basis.conj().T @ basis, torch.eye(6, dtype=basis.dtype), atol=1e-5, rtol=0)
    assert float(subspace.singular[0]) == 1.0
    assert bool((subspace.singular.diff() <= 0).all())
    model = signal_model(PREPARED)
    fresh = model.signal(draw_tissues(model.parameters, 800, 30.0, 99)).to(torch.complex64)
    kept = float((basis.conj().T @ fresh).abs().square().sum() / fresh.abs().square().sum())
    assert kept == pytest.approx(subspace.energy, abs=2e-3)
    chosen = signal_subspace(PREPARED, None, 30.0)
    assert chosen.energy >= 0.9999
    assert signal_subspace(PREPARED, chosen.basis.shape[1] - 1, 30.0).energy < 0.9999
    assert signal_subspace(DECAY, 15).basis.shape == (4, 4)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": "bssfp"}, "signal_model"),
        ({"echo_times": ()}, "protocol: echo times"),
        ({"echo_times": (5e-3, 4e-3)}, "protocol: echo times"),
        ({"repetition_time": None}, "protocol: TR"),
        ({"flip_angles": (0.1,)}, "protocol: flip angles"),
        ({"flip_angles": (0.1, 0.1)}, "protocol: flip angles"),
        ({"flip_angles": (0.1, math.nan)}, "protocol: flip angles"),
        ({"recoveries": 3}, "protocol: recoveries"),
        ({"model": "t2_inversion"}, "protocol: flip angles"),
        ({"model": "t2_inversion", "flip_angles": (0.1,), "preparations": (0.02,)}, "protocol: T2 preparations"),
        ({"model": "t2_inversion", "flip_angles": (0.1,), "preparations": (0.02, 0.05)}, "protocol: recoveries"),
        ({"model": "decay", "echo_times": (5e-3,)}, "protocol: echo times"),
    ],
)
def test_a_protocol_its_model_cannot_use_is_refused(changes, field):
    given = {"model": "spoiled", "echo_times": (2e-3, 4e-3), "repetition_time": 0.04, "flip_angles": (0.1, 0.5)} | changes
    with pytest.raises((DataError, SettingError)) as error:
        Protocol(**given)
    assert error.value.field == field
    assert set(EVERY) == set(MODELS)


def test_maps_are_checked():
    with pytest.raises(DataError, match="NaN"):
        ParameterMap("T1", "s", torch.full((3, 2), torch.nan))
    with pytest.raises(DataError, match="map T1"):
        ParameterMap("T1", "s", torch.zeros(3, 2, dtype=torch.float64))
