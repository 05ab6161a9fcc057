"""Frames measured one by one, running sums, tracking and smoothing, each against exact sums or a dense solve."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from recon_core.calibration.calibrate import calibrate
from recon_core.online.measured import FrameEncoder, SlidingGridding
from recon_core.online.model import gauge, sliding_series, smooth_coefficients
from recon_core.online.running import RunningSums
from recon_core.online.tracker import Model, Tracker, coil_spectra, spectral_products
from recon_core.operators.nufft import Nufft
from recon_core.operators.subspace_normal import SubspaceNormal
from recon_core.solvers.base import NoSettings
from recon_core.solvers.gridding import Gridding
from tests.recon_core.toy import toy_problem

SHAPE = (18, 14)
RANK = 4


def one(problem, frame):
    """One frame of a problem as a problem of its own."""
    keep = torch.zeros(problem.n_readouts, dtype=torch.bool)
    keep[problem.frames[frame]] = True
    kept = problem.keep_readouts(keep)
    return kept.replace(frames=(torch.arange(kept.n_readouts),), frame_times=problem.frame_times[frame : frame + 1])


@pytest.fixture(scope="module")
def problem():
    made, _ = toy_problem(n_frames=16, shape=SHAPE, coils=3, per_frame=3, noise=0.05)
    mask = torch.ones(made.trajectory.shape[:2], dtype=torch.bool)
    mask[::4, :3] = False
    return made.replace(mask=mask)


@pytest.fixture(scope="module")
def encoder(problem):
    return FrameEncoder(problem, coils=2, engine="nudft")


@pytest.fixture(scope="module")
def frames(problem, encoder):
    return [encoder.measure(one(problem, n), gridded=True) for n in range(problem.n_frames)]


@pytest.fixture(scope="module")
def bases():
    return torch.randn((RANK, *SHAPE), dtype=torch.complex64, generator=torch.Generator().manual_seed(3))


def exact(problem, encoder, frame):
    """Compressed samples, weights and transform of one frame, by its readouts alone."""
    part = one(problem, frame)
    used = part.mask.flatten()
    points = part.trajectory.flatten(0, 1)[used]
    samples = torch.einsum("vc,crs->vrs", encoder.compression, part.samples).flatten(1)[:, used]
    weights = encoder.weights.repeat(part.n_readouts)[used]
    return Nufft(points, SHAPE, "nudft"), samples, weights


def model_of(bases, encoder, noise=1.0, innovation=None, last=None):
    spread = 1e-2 * torch.eye(RANK, dtype=torch.float64) if innovation is None else innovation
    start = torch.zeros(RANK, dtype=torch.float64) if last is None else last
    spectra = coil_spectra(bases, encoder.sensitivities)
    return Model(bases, spectra, spectral_products(spectra), start, spread, noise, 0.0, 1)


def test_a_measured_frame_is_its_data_term(problem, encoder, frames, bases):
    image = bases[0]
    for number in (0, 5):
        nufft, samples, weights = exact(problem, encoder, number)
        residual = nufft.forward(encoder.sensitivities * image) - samples
        wanted = float((weights * residual.abs().square()).sum())
        frame = frames[number]
        normal, target = model_of(bases, encoder).grams([frame])
        got = float(normal[0, 0, 0] - 2 * target[0, 0]) + frame.energy
        assert got == pytest.approx(wanted, rel=1e-4)
        assert frame.weight == pytest.approx(float(weights.sum()) * samples.shape[0], rel=1e-6)


def test_normal_matrices_are_those_of_the_exact_sum(problem, encoder, frames, bases):
    normal, target = model_of(bases, encoder).grams(frames[:3])
    for number in range(3):
        nufft, samples, weights = exact(problem, encoder, number)
        seen = nufft.forward(encoder.sensitivities[None] * bases[:, None])
        wanted = torch.einsum("kcp,lcp->kl", seen.conj(), seen * weights).real
        right = torch.einsum("kcp,cp->k", seen.conj(), samples * weights).real
        assert torch.linalg.norm(normal[number].float() - wanted) < 1e-4 * torch.linalg.norm(wanted)
        assert torch.linalg.norm(target[number].float() - right) < 1e-4 * torch.linalg.norm(right)


def test_weights_are_the_start_blocks_mean(problem, encoder):
    calibrated, _ = calibrate(problem, 2, "nudft")
    sample = 7
    mean = calibrated.weights[:, sample][problem.mask[:, sample]].mean()
    assert float(encoder.density[sample]) == pytest.approx(float(mean), rel=1e-5)
    assert float(encoder.weights.max()) == 1.0


def test_a_window_of_all_frames_is_the_gridded_average(problem, encoder, frames):
    window = SlidingGridding(encoder, problem.n_readouts)
    for frame in frames:
        image = window.image(frame)
    whole = problem.replace(frames=(torch.arange(problem.n_readouts),), frame_times=problem.frame_times[:1])
    calibrated, _ = calibrate(whole, 2, "nudft")
    solver = Gridding(NoSettings(), engine="nudft")
    solver.start(calibrated)
    solver.update()
    wanted = solver.images().images[0]
    # Weights are averaged over readouts here, and not there.
    assert torch.linalg.norm(image - wanted) < 0.08 * torch.linalg.norm(wanted)


def test_the_gridding_window_forgets(encoder, frames):
    window = SlidingGridding(encoder, 6)
    for frame in frames:
        image = window.image(frame)
    wanted = (frames[-1].gridded + frames[-2].gridded) * encoder.start_readouts / 6
    torch.testing.assert_close(image, wanted)


@pytest.mark.parametrize("forget", [1.0, 0.9])
def test_running_sums_are_the_window_alone(problem, encoder, frames, bases, forget):
    generator = torch.Generator().manual_seed(0)
    temporal = torch.randn((RANK, len(frames)), generator=generator)
    sums = RunningSums(encoder.sensitivities, forget)
    sums.add(frames[:9], temporal[:, :9])
    sums.drop(4)
    sums.add(frames[9:], temporal[:, 9:])
    sums.drop(3)
    kept = list(range(7, len(frames)))
    weight = torch.tensor([forget ** (len(frames) - 1 - n) for n in kept])
    rows = temporal[:, kept]
    spectra = torch.stack([frames[n].spectrum for n in kept]).reshape(len(kept), 2 * SHAPE[0], 2 * SHAPE[1])
    wanted = SubspaceNormal(spectra * weight[:, None, None], encoder.sensitivities, rows)(bases)
    got = sums.normal()(bases)
    assert torch.linalg.norm(got - wanted) < 1e-5 * torch.linalg.norm(wanted)
    adjoint = torch.stack([frames[n].adjoint for n in kept])
    target = torch.einsum("kt,tyx->kyx", (rows * weight).to(adjoint.dtype), adjoint)
    torch.testing.assert_close(sums.target(), target.to(torch.complex64), rtol=1e-4, atol=1e-4)
    assert torch.equal(sums.temporal(), rows)


def test_frames_leave_with_the_v_with_which_they_entered(encoder, frames):
    """After a rebuild with another V, dropping must take away that one."""
    sums = RunningSums(encoder.sensitivities, 0.97)
    temporal = torch.randn((RANK, 8), generator=torch.Generator().manual_seed(1))
    sums.add(frames[:8], temporal)
    sums.rebuild(2 * temporal)
    sums.drop(7)
    alone = RunningSums(encoder.sensitivities)
    alone.add(frames[7:8], 2 * temporal[:, 7:])
    torch.testing.assert_close(sums.target(), alone.target(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums.normal().kernel, alone.normal().kernel, rtol=1e-4, atol=1e-4)


def test_many_rounds_leave_no_rounding_behind(encoder, frames):
    sums = RunningSums(encoder.sensitivities)
    generator = torch.Generator().manual_seed(2)
    sums.add(frames[:2], 1e3 * torch.randn((RANK, 2), generator=generator))
    for _ in range(300):
        sums.add(frames[2:4], 1e3 * torch.randn((RANK, 2), generator=generator))
        sums.drop(2)
    last = torch.randn((RANK, 1), generator=generator)
    sums.add(frames[5:6], last)
    sums.drop(2)
    alone = RunningSums(encoder.sensitivities)
    alone.add(frames[5:6], last)
    assert torch.linalg.norm(sums.target() - alone.target()) < 1e-3 * torch.linalg.norm(alone.target())


def test_mass_is_that_of_the_weighted_frames(encoder, frames):
    temporal = torch.randn((RANK, 9), generator=torch.Generator().manual_seed(4))
    sums = RunningSums(encoder.sensitivities, 0.9)
    sums.add(frames[:9], temporal)
    sums.drop(2)
    rows = temporal[:, 2:].double() * torch.tensor([0.9 ** (n / 2) for n in range(6, -1, -1)], dtype=torch.float64)
    assert sums.largest_mass() == pytest.approx(float(torch.linalg.matrix_norm(rows, 2)) ** 2, rel=1e-6)


def test_sliding_series_of_still_frames_is_the_frame_at_low_resolution():
    """A wave that the window of k-space holds comes out with its taper, one beyond it not at all."""
    x = (torch.arange(14.0) - 7).expand(18, 14)
    slow, fast = (torch.exp(2j * torch.pi * k * x / 14) for k in (2, 6))
    found = sliding_series((slow + fast).expand(5, 18, 14).contiguous(), [2, 2, 4, 2, 2], 8)
    assert found.shape == (5, 8, 8)
    taper = torch.hann_window(10, periodic=False)[1:-1].sqrt()
    wanted = float(taper[4] * taper[6] * (18 * 14 / 64) ** 0.5)
    for image in found:
        torch.testing.assert_close(image.abs(), torch.full((8, 8), wanted), rtol=1e-5, atol=1e-5)


def test_sliding_series_weighs_neighbours_by_the_readouts_between():
    images = torch.zeros((6, 8, 8), dtype=torch.complex64)
    images[2] = 1
    found = sliding_series(images, [4] * 6, 4).abs().amax(dim=(1, 2))
    shares = []
    for t in range(6):
        weights = [max(0.0, 1 - 4 * abs(t - s) / 8) for s in range(6)]
        shares.append(weights[2] / sum(weights))
    torch.testing.assert_close(found / found[2], torch.tensor(shares) / shares[2], rtol=1e-5, atol=1e-6)


def system(frames=6, seed=0):
    """Random data terms, innovation and noise."""
    generator = torch.Generator().manual_seed(seed)
    roots = torch.randn((frames, RANK, RANK + 2), generator=generator, dtype=torch.float64)
    normal = roots @ roots.mT
    target = torch.randn((frames, RANK), generator=generator, dtype=torch.float64)
    root = torch.randn((RANK, RANK), generator=generator, dtype=torch.float64)
    return normal, target, 0.1 * root @ root.T + 0.05 * torch.eye(RANK, dtype=torch.float64)


def dense(normal, target, innovation, noise, steps, last=None):
    """The same minimum as one large linear system; ``last``: V before the first frame, tied to it."""
    n = len(target)
    tie = torch.linalg.inv(innovation)
    matrix = torch.block_diag(*(2 / noise * normal))
    right = (2 / noise * target).flatten()
    for t in range(n):
        here = slice(t * RANK, (t + 1) * RANK)
        before = slice((t - 1) * RANK, t * RANK)
        if t or last is not None:
            matrix[here, here] += tie / steps[t]
        if t:
            matrix[before, before] += tie / steps[t]
            matrix[here, before] -= tie / steps[t]
            matrix[before, here] -= tie / steps[t]
    if last is not None:
        right[:RANK] += tie @ last / steps[0]
    return torch.linalg.solve(matrix, right).reshape(n, RANK)


def test_smoothing_is_the_dense_minimum():
    normal, target, innovation = system()
    steps = [1, 2, 1, 1, 3, 1]
    got = smooth_coefficients(normal, target, innovation, 0.7, steps)
    torch.testing.assert_close(got, dense(normal, target, innovation, 0.7, steps), rtol=1e-6, atol=1e-8)


def test_the_tracker_gives_the_last_frame_of_the_dense_minimum(encoder, frames, bases):
    """A Kalman filter's newest state is that of the whole past smoothed."""
    _, _, innovation = system()
    chosen = [dataclasses.replace(frame, steps=1 + n % 2) for n, frame in enumerate(frames[:5])]
    last = torch.tensor([0.3, -0.2, 0.1, 0.5], dtype=torch.float64)
    model = model_of(bases, encoder, 0.8, innovation, last)
    tracker = Tracker(model)
    tracker._covariance = torch.zeros((RANK, RANK), dtype=torch.float64)
    got = tracker.solve(chosen).coefficients.double()
    normal, target = model.grams(chosen)
    for n in range(1, 6):
        wanted = dense(normal[:n], target[:n], innovation, 0.8, [f.steps for f in chosen[:n]], last)[-1]
        torch.testing.assert_close(got[n - 1], wanted, rtol=1e-4, atol=1e-5)


