"""P-INR and KP-INR: layers against their definitions, fits against the samples and the truth."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch

from recon_core.fields.complex_unet import ComplexConv, ComplexUnet, Recurrent
from recon_core.fields.kp import KpSizes, PositionEncoding
from recon_core.fields.wire import ComplexGabor
from recon_core.metrics import moving_region, score
from recon_core.options import build
from recon_core.reconstruct import ReconstructionSettings, reconstruct
from recon_core.solvers import hidden_lines
from recon_core.solvers.kp_inr import KpInr
from recon_core.solvers.p_inr import KSpaceFit, PInr

SMALL: dict[str, dict[str, Any]] = {
    "p_inr": {"points": 2048, "spatial_features": 128, "temporal_features": 16, "width": 48, "depth": 4},
    "kp_inr": {"points": 1024, "spatial_features": 128, "temporal_features": 16, "width": 32, "depth": 4, "channels": 4, "batch_frames": 4},
}
CLASSES: dict[str, type[KSpaceFit[Any]]] = {"p_inr": PInr, "kp_inr": KpInr}


def started(name: str, problem: Any, seed: int = 0, **settings: Any) -> KSpaceFit[Any]:
    cls = CLASSES[name]
    solver = cls(build(cls.Settings, {**SMALL[name], **settings}), seed=seed)
    solver.start(problem)
    return solver


def test_a_wavelet_layer_is_its_formula() -> None:
    layer = ComplexGabor(3, 5, omega=1.7, sigma=0.6, first=False)
    x = torch.randn(7, 3, dtype=torch.complex64)
    u = x @ layer.linear.weight.T + layer.linear.bias
    expected = torch.exp(1.7j * u - (0.6 * u.abs()) ** 2)
    torch.testing.assert_close(layer(x), expected)
    real = ComplexGabor(3, 5, omega=1.7, sigma=0.6, first=True)
    v = x.real @ real.linear.weight.T + real.linear.bias
    torch.testing.assert_close(real(x.real), torch.exp(1.7j * v - (0.6 * v) ** 2))


def test_a_complex_convolution_is_the_product_of_complex_numbers() -> None:
    layer = ComplexConv(2, 3)
    x = torch.randn(1, 2, 6, 5, dtype=torch.complex64)
    out = layer(torch.cat([x.real, x.imag], dim=1))
    weight = torch.complex(layer.real, layer.imag)
    expected = torch.nn.functional.conv2d(x, weight, padding=1)
    torch.testing.assert_close(torch.complex(*out.chunk(2, dim=1)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backwards", [False, True])
def test_recurrence_looks_one_way_in_time(backwards: bool) -> None:
    layer = Recurrent(2, backwards)
    x = torch.randn(5, 4, 6, 7)
    other = x.clone()
    other[2] += 1
    changed = ((layer(x) - layer(other)).abs().flatten(1).amax(1) > 0).tolist()
    assert changed == ([True, True, True, False, False] if backwards else [False, False, True, True, True])


def test_the_unet_looks_both_ways_and_gradients_reach_all_of_it() -> None:
    net = ComplexUnet(coils=3, channels=2)
    x = torch.randn(4, 3, 8, 9, dtype=torch.complex64)
    features, decoded = net(x)
    assert features.shape == (4, 4, 8, 9)
    assert decoded.shape == x.shape
    other = x.clone()
    other[2] += 1
    assert bool(((net(other)[0] - features).abs().flatten(1).amax(1) > 0).all())
    (decoded - x).abs().square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in net.parameters())


def test_octaves_end_where_the_grid_does() -> None:
    sizes = KpSizes(spatial=64, temporal=8, support=0.25, bandwidth=1.0, width=8, depth=3, omega=1.0, sigma=0.5)
    encoding = PositionEncoding((20, 32), sizes, seed=0)
    assert encoding.count == 5
    assert encoding.out_dim == 64 + 8
    points = torch.tensor([[0.0, 0.0, -1.0], [1.0, 0.0, -1.0], [0.0, 3.0, 0.5]])
    features = encoding(points)
    assert features.shape == (3, 72)
    # The highest octave of kx: one grid step of 2/32 is 2⁴ · π · 2/32 = π.
    assert float(features[1, 4]) == pytest.approx(math.sin(math.pi), abs=1e-4)
    assert float(features[1, 3]) == pytest.approx(math.sin(math.pi / 2), abs=1e-4)


@pytest.mark.parametrize("name", ["p_inr", pytest.param("kp_inr", marks=pytest.mark.slow)])
def test_a_fully_sampled_frame_is_fitted(name: str, toy: ModuleType) -> None:
    """The network's own k-space, nothing measured put back, gives the frame to 40 dB."""
    shape = (20, 18)
    problem, truth = toy.toy_cartesian(n_frames=1, shape=shape, coils=2, acceleration=1)
    solver = started(name, problem.replace(sensitivities=toy.toy_maps(2, shape)), steps=700, learning_rate=4e-3, weight_decay=0.0)
    while not solver.done:
        solver.update()
    if isinstance(solver, KpInr):
        solver.first = None
    with torch.no_grad():
        images = solver.frames.combine(solver._predict() * solver.envelope * solver.scale)
    error = (images - truth).abs().square().mean()
    assert 10 * math.log10(float(truth.abs().max() ** 2 / error)) > 40


