"""The voxel-wise fit gives back what the models were made from."""

from __future__ import annotations

import math

import pytest
import torch

from recon_core.calibration.signal_subspace import signal_subspace
from recon_core.errors import DataError
from recon_core.parameter_fit import fit_maps, fit_parameters, from_fitted, object_mask, signal_and_derivatives, to_fitted
from recon_core.signal_models import Protocol, draw_tissues, signal_model

PROTOCOLS = {
    "spoiled": Protocol("spoiled", (2.15e-3, 8.25e-3, 14.35e-3, 26.5e-3), 46e-3, tuple(math.radians(a) for a in (5, 20, 40))),
    "t2_inversion": Protocol("t2_inversion", (4.5e-3, 11.2e-3, 24.6e-3), 30e-3, (math.radians(10),), (25e-3, 50e-3, 90e-3), 12),
    "decay": Protocol("decay", (4e-3, 9e-3, 15e-3, 30e-3)),
}


@pytest.mark.parametrize("reduced", [False, True], ids=["contrasts", "subspace"])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_noise_free_parameters_come_back_within_one_percent(name, reduced):
    protocol = PROTOCOLS[name]
    model = signal_model(protocol)
    values = {k: v.float() for k, v in draw_tissues(model.parameters, 60, 30.0, 11).items()}
    generator = torch.Generator().manual_seed(2)
    amplitude = torch.polar(0.5 + torch.rand(60, generator=generator), 6 * torch.rand(60, generator=generator))
    basis = signal_subspace(protocol).basis if reduced else None
    data = amplitude * (model.signal(values) if basis is None else model.project(values, basis))
    found = fit_parameters(model, data, basis)
    for parameter in model.parameters:
        wanted = values[parameter.name]
        scale = wanted.abs().clamp_min({"off_resonance": 1.0, "R2star": 1.0}.get(parameter.name, 0.0))
        assert float(((found.values[parameter.name] - wanted).abs() / scale).max()) < 0.01, parameter.name
    assert float((found.amplitude - amplitude).abs().max()) < 0.01
    assert float(found.residual.max()) < 1e-3


def test_a_rate_stops_at_zero_unless_it_may_be_negative():
    rising = torch.tensor([1.0, 1.02, 1.05, 1.1])[:, None].to(torch.complex64)
    bounded = fit_parameters(signal_model(PROTOCOLS["decay"]), rising)
    assert float(bounded.values["R2star"][0]) == 0
    # The amplitude is the best for the rate as it stands, not that of the fit without a bound.
    assert float(bounded.amplitude[0].abs()) == pytest.approx(float(rising.real.mean()), rel=1e-4)
    free = fit_parameters(signal_model(PROTOCOLS["decay"], negative_rates=True), rising)
    assert float(free.values["R2star"][0]) < -2
    assert float(free.residual[0]) < float(bounded.residual[0])
    assert signal_model(PROTOCOLS["spoiled"], negative_rates=True).parameters == signal_model(PROTOCOLS["spoiled"]).parameters


def test_maps_and_mask():
    protocol = PROTOCOLS["spoiled"]
    model = signal_model(protocol)
    shape = (3, 5, 4)
    values = {"T1": torch.full((60,), 1.1), "T2star": torch.full((60,), 0.04), "off_resonance": torch.full((60,), -7.0)}
    series = (2.0 * model.signal(values) * torch.exp(torch.tensor(0.4j))).reshape(-1, *shape).clone()
    series[:, 0] *= 0.01
    mask = object_mask(series)
    assert bool((mask == torch.tensor([False, True, True])[:, None, None]).all())
    maps = {m.name: m for m in fit_maps(model, series)}
    assert [maps[n].unit for n in ("T1", "T2star", "off_resonance", "PD", "phase")] == ["s", "s", "Hz", "", "rad"]
    for name, wanted in (("T1", 1.1), ("T2star", 0.04), ("off_resonance", -7.0), ("PD", 2.0), ("phase", 0.4)):
        inside = maps[name].values[1:]
        torch.testing.assert_close(inside, torch.full_like(inside, wanted), rtol=2e-3, atol=0)
        assert not bool(maps[name].values[0].any())
    assert maps["phase"].signed
    assert not maps["T1"].signed
    rates = {m.name: m.values for m in fit_maps(signal_model(PROTOCOLS["decay"]), torch.ones(4, 2, 2, dtype=torch.complex64))}
    assert {"R2star", "T2star"} <= set(rates)


def test_what_cannot_be_fitted_is_refused():
    model = signal_model(PROTOCOLS["decay"])
    with pytest.raises(DataError, match="K, voxel"):
        fit_parameters(model, torch.ones(3, 5, dtype=torch.complex64))
    with pytest.raises(DataError, match="NaN"):
        fit_parameters(model, torch.full((4, 5), torch.nan, dtype=torch.complex64))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_derivatives_are_those_of_the_projected_signal(name):
    """Sums taken once and shared against forward-mode differentiation of the whole."""
    model = signal_model(PROTOCOLS[name])
    basis = signal_subspace(PROTOCOLS[name], 6).basis
    values = draw_tissues(model.parameters, 40, 30.0, 3)
    fitted = torch.stack([to_fitted(p, values[p.name].float()) for p in model.parameters])

    def signal(point):
        return model.project(from_fitted(model, point), basis)

    found, derivatives = signal_and_derivatives(model, fitted, basis)
    torch.testing.assert_close(found, signal(fitted))
    for number in range(len(fitted)):
        tangent = torch.zeros_like(fitted)
        tangent[number] = 1
        expected = torch.func.jvp(signal, (fitted,), (tangent,))[1]
        assert float(expected.abs().max()) > 0
        torch.testing.assert_close(derivatives[number], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