def test_tracking_in_parts_is_tracking_at_once(encoder, frames, bases):
    whole, parts = Tracker(model_of(bases, encoder)), Tracker(model_of(bases, encoder))
    at_once = whole.solve(frames)
    apart = [parts.solve(frames[:7]), parts.solve(frames[7:])]
    torch.testing.assert_close(torch.cat([p.coefficients for p in apart]), at_once.coefficients, rtol=1e-4, atol=1e-6)


def test_the_held_out_error_does_not_see_its_own_frame(encoder, frames, bases):
    """Altering a frame's samples changes its error only through the residual of the prediction made before."""
    model = model_of(bases, encoder)
    tracker = Tracker(model)
    before = tracker._state.clone()
    normal, target = model.grams(frames[:1])
    misfit = frames[0].energy - 2 * before @ target[0] + before @ normal[0] @ before
    assert float(tracker.solve(frames[:1]).errors[0]) == pytest.approx(float(misfit) / frames[0].weight, rel=1e-9)


def test_following_turned_bases_changes_no_image(encoder, frames, bases):
    turn = torch.linalg.qr(torch.randn((RANK, RANK), generator=torch.Generator().manual_seed(4)))[0]
    old = model_of(bases, encoder, last=torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64))
    turned = torch.tensordot(turn.to(bases.dtype), bases, dims=1)
    tracker = Tracker(old)
    tracker.follow(model_of(turned, encoder))
    image = turned.flatten(1).T @ tracker._state.to(turned.dtype)
    torch.testing.assert_close(image, bases.flatten(1).T @ old.last.to(bases.dtype), rtol=1e-4, atol=1e-4)


def test_the_gauge_keeps_the_series(bases):
    temporal = torch.randn((RANK, 9), generator=torch.Generator().manual_seed(5))
    turned, rows, singular, move = gauge(bases, temporal)
    series = torch.tensordot(temporal.T.to(bases.dtype), bases, dims=1)
    torch.testing.assert_close(torch.tensordot(rows.T.to(bases.dtype), turned, dims=1), series, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rows @ rows.T, torch.eye(RANK), rtol=0, atol=1e-4)
    torch.testing.assert_close(move @ temporal.double(), rows.double(), rtol=1e-4, atol=1e-5)
    norms = torch.view_as_real(turned).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, singular, rtol=1e-4, atol=1e-4)
    assert bool((singular[1:] <= singular[:-1]).all())