@pytest.mark.parametrize("name", CLASSES)
def test_measured_samples_stay_as_they_are(name: str, toy: ModuleType) -> None:
    shape = (16, 22)
    problem, _ = toy.toy_cartesian(n_frames=6, shape=shape, coils=2)
    solver = started(name, problem.replace(sensitivities=toy.toy_maps(2, shape)), steps=3)
    solver.update()
    with torch.no_grad():
        kspace = solver._completed()
    where = solver.frames.measured[:, None].expand_as(kspace)
    assert torch.equal(kspace[where], solver.frames.samples[where])
    assert bool((kspace[~where] != 0).all())


def kp(toy: ModuleType, **settings: Any) -> KpInr:
    shape = (16, 14)
    problem, _ = toy.toy_cartesian(n_frames=6, shape=shape, coils=2)
    solver = started("kp_inr", problem.replace(sensitivities=toy.toy_maps(2, shape)), **settings)
    assert isinstance(solver, KpInr)
    return solver


def test_the_unet_sees_the_completed_kspace_in_turn(toy: ModuleType) -> None:
    solver = kp(toy, steps=9, refreshes=2, first_guess="zero")
    guesses = []
    while not solver.done:
        solver.update()
        guesses.append(solver.guess)
    assert len({id(g) for g in guesses}) == 3
    assert bool((guesses[0] == 0).all())
    assert bool((guesses[-1] != 0).all())
    seen, measured = solver._seen(), solver.frames.measured[:, None].expand_as(solver.targets)
    torch.testing.assert_close(
        seen * solver.envelope * solver.scale, torch.where(measured, solver.frames.samples, seen * solver.envelope * solver.scale)
    )
    assert torch.equal(seen[~measured], guesses[-1][-1][~measured])


def test_folds_share_the_lines_that_not_every_frame_has(toy: ModuleType) -> None:
    solver = kp(toy, hidden=0.25, first_guess="zero")
    measured, hidden = solver.frames.measured, solver.hidden
    always = measured.any(-1).all(0)
    assert 0 < int(always.sum()) < len(always)
    assert hidden.shape == (4, *measured.shape)
    assert int(hidden.sum(0).max()) == 1
    assert torch.equal(hidden.any(0), measured & ~always[None, :, None])
    each = hidden.any(-1).sum((1, 2))
    assert int(each.max() - each.min()) <= 1
    assert torch.equal(hidden.any(-1), hidden[:, :, :, measured.any(0).any(0)].all(-1))


