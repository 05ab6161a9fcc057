"""The subspace data term against the exact sum over contrasts, and calibration from multi-contrast samples."""

from __future__ import annotations

import math

import pytest
import torch

from recon_core.calibration import calibrate
from recon_core.calibration.signal_subspace import signal_subspace
from recon_core.errors import DataError
from recon_core.operators import contrasts as module
from recon_core.operators.contrasts import ContrastTerm, HybridSamples, exact_cost
from recon_core.operators.nufft import Nufft
from recon_core.problem import KSpaceProblem
from recon_core.signal_models import Protocol, draw_tissues, signal_model

PROTOCOL = Protocol("spoiled", (2e-3, 7e-3, 15e-3), 40e-3, (math.radians(5), math.radians(25)))


def multi_contrast(shape: tuple[int, ...], coils: int = 3, share: float = 0.6, seed: int = 0, noise: float = 0.0):
    """A problem, its images and its maps."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.meshgrid(*[(torch.arange(n) - n // 2) / n for n in shape], indexing="ij")
    body = (sum((g / 0.4) ** 2 for g in grid) < 1).float()
    model = signal_model(PROTOCOL)
    values = {"T1": 0.6 + 0.8 * (grid[-1] > 0), "T2star": 0.03 + 0.02 * grid[-2], "off_resonance": 20 * grid[-1]}
    signals = model.signal({k: v.float().expand(shape).flatten() for k, v in values.items()}).reshape(-1, *shape)
    images = (body * signals).to(torch.complex64)
    maps = torch.stack(
        [
            torch.exp(-((grid[-1] - 0.5 * math.cos(a)) ** 2 + (grid[-2] - 0.5 * math.sin(a)) ** 2) + 1j * a * (1 + grid[-1]))
            for a in torch.linspace(0, 5, coils).tolist()
        ]
    ).to(torch.complex64)
    maps = maps / maps.abs().square().sum(0).sqrt()
    maps = maps * (maps[:1] / maps[:1].abs()).conj()
    places = torch.cartesian_prod(*[torch.arange(n) - n // 2 for n in reversed(shape[:-1])]).reshape(-1, len(shape) - 1)
    samples, trajectory, frames, count = [], [], [], 0
    for image in images:
        chosen = places[torch.rand(len(places), generator=generator) < share]
        n_x = shape[-1]
        k = torch.zeros(len(chosen), n_x, len(shape))
        k[..., 0] = torch.arange(n_x) - n_x // 2
        k[..., 1:] = chosen[:, None]
        lines = Nufft(k.reshape(-1, len(shape)), shape, "nudft").forward(maps * image)
        samples.append(lines.reshape(coils, -1, n_x))
        trajectory.append(k)
        frames.append(torch.arange(count, count + len(chosen)))
        count += len(chosen)
    y = torch.cat(samples, dim=1)
    y = y + noise * torch.randn(y.shape, dtype=torch.complex64, generator=generator)
    problem = KSpaceProblem(
        y, torch.cat(trajectory), tuple(frames), torch.arange(count, dtype=torch.float64), torch.arange(6, dtype=torch.float64), shape,
        cartesian=True, protocol=PROTOCOL,
    )  # fmt: skip
    return problem, images, maps


@pytest.mark.parametrize("shape", [(6, 10, 7), (9, 12)], ids=["volume", "slice"])
def test_cost_is_the_exact_sum(shape):
    problem, images, maps = multi_contrast(shape)
    data = HybridSamples.of(problem)
    full = torch.eye(6, dtype=torch.complex64)
    assert float(ContrastTerm(data, full).cost(images, maps)) < 1e-5 * float(problem.samples.abs().square().sum())
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(6, 4, dtype=torch.complex64, generator=generator))[0]
    bases = torch.randn(4, *shape, dtype=torch.complex64, generator=generator)
    series = torch.tensordot(basis, bases, dims=1)
    # Written out: every sample's residual by the exact Fourier sum.
    wanted = 0.0
    for number, readouts in enumerate(problem.frames):
        points = problem.trajectory[readouts].reshape(-1, len(shape))
        predicted = Nufft(points, shape, "nudft").forward(maps * series[number])
        wanted += 0.5 * float((predicted - problem.samples[:, readouts].flatten(1)).abs().square().sum())
    term = ContrastTerm(data, basis)
    assert float(term.cost(bases, maps)) == pytest.approx(wanted, rel=1e-4)
    assert float(exact_cost(data, series, maps, torch.arange(6))) == pytest.approx(wanted, rel=1e-4)


def test_gradients_in_chunks_are_autograds(monkeypatch):
    problem, _, maps = multi_contrast((4, 9, 10))
    basis = signal_subspace(PROTOCOL, 4).basis
    term = ContrastTerm(HybridSamples.of(problem), basis)
    generator = torch.Generator().manual_seed(5)
    bases = torch.randn(4, 4, 9, 10, dtype=torch.complex64, generator=generator).requires_grad_(True)
    free = (maps + 0.1 * torch.randn(maps.shape, dtype=torch.complex64, generator=generator)).requires_grad_(True)
    cost = term.cost(bases, free)
    cost.backward()
    for chunk in (1 << 23, 1500):
        monkeypatch.setattr(module, "_CHUNK", chunk)
        value, of_bases, of_maps = term.cost_and_gradients(bases, free)
        assert value == pytest.approx(cost.item(), rel=1e-5)
        torch.testing.assert_close(of_bases, bases.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(of_maps, free.grad, rtol=1e-4, atol=1e-4)
        normal = term.normal(bases.detach(), free.detach()) - term.adjoint(free.detach())
        torch.testing.assert_close(normal, bases.grad, rtol=1e-4, atol=1e-4)
    other = torch.randn(bases.shape, dtype=torch.complex64, generator=generator)
    left = torch.vdot(other.flatten(), term.normal(bases.detach(), maps).flatten())
    right = torch.vdot(term.normal(other, maps).flatten(), bases.detach().flatten())
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-3)


def test_curvature_is_of_the_linearised_data_term(monkeypatch):
    """``⟨d, H d⟩`` is twice the data term of E d without data, with E d = S dU + dS U written out by automatic differentiation."""
    problem, _, maps = multi_contrast((4, 9, 10))
    basis = signal_subspace(PROTOCOL, 4).basis
    term = ContrastTerm(HybridSamples.of(problem), basis)
    generator = torch.Generator().manual_seed(6)
    bases, d_bases = torch.randn(2, 4, 4, 9, 10, dtype=torch.complex64, generator=generator)
    d_maps = torch.randn(maps.shape, dtype=torch.complex64, generator=generator)
    spectrum = torch.func.jvp(lambda u, s: term._spectrum(term._shift(u), term._shift(s)), (bases, maps), (d_bases, d_maps))[1]
    wanted = float((spectrum.conj() * torch.bmm(term.gram, spectrum)).real.sum())
    for chunk in (1 << 23, 1500):
        monkeypatch.setattr(module, "_CHUNK", chunk)
        of_bases, of_maps = term.curvature(bases, maps, d_bases, d_maps)
        found = torch.vdot(d_bases.flatten(), of_bases.flatten()) + torch.vdot(d_maps.flatten(), of_maps.flatten())
        assert float(found.real) == pytest.approx(wanted, rel=1e-4)
        assert abs(float(found.imag)) < 1e-4 * wanted
        still, none = term.curvature(bases, maps, d_bases, None)
        assert none is None
        torch.testing.assert_close(still, term.normal(d_bases, maps), rtol=1e-4, atol=1e-4)


def test_maps_come_from_the_contrasts():
    """Contrasts of opposite phase would cancel in a time average."""
    problem, images, maps = multi_contrast((8, 20, 18), share=0.5, noise=1e-3)
    calibrated, calibration = calibrate(problem, 3)
    inside = images[0].abs() > 0.3 * images[0].abs().max()
    found = calibration.compression.conj().T @ calibrated.sensitivities.flatten(1)
    found = found.reshape(maps.shape)
    found = found * (found[:1] / found[:1].abs().clamp_min(1e-9)).conj()
    error = torch.linalg.vector_norm((found - maps)[:, inside]) / torch.linalg.vector_norm(maps[:, inside])
    assert float(error) < 0.1
    assert bool((calibrated.weights == 1).all())


def test_lines_that_are_not_whole_are_refused():
    problem, _, _ = multi_contrast((9, 12))
    mask = torch.ones(problem.trajectory.shape[:2], dtype=torch.bool)
    mask[3, :4] = False
    with pytest.raises(DataError, match="partly discarded"):
        HybridSamples.of(problem.replace(mask=mask))
    with pytest.raises(DataError, match="off the Cartesian grid"):
        HybridSamples.of(problem.replace(cartesian=False))
    with pytest.raises(DataError, match="10 samples along a matrix of 12"):
        HybridSamples.of(problem.replace(samples=problem.samples[..., :10], trajectory=problem.trajectory[:, :10].contiguous()))
    mask[3] = False
    assert HybridSamples.of(problem.replace(mask=mask)).samples.shape[1] == problem.n_readouts - 1


def test_a_problem_has_one_frame_a_contrast():
    problem, _, _ = multi_contrast((9, 12))
    with pytest.raises(DataError, match="6 contrasts"):
        problem.replace(frames=problem.frames[:-1], frame_times=problem.frame_times[:-1])


def test_draws_keep_to_their_ranges():
    drawn = draw_tissues(signal_model(PROTOCOL).parameters, 500, 12.0, 4)
    assert float(drawn["off_resonance"].abs().max()) <= 12
    assert 0.3 <= float(drawn["T1"].min()) < float(drawn["T1"].max()) <= 5