def test_a_step_is_fitted_to_lines_that_the_unet_does_not_see(toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    solver = kp(toy, hidden=0.5, batch_frames=6, first_guess="zero")
    given: list[torch.Tensor] = []
    aims: list[torch.Tensor] = []
    unet, drawn = solver.field.unet.forward, solver._drawn
    monkeypatch.setattr(solver.field.unet, "forward", lambda series: (given.append(series), unet(series))[1])
    monkeypatch.setattr(solver, "_drawn", lambda where: (aims.append(where), drawn(where))[1])
    solver.update()
    (series,), (hidden,) = given, aims
    measured = solver.frames.measured
    assert any(torch.equal(hidden, fold) for fold in solver.hidden)
    assert bool((series[hidden[:, None].expand_as(series)] == 0).all())
    assert bool((series[(measured & ~hidden)[:, None].expand_as(series)] != 0).all())


@pytest.mark.parametrize("refreshed", [False, True])
def test_a_line_is_guessed_without_its_own_samples(refreshed: bool, toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden_lines, "SELECTED_LOW_RANK", (0.01,))
    monkeypatch.setattr(hidden_lines, "SELECTED_SPARSE", (0.01,))
    shape = (16, 14)
    problem, _ = toy.toy_cartesian(n_frames=6, shape=shape, coils=2)
    problem = problem.replace(sensitivities=toy.toy_maps(2, shape))
    before = started("kp_inr", problem)
    assert isinstance(before, KpInr)
    fold, frame, line = torch.nonzero(before.hidden.any(-1))[0].tolist()
    lines = problem.trajectory[:, 0, 1].round().to(torch.int64) + shape[0] // 2
    (readout,) = [r for r in problem.frames[frame].tolist() if lines[r] == line]
    samples = problem.samples.clone()
    samples[:, readout] *= 0.5
    after = started("kp_inr", problem.replace(samples=samples))
    assert isinstance(after, KpInr)
    after.envelope, after.scale = before.envelope, before.scale
    made = []
    for solver in (before, after):
        guess = hidden_lines.low_rank_sparse_guesses(solver.problem, solver.frames, folded(solver), solver.hidden, 0)
        solver.first = solver.guess = guess / (solver.scale * solver.envelope)
        solver.targets = solver.frames.samples / solver.scale
        if refreshed:
            solver._refresh()
        made.append(solver.guess)
    torch.testing.assert_close(made[0][fold], made[1][fold])
    assert all(not torch.allclose(made[0][other], made[1][other]) for other in range(len(made[0])) if other != fold)


def test_the_first_guess_takes_part_in_the_mean(toy: ModuleType) -> None:
    solver = kp(toy)
    assert solver.first is not None
    with torch.no_grad():
        together = solver._predict()
        first, solver.first = solver.first, None
        torch.testing.assert_close(together, (2 * solver._predict() + first[-1]) / 3)


def folded(solver: KpInr) -> torch.Tensor:
    generator = torch.Generator().manual_seed(solver.seed + 1)
    return hidden_lines.folds(solver.problem, solver.frames, len(solver.hidden), generator)


def test_what_every_frame_has_is_not_hidden(toy: ModuleType) -> None:
    problem, _ = toy.toy_cartesian(n_frames=3, shape=(12, 14), coils=2, acceleration=1)
    solver = started("kp_inr", problem.replace(sensitivities=toy.toy_maps(2, (12, 14))))
    assert isinstance(solver, KpInr)
    assert len(solver.hidden) == 0
    assert len(solver.guess) == 1


@pytest.mark.parametrize("name", CLASSES)
def test_another_seed_is_another_fit(name: str, toy: ModuleType) -> None:
    problem, _ = toy.toy_cartesian(n_frames=4, shape=(12, 14), coils=2)
    problem = problem.replace(sensitivities=toy.toy_maps(2, (12, 14)))
    fits = []
    for seed in (0, 1):
        solver = started(name, problem, seed=seed, steps=2)
        solver.update()
        fits.append(solver.images().images)
    assert not torch.equal(fits[0], fits[1])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("p_inr", 400), ("kp_inr", 400)])
def test_a_cine_beats_its_time_average(name: str, steps: int, toy: ModuleType) -> None:
    problem, truth = toy.toy_cartesian(n_frames=12, shape=(28, 24), coils=3, acceleration=4, noise=0.01)
    settings = ReconstructionSettings(solver=name, coils=3, device="cpu")
    result = reconstruct(problem, settings, {**SMALL[name], "steps": steps})
    found = score(result.series.images.numpy(), truth.numpy(), moving_region(truth.numpy()))
    assert found["psnr_db"] > found["time_average_psnr_db"]
    assert found["dynamic_error"] < 0.8
    assert result.report["steps"] <= steps
